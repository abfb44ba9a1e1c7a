#!/usr/bin/env bash
# KAFKA_LOG_DIRS=x becomes log.dirs=x, as in Apache Kafka's own image; the storage is formatted once.
set -euo pipefail
properties=/tmp/server.properties
: >"$properties"
while IFS='=' read -r -d '' name value; do
    case "$name" in
        KAFKA_HEAP_OPTS | KAFKA_OPTS) ;;
        KAFKA_*)
            key=${name#KAFKA_}
            key=${key,,}
            echo "${key//_/.}=$value" >>"$properties"
            ;;
    esac
done < <(env -0)
# shellcheck disable=SC2206 -- options are words
run=(java ${KAFKA_HEAP_OPTS:-} -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:+ExitOnOutOfMemoryError
    -Djava.awt.headless=true -Dlog4j2.level=WARN -cp '/opt/kafka/libs/*')
"${run[@]}" kafka.tools.StorageTool format --ignore-formatted -t "$CLUSTER_ID" -c "$properties"
exec "${run[@]}" kafka.Kafka "$properties"

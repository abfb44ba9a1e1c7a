#!/usr/bin/env bash
# mongod as a replica set of one, with authentication: transactions and change streams need the set.
set -euo pipefail
# Members of the set prove themselves with the key file, which mongod wants for itself alone.
install -m 0400 /run/secrets/mongo_key_file /tmp/mongo.key
# A command that mongod calls slow is quoted in its log, with the values of the documents: patient names.
exec mongod --slowms 2147483647 --dbpath /data/db --bind_ip_all --port 27017 --replSet rs0 --keyFile /tmp/mongo.key \
    --unixSocketPrefix /tmp --wiredTigerCacheSizeGB "${MONGO_CACHE_GB:-0.5}"

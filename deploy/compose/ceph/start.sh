#!/usr/bin/env bash
# A Ceph monitor, one OSD and an S3 gateway with Object Lock in one container: for a machine of its own, not for patients.
# Nothing here is redundant: one copy, on one disk, without a manager. Production has a Ceph cluster, or another store
# that passes `isocenter probe-tier`.
# Objects are in /data and survive the container. Keys of the S3 user are read from secrets.
set -euo pipefail

data=/data
run=/tmp/ceph
conf=$run/ceph.conf
user=isocenter
access_key=$(cat /run/secrets/isocenter_s3_access_key)
secret_key=$(cat /run/secrets/isocenter_s3_secret_key)
block_bytes=${CEPH_BLOCK_BYTES:-17179869184}

rm -rf "$run"
mkdir -p "$run" "$data/mon" "$data/osd" "$data/rgw"
[ -s "$data/fsid" ] || cat /proc/sys/kernel/random/uuid >"$data/fsid"
fsid=$(cat "$data/fsid")
address='[v2:127.0.0.1:3300,v1:127.0.0.1:6789]'

# Debian's package names the folder of object classes by a relative path, which ends the gateway with -95.
classes=$(find /usr/lib /usr/lib64 -maxdepth 3 -type d -name rados-classes 2>/dev/null | head -n 1)

cat >"$conf" <<EOF
[global]
fsid = $fsid
mon host = $address
mon initial members = a
auth cluster required = none
auth service required = none
auth client required = none
public addr = 127.0.0.1
cluster addr = 127.0.0.1
run dir = $run
admin socket = $run/\$name.asok
pid file = $run/\$name.pid
log to file = false
log to stderr = true
err to stderr = true
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon warn on pool no redundancy = false
osd crush chooseleaf type = 0
mon data avail crit = 1
mon data avail warn = 2
mon max pg per osd = 1000
osd class dir = $classes
[mon]
mon data = $data/mon
paxos propose interval = 0.05
[osd]
osd data = $data/osd
osd objectstore = bluestore
bluestore block size = $block_bytes
osd memory target = 939524096
[client.rgw]
rgw data = $data/rgw
rgw frontends = beast port=7480
# The gateway's own default is the secure mode, which without keys hangs for ever.
ms mon client mode = crc
EOF

ceph_() { ceph -c "$conf" --connect-timeout 30 "$@"; }
admin() { radosgw-admin -c "$conf" -n client.rgw "$@"; }

# A first start that was cut off begins again.
if [ ! -e "$data/made" ]; then
    rm -rf "${data:?}/mon" "${data:?}/osd"
    mkdir -p "$data/mon" "$data/osd"
    monmaptool --create --clobber --addv a "$address" --fsid "$fsid" "$run/monmap" >/dev/null
    ceph-mon -c "$conf" -i a --mkfs --monmap "$run/monmap"
fi
ceph-mon -c "$conf" -i a -f &
mon=$!
if [ ! -e "$data/made" ]; then
    osd_uuid=$(cat /proc/sys/kernel/random/uuid)
    ceph_ osd new "$osd_uuid" >/dev/null
    ceph-osd -c "$conf" -i 0 --mkfs --osd-uuid "$osd_uuid"
else
    # The monitor still believes in the OSD of the container before.
    ceph_ osd down 0 || true
fi
ceph-osd -c "$conf" -i 0 -f &
osd=$!
until ceph_ osd stat | grep -q ' 1 up'; do sleep 0.2; done
radosgw -c "$conf" -n client.rgw -f &
gateway=$!

# Gateway, OSD, monitor: each after what needs it.
stop() {
    trap - TERM INT
    kill "$gateway" 2>/dev/null && wait "$gateway" || true
    kill "$osd" 2>/dev/null && wait "$osd" || true
    kill "$mon" 2>/dev/null && wait "$mon" || true
    exit 0
}
trap stop TERM INT

until (: <>/dev/tcp/127.0.0.1/7480) 2>/dev/null; do sleep 0.2; done
if ! admin user info --uid="$user" >/dev/null 2>&1; then
    admin user create --uid="$user" --display-name="$user" --access-key="$access_key" --secret-key="$secret_key" >/dev/null
fi
touch "$data/made" "$run/ready"
echo "S3 answers on port 7480"
wait -n || true
echo "a daemon has ended: so does the container" >&2
exit 1

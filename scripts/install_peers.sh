#!/bin/sh
# Installs the programs that the conformance tests and the ingest benchmark stand beside: DCMTK, Orthanc and
# Orthanc's DICOMweb plugin, as Debian packages. Safe to run again. Exits 0 where it cannot install: the tests
# then say loudly what they did not run (and fail instead of skipping when CI=true on Debian as root).
set -eu

packages="dcmtk orthanc orthanc-dicomweb"
policy=/usr/sbin/policy-rc.d

loud() {
    echo "install_peers: !!! $* - tests and benchmarks that need a peer will not run !!!"
}

missing=""
if command -v dpkg-query >/dev/null 2>&1; then
    for package in $packages; do
        # dpkg-query exits 1 for a package it has never heard of.
        # shellcheck disable=SC2016 -- ${Status} is dpkg-query's own field, not a shell variable
        state=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
        if [ "$state" = installed ]; then
            version=$(dpkg-query --show --showformat="\${Version}" "$package")
            echo "install_peers: $package $version is here"
        else
            missing="$missing $package"
        fi
    done
else
    missing=" $packages"
fi

if [ -z "$missing" ]; then
    exit 0
fi
if ! command -v apt-get >/dev/null 2>&1; then
    loud "missing:$missing; apt-get is not available on this machine"
    exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
    loud "missing:$missing; not root. Run: sudo apt-get install --no-install-recommends$missing"
    exit 0
fi

# Debian starts a packaged service on installation. An Orthanc that we did not start would hold the ports 4242
# and 8042 and answer in place of the one under test; policy-rc.d is Debian's way to say no (exit status 101).
wrote_policy=no
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    wrote_policy=yes
fi
clean() {
    if [ "$wrote_policy" = yes ]; then
        rm -f "$policy"
    fi
}
trap clean EXIT
trap 'exit 130' INT TERM

export DEBIAN_FRONTEND=noninteractive
echo "install_peers: installing$missing"
if ! apt-get update -qq; then
    loud "apt-get update failed"
    exit 0
fi
# shellcheck disable=SC2086 -- a list of names, split on purpose
if ! apt-get install --yes --no-install-recommends -qq $missing >/dev/null; then
    loud "apt-get install failed for:$missing"
    exit 0
fi

# Enabled units would start at the next boot; tests start their own, with their own ports and folders.
if command -v systemctl >/dev/null 2>&1; then
    systemctl disable --quiet orthanc 2>/dev/null || true
fi
for package in $missing; do
    echo "install_peers: installed $package $(dpkg-query --show --showformat="\${Version}" "$package")"
done

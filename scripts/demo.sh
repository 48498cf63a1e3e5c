#!/usr/bin/env bash
# `make run` and `make stop`: builds Kiln, starts it in the background, deploys a function and calls it.
#
#   scripts/demo.sh          with PORT (empty: 8080 or a free port; 0: a free port), PROFILE (release or dev),
#                            KILN_BIN (use this kiln and build nothing)
#   scripts/demo.sh stop     stops the Kiln that an earlier run started
#
# Everything it stores is in .kiln/: the data folder, the function's project and the URL of the Kiln that runs.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

state=$PWD/.kiln
data=$state/data
profile=${PROFILE:-release}
folder=$profile
[ "$profile" != dev ] || folder=debug
kiln=${KILN_BIN:-${CARGO_TARGET_DIR:-$PWD/target}/$folder/kiln}

# The Kiln of an earlier run, if it still answers.
running_url() {
    local url
    url=$(cat "$state/url" 2>/dev/null) || return 1
    curl --silent --fail --max-time 2 --output /dev/null "$url/version" || return 1
    echo "$url"
}

stop() {
    if [ -x "$kiln" ] && [ -e "$data" ] && running_url >/dev/null; then
        "$kiln" stop --data-dir "$data"
    fi
    rm -f "$state/url"
}

choose_port() {
    local port
    if [ -n "${PORT:-}" ] && [ "$PORT" != 0 ]; then
        port_is_free "$PORT" || die "port $PORT is in use; choose another: make run PORT=9000"
        echo "$PORT"
        return
    fi
    if [ -z "${PORT:-}" ] && port_is_free 8080; then
        echo 8080
        return
    fi
    for _ in $(seq 100); do
        port=$((20000 + RANDOM % 12000))
        if port_is_free "$port"; then
            echo "$port"
            return
        fi
    done
    die "found no free port between 20000 and 32000; name one: make run PORT=9000"
}

# Leaves an earlier Kiln running unless it is of an older build or at another port than the one wanted.
start() {
    local url port
    if url=$(running_url); then
        if [ "$state/url" -nt "$kiln" ] && { [ -z "${PORT:-}" ] || [ "$PORT" = 0 ] || [ "${url##*:}" = "$PORT" ]; }; then
            echo "$url"
            return
        fi
        stop >&2
    fi
    port=$(choose_port)
    url=http://127.0.0.1:$port
    "$kiln" start -d --port "$port" --data-dir "$data" >&2
    echo "$url" >"$state/url"
    echo "$url"
}

# milliseconds SECONDS: curl's times for people.
milliseconds() { awk -v seconds="$1" 'BEGIN { printf "%.*f ms", seconds < 0.01 ? 2 : 0, seconds * 1000 }'; }

run() {
    if [ -z "${KILN_BIN:-}" ]; then
        cargo build --profile "$profile" --package kiln-cli
    fi
    mkdir -p "$state"
    local url
    url=$(start)
    export FN_API_URL=$url

    if [ ! -e "$state/hello/func.yaml" ]; then
        (cd "$state" && "$kiln" init --runtime rust --trigger http hello)
    fi
    (cd "$state/hello" && "$kiln" deploy --app demo --create-app --local --build host)

    local endpoint=$url/t/demo/hello answer cold warm
    local calls=()
    answer=$(mktemp)
    cold=$(curl --silent --show-error --fail-with-body --output "$answer" --write-out '%{time_total}' "$endpoint") || {
        cat "$answer" >&2
        die "the first call failed; what the function wrote: $kiln logs demo hello"
    }
    # One curl for all: its connection stays open, as a real client's does.
    for _ in $(seq 21); do calls+=(--output /dev/null "$endpoint"); done
    warm=$(curl --silent --show-error --fail --write-out '%{time_total}\n' "${calls[@]}" | sort -n | sed -n 11p)

    cat <<TEXT

  the answer     $(cat "$answer")
  cold call      $(milliseconds "$cold")   (container made, started and called)
  warm call      $(milliseconds "$warm")   (median of 21)
  URL            $endpoint

  call it        curl -d Ada $endpoint
  with the CLI   export FN_API_URL=$url
                 $kiln invoke demo hello
  stop           make stop
TEXT
    rm -f "$answer"
}

case "${1:-run}" in
    run)
        scripts/setup.sh run
        if docker_group_only; then
            # This login does not know of the group yet.
            exec sg docker -c "'$PWD/scripts/demo.sh' run-ready"
        fi
        run
        ;;
    run-ready) run ;;
    stop) stop ;;
    *) die "unknown command '$1'; use: scripts/demo.sh [run|stop]" ;;
esac

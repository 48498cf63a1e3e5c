#!/usr/bin/env bash
# Follows docs/tutorial.md to the letter: runs its `sh` blocks one after the other in one shell, in the repository's
# root with an empty home, and checks that every line of an `output` block is in what the blocks before it printed
# (a line `...` stands for anything).
#
# KILN_BIN (optional) names a kiln that is built already.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

tutorial=docs/tutorial.md
work=$(mktemp -d)
export CARGO_HOME=${CARGO_HOME:-$HOME/.cargo} RUSTUP_HOME=${RUSTUP_HOME:-$HOME/.rustup}
export HOME=$work/home FN_API_URL=''
unset FN_API_URL
mkdir "$HOME"
# The tutorial puts target/release on PATH; a kiln built elsewhere is found behind it.
[ -z "${KILN_BIN:-}" ] || PATH="$PATH:$(dirname "$KILN_BIN")"
export PORT=0

cleanup() {
    scripts/demo.sh stop || true
    rm -rf "$work"
}
trap cleanup EXIT

# One file per block, numbered in order: 001.sh, 002.output, ...
awk -v folder="$work" '
    /^```(sh|output)$/ { kind = substr($0, 4); file = sprintf("%s/%03d.%s", folder, ++count, kind); printf "" > file; next }
    /^```/ { file = ""; next }
    file { print > file }
' "$tutorial"

# The blocks share one shell, so that `cd` and `export` last.
{
    echo "set -euo pipefail"
    for block in "$work"/*.sh; do
        echo "exec >>'$work/printed' 2>&1"
        echo "echo '--- ${block##*/}'"
        cat "$block"
        echo ": >'$block.done'"
    done
} >"$work/all"

status=0
bash "$work/all" || status=$?
if [ "$status" != 0 ]; then
    cat "$work/printed" >&2
    for block in "$work"/*.sh; do
        [ -e "$block.done" ] || { say "failed in this block of $tutorial:"; cat "$block" >&2; break; }
    done
    die "the tutorial does not work as written"
fi

for expected in "$work"/*.output; do
    [ -e "$expected" ] || continue
    while IFS= read -r line; do
        [ "$line" = ... ] || [ -z "$line" ] || grep -qF -- "$line" "$work/printed" || {
            cat "$work/printed" >&2
            die "the tutorial promises '$line', which was not printed"
        }
    done <"$expected"
done
say "the tutorial works as written ($(find "$work" -name '*.sh.done' | wc -l) blocks)"

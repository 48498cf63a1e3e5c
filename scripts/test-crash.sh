#!/usr/bin/env bash
# Plays crash schedules: on a model of the queue in virtual time, and on real queues with real processes.
#
#   SCHEDULES=N  so many on each real queue, and 500 times as many on the model
#   SEED=S       that one alone
#   QUEUE=Q      on that queue alone: sqlite, postgres, mariadb, redis, kafka or model
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

MODEL_FACTOR=500

case "${QUEUE:-}" in
    "" | sqlite | postgres | mariadb | redis | kafka | model) ;;
    *) die "unknown queue '$QUEUE'; use: QUEUE=sqlite|postgres|mariadb|redis|kafka|model" ;;
esac
case "${SCHEDULES:-1}${SEED:-0}" in
    *[!0-9]*) die "SCHEDULES and SEED must be numbers" ;;
esac
[ -z "${SEED:-}" ] || export KILN_CRASH_SEED=$SEED
run=(cargo nextest run --profile crash --no-capture --no-fail-fast --test crash)

status=0
if [ -z "${QUEUE:-}" ] || [ "$QUEUE" = model ]; then
    scripts/setup.sh build
    KILN_CRASH_SCHEDULES=$((${SCHEDULES:-1} * MODEL_FACTOR)) "${run[@]}" -p kiln-lb || status=$?
fi
if [ "${QUEUE:-}" != model ]; then
    scripts/setup.sh test
    cargo build -p kiln-cli -p kiln-lb -p kiln-agent --bins
    KILN_CRASH_SCHEDULES=${SCHEDULES:-1} \
        "${run[@]}" -p kiln-cli --run-ignored only "nothing_is_lost_on_${QUEUE:-}" || status=$?
fi
exit "$status"

#!/bin/bash
# Start one process on each of some machines; the first is the coordinator. Ends when all have ended, with the
# first code that is not 0.
#
#   launch/over_ssh.sh node1 node2 -- --config configs/small.py --workdir /shared/runs/small \
#       --train.mesh-data 0 --data.batch-size 32
#
# Needs the same checkout and environment at the same path on every machine, a shared --workdir, keys instead of
# passwords, and PORT (7777) open on the first. DIR, PYTHON, PORT and SSH can be set.
set -u

hosts=()
while [ $# -gt 0 ] && [ "$1" != "--" ]; do
    hosts+=("$1")
    shift
done
if [ "${#hosts[@]}" -eq 0 ] || [ $# -eq 0 ]; then
    echo "usage: $0 HOST [HOST ...] -- ARGUMENTS OF train.py" >&2
    exit 2
fi
shift

command="cd $(printf %q "${DIR:-$PWD}") && exec $(printf %q "${PYTHON:-python}") train.py"
for argument in "$@"; do
    command+=" $(printf %q "$argument")"
done
command+=" --coordinator $(printf %q "${hosts[0]##*@}:${PORT:-7777}") --processes ${#hosts[@]}"

pids=()
for number in "${!hosts[@]}"; do
    # -tt: the far process ends when this one is stopped
    ${SSH:-ssh -tt -o BatchMode=yes} "${hosts[$number]}" "$command --process $number" </dev/null \
        > >(sed -u "s/^/[${hosts[$number]}] /") 2>&1 &
    pids+=($!)
done
trap 'kill "${pids[@]}" 2>/dev/null' INT TERM

code=0
for pid in "${pids[@]}"; do
    wait "$pid" || { ended=$?; [ "$code" -ne 0 ] || code=$ended; }
done
exit "$code"

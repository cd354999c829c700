#!/usr/bin/env bash
# Several hosts on this machine: PROCESSES processes with DEVICES fake CPU devices each, joined over 127.0.0.1.
#
#   launch/local.sh glipv2 train --config=configs/demo.py:debug --workdir=runs/local
#   PROCESSES=4 DEVICES=2 launch/local.sh glipv2 evaluate --checkpoint=runs/local
#
# The same code paths as on a cluster (joining, sharded batches, joint checkpoints, preemption), for rehearsals and
# tests; nothing runs faster this way. Output lines begin with the number of their process. SIGTERM or Ctrl-C goes to
# the last process only, as a scheduler takes one host away: all save and stop. The exit status is the largest of the
# processes'. PROCESSES is 2, DEVICES 4; PORT is free to choose, too.
set -u

processes=${PROCESSES:-2}
devices=${DEVICES:-4}
pids=()

if [ $# -eq 0 ]; then
  echo "usage: [PROCESSES=2] [DEVICES=4] [PORT=...] launch/local.sh COMMAND ..." >&2
  exit 2
fi

# A free port of the moment, outside the range that the system hands out by itself.
port=${PORT:-$((20000 + $$ % 10000))}

trap 'kill -TERM "${pids[-1]}" 2>/dev/null' TERM INT

export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=$devices PYTHONUNBUFFERED=1
for ((i = 0; i < processes; i++)); do
  "$@" --coordinator="127.0.0.1:$port" --process_count="$processes" --process_id="$i" \
    > >(sed "s/^/$i: /") 2> >(sed "s/^/$i: /" >&2) &
  pids+=("$!")
done

worst=0
for pid in "${pids[@]}"; do
  wait "$pid"
  status=$?
  while kill -0 "$pid" 2>/dev/null; do # a signal interrupted the wait
    wait "$pid"
    status=$?
  done
  [ "$status" -le "$worst" ] || worst=$status
done
exit "$worst"

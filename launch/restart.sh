#!/usr/bin/env bash
# Runs a training command until it is finished: started again after a crash it goes on from its newest checkpoint.
#
#   launch/restart.sh glipv2 train --config=configs/pretrain.py:t --workdir=gs://... --cluster=tpu
#
# Exit statuses as in launch/hosts.py: 0 is done, 1 and 2 are mistakes that would repeat; with any other the command is
# started again, at most RESTARTS times (20), PAUSE seconds (10) later. SIGTERM or Ctrl-C is handed to the command, which
# saves, and then nothing is started any more; the status is the command's (75: saved, not finished).
# The other scripts of this folder use it on every host.
set -u

restarts=${RESTARTS:-20}
pause=${PAUSE:-10}
child=
stopped=

if [ $# -eq 0 ]; then
  echo "usage: launch/restart.sh COMMAND ..." >&2
  exit 2
fi

stop() {
  stopped=yes
  [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
}
trap stop TERM INT

for ((attempt = 0; ; attempt++)); do
  "$@" &
  child=$!
  wait "$child"
  status=$?
  while kill -0 "$child" 2>/dev/null; do # the wait was interrupted by a signal; the command is still saving
    wait "$child"
    status=$?
  done
  child=
  case $status in
    0 | 1 | 2) exit "$status" ;;
  esac
  if [ -n "$stopped" ]; then
    exit "$status"
  fi
  if [ "$attempt" -ge "$restarts" ]; then
    echo "restart.sh: status $status after $restarts restarts (RESTARTS); giving up" >&2
    exit "$status"
  fi
  echo "restart.sh: status $status; starting again in $pause s (restart $((attempt + 1)) of at most $restarts)" >&2
  sleep "$pause" &
  child=$!
  wait "$child"
  child=
  [ -z "$stopped" ] || exit "$status"
done

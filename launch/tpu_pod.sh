#!/usr/bin/env bash
# Training on a Cloud TPU slice: a queued resource, the code on all its hosts, one process per host.
#
#   export NAME=glipv2-b TYPE=v5p-128 ZONE=us-east5-a [PROJECT=...] [SPOT=yes]
#   launch/tpu_pod.sh create                     # asks for the slice and waits until it is there
#   launch/tpu_pod.sh setup                      # copies this checkout to all hosts and installs it
#   launch/tpu_pod.sh run glipv2 train --config=configs/pretrain.py:b --workdir=gs://BUCKET/b --config.data.root=/data
#   launch/tpu_pod.sh delete
#   launch/tpu_pod.sh keep glipv2 train ...      # all of it, again and again while a spot slice is taken away
#
# NAME: of the queued resource and its node. TYPE: accelerator type (gcloud compute tpus accelerator-types list).
# ZONE, PROJECT: as in gcloud. VERSION: runtime (v2-alpha-tpuv5). PYTHON: interpreter on the hosts, 3.11 or newer
# (python3.11). SPOT: yes for a slice that may be taken away. WAIT: seconds between looks at a queued resource (30).
# The run folder lies in a bucket, which every host sees.
# The forms for TPUs: --config.model.deform=windows --config.model.fusion=lanes (see "What a pod will need" in README.md).
#
# Crashes are answered on the hosts (restart.sh): all stop and start together. Of what `run` ends with after that,
# `keep` repeats only the loss of the slice: it deletes what is left and asks for another one.
set -eu

usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2
  exit 2
}

[ $# -ge 1 ] || usage
action=$1
shift
for needed in NAME TYPE ZONE; do
  if [ -z "${!needed:-}" ]; then
    echo "tpu_pod.sh: set $needed; launch/tpu_pod.sh without arguments explains" >&2
    exit 2
  fi
done
where=(--zone="$ZONE" --quiet)
[ -z "${PROJECT:-}" ] || where+=(--project="$PROJECT")
python=${PYTHON:-python3.11}
here=$(cd "$(dirname "$0")/.." && pwd)

tpus() {
  gcloud compute tpus "$@" "${where[@]}"
}

on_all() {
  tpus tpu-vm ssh "$NAME" --worker=all --command="$1"
}

state() {
  tpus queued-resources describe "$NAME" --format="value(state.state)" 2>/dev/null || echo ABSENT
}

create() {
  local spot=()
  [ "${SPOT:-}" != yes ] || spot=(--spot)
  if [ "$(state)" = ABSENT ]; then
    tpus queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" \
      --runtime-version="${VERSION:-v2-alpha-tpuv5}" "${spot[@]}"
  fi
  local now
  while now=$(state) && [ "$now" != ACTIVE ]; do
    case $now in
      FAILED | SUSPENDED | ABSENT)
        echo "tpu_pod.sh: queued resource $NAME is $now" >&2
        return 3
        ;;
    esac
    echo "tpu_pod.sh: $NAME is $now" >&2
    sleep "${WAIT:-30}"
  done
}

setup() {
  local archive
  archive=$(mktemp --suffix=.tar.gz) &&
    git -C "$here" archive --format=tar.gz --prefix=glipv2_jax/ --output="$archive" HEAD &&
    tpus tpu-vm scp "$archive" "$NAME:glipv2_jax.tar.gz" --worker=all &&
    rm "$archive" &&
    on_all "tar xzf glipv2_jax.tar.gz && cd glipv2_jax && $python -m venv .venv && \
.venv/bin/pip install --quiet -c constraints.txt -e '.[tpu,data,eval]'"
}

run() {
  [ $# -ge 1 ] || usage
  local command
  printf -v command '%q ' "$@"
  on_all "cd glipv2_jax && PATH=\$PWD/.venv/bin:\$PATH JAX_PLATFORMS=tpu,cpu launch/restart.sh $command--cluster=tpu"
}

delete() {
  tpus queued-resources delete "$NAME" --force
}

keep() {
  local status
  while true; do
    status=0
    { create && setup && run "$@"; } || status=$?
    [ "$status" -ne 0 ] || exit 0
    sleep "${WAIT:-30}" # a slice that was taken away says so a little later
    if [ "$(state)" = ACTIVE ]; then
      exit "$status"
    fi
    echo "tpu_pod.sh: $NAME is $(state); asking for another slice" >&2
    [ "$(state)" = ABSENT ] || delete
  done
}

case $action in
  create | setup | run | delete | keep) "$action" "$@" ;;
  *) usage ;;
esac

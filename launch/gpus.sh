#!/usr/bin/env bash
# Training on the GPUs of one machine: one process drives all of them, and is started again after a crash.
#
#   launch/gpus.sh glipv2 train --config=configs/pretrain.py:t --workdir=runs/t --config.data.root=/data
#   GPUS=0,1,2,3 launch/gpus.sh glipv2 train ...
#
# GPUS: the devices to use, numbers as in nvidia-smi (all). MEMORY: the part of their memory that JAX may take (0.92).
# Restarts and exit statuses: restart.sh. The batch is split over all devices; parameters too with
# --config.train.fsdp=N. pip install -e ".[cuda]" brings a JAX that knows GPUs. The forms for them:
# --config.model.deform=columns --config.model.fusion=kernels (see "On one GPU" in README.md).
set -eu

if [ $# -eq 0 ]; then
  echo "usage: [GPUS=0,1,...] launch/gpus.sh COMMAND ..." >&2
  exit 2
fi
if ! found=$(nvidia-smi --query-gpu=index,name --format=csv,noheader); then
  echo "gpus.sh: nvidia-smi sees no GPU; for a rehearsal on the CPU use launch/local.sh" >&2
  exit 1
fi
if [ -n "${GPUS:-}" ]; then
  export CUDA_VISIBLE_DEVICES=$GPUS
fi
echo "gpus.sh: using ${GPUS:-all} of" >&2
echo "$found" >&2

# Without JAX's GPU support the program would silently train on the CPU; this makes it stop instead.
export JAX_PLATFORMS=cuda
export XLA_PYTHON_CLIENT_MEM_FRACTION=${MEMORY:-0.92}
exec "$(dirname "$0")/restart.sh" "$@"

#!/usr/bin/env bash
# Training on several nodes of a Slurm cluster, one process per GPU.
#
#   sbatch --nodes=4 launch/slurm.sh glipv2 train --config=configs/pretrain.py:b --workdir=/scratch/b --config.data.root=/data
#
# Every #SBATCH line can be replaced on sbatch's command line; tasks per node must equal GPUs per node, since process i
# of a node takes GPU i. The virtual environment that sbatch is called from is used on all nodes; it, --workdir and the
# data have to be visible there. srun starts the processes and --cluster=slurm lets them find each other.
#
# Preempted, out of time (SIGTERM comes 5 minutes before the end) or torn by a dead node, the job is put into the queue
# again and goes on from its newest checkpoint, at most RESTARTS times (20); after a mistake (exit status 1 or 2) it is
# not. Exit statuses: launch/hosts.py.
#SBATCH --job-name=glipv2
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -u

if [ $# -eq 0 ]; then
  echo "usage: sbatch [--nodes=N ...] launch/slurm.sh COMMAND ..." >&2
  exit 2
fi
if [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "slurm.sh: not inside a Slurm job; start it with sbatch" >&2
  exit 2
fi

trap : TERM # the processes get it too and save; this shell waits for them
export JAX_PLATFORMS=cuda XLA_PYTHON_CLIENT_MEM_FRACTION=${MEMORY:-0.92}

# A dead process stops the others by itself (--heartbeat); srun must not kill those that are saving.
srun --kill-on-bad-exit=0 --wait=0 "$@" --cluster=slurm &
step=$!
wait "$step"
status=$?
while kill -0 "$step" 2>/dev/null; do # SIGTERM interrupted the wait
  wait "$step"
  status=$?
done

case $status in
  0 | 1 | 2) exit "$status" ;;
esac
if [ "${SLURM_RESTART_COUNT:-0}" -ge "${RESTARTS:-20}" ]; then
  echo "slurm.sh: status $status after ${SLURM_RESTART_COUNT:-0} restarts (RESTARTS); giving up" >&2
  exit "$status"
fi
echo "slurm.sh: status $status; back into the queue" >&2
scontrol requeue "$SLURM_JOB_ID"
exit "$status"

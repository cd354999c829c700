"""One program on several hosts: how its processes find each other, and how they end together.

Never guessed: either --coordinator, --process_count and --process_id say it, or --cluster names the scheduler whose
environment does. The scripts beside this file start programs in both ways.

How processes end. Exit status 0: done. 1 or 2: a mistake that would repeat. RESTART: stopped by SIGTERM to any of them,
everything saved; start again to go on. Anything else (FAILED, or a signal): torn away, most often because another
process died; starting again goes on from the newest checkpoint. A process that dies or fails stops the others: they
see its connections close, or miss its signs of life for `heartbeat` seconds.
"""

import dataclasses
import os
import sys
import traceback
from collections.abc import Callable, Mapping

import jax

RESTART, FAILED = 75, 70  # EX_TEMPFAIL and EX_SOFTWARE of sysexits.h
# --cluster -> JAX's name for it, and the environment that tells a process its place.
CLUSTERS = {
  "slurm": ("slurm", ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")),
  "tpu": ("gcetpu", ()),  # asks the metadata server of the TPU VM
  "gke-tpu": ("gketpu", ("TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID")),
}
# Option -> (default, type, help): for absl flags and for argparse.
OPTIONS = {
  "coordinator": (None, str, "HOST:PORT of process 0, for several hosts"),
  "process_count": (None, int, "number of processes"),
  "process_id": (None, int, "number of this process, from 0"),
  "cluster": (None, str, f"the scheduler that started the processes and tells them the above: {', '.join(CLUSTERS)}"),
  "heartbeat": (60, int, "seconds of silence after which a process counts as dead and the others stop"),
}


@dataclasses.dataclass(frozen=True)
class Hosts:
  """The values of OPTIONS; their defaults: a single process. Raises ValueError naming what is missing or unknown."""

  coordinator: str | None = None
  process_count: int | None = None
  process_id: int | None = None
  cluster: str | None = None
  heartbeat: int = 60

  def __post_init__(self):
    explicit = {f"--{name}": getattr(self, name) for name in ("coordinator", "process_count", "process_id")}
    missing = [name for name, value in explicit.items() if value is None]
    if self.cluster is None:
      if len(missing) in (1, 2):
        raise ValueError(f"{', '.join(explicit)} belong together; {', '.join(missing)} is missing")
      if not missing and ":" not in self.coordinator:
        raise ValueError(f"--coordinator={self.coordinator} has no port; write HOST:PORT")
      if not missing and not 0 <= self.process_id < self.process_count:
        raise ValueError(f"--process_id={self.process_id} is not one of 0..{self.process_count - 1} (--process_count)")
    elif self.cluster not in CLUSTERS:
      raise ValueError(f"--cluster={self.cluster} is not known; known: {', '.join(CLUSTERS)}")
    elif len(missing) < 3:
      raise ValueError(f"--cluster={self.cluster} tells every process its place; leave out {', '.join(explicit)}")

  @property
  def several(self) -> bool:
    return self.cluster is not None or self.coordinator is not None


def run(hosts: Hosts, program: Callable[[], int], environment: Mapping[str, str] = os.environ) -> int:
  """Joins the other processes, runs `program`, and returns its exit status.

  A process that fails ends here and at once: an orderly exit would wait for the others, which wait for this one.
  Raises ValueError when the environment is not that of the cluster.
  """
  if not hosts.several:
    return program()
  join(hosts, environment)
  try:
    status = program()
  except BaseException:
    traceback.print_exc()
    status = FAILED
  if status in (0, RESTART):
    return status
  print(f"process {jax.process_index()} failed; the others stop", file=sys.stderr)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def join(hosts: Hosts, environment: Mapping[str, str] = os.environ) -> None:
  """`jax.distributed.initialize` for this process. Raises ValueError for the environment of another cluster."""
  if hosts.cluster is None:
    place = dict(num_processes=hosts.process_count, process_id=hosts.process_id, cluster_detection_method="deactivate")
    jax.distributed.initialize(hosts.coordinator, **place, heartbeat_timeout_seconds=hosts.heartbeat)
    return
  method, variables = CLUSTERS[hosts.cluster]
  absent = [name for name in variables if name not in environment]
  if absent:
    remedy = "start the program with srun, or give" if hosts.cluster == "slurm" else "give"
    raise ValueError(
      f"--cluster={hosts.cluster}: the environment lacks {', '.join(absent)}; {remedy} --coordinator, "
      "--process_count and --process_id instead"
    )
  jax.distributed.initialize(cluster_detection_method=method, heartbeat_timeout_seconds=hosts.heartbeat)

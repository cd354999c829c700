"""The training program, top to bottom: mesh -> abstract state -> restore or initialise -> data -> steps -> finish.

Every stage of the paper is this loop with other arguments. Resuming is exact: the state comes from the newest
checkpoint, keys from (seed, step), the data from its position, and the log is cut back to that step.
"""

import contextlib
import dataclasses
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
from jax.experimental import multihost_utils

from glipv2_jax.parallel import mesh as meshes
from glipv2_jax.parallel import rules as sharding_rules
from glipv2_jax.schema import Batch
from glipv2_jax.train import checkpoint
from glipv2_jax.train.initialise import initialise
from glipv2_jax.train.metrics import MetricFiles, Recorder, padding
from glipv2_jax.train.objective import Objective
from glipv2_jax.train.optim import OptimConfig, make_optimizer
from glipv2_jax.train.progress import Progress
from glipv2_jax.train.skips import Skips
from glipv2_jax.train.state import abstract_state
from glipv2_jax.train.step import make_train_step


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """How long, how often, on what. Steps are optimizer updates."""

  total_steps: int
  seed: int = 0
  accumulate: int = 1  # parts that a batch passes through the network in
  global_negatives: bool = False  # L_inter compares all parts with each other, for one more pass of the encoders
  data: int = -1  # mesh sizes (parallel/mesh.py)
  fsdp: int = 1
  sharding: sharding_rules.Rules = sharding_rules.FSDP
  shard_min_size: int = sharding_rules.MIN_SIZE  # elements; smaller parameters are replicated
  log_every: int = 20
  checkpoint_every: int = 2500
  keep: int = 2  # newest checkpoints
  keep_every: int | None = None  # checkpoints at multiples of it stay for good
  eval_every: int | None = None  # None: only at the end
  evaluate_ema: bool = False  # evaluate the running average instead of the parameters (the authors do not)
  skip_limit: float = 0.01  # fraction of broken records that stops the run
  init_from: str | None = None  # what a fresh run starts from: a run, or weight files (initialise.py)


class Feed(Protocol):
  """What the loop reads of a host batch (pipelines.records.HostBatch)."""

  batch: Batch  # this process's rows, NumPy
  skipped: tuple[tuple[str, str], ...]  # (reason, record): passed over
  reduced: tuple[tuple[str, str], ...]  # (reason, record): used without some of its boxes
  rows: Mapping[str, int]  # how many rows came from each source


@dataclasses.dataclass(frozen=True)
class Result:
  """How the run ended: 'finished', or 'stopped' by SIGTERM with everything saved."""

  status: str
  step: int
  seconds: float


Evaluate = Callable[[Any, int], Mapping[str, float]]


def train(
  objective: Objective,
  optim: OptimConfig,
  config: TrainConfig,
  data: Callable[[int], Iterator[Feed]],
  workdir: pathlib.Path | str,
  *,
  variant: str,
  record: Mapping[str, Any],
  evaluate: Evaluate | None = None,
) -> Result:
  """Trains until config.total_steps, or until SIGTERM.

  data(step) iterates over the batches from that step on. `variant` and `record` (the whole configuration, JSON-able)
  go into the checkpoints. evaluate(params, step) -> metrics is called on every process; the parameters are on the mesh.
  Raises TrainingDiverged, TooManySkipped, CheckpointMismatch, ValueError (numbers that do not fit together).
  """
  workdir = pathlib.Path(workdir)
  if config.evaluate_ema and not optim.ema_decay:
    raise ValueError("evaluate_ema needs a running average; set optim.ema_decay above 0")

  # Mesh, optimizer, and the shapes of everything.
  mesh = meshes.make_mesh(config.data, config.fsdp)
  shapes = jax.eval_shape(objective.init, jax.random.key(0))
  optimizer = make_optimizer(optim, shapes, config.total_steps, objective.frozen)
  abstract = abstract_state(objective.init, optimizer, mesh, config.sharding, config.shard_min_size)

  with contextlib.ExitStack() as stack:
    stack.enter_context(jax.set_mesh(mesh))
    stop = stack.enter_context(_StopSignal())
    checkpoints = stack.enter_context(checkpoint.manager(workdir / checkpoint.FOLDER, config.keep, config.keep_every))

    # Our own newest checkpoint, else the parameters of another run, else random ones.
    restored = checkpoint.restore(checkpoints, abstract, variant)
    if restored:
      state, meta = restored
    else:
      state = initialise(objective, optimizer, abstract, config.seed, config.init_from)
      meta = checkpoint.Meta(0, 0, 0.0, variant, dict(record), checkpoint.git_revision(), {}, {})
    start, examples = meta.step, meta.examples

    # Log, data and the compiled step.
    writes = jax.process_index() == 0
    progress = stack.enter_context(contextlib.closing(Progress(config.total_steps, start, quiet=not writes)))
    files = stack.enter_context(contextlib.closing(MetricFiles(workdir, start))) if writes else None
    recorder = Recorder(files, progress, config.log_every, meta.seconds)
    skips = Skips(config.skip_limit, meta.skipped, meta.reduced, progress.note)
    progress.note(_greeting(shapes, mesh, start, config))
    for pattern in sharding_rules.unused(shapes, config.sharding):
      progress.note(f"sharding rule {pattern!r} decides nothing in this network")
    feed = stack.enter_context(_closing(data(start)))
    train_step = make_train_step(
      objective, optimizer, mesh, abstract, config.seed, config.accumulate, config.global_negatives
    )
    canvases = set()

    def save(step):
      recorder.flush()  # the log is complete, and finite, up to every checkpoint
      now = checkpoint.Meta(
        step, examples, recorder.seconds, variant, dict(record), checkpoint.git_revision(), **skips.numbers()
      )
      checkpoint.save(checkpoints, state, now)

    def run_evaluation(step):
      recorder.flush()
      recorder.evaluation(step, evaluate(state.ema if config.evaluate_ema else state.params, step))

    # A run killed between a checkpoint and its evaluation makes up for it; process 0, which has the log, decides.
    if evaluate and _due(start, config.eval_every, config.total_steps):
      if multihost_utils.broadcast_one_to_all(files is not None and start not in files.evaluated):
        run_evaluation(start)

    for step in range(start + 1, config.total_steps + 1):
      # Data of this step, while the device still works on the one before.
      waiting = time.monotonic()
      host = _next(feed, step)
      data_seconds = time.monotonic() - waiting
      batch = meshes.to_global(host.batch, mesh)
      images, *canvas = batch.image.shape[:3]
      examples += images
      skips.add(host.skipped, host.reduced, host.batch.image.shape[0])
      if tuple(canvas) not in canvases:
        canvases.add(tuple(canvas))
        progress.note(f"step {step}: compiling for canvas {canvas[0]}x{canvas[1]}")

      # The step, and the numbers of the one before.
      state, metrics = train_step(state, batch)
      notes = {"canvas": canvas, **skips.numbers()}
      recorder.step(step, metrics, images, data_seconds, notes, host.rows, padding(host.batch))

      # Checkpoint, evaluate, or leave.
      if stop.agreed(step):
        save(step)
        progress.note(f"step {step}: stopped by SIGTERM, checkpoint saved")
        return Result("stopped", step, recorder.seconds)
      if _due(step, config.checkpoint_every, config.total_steps):
        save(step)
      if evaluate and _due(step, config.eval_every, config.total_steps):
        run_evaluation(step)

    if not config.total_steps:  # a run that only makes the network it would start from, for others to start from
      save(0)
    recorder.flush()
    return Result("finished", config.total_steps, recorder.seconds)


class _StopSignal:
  """Notices SIGTERM, so that the loop can finish its step and save. With several processes all agree on the step."""

  def __init__(self):
    self._asked = False
    self._before = None

  def __enter__(self):
    # With several processes jax.distributed listens itself; handlers exist in the main thread only.
    if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
      self._before = signal.signal(signal.SIGTERM, self._notice)
    return self

  def __exit__(self, *error):
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)

  def _notice(self, number, frame):
    del number, frame
    self._asked = True

  def agreed(self, step: int) -> bool:
    """Whether to stop after this step."""
    if jax.process_count() == 1:
      return self._asked
    return multihost_utils.reached_preemption_sync_point(step)


def _due(step: int, every: int | None, last: int) -> bool:
  return step > 0 and (step == last or (every is not None and step % every == 0))


def _next(feed: Iterator[Feed], step: int) -> Feed:
  try:
    return next(feed)
  except StopIteration:
    raise RuntimeError(f"the data ended at step {step}; training data must repeat for ever") from None


@contextlib.contextmanager
def _closing(feed: Iterator[Feed]):
  """Worker processes of the pipeline end with the run."""
  try:
    yield feed
  finally:
    if hasattr(feed, "close"):
      feed.close()


def _greeting(shapes: Any, mesh: jax.sharding.Mesh, start: int, config: TrainConfig) -> str:
  millions = sum(x.size for x in jax.tree.leaves(shapes)) / 1e6
  sizes = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
  begin = f"going on from step {start}" if start else "starting"
  return f"{begin}: {millions:.2f} M parameters, mesh {sizes}, to step {config.total_steps}"

"""What a run tells the world: metrics.jsonl, TensorBoard events, and the stop when a number is no longer finite.

The device's numbers are read one step late, when the next step is already running, so the host never waits for the
step it has just started. Process 0 writes; every process checks.
"""

import collections
import json
import math
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter

from glipv2_jax.schema import Batch
from glipv2_jax.train.progress import Progress

JSON_LINES = "metrics.jsonl"
TENSORBOARD = "tensorboard"


class TrainingDiverged(FloatingPointError):
  """A loss term or the gradient is NaN or infinite."""


class MetricFiles:
  """metrics.jsonl and TensorBoard of one run, continued after `start` finished steps.

  Lines of later steps, left by a run that was killed, are dropped: the file reads as if the run had never stopped.
  A training line is {"step": n, "loss": ..., ...}; an evaluation line {"step": n, "eval": {...}}.
  """

  def __init__(self, folder: pathlib.Path, start: int):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / JSON_LINES
    kept = [line for line in _complete_lines(path) if line["step"] <= start]
    self.evaluated = {line["step"] for line in kept if "eval" in line}
    fresh = path.with_suffix(".tmp")
    fresh.write_text("".join(json.dumps(line) + "\n" for line in kept))
    os.replace(fresh, path)
    self._lines = path.open("a")
    self._events = SummaryWriter(str(folder / TENSORBOARD), purge_step=start + 1, flush_secs=30)

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Appends a line; numbers, also those one level down, become TensorBoard scalars."""
    self._lines.write(json.dumps({"step": step, **values}) + "\n")
    self._lines.flush()
    for name, value in values.items():
      for tag, number in value.items() if isinstance(value, Mapping) else [("train", value)]:
        tag = f"{name}/{tag}" if isinstance(value, Mapping) else f"{tag}/{name}"
        if isinstance(number, int | float):
          self._events.add_scalar(tag, number, step)

  def close(self) -> None:
    self._lines.close()
    self._events.close()


class Recorder:
  """Takes the metrics of every step and hands on those that are due.

  seconds: training time before this start. `files` is None on processes that do not write.
  """

  def __init__(self, files: MetricFiles | None, progress: Progress, log_every: int, seconds: float):
    self._files, self._progress, self._log_every = files, progress, log_every
    self._waiting = None
    self._began = time.monotonic() - seconds
    self._tally, self._rows = collections.Counter(), collections.Counter()
    self._last_line = time.monotonic()

  @property
  def seconds(self) -> float:
    """Training time so far, earlier starts included."""
    return time.monotonic() - self._began

  def step(
    self,
    step: int,
    metrics: Mapping[str, jax.Array],
    images: int,
    data_seconds: float,
    notes: Mapping,
    rows: Mapping[str, int],
    padding: float,
  ) -> None:
    """After step `step` (counted from 1) was started. Resolves the step before it.

    images: rows of the global batch; data_seconds: how long the host waited for it; notes: what else the line says.
    rows: of this process's batch by source; padding: share of its pixels. A line gives the sum and the mean of both
    since the line before. Raises TrainingDiverged.
    """
    self.flush()
    self._waiting = step, metrics, images, data_seconds, dict(notes), dict(rows), padding

  def flush(self) -> None:
    """Waits for the last step that was given. Called before a checkpoint, so that it never runs ahead of the log."""
    if self._waiting is None:
      return
    (step, metrics, images, data_seconds, notes, rows, padding), self._waiting = self._waiting, None
    values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
    check_finite(step, values)
    self._tally.update(images=images, steps=1, data_seconds=data_seconds, padding=padding)
    self._rows.update(rows)
    self._progress.step(step, values["loss"])
    if step % self._log_every == 0 or step == 1:
      self._line(step, values, notes)

  def evaluation(self, step: int, values: Mapping[str, float]) -> None:
    """Writes the metrics of an evaluation."""
    if self._files:
      self._files.write(step, {"eval": dict(values)})
      self._files.evaluated.add(step)
    self._progress.note(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
    self._last_line = time.monotonic()  # an evaluation does not count as slow training

  def _line(self, step: int, values: dict[str, float], notes: dict) -> None:
    now = time.monotonic()
    elapsed = max(now - self._last_line, 1e-9)
    tally, self._tally, self._last_line = self._tally, collections.Counter(), now
    speed = {"images_per_second": tally["images"] / elapsed, "data_seconds": tally["data_seconds"]}
    rows, self._rows = self._rows, collections.Counter()
    of_data = {"padding": round(tally["padding"] / tally["steps"], 4), "rows": dict(sorted(rows.items()))}
    line = {"loss": values["loss"], **values, **speed, "seconds": self.seconds, **of_data, **notes}
    if self._files:
      self._files.write(step, {k: round(v, 3) if k in (*speed, "seconds") else v for k, v in line.items()})
    self._progress.line(step, line, elapsed / tally["steps"])


def padding(batch: Batch) -> float:
  """The share of a batch's pixels (NumPy) that no picture covers."""
  return 1 - float(np.prod(batch.image_size, axis=1, dtype=np.int64).mean() / np.prod(batch.image.shape[1:3]))


def check_finite(step: int, values: Mapping[str, float]) -> None:
  """Raises TrainingDiverged naming the step and every number that is not finite."""
  broken = [name for name, value in values.items() if not math.isfinite(value)]
  if broken:
    shown = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
    raise TrainingDiverged(
      f"step {step}: {', '.join(broken)} not finite ({shown}). The newest checkpoint is from before this step; "
      "go on from it with a lower optim.lr, a longer warm-up or stronger clipping"
    )


def _complete_lines(path: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of a file whose writer may have been killed in the middle of the last one."""
  if not path.exists():
    return []
  lines = path.read_text().split("\n")
  return [json.loads(line) for line in lines[:-1]]  # what follows the last newline was never finished

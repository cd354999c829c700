"""The numbers of a run over its steps, from its metrics.jsonl; needs no JAX."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

JSON_LINES = "metrics.jsonl"  # what glipv2_jax/train/metrics.py writes
# Numbers of a training line that are no loss.
OTHERS = ("step", "num_pos", "grad_norm", "lr", "images_per_second", "data_seconds", "seconds")


@dataclasses.dataclass(frozen=True)
class History:
  """Lines in the order of the steps: {"step": n, "loss": ..., terms ...} and {"step": n, "eval": {name: number}}."""

  training: Sequence[Mapping[str, Any]]
  evaluations: Sequence[Mapping[str, Any]]

  def losses(self) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and numbers of the loss and its terms; a term that a line lacks is NaN there."""
    steps = [line["step"] for line in self.training]
    names = [k for k, v in self.training[-1].items() if isinstance(v, float) and k not in OTHERS]
    return {name: (steps, [line[name] if name in line else float("nan") for line in self.training]) for name in names}

  def metric(self, name: str) -> tuple[list[int], list[float]]:
    """Steps and numbers of a metric, where it was measured."""
    lines = [line for line in self.evaluations if name in line["eval"] and line["eval"][name] is not None]
    return [line["step"] for line in lines], [line["eval"][name] for line in lines]


def read(workdir: pathlib.Path | str) -> History:
  """Raises FileNotFoundError without a metrics.jsonl, ValueError when a line is broken or none is of training."""
  path = pathlib.Path(workdir) / JSON_LINES
  if not path.is_file():
    raise FileNotFoundError(f"{path} does not exist; give the folder of a run")
  lines = []
  for i, text in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), 1):
    if not text.endswith("\n"):
      break  # the run is writing, or was killed at it
    try:
      lines.append(json.loads(text))
    except json.JSONDecodeError as error:
      raise ValueError(f"{path}: line {i} is not JSON ({error}); remove it, or give another run") from error
  training = [line for line in lines if "loss" in line]
  if not training:
    raise ValueError(f"{path} has no training line yet; train for a few steps first")
  return History(training, [line for line in lines if "eval" in line])

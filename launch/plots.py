"""Curves of a run from its metrics.jsonl (matplotlib)."""

import json
import pathlib

import matplotlib

matplotlib.use("Agg")  # files only: no display needed
import matplotlib.pyplot as plt

from glipv2_jax.train.metrics import JSON_LINES

# Numbers of a training line that are no loss.
OTHERS = ("step", "num_pos", "grad_norm", "lr", "images_per_second", "data_seconds", "seconds")


def loss_curve(workdir: pathlib.Path | str, out: pathlib.Path | str) -> pathlib.Path:
  """Draws loss, its terms and the evaluations over the steps into the PNG `out`.

  Raises FileNotFoundError without a metrics.jsonl, ValueError when it holds no training line.
  """
  path = pathlib.Path(workdir) / JSON_LINES
  if not path.is_file():
    raise FileNotFoundError(f"{path} does not exist; give the folder of a run")
  lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
  training = [line for line in lines if "loss" in line]
  evaluations = [line for line in lines if "eval" in line]
  if not training:
    raise ValueError(f"{path} has no training line yet; train for a few steps first")
  figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
  steps = [line["step"] for line in training]
  names = [k for k, v in training[-1].items() if isinstance(v, float) and k not in OTHERS]
  for name in names:
    width = 2.2 if name == "loss" else 1.2
    axes.plot(steps, [line.get(name, float("nan")) for line in training], label=name, linewidth=width)
  axes.set(xlabel="step", ylabel="loss", title=f"{pathlib.Path(workdir).name}: loss", yscale="log")
  axes.grid(alpha=0.3)
  if evaluations:
    _evaluations(axes.twinx(), evaluations)
  figure.legend(loc="outside lower center", ncols=6)
  figure.savefig(out, dpi=130)
  plt.close(figure)
  return pathlib.Path(out)


def _evaluations(axes, evaluations) -> None:
  for name, marker, colour in (("AP50", "o", "black"), ("R@1", "s", "tab:purple")):
    points = [(line["step"], line["eval"][name]) for line in evaluations if line["eval"].get(name) is not None]
    if points:
      axes.plot(*zip(*points), marker=marker, color=colour, linestyle="--", label=name)
  axes.set(ylim=(0, 1), ylabel="evaluation")

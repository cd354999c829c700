"""Curves of a run from its metrics.jsonl (matplotlib)."""

import pathlib

import matplotlib

matplotlib.use("Agg")  # files only: no display needed
import matplotlib.pyplot as plt

from launch import history


def loss_curve(workdir: pathlib.Path | str, out: pathlib.Path | str) -> pathlib.Path:
  """Draws loss, its terms and the evaluations over the steps into the PNG `out`. Raises as `launch.history.read`."""
  run = history.read(workdir)
  figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
  for name, (steps, numbers) in run.losses().items():
    axes.plot(steps, numbers, label=name, linewidth=2.2 if name == "loss" else 1.2)
  axes.set(xlabel="step", ylabel="loss", title=f"{pathlib.Path(workdir).name}: loss", yscale="log")
  axes.grid(alpha=0.3)
  if run.evaluations:
    _evaluations(axes.twinx(), run)
  figure.legend(loc="outside lower center", ncols=6)
  figure.savefig(out, dpi=130)
  plt.close(figure)
  return pathlib.Path(out)


def _evaluations(axes, run: history.History) -> None:
  for name, marker, colour in (("AP50", "o", "black"), ("R@1", "s", "tab:purple")):
    steps, numbers = run.metric(name)
    if steps:
      axes.plot(steps, numbers, marker=marker, color=colour, linestyle="--", label=name)
  axes.set(ylim=(0, 1), ylabel="evaluation")

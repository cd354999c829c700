"""Curves of a run from its metrics.jsonl, and histograms of a data set (matplotlib)."""

import pathlib
from collections.abc import Mapping
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: no display needed
import matplotlib.pyplot as plt

from launch import history

_CLASSES = 25  # that a panel has room for
_HISTOGRAMS = {
  "box_side_px": "boxes by side (root of the area, from ... pixels)",
  "picture_side_px": "pictures by side (root of the area, from ... pixels)",
  "boxes_per_record": "boxes in a record (last bin: and more)",
  "caption_words": "words in a caption (last bin: and more)",
}


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


def histograms(summary: Mapping[str, Any], out: pathlib.Path | str) -> pathlib.Path:
  """Draws what `pipelines/prepare/statistics.py` counted (its `summary`) into the PNG `out`."""
  figure, axes = plt.subplots(2, 3, figsize=(15, 8), layout="constrained")
  names = list(summary["classes"].items())
  shown = names[:_CLASSES]
  panels = axes.ravel()
  panels[0].barh([name for name, _ in shown][::-1], [n for _, n in shown][::-1])
  panels[0].set(title=f"boxes of the {len(shown)} most frequent of {len(names)} classes", xlabel="boxes")
  panels[1].plot(range(1, len(names) + 1), [n for _, n in names])
  panels[1].set(title="all classes by frequency", xlabel="rank", ylabel="boxes", yscale="log" if names else "linear")
  for panel, (key, title) in zip(panels[2:], _HISTOGRAMS.items(), strict=True):
    lows, numbers = zip(*summary[key], strict=True) if summary[key] else ((), ())
    if key.endswith("_px"):
      panel.bar(list(map(str, lows)), numbers)
      panel.tick_params(axis="x", rotation=90)
    else:
      panel.bar(lows, numbers, width=1)
    panel.set(title=title)
  figure.suptitle(f"{summary['records']} records, {sum(summary['unusable'].values())} unusable")
  figure.savefig(out, dpi=110)
  plt.close(figure)
  return pathlib.Path(out)

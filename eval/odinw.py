"""ODinW: COCO's AP on each of many small data sets, and their unweighted mean (reference 8).

Which sets count (the 13 or the 35) is the manifest's affair. Few-shot runs with several seeds are averaged per shot.
"""

import pathlib
import re
import statistics
from collections.abc import Mapping
from typing import Any

from eval import coco
from eval.files import Source, read_json

_SEED = re.compile(r"(?P<shot>.+)_seed\d+")


def evaluate(
  annotations: Mapping[str, str | pathlib.Path | Mapping[str, Any]],
  predictions: Mapping[str, Source],
  *,
  engine: str | None = None,
) -> dict[str, Any]:
  """COCO's twelve numbers averaged over the sets, 'sets' (how many) and 'per_set' with the numbers of each.

  A set without ground truth of some size has None there and takes no part in that mean. Raises ValueError when the
  names of the two mappings differ.
  """
  for name in sorted(set(annotations) ^ set(predictions)):
    lacking = "annotations" if name in predictions else "predictions"
    raise ValueError(f"ODinW set {name!r} has no {lacking}; give both for every set ({len(annotations)} annotated)")
  per_set = {name: coco.evaluate_boxes(annotations[name], predictions[name], engine=engine) for name in annotations}
  return {**means(per_set), "per_set": per_set}


def means(per_set: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """COCO's numbers averaged over the sets, and 'sets'; a set that has None for a number takes no part in its mean."""
  return {key: _mean([numbers[key] for numbers in per_set.values()]) for key in coco.STATS} | {"sets": len(per_set)}


def evaluate_files(manifest: str | pathlib.Path, folder: str | pathlib.Path) -> dict[str, Any]:
  """Scores a folder of prediction files, one SET.json for each set, or several runs in folders of their own.

  `manifest`: JSON object from set name to COCO annotation file, relative to the manifest. Folders called
  SHOT_seedN (shot1_seed3, shot1_seed30 ...) are runs of the same kind: SHOT/AP is their mean, SHOT/AP_std the
  deviation over the seeds; other folders (zero, full) report as NAME/AP. 'runs' holds the numbers of every run.
  """
  paths = read_json(manifest, "ODinW manifest")
  if not isinstance(paths, Mapping):
    raise ValueError(f"{manifest} is no JSON object; give {{set name: annotation file}}")
  annotations = {name: pathlib.Path(manifest).parent / path for name, path in paths.items()}
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise FileNotFoundError(f"{folder} is not a folder; give one with a JSON file of predictions for each ODinW set")
  runs = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
  if not runs:
    return evaluate(annotations, _predictions(folder))
  return summarise({run.name: evaluate(annotations, _predictions(run)) for run in runs})


def summarise(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """The means over seeds of the results of `evaluate`, by the name of their run (see `evaluate_files`)."""
  shots: dict[str, list[Mapping[str, Any]]] = {}
  for name, numbers in runs.items():
    match = _SEED.fullmatch(name)
    shots.setdefault(match["shot"] if match else name, []).append(numbers)
  result: dict[str, Any] = {}
  for shot, seeds in shots.items():
    for key in coco.STATS:
      result[f"{shot}/{key}"] = _mean([numbers[key] for numbers in seeds])
    if len(seeds) > 1:
      result[f"{shot}/AP_std"] = statistics.stdev(numbers["AP"] for numbers in seeds)
    result[f"{shot}/seeds"] = len(seeds)
  return {**result, "runs": dict(runs)}


def _predictions(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  return {path.stem: path for path in sorted(folder.glob("*.json"))}


def _mean(values: list[float | None]) -> float | None:
  numbers = [value for value in values if value is not None]
  return statistics.fmean(numbers) if numbers else None

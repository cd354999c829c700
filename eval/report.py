"""What a report tells of one set of detections beyond its metrics: curves, sizes, categories, errors, worst pictures.

COCO or LVIS files (or their content) in, numbers out. eval/report_page.py makes a page of them.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from eval import coco, errors, lvis
from eval.curves import NO_LIMIT, SIZES, Curves, curves, mean
from eval.errors import COVERED, CROWD, FOUND, MISSED, Errors
from eval.files import Source

TASKS = ("coco", "lvis", "lvis_fixed")  # whose predictions can be taken apart
OVERLAPS = {"0.50": 0, "0.75": 5, "0.90": 8}  # IoU -> its place in `Curves.precision`
EDGES = (32**2, 96**2)  # square pixels between small, medium and large


@dataclasses.dataclass(frozen=True)
class Operating:
  """The score threshold at which F1 over all categories is highest (IoU 0.5)."""

  score: float
  precision: float
  recall: float

  @property
  def f1(self) -> float:
    return 2 * self.precision * self.recall / (self.precision + self.recall)


@dataclasses.dataclass(frozen=True)
class Analysis:
  """One set of detections on one data set, taken apart."""

  images: list[Mapping[str, Any]]
  names: dict[int, str]  # of the categories
  precision: dict[str, np.ndarray]  # IoU, 'mean' -> 101 precisions at recall 0, 0.01 ... 1, mean of categories
  sizes: list[dict[str, Any]]  # size, objects, AP, AP50, AR
  categories: list[dict[str, Any]]  # category, AP, AP50, AR, objects, images, detections, found, the error types
  errors: Errors
  costs: dict[str, float | None]  # error type -> AP50 that it costs
  operating: Operating | None  # None where nothing is correct


@dataclasses.dataclass(frozen=True)
class Picture:
  """What is wrong with one image when detections below a score are dropped."""

  image: Mapping[str, Any]
  wrong: np.ndarray  # rows of `Errors.detections` that are errors
  correct: np.ndarray  # rows that are not
  missing: np.ndarray  # rows of `Errors.truth` that no detection left finds
  found: np.ndarray  # rows that one does


def analyse(
  annotations: str | pathlib.Path | Mapping[str, Any],
  predictions: Source,
  task: str = "coco",
  iou_type: str = "bbox",
  *,
  engine: str | None = None,
) -> Analysis:
  """Files (or their content) as `eval.coco.evaluate_boxes` and `eval.lvis.evaluate` take them; `task`: one of TASKS.

  Raises ValueError as they do.
  """
  if task not in TASKS:
    raise ValueError(f"predictions of task {task!r} cannot be taken apart; of {', '.join(TASKS)} they can")
  federated = task != "coco"
  if federated:
    truth, detections = lvis.read(annotations, predictions, iou_type, fixed=task == "lvis_fixed")
  else:
    truth, detections = coco.read(annotations, predictions, iou_type)
  limits = (NO_LIMIT,) if federated else coco.LIMITS
  found = curves(truth, detections, iou_type, limits, federated=federated, engine=engine)
  wrong = errors.find(truth, detections, iou_type, federated=federated)
  precision = {name: _mean_curve(found.precision[t : t + 1]) for name, t in OVERLAPS.items()}
  names = coco.category_names(truth["categories"])
  return Analysis(
    images=truth["images"],
    names=names,
    precision={**precision, "mean": _mean_curve(found.precision)},
    sizes=_sizes(truth, found),
    categories=_categories(wrong, found, names),
    errors=wrong,
    costs=wrong.costs(),
    operating=operating_point(wrong),
  )


def _mean_curve(precision: np.ndarray) -> np.ndarray:
  """101 precisions, mean over thresholds and the categories with ground truth; empty without any."""
  at_recall = precision[:, :, :, 0, -1].transpose(1, 0, 2)
  known = at_recall[0] > -1
  return at_recall[:, known].mean(1) if known.any() else np.zeros(0)


def _sizes(truth: Mapping[str, Any], found: Curves) -> list[dict[str, Any]]:
  areas = np.array([a["area"] for a in truth["annotations"] if not a["iscrowd"]], float)
  counts = [len(areas), *np.bincount(np.searchsorted(EDGES, areas, side="right"), minlength=3).tolist()]
  rows = []
  for i, (size, count) in enumerate(zip(SIZES, counts, strict=True)):
    ap, ap50, ar = found.average_precision(size=i), found.average_precision(0, i), found.average_recall(i)
    rows.append({"size": size, "objects": count, "AP": ap, "AP50": ap50, "AR": ar})
  return rows


def _categories(wrong: Errors, found: Curves, names: Mapping[int, str]) -> list[dict[str, Any]]:
  real, category = wrong.objects(FOUND, COVERED, MISSED), wrong.truth.category_id
  on_images = np.unique(np.stack([category[real], wrong.truth.image_id[real]]), axis=1)[0]
  counts = {
    "objects": wrong.tally(category[real]),
    "images": wrong.tally(on_images),
    "detections": wrong.tally(wrong.detections.category_id),
    "found": wrong.tally(category[wrong.objects(FOUND)]),
    **wrong.per_category(),
  }
  rows = []
  for k, category_id in enumerate(found.category_ids):
    numbers = {
      "AP": found.average_precision(categories=[k]),
      "AP50": found.average_precision(0, categories=[k]),
      "AR": mean(found.recall[:, k, 0, -1]),
    }
    rows.append({"category": names[category_id], **numbers, **{name: int(of[k]) for name, of in counts.items()}})
  return rows


def operating_point(wrong: Errors) -> Operating | None:
  """The threshold of the highest F1; of equal ones the highest score. None where nothing is correct."""
  judged = ~wrong.is_a(errors.IGNORED)
  scores, correct = wrong.detections.score[judged], wrong.is_a(errors.CORRECT)[judged]
  objects = int((~wrong.objects(CROWD)).sum())
  if not correct.any():
    return None
  order = np.argsort(-scores, kind="stable")
  scores, hits = scores[order], np.cumsum(correct[order])
  last = np.append(np.flatnonzero(scores[1:] != scores[:-1]), len(scores) - 1)  # equal scores pass together
  f1 = 2 * hits[last] / (last + 1 + objects)
  at = last[int(np.argmax(f1))]
  return Operating(float(scores[at]), float(hits[at] / (at + 1)), float(hits[at] / objects))


def pictures(analysis: Analysis, score: float) -> list[Picture]:
  """Every image with what is wrong in it when detections below `score` are dropped, the worst first.

  Worse is more errors (wrong detections and objects not found); of equal ones, the higher scores of the wrong ones.
  """
  wrong = analysis.errors
  left = wrong.detections.score >= score
  correct, error = left & wrong.is_a(errors.CORRECT), left & np.isin(wrong.verdict, _WRONG)
  crowd = wrong.objects(CROWD)
  found = ~crowd & (wrong.match >= 0) & np.append(left, False)[wrong.match]
  result = []
  of_detections, of_truth = (errors.by_image(columns.image_id) for columns in (wrong.detections, wrong.truth))
  nothing = np.zeros(0, int)
  for image in analysis.images:
    rows = of_detections[image["id"]] if image["id"] in of_detections else nothing
    objects = of_truth[image["id"]] if image["id"] in of_truth else nothing
    rows = rows[np.argsort(-wrong.detections.score[rows], kind="stable")]
    result.append(
      Picture(
        image,
        wrong=rows[error[rows]],
        correct=rows[correct[rows]],
        missing=objects[~found[objects] & ~crowd[objects]],
        found=objects[found[objects]],
      )
    )
  scores = wrong.detections.score
  return sorted(result, key=lambda p: (-len(p.wrong) - len(p.missing), -float(scores[p.wrong].sum())))


_WRONG = [errors.VERDICTS.index(kind) for kind in errors.WRONG]

"""LVIS v1: AP under the federated rules, ordinary (300 detections per image) or fixed (reference 8).

"Fixed" AP (Dave et al., "Evaluating large-vocabulary object detectors: the devil is in the details") keeps the best
10,000 detections of every category over the whole set, however many fall on one image, so that a detector gains
nothing by leaving out rare categories. The paper's LVIS numbers are of this kind.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from eval import coco
from eval.coco import category_names
from eval.curves import NO_LIMIT, curves, in_order, places
from eval.files import Detections, Source

PER_IMAGE, PER_CATEGORY = 300, 10_000
FREQUENCIES = ("r", "c", "f")  # rare (in fewer than 10 training images), common (fewer than 100), frequent
FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")


def evaluate(
  annotations: str | pathlib.Path | Mapping[str, Any],
  predictions: Source,
  iou_type: str = "bbox",
  *,
  fixed: bool = False,
  engine: str | None = None,
) -> dict[str, Any]:
  """AP, AP50, AP75, APs/m/l, APr/c/f and average recalls as lvis-api defines them, and AP per category.

  Ordinary recalls are named AR@300, ARs@300 ..., the fixed ones AR, ARs .... Numbers are fractions, None where there
  is no ground truth; arguments as `eval.coco.evaluate_boxes`. Raises ValueError for files that are not LVIS's.
  """
  truth, detections = read(annotations, predictions, iou_type, fixed=fixed)
  names = category_names(truth["categories"])
  found = curves(truth, detections, iou_type, (NO_LIMIT,), federated=True, engine=engine)
  frequency = {category["id"]: category["frequency"] for category in truth["categories"]}
  result: dict[str, Any] = {}
  for key, threshold in (("AP", None), ("AP50", 0), ("AP75", 5)):
    result[key] = found.average_precision(threshold)
  for size, key in enumerate("sml", 1):
    result[f"AP{key}"] = found.average_precision(size=size)
  for key in FREQUENCIES:
    places = [k for k, category_id in enumerate(found.category_ids) if frequency[category_id] == key]
    result[f"AP{key}"] = found.average_precision(categories=places)
  for size, key in enumerate(("", *"sml")):
    result[f"AR{key}" if fixed else f"AR{key}@{PER_IMAGE}"] = found.average_recall(size)
  return {**result, "per_category": {names[k]: numbers for k, numbers in found.per_category().items()}}


def read(
  annotations: str | pathlib.Path | Mapping[str, Any],
  predictions: Source,
  iou_type: str = "bbox",
  *,
  fixed: bool = False,
) -> tuple[dict[str, Any], Detections]:
  """Truth and detections as they are judged: no crowds, nothing without area, and the best detections only."""
  truth, detections = coco.read(annotations, predictions, iou_type)
  _check(truth, "annotations" if isinstance(annotations, Mapping) else str(annotations))
  # lvis-api knows no crowds and leaves out whatever has no area, truth or detection.
  truth["annotations"] = [{**a, "iscrowd": 0} for a in truth["annotations"] if a["area"] > 0]
  detections = best(detections, per_category=PER_CATEGORY) if fixed else best(detections, per_image=PER_IMAGE)
  return truth, detections.take(np.flatnonzero(detections.areas() > 0))


def best(detections: Detections, *, per_image: int = NO_LIMIT, per_category: int = NO_LIMIT) -> Detections:
  """The so many best-scored detections of every image, or of every category."""
  ordered = in_order(detections)
  group, limit = (ordered.image_id, per_image) if per_image < NO_LIMIT else (ordered.category_id, per_category)
  index = np.lexsort((-ordered.score, group))  # stable: equal scores stay in order
  return ordered.take(np.sort(index[places(group[index]) < limit]))


def _check(truth: Mapping[str, Any], name: str) -> None:
  for i, image in enumerate(truth["images"]):
    if not set(FEDERATED) <= image.keys():
      raise ValueError(f"{name}: image {i} has no {' and '.join(FEDERATED)}; give an LVIS file, or use the task coco")
  for i, category in enumerate(truth["categories"]):
    if "frequency" not in category or category["frequency"] not in FREQUENCIES:
      raise ValueError(f"{name}: category {i} has no 'frequency' of {', '.join(FREQUENCIES)}; give an LVIS file")

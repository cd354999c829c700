"""Precision and recall of detections under COCO's matching and LVIS's federated rules.

pycocotools is the reference and always there; where hotcoco is installed it does the same work many times faster
(tests/eval/test_curves.py compares every number of the two). lvis-api is not used: its last release stops on NumPy
2 (`np.float`); the two rules that it adds to COCO's matching are `_Federated` below.
"""

import contextlib
import dataclasses
import importlib.util
import io
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from eval.files import Detections, collector_paused

SIZES = ("all", "small", "medium", "large")  # by area: below 32^2, up to 96^2, above
NO_LIMIT = 1 << 30
ENGINES = ("hotcoco", "pycocotools")  # the faster one first


@dataclasses.dataclass(frozen=True)
class Curves:
  """What COCOeval.accumulate leaves; -1 where a category has no ground truth of that size."""

  precision: np.ndarray  # threshold (0.50, 0.55 ... 0.95), recall (0, 0.01 ... 1), category, size, limit
  recall: np.ndarray  # threshold, category, size, limit
  category_ids: list[int]

  def average_precision(self, threshold: int | None = None, size: int = 0, categories: Any = slice(None)):
    """Mean precision of all thresholds (or of one, by its number) under the last limit; None without ground truth."""
    precision = self.precision if threshold is None else self.precision[threshold : threshold + 1]
    return mean(precision[:, :, categories, size, -1])

  def average_recall(self, size: int = 0, limit: int = -1):
    """Mean of the highest recall of all thresholds; None without ground truth."""
    return mean(self.recall[:, :, size, limit])

  def per_category(self) -> dict[int, dict[str, float] | None]:
    """AP and AP50 of each category id; None for a category without ground truth."""
    numbers = {}
    for k, category_id in enumerate(self.category_ids):
      ap, ap50 = self.average_precision(categories=[k]), self.average_precision(0, categories=[k])
      numbers[category_id] = None if ap is None else {"AP": ap, "AP50": ap50}
    return numbers


def mean(values: np.ndarray) -> float | None:
  """The mean of the entries that are numbers (not -1), None when there is none."""
  values = values[values > -1]
  return float(np.mean(values)) if len(values) else None


@collector_paused()
def curves(
  annotations: Mapping[str, Any],
  detections: Detections,
  iou_type: str,
  limits: tuple[int, ...],
  *,
  federated: bool = False,
  engine: str | None = None,
) -> Curves:
  """Matches detections with ground truth, per category and image, best score first.

  `annotations`: COCO content with ids from 1, area and iscrowd (eval/coco.py's `load_annotations`); `limits`: how
  many detections of a category and image count; `federated`: LVIS's rules; `engine`: 'hotcoco' or 'pycocotools', None
  takes the faster one that is installed. Detections of equal score in one category and image are ordered by their
  shape, not by their place in the file, so a permutation of the file changes nothing.
  """
  if engine is None:
    engine = "hotcoco" if importlib.util.find_spec("hotcoco") else "pycocotools"
  if engine not in ENGINES:
    raise ValueError(f"engine {engine!r} is not known; known: {', '.join(ENGINES)}")
  if not len(annotations["annotations"]) or not annotations["images"]:
    shape = (10, len(annotations["categories"]), len(SIZES), len(limits))
    return Curves(-np.ones((10, 101, *shape[1:])), -np.ones(shape), sorted(c["id"] for c in annotations["categories"]))
  match = _hotcoco if engine == "hotcoco" else _pycocotools
  return match(annotations, in_order(detections), iou_type, limits, federated)


def in_order(detections: Detections) -> Detections:
  """By image, category, falling score, shape: an order that does not depend on the file's."""
  keys = (-detections.score, detections.category_id, detections.image_id)
  order = np.lexsort(keys)
  same = np.all([key[order][1:] == key[order][:-1] for key in keys], axis=0)
  if same.any():
    ties = [detections.bbox_xywh_px[:, k] for k in (3, 2, 1, 0)]
    if detections.segmentation is not None:
      ties = [np.array([zlib.crc32(str(mask["counts"]).encode()) for mask in detections.segmentation])]
    order = np.lexsort((*ties, *keys))
  return detections.take(order)


def places(*keys: np.ndarray) -> np.ndarray:
  """n int: the place (from 0) of each entry among those with the same keys; equal keys stand together."""
  n = len(keys[0])
  new = np.ones(n, bool)
  new[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
  starts = np.flatnonzero(new)
  return np.arange(n) - np.repeat(starts, np.diff(np.append(starts, n)))


def _hotcoco(annotations, detections: Detections, iou_type, limits, federated) -> Curves:
  import hotcoco

  d = detections
  truth = hotcoco.COCO(dict(annotations))
  if d.segmentation is None:
    records = np.column_stack([d.image_id, d.bbox_xywh_px, d.score, d.category_id])
  else:  # records, not columns: the area of a record with a box is that of the box
    columns = zip(d.image_id.tolist(), d.category_id.tolist(), d.score.tolist(), d.segmentation, strict=True)
    keys = ("image_id", "category_id", "score", "segmentation")
    records = [dict(zip(keys, record)) for record in columns]
  # A plain load_res would be cut to lvis-api's 300 per image under its rules; the caller has cut already.
  found = hotcoco.LVISResults(truth, records, -1) if federated else truth.load_res(records)
  evaluation = hotcoco.COCOeval(truth, found, iou_type, lvis_style=federated)
  evaluation.params.max_dets = list(limits)
  with contextlib.redirect_stdout(io.StringIO()):
    evaluation.evaluate()
    evaluation.accumulate()
  result = evaluation.eval
  return Curves(result["precision"], result["recall"], list(evaluation.params.cat_ids))


def _pycocotools(annotations, detections: Detections, iou_type, limits, federated) -> Curves:
  with contextlib.redirect_stdout(io.StringIO()):
    truth = COCO()
    truth.dataset = {**annotations, "annotations": [dict(a) for a in annotations["annotations"]]}
    truth.createIndex()
    evaluation = (_Federated if federated else COCOeval)(truth, _coco_results(truth, detections), iou_type)
    evaluation.params.maxDets = list(limits)
    evaluation.evaluate()
    evaluation.accumulate()
  return Curves(evaluation.eval["precision"], evaluation.eval["recall"], [int(c) for c in evaluation.params.catIds])


def _coco_results(truth: COCO, detections: Detections) -> COCO:
  """What COCO.loadRes makes of the same records; it cannot take an empty list."""
  boxes, masks = detections.bbox_xywh_px, detections.segmentation
  areas = detections.areas().tolist()
  columns = (detections.image_id.tolist(), detections.category_id.tolist(), detections.score.tolist(), boxes.tolist())
  results = COCO()
  results.dataset = {"images": truth.dataset["images"], "categories": truth.dataset["categories"], "annotations": []}
  for i, (image_id, category_id, score, box) in enumerate(zip(*columns, strict=True)):
    record = {"id": i + 1, "image_id": image_id, "category_id": category_id, "score": score, "iscrowd": 0}
    shape = {"bbox": box} if masks is None else {"segmentation": masks[i]}
    results.dataset["annotations"].append({**record, **shape, "area": areas[i]})
  results.createIndex()
  return results


class _Federated(COCOeval):
  """LVIS: an image is judged on the categories that were looked for in it, and unmatched detections of those that
  were not annotated exhaustively are left out."""

  def _prepare(self) -> None:
    super()._prepare()
    images = self.cocoGt.imgs
    for image_id, category_id in list(self._dts):
      if not self._gts[image_id, category_id] and category_id not in images[image_id]["neg_category_ids"]:
        del self._dts[image_id, category_id]

  def evaluateImg(self, imgId, catId, aRng, maxDet):
    result = super().evaluateImg(imgId, catId, aRng, maxDet)
    if result is not None and catId in self.cocoGt.imgs[imgId]["not_exhaustive_category_ids"]:
      result["dtIgnore"] = np.logical_or(result["dtIgnore"], result["dtMatches"] == 0)
    return result

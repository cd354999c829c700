"""Why detections are wrong: the error types of TIDE and the AP50 that each of them costs (Bolya et al., ECCV 2020).

t = 0.5 and b = 0.1 are overlaps (IoU) with objects, crowds left out. Detections are matched as COCO does it: per
category, best score first, each with the free object that it overlaps most, by t or more. A detection without match is
the first of these that fits:

  localisation    b <= IoU <= t with an object of its own category
  classification  t <= IoU with an object of another category
  duplicate       t <= IoU with an object of its own category that a better detection has taken
  background      IoU <= b with every object
  both            what is left: wrong place and wrong category

An object without match is `missed`, unless a localisation or classification error lies on it and mending that error
would find it (`covered`). The cost of a type is the AP50 that is gained when its errors alone are mended: the
best-scored localisation or classification error of an object that nothing found becomes a correct detection of it,
all other wrong detections of the type are removed, missed objects are no longer counted as objects.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as rle

from eval.curves import in_order, places
from eval.files import Detections

MATCH, BACKGROUND = 0.5, 0.1  # t and b
PER_CATEGORY = 100  # detections of a category and image that count, as in COCO's AP
# Verdicts on detections. The order of the errors is that of the page and of the tool's own tables.
CORRECT, IGNORED = "correct", "ignored"  # ignored: on a crowd, or not judged under LVIS's rules
WRONG = ("classification", "localisation", "both", "duplicate", "background")
VERDICTS = (CORRECT, IGNORED, *WRONG)
# Verdicts on objects.
FOUND, COVERED, MISSED, CROWD = OBJECTS = ("found", "covered", "missed", "crowd")
TYPES = (*WRONG, MISSED)
RECALLS = np.linspace(0, 1, 101)


@dataclasses.dataclass(frozen=True)
class Errors:
  """Every detection and every object of a data set with its verdict.

  `target`: the object (row of `truth`) that a detection is correct for, lies badly on, takes for another category or
  repeats; -1 for the rest. `match`: the detection (row of `detections`) that found an object, -1 for none.
  """

  detections: Detections  # n, by image, category and falling score
  verdict: np.ndarray  # n, places in VERDICTS
  target: np.ndarray  # n int
  truth: Detections  # g objects as columns: their ids, boxes or masks; the score means nothing
  truth_verdict: np.ndarray  # g, places in OBJECTS
  match: np.ndarray  # g int
  category_ids: list[int]

  def is_a(self, verdict: str) -> np.ndarray:
    """n bool: the detections of this verdict."""
    return self.verdict == VERDICTS.index(verdict)

  def objects(self, *verdicts: str) -> np.ndarray:
    """g bool: the objects of one of these verdicts."""
    return np.isin(self.truth_verdict, [OBJECTS.index(verdict) for verdict in verdicts])

  def counts(self) -> dict[str, int]:
    """How many errors there are of each type."""
    return {kind: int(of_categories.sum()) for kind, of_categories in self.per_category().items()}

  def per_category(self) -> dict[str, np.ndarray]:
    """How many errors of each type there are in each of `category_ids`: that of the detection, for `missed` of the
    object."""
    wrong = {kind: self.tally(self.detections.category_id[self.is_a(kind)]) for kind in WRONG}
    return {**wrong, MISSED: self.tally(self.truth.category_id[self.objects(MISSED)])}

  def tally(self, category_id: np.ndarray) -> np.ndarray:
    """How often each of `category_ids` occurs."""
    return np.bincount(np.searchsorted(self.category_ids, category_id), minlength=len(self.category_ids))

  def ap50(self, mended: str | None = None) -> float | None:
    """AP50, mean over the categories with objects, as it is or with all errors of one type mended; None without any."""
    keep, correct = ~self.is_a(IGNORED), self.is_a(CORRECT)
    category, real = self.detections.category_id, self.objects(FOUND, COVERED, MISSED)
    objects = self.tally(self.truth.category_id[real])
    known = objects > 0
    if mended == MISSED:
      objects = objects - self.tally(self.truth.category_id[self.objects(MISSED)])
    elif mended is not None:
      wrong = self.is_a(mended)
      saved = wrong & self._saves() if mended in ("localisation", "classification") else np.zeros_like(wrong)
      keep, correct = keep & (~wrong | saved), correct | saved
      if mended == "classification":
        category = np.where(saved, self.truth.category_id[self.target], category)
    rows = np.flatnonzero(keep)
    rows = rows[np.lexsort((-self.detections.score[rows], category[rows]))]
    parts = np.split(correct[rows], np.cumsum(self.tally(category[rows]))[:-1])
    # A category whose objects were all missed, and are left out now, has no AP unless something was detected.
    values = [average_precision(of, n) for of, n, k in zip(parts, objects, known) if k and (n or len(of))]
    return float(np.mean(values)) if values else None

  def costs(self) -> dict[str, float | None]:
    """The AP50 that is gained by mending each type alone; never below 0."""
    now = self.ap50()
    return {kind: None if now is None else max(0.0, (self.ap50(kind) or 0.0) - now) for kind in TYPES}

  def confusions(self) -> dict[tuple[int, int], int]:
    """How often a category (of the detection) stands on an object of another (of the object), most often first."""
    rows = np.flatnonzero(self.is_a("classification"))
    pairs = zip(self.detections.category_id[rows].tolist(), self.truth.category_id[self.target[rows]].tolist())
    counts: dict[tuple[int, int], int] = {}
    for pair in pairs:
      counts[pair] = counts.get(pair, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

  def _saves(self) -> np.ndarray:
    """n bool: the best-scored localisation or classification error on each object that nothing found."""
    wrong = (self.is_a("localisation") | self.is_a("classification")) & (self.target >= 0)
    rows = np.flatnonzero(wrong)
    rows = rows[self.match[self.target[rows]] < 0]
    rows = rows[np.argsort(-self.detections.score[rows], kind="stable")]
    _, first = np.unique(self.target[rows], return_index=True)
    saves = np.zeros(len(self.detections), bool)
    saves[rows[first]] = True
    return saves


def average_precision(correct: np.ndarray, objects: int) -> float:
  """COCO's AP of n verdicts (bool), best score first: precision, made monotonous, at 101 recalls. 0 without objects."""
  if not objects or not len(correct):
    return 0.0
  found = np.cumsum(correct)
  precision = found / np.arange(1, len(correct) + 1)
  precision = np.maximum.accumulate(precision[::-1])[::-1]
  at = np.searchsorted(found / objects, RECALLS, side="left")
  return float(np.append(precision, 0.0)[at].mean())


def find(
  annotations: Mapping[str, Any], detections: Detections, iou_type: str = "bbox", *, federated: bool = False
) -> Errors:
  """The verdict on every detection and object.

  `annotations`: what `eval.coco.load_annotations` gave; `detections`: checked against them; `federated`: LVIS's rules,
  as in `eval.curves`. Of a category and image the best 100 detections count, under LVIS's rules all that are given.
  """
  detections = in_order(detections)
  truth, crowd = _objects(annotations, iou_type)
  if federated:
    judged, excused = _federated(annotations, detections, truth)
  else:
    judged = places(detections.image_id, detections.category_id) < PER_CATEGORY
    excused = np.zeros(len(detections), bool)
  detections, excused = detections.take(np.flatnonzero(judged)), excused[judged]
  n, g = len(detections), len(truth)
  verdict, target = np.full(n, VERDICTS.index("background")), np.full(n, -1)
  truth_verdict, match = np.full(g, OBJECTS.index(MISSED)), np.full(g, -1)
  rows_of, objects_of = by_image(detections.image_id), by_image(truth.image_id)
  for image_id, rows in rows_of.items():
    rows = rows[np.argsort(-detections.score[rows], kind="stable")]
    objects = objects_of[image_id] if image_id in objects_of else np.zeros(0, int)
    _judge(detections, rows, truth, objects, crowd, excused, verdict, target, match)
  truth_verdict[match >= 0] = OBJECTS.index(FOUND)
  categories = sorted(category["id"] for category in annotations["categories"])
  found = Errors(detections, verdict, target, truth, truth_verdict, match, categories)
  truth_verdict[target[found._saves()]] = OBJECTS.index(COVERED)
  truth_verdict[crowd] = OBJECTS.index(CROWD)
  return found


def _judge(detections, rows, truth, objects, crowd, excused, verdict, target, match) -> None:
  """Writes the verdicts of one image's detections (`rows`, best score first) on its `objects`."""
  crowds, objects = objects[crowd[objects]], objects[~crowd[objects]]
  overlap = _overlap(detections, rows, truth, objects, crowd=False)
  same = detections.category_id[rows][:, None] == truth.category_id[objects][None]
  own = np.where(same, overlap, 0)
  free = np.ones(len(objects), bool)
  for i in np.flatnonzero((own >= MATCH).any(1)):
    candidates = np.where(free, own[i], 0)
    j = len(objects) - 1 - int(np.argmax(candidates[::-1]))  # of equal ones the last, as COCOeval
    if candidates[j] >= MATCH:
      free[j] = False
      match[objects[j]], target[rows[i]] = rows[i], objects[j]
      verdict[rows[i]] = VERDICTS.index(CORRECT)

  wrong = target[rows] < 0
  ignored = excused[rows]
  if len(crowds):
    of_crowd = detections.category_id[rows][:, None] == truth.category_id[crowds][None]
    inside = np.where(of_crowd, _overlap(detections, rows, truth, crowds, crowd=True), 0)
    ignored = ignored | (inside >= MATCH).any(1)
  verdict[rows[wrong & ignored]] = VERDICTS.index(IGNORED)
  left = wrong & ~ignored
  if not len(objects) or not left.any():
    return
  other, taken = np.where(same, 0, overlap), np.where(same & ~free, overlap, 0)
  best = own.max(1)
  tests = (
    ("localisation", (BACKGROUND <= best) & (best <= MATCH), own),
    ("classification", other.max(1) >= MATCH, other),
    ("duplicate", taken.max(1) >= MATCH, taken),
    ("background", overlap.max(1) <= BACKGROUND, None),
    ("both", np.ones(len(rows), bool), None),
  )
  for kind, fits, on in tests:
    chosen = left & fits
    verdict[rows[chosen]] = VERDICTS.index(kind)
    if on is not None:
      target[rows[chosen]] = objects[on[chosen].argmax(1)]
    left = left & ~fits


def _overlap(detections: Detections, rows, truth: Detections, objects, crowd: bool) -> np.ndarray:
  """IoU of some detections and objects, r o; with a crowd the part of the detection that lies in it."""
  if not len(rows) or not len(objects):
    return np.zeros((len(rows), len(objects)))
  if detections.segmentation is None:
    shapes = detections.bbox_xywh_px[rows], truth.bbox_xywh_px[objects]
  else:
    shapes = [detections.segmentation[i] for i in rows], [truth.segmentation[j] for j in objects]
  return np.nan_to_num(np.asarray(rle.iou(*shapes, [crowd] * len(objects)), float))


def _objects(annotations: Mapping[str, Any], iou_type: str) -> tuple[Detections, np.ndarray]:
  """The annotations as columns, and which of them are crowds (g bool)."""
  items = annotations["annotations"]
  columns = [np.array([a[key] for a in items], np.int64) for key in ("image_id", "category_id")]
  boxes = np.array([a["bbox"] for a in items], float).reshape(-1, 4)
  masks = None
  if iou_type == "segm":
    sizes = {image["id"]: (image["height"], image["width"]) for image in annotations["images"]}
    masks = [_mask(a["segmentation"], *sizes[a["image_id"]]) for a in items]
  crowd = np.array([bool(a["iscrowd"]) for a in items], bool)
  return Detections("annotations", *columns, np.ones(len(items)), boxes, masks), crowd


def _mask(segmentation: Any, height: int, width: int) -> Mapping[str, Any]:
  """Polygons or run lengths as one compressed run-length mask."""
  if isinstance(segmentation, list):
    return rle.merge(rle.frPyObjects(segmentation, height, width))
  return rle.frPyObjects(segmentation, height, width) if isinstance(segmentation["counts"], list) else segmentation


def _federated(annotations, detections: Detections, truth: Detections) -> tuple[np.ndarray, np.ndarray]:
  """n bool: the detections that are judged, and those of them that are no errors when unmatched (LVIS)."""
  images = {image["id"]: image for image in annotations["images"]}
  annotated = set(zip(truth.image_id.tolist(), truth.category_id.tolist()))
  keep, excused = np.zeros((2, len(detections)), bool)
  for i, (image_id, category_id) in enumerate(zip(detections.image_id.tolist(), detections.category_id.tolist())):
    image = images[image_id]
    keep[i] = (image_id, category_id) in annotated or category_id in image["neg_category_ids"]
    excused[i] = category_id in image["not_exhaustive_category_ids"]
  return keep, excused


def by_image(ids: np.ndarray) -> dict[int, np.ndarray]:
  """The rows of each image."""
  order = np.argsort(ids, kind="stable")
  known, starts = np.unique(ids[order], return_index=True)
  return dict(zip(known.tolist(), np.split(order, starts[1:])))

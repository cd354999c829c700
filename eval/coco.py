"""COCO detection metrics of boxes and masks in any data set of COCO form (reference 8).

Annotations in, predictions in COCO result form in, numbers out: nothing here knows a network. Two traps of the
official tool are closed: it counts an annotation with id 0 as missed (ids are renumbered from 1), and categories
without ground truth have no AP (they are listed as None, never averaged in).
"""

import math
import numbers
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.curves import curves
from eval.files import (
  SHAPES,
  Detections,
  Source,
  check_detections,
  fields,
  is_box,
  read_detections,
  read_json,
  run_length,
  unique,
  warn_of_corners,
)

# Names of the twelve numbers of COCOeval.stats, in its order.
STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
LIMITS = (1, 10, 100)  # detections per category and image


def load_annotations(source: str | pathlib.Path | Mapping[str, Any], iou_type: str = "bbox") -> dict[str, Any]:
  """A COCO annotation file (path, or its content) as a fresh dict, annotation ids renumbered from 1.

  'area' (of the box) and 'iscrowd' (0) are filled in where they lack. Raises FileNotFoundError or ValueError naming
  the file, the annotation and what is wrong with it; warns where boxes look like corners.
  """
  if iou_type not in SHAPES:
    raise ValueError(f"iou_type {iou_type!r} is not known; known: {', '.join(SHAPES)}")
  name = "annotations" if isinstance(source, Mapping) else str(source)
  content = source if isinstance(source, Mapping) else read_json(source, "annotation file")
  for key in ("images", "annotations", "categories"):
    if not isinstance(content, Mapping) or key not in content:
      raise ValueError(f"{name} has no {key!r}; a COCO detection file has images, annotations and categories")
  for key, what, needed in (("images", "image", ("id",)), ("categories", "category", ("id", "name"))):
    ids = [fields(item, i, f"{key} of {name}", *needed)[0] for i, item in enumerate(content[key])]
    for i, item in enumerate(ids):
      if not isinstance(item, numbers.Integral):
        raise ValueError(f"{name}: {what} {i} has id {item!r}; ids are whole numbers")
    unique(ids, name, what)
  unique([item["id"] for item in content["annotations"] if "id" in item], name, "annotation")
  sizes = image_sizes(content)
  categories = {category["id"] for category in content["categories"]}
  annotations = []
  for i, annotation in enumerate(content["annotations"]):
    image_id, category_id, box = fields(annotation, i, f"annotations of {name}", "image_id", "category_id", "bbox")
    if image_id not in sizes:
      raise ValueError(f"annotation {i} of {name} is on image {image_id!r}, which 'images' does not list")
    if category_id not in categories:
      raise ValueError(f"annotation {i} of {name} has category {category_id!r}, which 'categories' lacks")
    if not is_box(box) or not all(map(math.isfinite, box)):
      raise ValueError(f"annotation {i} of {name} has bbox {box!r}; give finite x, y, width, height in pixels")
    if iou_type == "segm":
      _check_mask(annotation, i, name, sizes[image_id])
    annotations.append({**annotation, "id": i + 1})
    annotations[-1].setdefault("iscrowd", 0)
    annotations[-1].setdefault("area", float(box[2]) * float(box[3]))
  boxes = np.array([a["bbox"] for a in annotations], float).reshape(-1, 4)
  warn_of_corners(boxes, [sizes[a["image_id"]] for a in annotations], name)
  return {"images": list(content["images"]), "categories": list(content["categories"]), "annotations": annotations}


def image_sizes(annotations: Mapping[str, Any]) -> dict[int, tuple[int, int] | None]:
  """(height, width) by image id, None where the annotations do not tell."""
  known = {"height", "width"}
  return {i["id"]: (i["height"], i["width"]) if known <= i.keys() else None for i in annotations["images"]}


def _check_mask(annotation: Mapping[str, Any], i: int, name: str, size: tuple[int, int] | None) -> None:
  if size is None:
    raise ValueError(f"{name}: image {annotation['image_id']} has no 'height' and 'width'; masks need them")
  mask = annotation["segmentation"] if "segmentation" in annotation else None
  if not mask:
    raise ValueError(f"annotation {i} of {name} has no 'segmentation'; evaluate boxes (iou_type 'bbox')")
  if isinstance(mask, Mapping) and tuple(run_length(mask, f"annotation {i} of {name}")["size"]) != size:
    raise ValueError(
      f"annotation {i} of {name} has a mask of {list(mask['size'])}, but image {annotation['image_id']} is "
      f"{list(size)} (height, width)"
    )


def evaluate_boxes(
  annotations: str | pathlib.Path | Mapping[str, Any],
  predictions: Source,
  iou_type: str = "bbox",
  *,
  engine: str | None = None,
) -> dict[str, Any]:
  """AP, AP50, AP75, APs/m/l, AR1/10/100, ARs/m/l as COCOeval defines them, of boxes or masks, and AP per category.

  `annotations`: a file, its content, or what `load_annotations` gave; `predictions`: a file or its records in COCO
  result form, {image_id, category_id, score, bbox = [x, y, x2 - x1 + 1, y2 - y1 + 1] or segmentation} in pixels of
  the original image; `engine` as in `eval.curves`. Numbers are fractions; a size class without ground truth is None.
  'per_category' maps names to {AP, AP50}, to None where the category has no ground truth. Raises ValueError as
  `load_annotations`, `read_detections` and `check_detections`.
  """
  truth, detections = read(annotations, predictions, iou_type)
  names = category_names(truth["categories"])
  found = curves(truth, detections, iou_type, LIMITS, engine=engine)
  precisions = [found.average_precision(threshold) for threshold in (None, 0, 5)]
  precisions += [found.average_precision(size=size) for size in (1, 2, 3)]
  recalls = [found.average_recall(limit=limit) for limit in (0, 1, 2)]
  recalls += [found.average_recall(size) for size in (1, 2, 3)]
  stats = dict(zip(STATS, precisions + recalls, strict=True))
  return {**stats, "per_category": {names[k]: numbers for k, numbers in found.per_category().items()}}


def read(
  annotations: str | pathlib.Path | Mapping[str, Any], predictions: Source, iou_type: str = "bbox"
) -> tuple[dict[str, Any], Detections]:
  """What `load_annotations` and `read_detections` give, checked against each other (`check_detections`)."""
  truth = load_annotations(annotations, iou_type)
  detections = read_detections(predictions, iou_type)
  check_detections(detections, image_sizes(truth), category_names(truth["categories"]))
  return truth, detections


def category_names(categories: Sequence[Mapping[str, Any]]) -> dict[int, str]:
  """Names by id; a name that several categories share gets its id appended, so that no number is lost."""
  names = [category["name"] for category in categories]
  return {c["id"]: c["name"] if names.count(c["name"]) == 1 else f"{c['name']} (id {c['id']})" for c in categories}


def result_boxes(
  image_id: int, boxes_xyxy_px: np.ndarray, scores: np.ndarray, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
  """COCO results of one image from inclusive boxes k 4 in pixels of the original image: width = x2 - x1 + 1."""
  boxes = np.asarray(boxes_xyxy_px, np.float64).reshape(-1, 4)
  sizes = boxes[:, 2:] - boxes[:, :2] + 1
  return [
    {
      "image_id": int(image_id),
      "category_id": int(category_id),
      "bbox": [float(v) for v in (*box[:2], *size)],
      "score": float(score),
    }
    for box, size, score, category_id in zip(boxes, sizes, scores, category_ids, strict=True)
  ]

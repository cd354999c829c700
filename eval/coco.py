"""COCO detection metrics of boxes in any data set of COCO form, by pycocotools (reference 8).

Annotations in, predictions in COCO result form in, numbers out: nothing here knows a network. Two traps are closed:
pycocotools counts an annotation with id 0 as missed (ids are renumbered from 1), and categories without ground truth
have no AP (they are listed by name, never averaged in and never NaN).
"""

import contextlib
import copy
import io
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

# Names of the twelve numbers of COCOeval.stats for boxes and masks, in its order.
STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
IOU_TYPES = {"bbox": "bbox", "segm": "segmentation"}  # -> the field that a prediction must have


def load_annotations(source: str | pathlib.Path | Mapping[str, Any]) -> dict[str, Any]:
  """A COCO annotation file (path, or its content) as a fresh dict, annotation ids renumbered from 1.

  Raises FileNotFoundError or ValueError naming what is missing.
  """
  name = "annotations" if isinstance(source, Mapping) else str(source)
  if isinstance(source, Mapping):
    content = source
  else:
    if not pathlib.Path(source).is_file():
      raise FileNotFoundError(f"annotation file {name} does not exist; give the path of a COCO-format JSON file")
    try:
      content = json.loads(pathlib.Path(source).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
      raise ValueError(f"annotation file {name} is not JSON: {error}") from error
  for key in ("images", "annotations", "categories"):
    if key not in content:
      raise ValueError(f"{name} has no {key!r}; a COCO detection file has images, annotations and categories")
  images = {image["id"] for image in content["images"]}
  categories = {category["id"] for category in content["categories"]}
  annotations = []
  for i, annotation in enumerate(content["annotations"]):
    if annotation["image_id"] not in images:
      raise ValueError(f"annotation {i} of {name} is on image {annotation['image_id']!r}, which 'images' does not list")
    if annotation["category_id"] not in categories:
      raise ValueError(f"annotation {i} of {name} has category {annotation['category_id']!r}, which 'categories' lacks")
    if "bbox" not in annotation:
      raise ValueError(f"annotation {i} of {name} has no 'bbox'; add x, y, width, height in pixels")
    annotations.append({**annotation, "id": i + 1})
    annotations[-1].setdefault("iscrowd", 0)
    annotations[-1].setdefault("area", float(annotation["bbox"][2]) * float(annotation["bbox"][3]))
  return {"images": list(content["images"]), "categories": list(content["categories"]), "annotations": annotations}


def check_predictions(
  annotations: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]], iou_type: str = "bbox"
) -> None:
  """Raises ValueError naming the first prediction that cannot be scored, and the remedy."""
  if iou_type not in IOU_TYPES:
    raise ValueError(f"iou_type {iou_type!r} is not known; known: {', '.join(IOU_TYPES)}")
  images = {image["id"] for image in annotations["images"]}
  categories = {category["id"] for category in annotations["categories"]}
  for i, prediction in enumerate(predictions):
    for key in ("image_id", "category_id", "score", IOU_TYPES[iou_type]):
      if key not in prediction:
        raise ValueError(f"prediction {i} has no {key!r}; COCO results have image_id, category_id, score and a shape")
    if prediction["image_id"] not in images:
      raise ValueError(
        f"prediction {i} is on image id {prediction['image_id']!r}, which the annotations do not list; "
        "evaluate against the split that was predicted"
      )
    if prediction["category_id"] not in categories:
      raise ValueError(
        f"prediction {i} has category id {prediction['category_id']!r}; known ids: {sorted(categories)[:20]}; "
        "map labels to the category ids of the annotation file"
      )
    if not math.isfinite(prediction["score"]):
      raise ValueError(f"prediction {i} has score {prediction['score']}; scores must be finite numbers")
    if iou_type == "bbox":
      box = prediction["bbox"]
      if len(box) != 4:
        raise ValueError(f"prediction {i} has a bbox of {len(box)} numbers; give x, y, width, height")
      if not all(math.isfinite(v) for v in box) or box[2] < 0 or box[3] < 0:
        raise ValueError(f"prediction {i} has bbox {list(box)}; give finite x, y and width, height of at least 0")


def evaluate_boxes(
  annotations: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]], iou_type: str = "bbox"
) -> dict[str, Any]:
  """AP, AP50, AP75, APs/m/l, AR1/10/100, ARs/m/l as COCOeval defines them, and AP per category.

  `annotations` from `load_annotations`; `predictions` in COCO result form: {image_id, category_id, score, bbox =
  [x, y, x2 - x1 + 1, y2 - y1 + 1]} in pixels of the original image. Numbers are fractions; a size class without
  ground truth is None. 'per_category' maps names to {AP, AP50}; 'absent_categories' names those without ground truth.
  Raises ValueError as `check_predictions`.
  """
  check_predictions(annotations, predictions, iou_type)
  with contextlib.redirect_stdout(io.StringIO()):
    truth = COCO()
    truth.dataset = copy.deepcopy(dict(load_annotations(annotations)))
    truth.createIndex()
    evaluation = COCOeval(truth, _results(truth, predictions, iou_type), iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
  result: dict[str, Any] = {name: _number(value) for name, value in zip(STATS, evaluation.stats, strict=True)}
  result["per_category"], result["absent_categories"] = _per_category(truth, evaluation)
  return result


def _results(truth: COCO, predictions: Sequence[Mapping[str, Any]], iou_type: str) -> COCO:
  if predictions:
    return truth.loadRes([dict(p) for p in predictions])
  empty = COCO()  # loadRes cannot take an empty list
  empty.dataset = {"images": truth.dataset["images"], "categories": truth.dataset["categories"], "annotations": []}
  empty.createIndex()
  return empty


def _number(value: float) -> float | None:
  return None if value < 0 else float(value)  # COCOeval's -1: no ground truth of this kind


def _per_category(truth: COCO, evaluation: COCOeval) -> tuple[dict[str, dict[str, float]], list[str]]:
  precision = evaluation.eval["precision"][:, :, :, 0, -1]  # threshold, recall, category; all sizes, most detections
  present, absent = {}, []
  names = _category_names(truth.dataset["categories"])
  for k, category_id in enumerate(evaluation.params.catIds):
    values = precision[:, :, k]
    if not (values > -1).any():
      absent.append(names[category_id])
    else:
      present[names[category_id]] = {"AP": float(np.mean(values)), "AP50": float(np.mean(values[0]))}
  return present, absent


def _category_names(categories: Sequence[Mapping[str, Any]]) -> dict[int, str]:
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

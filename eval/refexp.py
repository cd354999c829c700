"""RefCOCO, RefCOCO+, RefCOCOg: one expression, one object; boxes or masks."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO

from eval.coco import image_sizes, load_annotations
from eval.curves import in_order
from eval.files import Detections, Source, check_detections, read_detections, read_json, unique
from eval.grounding import iou

RANKS = (1, 5, 10)
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def evaluate(
  annotations: str | pathlib.Path | Mapping[str, Any],
  predictions: Source,
  iou_type: str = "bbox",
  *,
  instances: str | pathlib.Path | Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Boxes: Pr@0.5 of the best box and P@1/5/10; masks: oIoU, mIoU, Pr@0.5 ... Pr@0.9 of the best mask. Fractions.

  `annotations`: MDETR's finetune_refcoco_SPLIT.json, where every expression is an image of its own with one
  annotation; `predictions`: COCO results whose image_id is the id of the expression (no category_id). Masks of the
  truth come from the annotations, or, where MDETR's files leave them out, from `instances` (instances.json of the
  data set), by original_id. Pr@0.5 counts IoU >= 0.5, P@k any of the best k boxes with generalised IoU >= 0.5 (the
  authors' evaluator). An expression without prediction counts as missed and in 'missing'. With several data sets in
  the file 'per_dataset' tells them apart.
  """
  truth = _with_masks(annotations, instances) if instances is not None else annotations
  truth = load_annotations(truth, iou_type)
  unique([a["image_id"] for a in truth["annotations"]], "annotations", "annotation (each expression has one object)")
  detections = read_detections(predictions, iou_type, categories=False)
  check_detections(detections, image_sizes(truth), None)
  detections = in_order(detections)
  ranked = _ranked(detections)
  expressions = {image["id"]: image for image in truth["images"]}
  scores, datasets = [], []
  masks = _truth_masks(truth) if iou_type == "segm" else {}
  for annotation in truth["annotations"]:
    image_id = annotation["image_id"]
    of_image = ranked[image_id] if image_id in ranked else np.zeros(0, int)
    if iou_type == "bbox":
      scores.append(_box_scores(annotation["bbox"], detections.bbox_xywh_px[of_image]))
    else:
      scores.append(_areas(masks[image_id], detections.segmentation[of_image[0]] if len(of_image) else None))
    expression = expressions[image_id]
    datasets.append(expression["dataset_name"] if "dataset_name" in expression else "")
  summary = _box_summary if iou_type == "bbox" else mask_summary
  table = np.array(scores, float).reshape(len(scores), -1)
  missing = sum(a["image_id"] not in ranked for a in truth["annotations"])
  result = {**summary(table), "expressions": len(table), "missing": missing}
  if len(set(datasets)) > 1:
    places = {name: [k for k, of in enumerate(datasets) if of == name] for name in sorted(set(datasets))}
    result["per_dataset"] = {name: summary(table[index]) for name, index in places.items()}
  return result


def mask_summary(areas: np.ndarray) -> dict[str, float | None]:
  """oIoU (all intersections over all unions), mIoU and Pr@ from rows of (intersection, union)."""
  if not len(areas):
    return dict.fromkeys(("oIoU", "mIoU", *(f"Pr@{t}" for t in THRESHOLDS)))
  ious = areas[:, 0] / np.maximum(areas[:, 1], 1)
  precisions = {f"Pr@{t}": float(np.mean(ious >= t)) for t in THRESHOLDS}
  return {"oIoU": float(areas[:, 0].sum() / max(areas[:, 1].sum(), 1)), "mIoU": float(ious.mean()), **precisions}


def _box_summary(hits: np.ndarray) -> dict[str, float | None]:
  names = ("Pr@0.5", *(f"P@{k}" for k in RANKS))
  return {name: float(hits[:, k].mean()) if len(hits) else None for k, name in enumerate(names)}


def _ranked(ordered: Detections) -> dict[int, np.ndarray]:
  """Positions of each expression's detections, best first, in detections as `in_order` gives them."""
  ids, starts, counts = np.unique(ordered.image_id, return_index=True, return_counts=True)
  return {i: np.arange(start, start + count) for i, start, count in zip(ids.tolist(), starts, counts, strict=True)}


def _box_scores(truth_xywh: list[float], boxes_xywh: np.ndarray) -> list[bool]:
  truth = np.array([truth_xywh], float)
  truth, boxes = (np.concatenate([x[:, :2], x[:, :2] + x[:, 2:]], axis=1) for x in (truth, boxes_xywh))
  plain = iou(boxes, truth)[:, 0]
  sides = np.maximum(boxes[:, 2:], truth[:, 2:]) - np.minimum(boxes[:, :2], truth[:, :2])
  hull, areas = np.prod(sides, axis=1), [np.prod(x[:, 2:] - x[:, :2], axis=1) for x in (boxes, truth)]
  union = (areas[0] + areas[1]) / (1 + plain)  # |A| + |B| = |A u B| + |A n B|
  generalised = plain - (hull - union) / np.maximum(hull, 1e-12)
  return [bool((plain[:1] >= 0.5).any()), *(bool((generalised[:k] >= 0.5).any()) for k in RANKS)]


def _areas(truth: Any, predicted: Any | None) -> tuple[float, float]:
  """Intersection and union in pixels; without a prediction nothing overlaps."""
  if predicted is None:
    return 0.0, float(rle.area(truth))
  inter = float(rle.area(rle.merge([truth, predicted], intersect=True)))
  return inter, float(rle.area(truth)) + float(rle.area(predicted)) - inter


def _truth_masks(truth: Mapping[str, Any]) -> dict[int, Any]:
  index = COCO.__new__(COCO)  # annToRLE needs the pictures' sizes only; the constructor prints
  index.imgs = {image["id"]: image for image in truth["images"]}
  return {a["image_id"]: index.annToRLE(a) for a in truth["annotations"]}


def _with_masks(annotations: Any, instances: Any) -> dict[str, Any]:
  """The annotations with the masks of the COCO annotations that their original_id names."""
  truth = load_annotations(annotations)
  content = instances if isinstance(instances, Mapping) else read_json(instances, "instances file")
  masks = {a["id"]: a["segmentation"] for a in content["annotations"] if "segmentation" in a}
  for i, annotation in enumerate(truth["annotations"]):
    original = annotation["original_id"] if "original_id" in annotation else None
    if original not in masks:
      raise ValueError(
        f"annotation {i} has original_id {original!r}, for which the instances hold no mask; give the instances.json "
        "that the expressions were made from"
      )
    annotation["segmentation"] = masks[original]
  return truth

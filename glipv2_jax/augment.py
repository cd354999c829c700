"""Test-time augmentation (reference 7): the boxes that one picture gave at several sizes, mirrored or not, as one list.

What is looked at is said by `InferConfig` (scales, mirror, merge); the device leaves overlapping boxes in
(`infer.postprocess`), here the host throws them together, class by class. NumPy, for one image at a time.
"""

from collections.abc import Callable, Sequence

import numpy as np

from glipv2_jax import boxes as box_ops
from glipv2_jax.infer import ImageDetections, InferConfig, merge

LEAST_SCORE = 1e-3  # what soft suppression pushes below this is dropped (Bodla et al. 2017)
EVERY_SIZE = (1.0, 0.0, float("inf"))
Rows = tuple[np.ndarray, np.ndarray]  # boxes k 4, scores k


def passes(cfg: InferConfig) -> tuple[tuple[tuple[float, float, float], bool], ...]:
  """What each picture is looked at: (scale, mirrored), the unmirrored one of each scale first."""
  return tuple(
    (scale, mirrored) for scale in cfg.scales or (EVERY_SIZE,) for mirrored in (False, True)[: 1 + cfg.mirror]
  )


def of_size(found: ImageDetections, least: float, most: float) -> ImageDetections:
  """The boxes whose area (inclusive, in the pixels they are given in) lies between the squares of the two bounds."""
  area = box_ops.area(found.boxes_xyxy_px)
  kept = (area > least**2) & (area < most**2)
  return ImageDetections(found.boxes_xyxy_px[kept], found.scores[kept], found.labels[kept])


def unmirrored(boxes_xyxy_px: np.ndarray, width: int) -> np.ndarray:
  """Boxes k 4 of a mirrored picture of `width` pixels in the picture as it was: x becomes width - 1 - x."""
  x1, y1, x2, y2 = boxes_xyxy_px.T
  return np.stack([width - 1 - x2, y1, width - 1 - x1, y2], axis=1)


def together(parts: Sequence[ImageDetections], cfg: InferConfig) -> ImageDetections:
  """The detections of all passes, in pixels of the same picture, as at most `max_detections`, best first.

  'nms': greedy suppression above `nms_iou` (plain areas, as the authors' torchvision call). 'soft_nms': what overlaps
  a better box by more than that loses score linearly. 'vote': boxes that overlap the best one by at least that
  (inclusive areas, as the authors) are replaced by their mean, weighted by score, with the best score.
  """
  everything = merge(parts, None)
  one_class = METHODS[cfg.merge]
  merged = []
  for label in np.unique(everything.labels):
    own = everything.labels == label  # best first
    boxes, scores = one_class(everything.boxes_xyxy_px[own], everything.scores[own], cfg.nms_iou, cfg.max_detections)
    merged.append(ImageDetections(boxes, scores, np.full(len(scores), label, np.int32)))
  return merge(merged, cfg.max_detections)


def nms(boxes: np.ndarray, scores: np.ndarray, most_iou: float, limit: int) -> Rows:
  """At most `limit` boxes of one class, given best first."""
  kept, left = [], np.arange(len(boxes))
  while len(left) and len(kept) < limit:
    kept.append(left[0])
    left = left[1:][plain_iou(boxes[left[0]], boxes[left[1:]]) <= most_iou]
  return boxes[kept], scores[kept]


def soft_nms(boxes: np.ndarray, scores: np.ndarray, most_iou: float, limit: int) -> Rows:
  """At most `limit` boxes of one class, given best first; the scores that are left of them fall."""
  scores, left, kept = scores.copy(), np.arange(len(boxes)), []
  while len(left) and len(kept) < limit:
    best = left[np.argmax(scores[left])]
    kept.append(best)
    left = left[left != best]
    overlap = plain_iou(boxes[best], boxes[left])
    scores[left] *= np.where(overlap > most_iou, 1 - overlap, 1).astype(scores.dtype)
    left = left[scores[left] >= LEAST_SCORE]
  return boxes[kept], scores[kept]


def vote(boxes: np.ndarray, scores: np.ndarray, most_iou: float, limit: int) -> Rows:
  """At most `limit` mean boxes of one class, given best first."""
  kept, best, left = [], [], np.arange(len(boxes))
  while len(left) and len(kept) < limit:
    near = box_ops.iou(boxes[left[:1]], boxes[left])[0] >= most_iou
    near[0] = True  # an empty box overlaps nothing, not even itself
    group = boxes[left[near]]
    mean = np.average(group, axis=0, weights=scores[left[near]])
    kept.append(mean.clip(group.min(axis=0), group.max(axis=0)))  # rounding takes it no further than its boxes
    best.append(scores[left[0]])
    left = left[~near]
  return np.array(kept, boxes.dtype).reshape(-1, 4), np.array(best, scores.dtype)


def plain_iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
  """Overlap k of one box (4) with boxes k 4, areas without "+1"."""
  top_left, bottom_right = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
  inter = np.prod((bottom_right - top_left).clip(min=0), axis=1)
  union = np.prod(box[2:] - box[:2]) + np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) - inter
  return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


METHODS: dict[str, Callable[[np.ndarray, np.ndarray, float, int], Rows]] = {
  "nms": nms,
  "soft_nms": soft_nms,
  "vote": vote,
}

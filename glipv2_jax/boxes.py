"""Box arithmetic, the same functions for NumPy arrays on the host and JAX arrays on the device.

Boxes are float32 x1, y1, x2, y2 in pixels with GLIP's inclusive convention: width = x2 - x1 + 1 (reference 5.1). Only
`giou_aligned` measures plainly, x2 - x1, as the authors' loss does (reference 5.4).
"""

import math

DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
MAX_LOG_SCALE = math.log(1000 / 16)  # a decoded side is at most 62.5 anchor sides
EPSILON = 1e-7


def area(boxes):
  """Inclusive area: boxes ... 4 -> ... ; negative sides count as zero."""
  sides = (boxes[..., 2:] - boxes[..., :2] + 1).clip(min=0)
  return sides[..., 0] * sides[..., 1]


def iou(a, b):
  """Inclusive intersection over union of every pair: a ... g 4, b ... n 4 -> ... g n (reference 5.2)."""
  return iou_aligned(a[..., :, None, :], b[..., None, :, :])


def iou_aligned(a, b):
  """Inclusive intersection over union of boxes side by side: a ... 4, b ... 4 (broadcast) -> ... ."""
  xp = a.__array_namespace__()
  top_left, bottom_right = xp.maximum(a[..., :2], b[..., :2]), xp.minimum(a[..., 2:], b[..., 2:])
  sides = (bottom_right - top_left + 1).clip(min=0)
  intersection = sides[..., 0] * sides[..., 1]
  return intersection / (area(a) + area(b) - intersection)


def giou_aligned(predicted, target):
  """Generalised IoU with plain sides, in (-1, 1]: predicted ... 4, target ... 4 -> ... (reference 5.4).

  A predicted box turned inside out is flattened (x2 = max(x1, x2)), as the authors do.
  """
  xp = predicted.__array_namespace__()
  p1, p2 = predicted[..., :2], xp.maximum(predicted[..., :2], predicted[..., 2:])
  t1, t2 = target[..., :2], target[..., 2:]

  def plain_area(top_left, bottom_right):
    sides = (bottom_right - top_left).clip(min=0)
    return sides[..., 0] * sides[..., 1]

  intersection = plain_area(xp.maximum(p1, t1), xp.minimum(p2, t2))
  enclosing = plain_area(xp.minimum(p1, t1), xp.maximum(p2, t2)) + EPSILON
  union = plain_area(p1, p2) + plain_area(t1, t2) - intersection + EPSILON
  return intersection / union - (enclosing - union) / enclosing


def encode(boxes, anchors):
  """Deltas that take anchors to boxes: boxes ... 4, anchors ... 4 -> ... 4 (dx, dy, dw, dh) (reference 5.1)."""
  xp = boxes.__array_namespace__()
  box_centre, box_size = _centre_size(boxes)
  anchor_centre, anchor_size = _centre_size(anchors)
  shift = (box_centre - anchor_centre) / anchor_size
  scale = xp.log(box_size / anchor_size)
  return xp.concat([DELTA_WEIGHTS[0] * shift, DELTA_WEIGHTS[2] * scale], axis=-1)


def decode(deltas, anchors):
  """Inverse of `encode`: deltas ... 4, anchors ... 4 -> boxes ... 4; growth is capped at 62.5 (reference 5.1)."""
  xp = deltas.__array_namespace__()
  anchor_centre, anchor_size = _centre_size(anchors)
  centre = deltas[..., :2] / DELTA_WEIGHTS[0] * anchor_size + anchor_centre
  size = xp.exp((deltas[..., 2:] / DELTA_WEIGHTS[2]).clip(max=MAX_LOG_SCALE)) * anchor_size
  half = (size - 1) / 2
  return xp.concat([centre - half, centre + half], axis=-1)


def xywh_to_xyxy(boxes):
  """COCO's x, y, width, height -> inclusive corners: x2 = x + max(width - 1, 0) (reference 6.4)."""
  xp = boxes.__array_namespace__()
  return xp.concat([boxes[..., :2], boxes[..., :2] + (boxes[..., 2:] - 1).clip(min=0)], axis=-1)


def xyxy_to_xywh(boxes):
  """Inclusive corners -> COCO's x, y, width, height: width = x2 - x1 + 1 (reference 8)."""
  xp = boxes.__array_namespace__()
  return xp.concat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2] + 1], axis=-1)


def clip(boxes, size):
  """Boxes ... 4 moved into the image: x in [0, width - 1], y in [0, height - 1]; size is (height, width), numbers or
  arrays that broadcast with the leading axes of boxes."""
  xp = boxes.__array_namespace__()
  height, width = size
  x, y = xp.minimum(boxes[..., 0::2], width - 1), xp.minimum(boxes[..., 1::2], height - 1)
  x, y = x.clip(min=0), y.clip(min=0)
  return xp.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], axis=-1)


def _centre_size(boxes):
  return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2] + 1

"""ATSS against a loop in NumPy that follows the reference's text (5.2), on dense scenes, tiny pyramids and padding."""

import jax
import numpy as np
import pytest

from glipv2_jax import anchors as anchorlib
from glipv2_jax import assign

STRIDES = (8, 16, 32, 64, 128)


def loop_iou(a, b):
  w = min(a[2], b[2]) - max(a[0], b[0]) + 1
  h = min(a[3], b[3]) - max(a[1], b[1]) + 1
  inside = max(w, 0) * max(h, 0)
  size = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
  return inside / (sum(size) - inside)


def loop_atss(anchors, counts, boxes, topk=9):
  """One image, float64, one box and one anchor at a time."""
  anchors, boxes = anchors.astype(np.float64), boxes.astype(np.float64)
  centre = (anchors[:, :2] + anchors[:, 2:]) / 2
  best, matched = np.zeros(len(anchors)), np.full(len(anchors), -1)
  for g, box in enumerate(boxes):
    distance = ((centre - (box[:2] + box[2:]) / 2) ** 2).sum(1)
    candidates, begin = [], 0
    for count in counts:
      order = np.argsort(distance[begin : begin + count], kind="stable")[: min(topk, count)]
      candidates += list(begin + order)
      begin += count
    overlaps = [loop_iou(anchors[n], box) for n in candidates]
    threshold = np.mean(overlaps) + np.std(overlaps, ddof=1)
    for n, overlap in zip(candidates, overlaps, strict=True):
      x, y = centre[n]
      inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
      if overlap >= threshold and inside and (matched[n] < 0 or overlap > best[n]):
        best[n], matched[n] = overlap, g
  return matched


match = jax.jit(assign.assign, static_argnums=(1, 4))


def scene(rng, canvas, n, smallest=6.0):
  """Off-grid boxes, so that float32 and float64 agree on every comparison."""
  size = np.exp(rng.uniform(np.log(smallest), np.log(0.9 * min(canvas)), (n, 2)))
  corner = rng.uniform(0, 1, (n, 2)) * (np.array(canvas)[::-1] - size)
  return np.concatenate([corner, corner + size], axis=1).astype(np.float32)


def padded(boxes, total):
  fill = np.full((total - len(boxes), 4), np.nan, np.float32)
  return np.concatenate([boxes, fill]), np.arange(total) < len(boxes)


@pytest.mark.parametrize("canvas, scale", [((128, 128), 4.0), ((224, 160), 8.0), ((40, 72), 8.0), ((9, 200), 4.0)])
def test_batch_equals_loop(canvas, scale):
  """The last two canvases have levels of one to eight cells."""
  rng = np.random.default_rng(sum(canvas))
  anchors, counts = anchorlib.anchors(canvas, STRIDES, scale), anchorlib.level_counts(canvas, STRIDES)
  scenes = [scene(rng, canvas, n) for n in (12, 1, 5, 12, 8, 3)]
  boxes, valid = map(np.stack, zip(*(padded(boxes, 12) for boxes in scenes), strict=True))
  matched = jax.jit(jax.vmap(lambda b, v: assign.assign(anchors, counts, b, v)))(boxes, valid)
  assert matched.dtype == np.int32
  np.testing.assert_array_equal(matched, [loop_atss(anchors, counts, boxes) for boxes in scenes])
  assert (np.array(matched) >= 0).any()


def test_fewer_candidates_change_the_loop_alike():
  rng = np.random.default_rng(5)
  anchors, counts = anchorlib.anchors((128, 160), STRIDES, 8.0), anchorlib.level_counts((128, 160), STRIDES)
  boxes = scene(rng, (128, 160), 8)
  few = match(anchors, counts, boxes, np.ones(8, bool), 3)
  np.testing.assert_array_equal(few, loop_atss(anchors, counts, boxes, topk=3))
  assert not np.array_equal(few, loop_atss(anchors, counts, boxes))


def test_no_valid_box_is_all_background():
  anchors, counts = anchorlib.anchors((64, 64), STRIDES, 8.0), anchorlib.level_counts((64, 64), STRIDES)
  boxes = np.float32([[5, 5, 40, 40], [np.nan] * 4])
  matched = match(anchors, counts, boxes, np.zeros(2, bool))
  np.testing.assert_array_equal(matched, np.full(len(anchors), -1))


def test_padding_in_front_only_shifts_the_index():
  anchors, counts = anchorlib.anchors((96, 96), STRIDES, 4.0), anchorlib.level_counts((96, 96), STRIDES)
  boxes = scene(np.random.default_rng(7), (96, 96), 4)
  alone = np.array(match(anchors, counts, boxes, np.ones(4, bool)))
  wide = np.concatenate([np.float32([[0, 0, 95, 95], [10, 10, 60, 60]]), boxes])
  late = np.array(match(anchors, counts, wide, np.arange(6) >= 2))
  np.testing.assert_array_equal(late, np.where(alone >= 0, alone + 2, -1))


def test_equal_boxes_go_to_the_first():
  anchors, counts = anchorlib.anchors((64, 64), STRIDES, 4.0), anchorlib.level_counts((64, 64), STRIDES)
  box = np.float32([[8, 8, 39, 39]])
  once = np.array(match(anchors, counts, box, np.ones(1, bool)))
  twice = np.array(match(anchors, counts, np.repeat(box, 2, axis=0), np.ones(2, bool)))
  assert (once == 0).any()
  np.testing.assert_array_equal(twice, once)


def test_wrong_level_counts_are_named():
  with pytest.raises(ValueError, match=r"\(4, 1\) sum to 5 for 86 anchors"):
    assign.assign(anchorlib.anchors((64, 64), STRIDES, 8.0), (4, 1), np.zeros((1, 4), np.float32), np.ones(1, bool))

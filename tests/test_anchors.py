"""Anchors against the stated numbers of the reference and a plain loop."""

import numpy as np
import pytest

from glipv2_jax import anchors as anchorlib

STRIDES = (8, 16, 32, 64, 128)


def halve(side, times):
  for _ in range(times):
    side = (side + 1) // 2
  return side


@pytest.mark.parametrize("canvas", [(800, 1344), (128, 160), (200, 168), (1, 9), (513, 1023)])
def test_levels_halve_rounding_up(canvas):
  sizes = anchorlib.level_sizes(canvas, STRIDES)
  assert sizes == tuple((halve(canvas[0], k), halve(canvas[1], k)) for k in (3, 4, 5, 6, 7))


def test_full_canvas_has_the_stated_number_of_cells():
  assert anchorlib.level_counts((800, 1344), STRIDES) == (16_800, 4_200, 1_050, 273, 77)
  assert len(anchorlib.anchors((800, 1344), STRIDES, 8.0)) == 22_400


def test_anchors_equal_a_loop():
  canvas, scale = (100, 70), 4.0
  expected = []
  for stride in STRIDES:
    for i in range(-(-canvas[0] // stride)):
      for j in range(-(-canvas[1] // stride)):
        x, y, half = stride * j + (stride - 1) / 2, stride * i + (stride - 1) / 2, (scale * stride - 1) / 2
        expected.append((x - half, y - half, x + half, y + half))
  boxes = anchorlib.anchors(canvas, STRIDES, scale)
  assert boxes.dtype == np.float32
  np.testing.assert_array_equal(boxes, np.float32(expected))


def test_first_anchor_is_the_published_one():
  boxes = anchorlib.anchors((64, 64), STRIDES, 8.0)
  np.testing.assert_array_equal(boxes[0], [-28, -28, 35, 35])
  np.testing.assert_array_equal(boxes[1], [-20, -28, 43, 35])


def test_slices_cut_the_levels():
  canvas = (96, 130)
  boxes = anchorlib.anchors(canvas, STRIDES, 8.0)
  slices = anchorlib.level_slices(canvas, STRIDES)
  assert slices[0].start == 0 and slices[-1].stop == len(boxes)
  for stride, where, count in zip(STRIDES, slices, anchorlib.level_counts(canvas, STRIDES), strict=True):
    sides = boxes[where, 2] - boxes[where, 0] + 1
    assert len(sides) == count and (sides == 8 * stride).all()

"""Boxes against counted pixels, hand-made numbers and round trips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glipv2_jax import boxes as boxlib


def integer_boxes(rng, n, side=24):
  corner = rng.integers(0, side - 4, (n, 2))
  return np.concatenate([corner, corner + rng.integers(0, 12, (n, 2))], axis=1).astype(np.float32)


def covered(box, side=40):
  pixels = np.zeros((side, side), bool)
  x1, y1, x2, y2 = box.astype(int)
  pixels[y1 : y2 + 1, x1 : x2 + 1] = True
  return pixels


def test_area_and_iou_count_pixels():
  rng = np.random.default_rng(0)
  a, b = integer_boxes(rng, 6), integer_boxes(rng, 9)
  np.testing.assert_array_equal(boxlib.area(a), [covered(box).sum() for box in a])
  expected = [[(covered(p) & covered(q)).sum() / (covered(p) | covered(q)).sum() for q in b] for p in a]
  np.testing.assert_allclose(boxlib.iou(a, b), expected, rtol=1e-6)
  np.testing.assert_allclose(boxlib.iou_aligned(a, b[:6]), np.diagonal(np.array(expected)[:, :6]), rtol=1e-6)


def test_giou_by_hand():
  unit = np.float32([0, 0, 2, 2])
  others = np.float32([[0, 0, 2, 2], [1, 0, 3, 2], [4, 0, 6, 2], [5, 5, 3, 7]])
  # same; half overlap (2 / 6, hull filled); apart (0 - (12 - 8) / 12); inside out, flattened to (5, 5, 5, 7)
  expected = [1.0, 1 / 3, -1 / 3, -(35 - 4) / 35]
  np.testing.assert_allclose(boxlib.giou_aligned(others, np.broadcast_to(unit, (4, 4))), expected, rtol=1e-6)


def test_giou_gradient_is_the_finite_difference():
  rng = np.random.default_rng(1)
  corner = rng.uniform(0, 30, (40, 2))
  target = np.concatenate([corner, corner + rng.uniform(3, 30, (40, 2))], axis=1)
  predicted = target + rng.uniform(-8, 8, (40, 4))  # overlapping, apart and a few inside out
  gradient = jax.jit(jax.grad(lambda p: boxlib.giou_aligned(p, jnp.float32(target)).sum()))(jnp.float32(predicted))
  numeric, step = np.zeros((40, 4)), 1e-6
  for axis in range(4):
    move = step * np.eye(4)[axis]
    difference = boxlib.giou_aligned(predicted + move, target) - boxlib.giou_aligned(predicted - move, target)
    numeric[:, axis] = difference / (2 * step)
  np.testing.assert_allclose(gradient, numeric, atol=2e-6)


def test_encode_by_hand_and_round_trip():
  anchor, box = np.float32([0, 0, 9, 19]), np.float32([5, 0, 24, 4])  # 10 x 20 at (4.5, 9.5); 20 x 5 at (14.5, 2)
  expected = [10 * 10 / 10, 10 * -7.5 / 20, 5 * np.log(2), 5 * np.log(5 / 20)]
  np.testing.assert_allclose(boxlib.encode(box, anchor), expected, rtol=1e-6)
  rng = np.random.default_rng(2)
  a, b = integer_boxes(rng, 50), integer_boxes(rng, 50)
  np.testing.assert_allclose(boxlib.decode(boxlib.encode(a, b), b), a, atol=2e-5)


def test_decoded_growth_is_capped():
  anchor = np.float32([0, 0, 15, 15])
  wild = boxlib.decode(np.float32([0, 0, 1e9, 5 * np.log(2)]), anchor)
  np.testing.assert_allclose(wild[2] - wild[0] + 1, 62.5 * 16, rtol=1e-6)
  np.testing.assert_allclose(wild[3] - wild[1] + 1, 2 * 16, rtol=1e-6)


def test_coco_format():
  boxes = np.float32([[3, 4, 10, 20], [3, 4, 0.5, 1]])
  np.testing.assert_array_equal(boxlib.xywh_to_xyxy(boxes), np.float32([[3, 4, 12, 23], [3, 4, 3, 4]]))
  np.testing.assert_array_equal(boxlib.xyxy_to_xywh(boxlib.xywh_to_xyxy(boxes))[0], boxes[0])


def test_clip_to_the_last_pixel():
  boxes = np.float32([[-3, -4, 100, 100], [2, 3, 5, 6], [50, 60, 70, 80]])
  expected = [[0, 0, 31, 15], [2, 3, 5, 6], [31, 15, 31, 15]]
  np.testing.assert_array_equal(boxlib.clip(boxes, (16, 32)), expected)
  sizes = np.int32([[16, 32], [4, 5], [100, 60]])  # one size per box
  np.testing.assert_array_equal(
    boxlib.clip(boxes, (sizes[:, :1], sizes[:, 1:])), [[0, 0, 31, 15], [2, 3, 4, 3], [50, 60, 59, 80]]
  )


@pytest.mark.parametrize("name", ["iou", "iou_aligned", "giou_aligned", "encode", "decode"])
def test_numpy_and_traced_jax_agree(name):
  rng = np.random.default_rng(3)
  a, b = integer_boxes(rng, 7), integer_boxes(rng, 7)
  function = getattr(boxlib, name)
  on_host, on_device = function(a, b), jax.jit(function)(a, b)
  assert isinstance(on_host, np.ndarray) and on_host.dtype == np.float32 and on_device.dtype == jnp.float32
  np.testing.assert_allclose(on_device, on_host, rtol=1e-5, atol=1e-5)

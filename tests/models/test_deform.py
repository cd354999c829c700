"""The deformable convolution against loops written from its definition, and its gradient against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from glipv2_jax.models.deform import concatenate, deform_conv, deform_convs, places
from glipv2_jax.models.dyhead import reinterpret


def loops(x, offset, mask, kernel, bias, stride):
  """One example, h w c: reference 4.4 word by word."""
  h, w, _ = x.shape
  out = np.tile(bias, (*mask.shape[:2], 1)).astype(np.float64)
  for y, z, k in np.ndindex(mask.shape):
    row, column = y * stride - 1 + k // 3 + offset[y, z, k, 0], z * stride - 1 + k % 3 + offset[y, z, k, 1]
    if not (-1 < row < h and -1 < column < w):
      continue
    value = 0.0
    for i in (int(np.floor(row)), int(np.floor(row)) + 1):
      for j in (int(np.floor(column)), int(np.floor(column)) + 1):
        if 0 <= i < h and 0 <= j < w:
          value = value + x[i, j] * (1 - abs(row - i)) * (1 - abs(column - j))
    out[y, z] += mask[y, z, k] * value @ kernel[k // 3, k % 3]
  return out


def inputs(h=7, w=5, c=4, o=3, stride=1, b=2, reach=2.0, seed=0):
  r = np.random.default_rng(seed)
  rows, columns = -(-h // stride), -(-w // stride)
  return (
    r.normal(size=(b, h, w, c)).astype(np.float32),
    (reach * r.normal(size=(b, rows, columns, 9, 2))).astype(np.float32),
    r.uniform(size=(b, rows, columns, 9)).astype(np.float32),
    r.normal(size=(3, 3, c, o)).astype(np.float32),
    r.normal(size=o).astype(np.float32),
  )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("reach", [0.7, 6.0])  # 6: most places lie outside
def test_equals_loops(stride, reach):
  x, offset, mask, kernel, bias = inputs(stride=stride, reach=reach)
  ours = deform_conv(x, offset, mask, kernel, bias, stride=stride)
  for i in range(len(x)):
    np.testing.assert_allclose(ours[i], loops(x[i], offset[i], mask[i], kernel, bias, stride), atol=2e-5)


def test_edges_and_absurd_offsets():
  """Exactly on the border, exactly one cell outside, and offsets as wild as an untrained layer may give."""
  x, offset, mask, kernel, bias = inputs(reach=0.0)
  offset[0, ..., 0], offset[0, ..., 1], offset[1, ..., 0] = -1.0, 1.0, 1e9
  ours = deform_conv(x, offset, mask, kernel, bias)
  np.testing.assert_allclose(ours[0], loops(x[0], offset[0], mask[0], kernel, bias, 1), atol=2e-5)
  np.testing.assert_allclose(ours[1], np.broadcast_to(bias, ours[1].shape), atol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
def test_without_offsets_it_is_a_convolution(stride):
  x, offset, mask, kernel, bias = inputs(h=8, w=6, stride=stride, reach=0.0)
  ours = deform_conv(x, offset, np.ones_like(mask), kernel, bias, stride=stride)
  plain = jax.lax.conv_general_dilated(
    x, kernel, (stride, stride), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  np.testing.assert_allclose(ours, plain + bias, atol=2e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients(stride):
  """Finite differences in every argument; places keep a distance from cell borders, where the function has kinks."""
  x, offset, mask, kernel, bias = inputs(h=3, w=4, c=2, o=2, stride=stride, b=1)
  offset = np.floor(offset) + 0.2 + 0.6 * (offset - np.floor(offset))
  function = jax.jit(lambda *a: jnp.tanh(deform_conv(*a, stride=stride) / 10))
  check_grads(function, (x, offset, mask, kernel, bias), order=1, modes=["rev"], atol=2e-2, rtol=2e-2, eps=1e-2)


def test_many_maps_at_once():
  """Two branches over a pyramid of two levels equal their convolutions one by one."""
  big, offset, mask, kernel, bias = inputs(h=6, w=5)
  small, small_offset, small_mask, other, other_bias = inputs(h=3, w=3, seed=1)
  _, down_offset, down_mask, _, _ = inputs(h=6, w=5, stride=2, seed=2)

  def flat(t):
    return t.reshape(2, -1, *t.shape[3:])

  cells = np.concatenate([flat(big), flat(small)], 1)
  where = [
    concatenate([places((6, 5), 1, (6, 5), 0), places((3, 3), 1, (3, 3), 30)]),
    places((3, 3), 2, (6, 5), 0),
  ]
  offsets = np.concatenate([flat(t) for t in (offset, small_offset, down_offset)], 1)
  masks = np.concatenate([flat(t) for t in (mask, small_mask, down_mask)], 1)
  ours = deform_convs(cells, where, offsets, masks, [kernel, other], [bias, other_bias])
  single = [
    deform_conv(big, offset, mask, kernel, bias),
    deform_conv(small, small_offset, small_mask, kernel, bias),
    deform_conv(big, down_offset, down_mask, other, other_bias, stride=2),
  ]
  same, down = np.concatenate([flat(t) for t in single[:2]], 1), flat(single[2])
  for part, want in zip(ours, (same, down), strict=True):
    np.testing.assert_allclose(part, want, atol=1e-5)


def test_offsets_of_a_level_on_the_coarser_one():
  """Raw reading of the NCHW buffer; with valid sizes, as if the maps had no padding."""
  r = np.random.default_rng(0)
  fine = r.normal(size=(2, 5, 7, 18)).astype(np.float32)
  for b in range(2):
    buffer = fine[b].transpose(2, 0, 1).ravel()[: 18 * 3 * 4].reshape(18, 3, 4)
    np.testing.assert_array_equal(reinterpret(fine, 3, 4)[b], buffer.transpose(1, 2, 0))
  padded = np.pad(fine, ((0, 0), (0, 3), (0, 1), (0, 0)), constant_values=np.nan)
  sizes = (jnp.array([[5, 7]] * 2), jnp.array([[3, 4]] * 2))
  np.testing.assert_array_equal(reinterpret(padded, 4, 4, *sizes)[:, :3], reinterpret(fine, 3, 4))

"""Modulated deformable 3x3 convolution, DCNv2 (reference 4.4), in plain XLA operations, for many maps at once.

Every output cell looks at nine places of its source map that it chooses itself: tap k = 3i + j samples, bilinearly and
with zeros outside, at (y*stride - 1 + i + dy, x*stride - 1 + j + dx), times a mask in (0, 1). The source maps are
levels of a pyramid, laid one after the other as rows of `cells`; so all convolutions of a tower stage are one loop.

The columns of all nine taps together would be nine times the map (P3 of an 800x1344 picture: 155 MB per picture and
convolution), so a scan visits one tap at a time, and the backward pass computes each tap again. With p output cells,
c channels in and o out, one tap reads the four neighbours of every place as rows (16pc bytes in float32, 8pc FLOPs to
blend them), keeps one blended p x c array and multiplies it with its slice of the kernel (2pco FLOPs). The gradient
scatters the same rows.

Every kernel has its own cells, sampled for it alone: what is blended has then one reader, and XLA reads the rows of the
four neighbours and blends them in one pass. With one array for all kernels, cut afterwards, it writes all four out
first (on two cores, 6,400 cells of 256 channels: 6.3 ms beside the product's 11.0 instead of 0.7). Gathering all four
in one operation takes ten times as long; three taps in one product take half as long again.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from glipv2_jax.models.layers import torch_uniform, zeros

SIDE = 3
TAPS = SIDE * SIDE


@dataclasses.dataclass(frozen=True)
class Places:
  """Static geometry, one number per output cell (p): where its first tap lies and which rows are its source map."""

  row: np.ndarray  # float32, y*stride - 1
  column: np.ndarray
  start: np.ndarray  # int32, first row of the source map in `cells`
  height: np.ndarray
  width: np.ndarray

  def __len__(self) -> int:
    return len(self.row)


def places(shape: tuple[int, int], stride: int, source: tuple[int, int], start: int) -> Places:
  """The output cells of one convolution: a map of `shape` read from the map `source` that begins at row `start`."""
  row, column = np.divmod(np.arange(shape[0] * shape[1]), shape[1])
  constant = (np.full(row.shape, value, np.int32) for value in (start, *source))
  return Places((row * stride - 1).astype(np.float32), (column * stride - 1).astype(np.float32), *constant)


def concatenate(parts: Sequence[Places]) -> Places:
  return Places(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(Places)))


def deform_convs(
  cells: jax.Array,
  where: Sequence[Places],
  offset: jax.Array,
  mask: jax.Array,
  kernels: Sequence[jax.Array],
  biases: Sequence[jax.Array],
) -> list[jax.Array]:
  """cells b n c; offset b p 9 2 (dy, dx); mask b p 9; kernel 3 3 c o and bias o number i serve the cells of `where[i]`.

  Returns for every part of `where` its b p' o. Products run in the dtype of cells and kernels; positions, sums and the
  results are float32.
  """
  ends, every = np.cumsum([len(part) for part in where]), concatenate(where)
  by_tap = [jnp.moveaxis(t.astype(jnp.float32), 2, 0) for t in (offset[..., 0], offset[..., 1], mask)]
  weights = [kernel.reshape(TAPS, *kernel.shape[2:]) for kernel in kernels]
  i, j = np.divmod(np.arange(TAPS, dtype=np.float32), SIDE)

  @jax.checkpoint
  def visit(totals, tap):
    i, j, (dy, dx, mask), kernels = tap
    indices, shares = neighbours(every, every.row + i + dy, every.column + j + dx, mask)
    added = []
    for total, part, end, kernel in zip(totals, where, ends, kernels, strict=True):
      own = np.s_[:, end - len(part) : end]
      sampled = blend(cells, [at[own] for at in indices], [share[own] for share in shares])
      added.append(total + product(sampled, kernel))
    return added, None

  totals = [jnp.broadcast_to(bias, (cells.shape[0], len(part), *bias.shape)) for part, bias in zip(where, biases)]
  return jax.lax.scan(visit, totals, (i, j, by_tap, weights))[0]


@jax.custom_vjp
def product(x: jax.Array, weights: jax.Array) -> jax.Array:
  """b p c by c o -> b p o float32, with the leading axes merged for the sake of the gradient (see layers.Linear), whose
  products are of the dtype of the arguments too."""
  merged = jnp.matmul(x.reshape(-1, x.shape[-1]), weights, preferred_element_type=jnp.float32)
  return merged.reshape(*x.shape[:-1], -1)


def _product_backward(saved, g):
  x, weights = saved
  g = g.astype(x.dtype).reshape(-1, g.shape[-1])
  to_x = jnp.matmul(g, weights.T, preferred_element_type=x.dtype).reshape(x.shape)
  return to_x, jnp.matmul(x.reshape(-1, x.shape[-1]).T, g, preferred_element_type=jnp.float32).astype(weights.dtype)


product.defvjp(lambda x, weights: (product(x, weights), (x, weights)), _product_backward)


def neighbours(where: Places, y: jax.Array, x: jax.Array, mask: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
  """Of every place y, x (b p float32, in cells of its source map) the rows of its four neighbours, b p int32 each, and
  their shares, b p float32: bilinear times mask (b p), zero for a neighbour outside of the map."""
  height, width = where.height.astype(np.float32), where.width.astype(np.float32)
  indices, shares, top, left = [], [], jnp.floor(y), jnp.floor(x)
  for row in (top, top + 1):
    for column in (left, left + 1):
      inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
      shares.append(jnp.where(inside, (1 - jnp.abs(y - row)) * (1 - jnp.abs(x - column)) * mask, 0.0))
      index = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
      indices.append(index.astype(jnp.int32) + where.start)
  return indices, shares


@jax.custom_vjp
def blend(cells: jax.Array, indices: list[jax.Array], weights: list[jax.Array]) -> jax.Array:
  """Sum over k of the rows indices[k] (b p) of cells (b n c), times weights[k] (b p float32) -> b p c, in the dtype of
  cells, but summed in float32."""
  parts = (take_rows(cells, at).astype(jnp.float32) * w[..., None] for at, w in zip(indices, weights, strict=True))
  return sum(parts).astype(cells.dtype)


def take_rows(cells: jax.Array, at: jax.Array) -> jax.Array:
  """b n c, b p -> b p c."""
  return jax.vmap(lambda one, at: one.at[at].get(mode="promise_in_bounds"))(cells, at)


def _blend_forward(cells, indices, weights):
  return blend(cells, indices, weights), (cells, indices, weights)


def _blend_backward(saved, g):
  """All rows are added into one array, in turn; the derived gradient would fill and add up one for each k. The array is
  float32: an H100 adds bfloat16 numbers in memory about five times slower."""
  cells, indices, weights = saved
  g = g.astype(jnp.float32)
  to_cells = jnp.zeros(cells.shape, jnp.float32)
  for at, w in zip(indices, weights, strict=True):
    part = g * w[..., None]
    to_cells = jax.vmap(lambda one, at, part: one.at[at].add(part, mode="promise_in_bounds"))(to_cells, at, part)
  to_weights = [jnp.sum(g * take_rows(cells, at).astype(jnp.float32), -1) for at in indices]
  return to_cells.astype(cells.dtype), None, to_weights


blend.defvjp(_blend_forward, _blend_backward)


def deform_conv(
  x: jax.Array, offset: jax.Array, mask: jax.Array, kernel: jax.Array, bias: jax.Array, *, stride: int = 1
) -> jax.Array:
  """One map: x b h w c, offset b y x 9 2, mask b y x 9, kernel 3 3 c o, bias o -> b y x o float32."""
  b, h, w, c = x.shape
  _, rows, columns, _ = mask.shape
  where = [places((rows, columns), stride, (h, w), 0)]
  flat = [t.reshape(b, rows * columns, *t.shape[3:]) for t in (offset, mask)]
  (y,) = deform_convs(x.reshape(b, h * w, c), where, *flat, [kernel], [bias])
  return y.reshape(b, rows, columns, -1)


class DeformConv(nnx.Module):
  """Parameters of one deformable convolution; weights U(+-1/sqrt(9 d)), bias 0 (reference 4.4)."""

  def __init__(self, d: int, *, rngs: nnx.Rngs):
    self.kernel = nnx.Param(torch_uniform(rngs.params(), (SIDE, SIDE, d, d), jnp.float32))
    self.bias = nnx.Param(zeros(rngs.params(), (d,), jnp.float32))

"""One visual layer of the tower: DyConv = deformable convolution across levels, scale attention, dynamic ReLU.

Reference 4.4. Level l looks at itself, at the finer level l-1 and at the coarser level l+1, all with its own offsets.
Maps are kept one after the other as rows (b n d), so that each step is one operation for the whole pyramid.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from glipv2_jax.models import deform, deform_columns, deform_windows
from glipv2_jax.models.deform import TAPS, DeformConv, concatenate, places
from glipv2_jax.models.layers import Linear, conv, hard_sigmoid, normal_01, ones, zeros
from glipv2_jax.models.padding import cells_valid, zero_padding
from glipv2_jax.models.variants import HeadConfig
from glipv2_jax.parallel.mesh import row_major

EPSILON = 1e-5
FORMS = {  # of the deformable convolution, by `ModelConfig.deform`
  "gather": deform.deform_convs,
  "windows": deform_windows.deform_convs,
  "columns": deform_columns.deform_convs,
}


def reinterpret(values: jax.Array, h: int, w: int, size=None, coarse_size=None) -> jax.Array:
  """The first `c*h*w` numbers of each example's c H W buffer, read as c h w: b H W c -> b h w c.

  This is how the authors apply the offsets of a level to the coarser one: their kernel takes the raw NCHW buffer and
  the strides of its output. Neither a crop nor a resize; released weights are trained with it (reference 4.4, quirk 2).
  With valid sizes (b 2) the buffers are those of the unpadded maps.
  """
  b, full_h, full_w, c = values.shape
  flat = jnp.moveaxis(values, 3, 1).reshape(b, c * full_h * full_w)
  if size is None:
    flat = flat[:, : c * h * w]
  else:
    channel, y, x = jnp.arange(c)[:, None, None], jnp.arange(h)[:, None], jnp.arange(w)
    rows, columns = (coarse_size[:, k, None, None, None] for k in (0, 1))
    index = (channel * rows + y) * columns + x
    channel, index = jnp.divmod(index, (size[:, 0] * size[:, 1])[:, None, None, None])
    y, x = jnp.divmod(index, size[:, 1, None, None, None])
    index = jnp.minimum((channel * full_h + y) * full_w + x, c * full_h * full_w - 1)
    flat = jnp.take_along_axis(flat, index.reshape(b, -1), 1)
  return jnp.moveaxis(flat.reshape(b, c, h, w), 1, 3)


def bilinear(x: jax.Array, h: int, w: int, size=None, fine_size=None) -> jax.Array:
  """Bilinear resize with aligned corners, b y x d -> b h w d; from `size` to `fine_size` (b 2), both or neither.

  Constants that are not whole numbers are `jnp.float32` here and in Segments, not NumPy's: the comparison with the
  authors in float64 replaces that name (tests/models/golden_float64.py).
  """
  for axis, n in ((1, h), (2, w)):
    if size is None:
      step = np.array((x.shape[axis] - 1) / max(n - 1, 1), jnp.float32)  # a constant of the program
    else:
      step = ((size - 1) / jnp.maximum(fine_size - 1, 1))[:, axis - 1, None, None]
    away = np.arange(n, dtype=jnp.float32)[:, None] * step - np.arange(x.shape[axis], dtype=jnp.float32)
    weights = jnp.broadcast_to(1.0 - abs(away).clip(max=1.0), (x.shape[0], n, x.shape[axis]))
    equation = "bYy,byxd->bYxd" if axis == 1 else "bXx,byxd->byXd"
    x = jnp.einsum(equation, weights, x, precision="highest")
  return x


class Segments:
  """Means over the maps that lie one after the other in `b n d`; padded cells (False in `valid`, b n) do not count.

  Products with every example's own matrix (also where all are the same): otherwise the CPU backend transposes x first.
  """

  def __init__(self, counts: Sequence[int], valid: jax.Array | None = None):
    self.member = np.repeat(np.eye(len(counts), dtype=jnp.float32), counts, 1)  # s n
    if valid is None:
      self.weights = self.member / np.array(counts, jnp.float32)[:, None]
    else:
      weights = self.member * valid[:, None]
      self.weights = weights / jnp.maximum(jnp.sum(weights, -1, keepdims=True), 1.0)  # b s n

  def mean(self, x: jax.Array) -> jax.Array:
    """b n d -> b s d."""
    weights = jnp.broadcast_to(self.weights, (x.shape[0], *self.weights.shape[-2:]))
    return jnp.matmul(weights, x, precision="highest")

  def spread(self, x: jax.Array) -> jax.Array:
    """b s d -> b n d, every cell gets the value of its map."""
    member = jnp.broadcast_to(self.member.T, (x.shape[0], *self.member.T.shape))
    return jnp.matmul(member, x, precision="highest")

  def standardise(self, x: jax.Array, groups: int) -> jax.Array:
    """Every map and group of channels of b n d to mean 0 and variance 1. Keeps only x for the backward pass."""
    b, n, d = x.shape

    def moment(x):
      means = self.mean(x.reshape(b, n, d)).reshape(b, -1, groups, d // groups)
      return self.spread(jnp.mean(means, -1))[..., None]

    @jax.checkpoint
    def run(x):
      x = x - moment(x)
      return x * jax.lax.rsqrt(moment(jnp.square(x)) + EPSILON)

    return row_major(run(x.reshape(b, n, groups, d // groups)).reshape(b, n, d))


class GroupNorm(nnx.Module):
  """Parameters of one group norm."""

  def __init__(self, d: int, *, rngs):
    self.scale = nnx.Param(ones(rngs.params(), (d,), jnp.float32))
    self.bias = nnx.Param(zeros(rngs.params(), (d,), jnp.float32))


class Branch(nnx.Module):
  """Deformable convolution and its group norm."""

  def __init__(self, d: int, *, rngs: nnx.Rngs):
    self.conv = DeformConv(d, rngs=rngs)
    self.norm = GroupNorm(d, rngs=rngs)


class DyReLU(nnx.Module):
  """max(x a1 + b1, x a2 + b2) with coefficients from the mean of the map."""

  def __init__(self, cfg: HeadConfig, *, dtype, rngs: nnx.Rngs):
    hidden = cfg.channels // cfg.dyrelu_reduction
    self.reduce = Linear(cfg.channels, hidden, dtype=dtype, rngs=rngs)
    self.expand = Linear(hidden, 4 * cfg.channels, dtype=dtype, rngs=rngs)

  def coefficients(self, mean: jax.Array) -> list[jax.Array]:
    """mean ... d -> a1, b1, a2, b2, each ... d float32."""
    theta = hard_sigmoid(self.expand(jax.nn.relu(self.reduce(mean))).astype(jnp.float32)) - 0.5
    a1, b1, a2, b2 = jnp.split(theta, 4, -1)
    return [2 * a1 + 1, b1, 2 * a2, b2]


class DyConv(nnx.Module):
  """Five maps b h w d -> five maps b h w d, float32. Branches: 0 from the coarser level, 1 the same, 2 the finer."""

  def __init__(self, cfg: HeadConfig, *, dtype, rngs: nnx.Rngs, deform: str = "gather"):
    self.offset = conv(cfg.channels, 3 * TAPS, 3, padding=1, dtype=dtype, rngs=rngs)
    self.branches = nnx.List(Branch(cfg.channels, rngs=rngs) for _ in range(3))
    self.scale_attention = Linear(cfg.channels, 1, dtype=jnp.float32, kernel_init=normal_01, rngs=rngs)
    self.dyrelu = DyReLU(cfg, dtype=dtype, rngs=rngs)
    self.groups, self.dtype, self.deform = cfg.groups, dtype, deform

  def __call__(self, levels: list[jax.Array], sizes: list | None = None) -> list[jax.Array]:
    """`sizes`: valid cells of the levels (models.padding), or None."""
    shapes = [x.shape[1:3] for x in levels]
    counts = [h * w for h, w in shapes]
    valid = None
    if sizes is not None:
      valid = [flatten(cells_valid(size, *shape)[..., None])[..., 0] for size, shape in zip(sizes, shapes, strict=True)]

    def segments(first, last):
      return Segments(counts[first:last], None if valid is None else jnp.concatenate(valid[first:last], 1))

    n = len(levels)
    every, deeper = segments(0, n), segments(1, n)
    coarser, same, finer = self.convolve(levels, shapes, counts, sizes, (deeper, every, deeper))

    # The coarser branch moves to the resolution of the level that asked for it.
    raised = []
    for l, y in enumerate(jnp.split(coarser, np.cumsum(counts[1:-1]), 1)):
      sizes_here = (None, None) if sizes is None else (sizes[l + 1], sizes[l])
      raised.append(flatten(bilinear(y.reshape(-1, *shapes[l + 1], y.shape[-1]), *shapes[l], *sizes_here)))
    raised = jnp.concatenate(raised, 1)

    branches = np.array([2, *[3] * (n - 2), 2], np.float32)  # the ends of the pyramid lack a neighbour
    parts = (raised, 0, n - 1, segments(0, n - 1)), (same, 0, n, every), (finer, 1, n, deeper)
    means = jnp.concatenate([maps.mean(feature) for feature, _, _, maps in parts], 1)
    weights = jnp.split(hard_sigmoid(jax.nn.relu(self.scale_attention(means))), [n - 1, 2 * n - 1], 1)
    mixed = 0.0
    for (feature, first, last, maps), weight in zip(parts, weights, strict=True):
      elsewhere = sum(counts[:first]), sum(counts[last:])
      spread = maps.spread(weight / branches[first:last, None])
      mixed += jnp.pad(feature * spread, ((0, 0), elsewhere, (0, 0)))
    mixed = row_major(mixed)
    a1, b1, a2, b2 = self.dyrelu.coefficients(every.mean(mixed))
    outputs, starts = [], np.cumsum([0, *counts])
    for l, shape in enumerate(shapes):
      x = mixed[:, starts[l] : starts[l + 1]]
      x = jnp.maximum(x * a1[:, l, None] + b1[:, l, None], x * a2[:, l, None] + b2[:, l, None])
      outputs.append(zero_padding(x.reshape(-1, *shape, x.shape[-1]), None if sizes is None else sizes[l]))
    return outputs

  def convolve(self, levels, shapes, counts, sizes, segments) -> list[jax.Array]:
    """The three branches after their group norms: b n' d for levels P4..P7, b n d for P3..P7, b n' d for P4..P7.

    `segments`: the maps of each branch.
    """
    levels = [row_major(x.astype(self.dtype)) for x in levels]
    positions = [self.offset(x).astype(jnp.float32) for x in levels]
    size = [None] * len(levels) if sizes is None else sizes
    starts, deeper = np.cumsum([0, *counts]), range(1, len(levels))
    read = [
      jnp.concatenate([reinterpret(part, *shapes[l], size[l - 1], size[l])
                       for part in jnp.split(positions[l - 1], [2 * TAPS], -1)], -1) for l in deeper
    ]  # fmt: skip
    where = [
      concatenate([places(shapes[l], 1, shapes[l], starts[l]) for l in deeper]),
      concatenate([places(shapes[l], 1, shapes[l], starts[l]) for l in range(len(levels))]),
      concatenate([places(shapes[l], 2, shapes[l - 1], starts[l - 1]) for l in deeper]),
    ]
    asked = jnp.concatenate([flatten(p) for p in (*read, *positions, *positions[1:])], 1)
    cells = jnp.concatenate([flatten(x) for x in levels], 1)
    kernels = [branch.conv.kernel[...].astype(self.dtype) for branch in self.branches]
    offset = asked[..., : 2 * TAPS].reshape(*asked.shape[:2], TAPS, 2)
    biases = [branch.conv.bias[...] for branch in self.branches]
    branches = FORMS[self.deform](cells, where, offset, jax.nn.sigmoid(asked[..., 2 * TAPS :]), kernels, biases)
    return [
      maps.standardise(row_major(y), self.groups) * branch.norm.scale[...] + branch.norm.bias[...]
      for y, maps, branch in zip(branches, segments, self.branches, strict=True)
    ]


def flatten(x: jax.Array) -> jax.Array:
  """b h w d -> b hw d."""
  return x.reshape(x.shape[0], -1, x.shape[-1])

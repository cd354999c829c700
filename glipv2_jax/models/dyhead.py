"""One visual layer of the tower: DyConv = deformable convolution across levels, scale attention, dynamic ReLU.

Reference 4.4. Level l looks at itself, at the finer level l-1 and at the coarser level l+1, all with its own offsets.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from glipv2_jax.models.deform import DeformConv
from glipv2_jax.models.layers import GroupNorm, Linear, conv, hard_sigmoid, normal_01
from glipv2_jax.models.padding import cell_mean, cells_valid, zero_padding
from glipv2_jax.models.variants import HeadConfig

TAPS = 9


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
  """Bilinear resize with aligned corners, b y x d -> b h w d; from `size` to `fine_size` (b 2) where given."""
  for axis, n in ((1, h), (2, w)):
    source = x.shape[axis] if size is None else size[:, axis - 1, None, None]
    target = n if fine_size is None else fine_size[:, axis - 1, None, None]
    position = jnp.arange(n, dtype=jnp.float32)[:, None] * ((source - 1) / jnp.maximum(target - 1, 1))
    weights = jnp.maximum(0.0, 1.0 - jnp.abs(position - jnp.arange(x.shape[axis], dtype=jnp.float32)))
    weights = jnp.broadcast_to(weights, (x.shape[0], n, x.shape[axis]))
    equation = "bYy,byxd->bYxd" if axis == 1 else "bXx,byxd->byXd"
    x = jnp.einsum(equation, weights, x, precision="highest")
  return x


class Branch(nnx.Module):
  """Deformable convolution and its group norm."""

  def __init__(self, cfg: HeadConfig, stride: int, *, dtype, rngs: nnx.Rngs):
    self.conv = DeformConv(cfg.channels, stride=stride, dtype=dtype, rngs=rngs)
    self.norm = GroupNorm(cfg.channels, cfg.groups, rngs=rngs)

  def __call__(self, x: jax.Array, offset: jax.Array, mask: jax.Array, size: jax.Array | None) -> jax.Array:
    x = self.conv(x, offset, mask)
    return self.norm(x, None if size is None else cells_valid(size, *x.shape[1:3]))


class DyReLU(nnx.Module):
  """max(x a1 + b1, x a2 + b2) with coefficients from the mean of the map."""

  def __init__(self, cfg: HeadConfig, *, dtype, rngs: nnx.Rngs):
    hidden = cfg.channels // cfg.dyrelu_reduction
    self.reduce = Linear(cfg.channels, hidden, dtype=dtype, rngs=rngs)
    self.expand = Linear(hidden, 4 * cfg.channels, dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array, size: jax.Array | None) -> jax.Array:
    theta = hard_sigmoid(self.expand(jax.nn.relu(self.reduce(cell_mean(x, size)))).astype(jnp.float32)) - 0.5
    a1, b1, a2, b2 = jnp.split(theta[:, None, None], 4, -1)
    return jnp.maximum(x * (2 * a1 + 1) + b1, x * (2 * a2) + b2)


class DyConv(nnx.Module):
  """Five maps b h w d -> five maps b h w d, float32."""

  def __init__(self, cfg: HeadConfig, *, dtype, rngs: nnx.Rngs):
    self.offset = conv(cfg.channels, 3 * TAPS, 3, padding=1, dtype=dtype, rngs=rngs)
    self.branches = nnx.List(Branch(cfg, stride, dtype=dtype, rngs=rngs) for stride in (1, 1, 2))
    self.scale_attention = Linear(cfg.channels, 1, dtype=jnp.float32, kernel_init=normal_01, rngs=rngs)
    self.dyrelu = DyReLU(cfg, dtype=dtype, rngs=rngs)

  def __call__(self, levels: list[jax.Array], sizes: list | None = None) -> list[jax.Array]:
    sizes = [None] * len(levels) if sizes is None else sizes
    return [self.level(levels, sizes, l) for l in range(len(levels))]

  def level(self, levels: list[jax.Array], sizes: list, l: int) -> jax.Array:
    coarser, same, finer = self.branches
    x, size = levels[l], sizes[l]
    b, h, w, _ = x.shape
    positions = self.offset(x).astype(jnp.float32)
    features = [same(x, *taps(positions), size)]
    if l > 0:
      features.append(finer(levels[l - 1], *taps(positions), size))
    if l + 1 < len(levels):
      below, below_size = levels[l + 1], sizes[l + 1]
      read = [
        reinterpret(part, *below.shape[1:3], size, below_size)
        for part in (positions[..., : 2 * TAPS], positions[..., 2 * TAPS :])
      ]
      y = coarser(below, *taps(jnp.concatenate(read, -1)), below_size)
      features.append(bilinear(y, h, w, below_size, size))
    weights = [hard_sigmoid(jax.nn.relu(self.scale_attention(cell_mean(f, size)))) for f in features]
    mean = sum(f * a[:, None, None] for f, a in zip(features, weights, strict=True)) / len(features)
    return zero_padding(self.dyrelu(mean, size), size)


def taps(positions: jax.Array) -> tuple[jax.Array, jax.Array]:
  """b h w 27 -> offsets b h w 9 2 (dy, dx) and masks b h w 9 in (0, 1)."""
  *lead, _ = positions.shape
  return positions[..., : 2 * TAPS].reshape(*lead, TAPS, 2), jax.nn.sigmoid(positions[..., 2 * TAPS :])

"""Feature pyramid P3..P7 on Swin's strides 8, 16, 32 (reference 2.3)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from glipv2_jax.models.layers import conv, fold, kaiming_a1
from glipv2_jax.models.padding import zero_padding


def nearest(x: jax.Array, h: int, w: int) -> jax.Array:
  """Nearest-neighbour resize by PyTorch's rule, source = floor(target * in / out)."""
  rows = np.arange(h) * x.shape[1] // h
  columns = np.arange(w) * x.shape[2] // w
  return x[:, rows][:, :, columns]


def drop_block(x: jax.Array, rate: float, key: jax.Array | None, block: int = 3) -> jax.Array:
  """DropBlock with one mask for all channels, rescaled by the share kept in the whole batch (reference 2.3)."""
  if key is None or rate == 0.0:
    return x
  seeds = jax.random.bernoulli(key, rate / block**2, x.shape[:3]).astype(jnp.float32)
  dropped = jax.lax.reduce_window(seeds, 0.0, jax.lax.max, (1, block, block), (1, 1, 1), "SAME")
  keep = 1.0 - dropped
  return x * (keep * (keep.size / jnp.maximum(jnp.sum(keep), 1.0)))[..., None].astype(x.dtype)


class FPN(nnx.Module):
  """Maps b h w d_i at strides 8, 16, 32 -> five maps b h w `channels` at strides 8 to 128."""

  def __init__(self, widths: tuple[int, int, int], channels: int, *, dropblock: float, dtype, rngs: nnx.Rngs):
    def make(d_in, kernel, stride=1):
      padding = kernel // 2
      return conv(
        d_in, channels, kernel, stride=stride, padding=padding, dtype=dtype, kernel_init=kaiming_a1, rngs=rngs
      )

    self.inner2, self.inner3, self.inner4 = (make(d, 1) for d in widths)
    self.layer2, self.layer3, self.layer4 = (make(channels, 3) for _ in widths)
    self.p6, self.p7 = make(channels, 3, 2), make(channels, 3, 2)
    self.dropblock = dropblock

  def __call__(self, maps: list[jax.Array], sizes: list | None = None, key: jax.Array | None = None):
    """`sizes`: valid cells of P3..P7 (models.padding), or None."""
    c3, c4, c5 = maps
    s3, s4, s5, s6, s7 = (None,) * 5 if sizes is None else sizes
    inner4 = zero_padding(self.inner4(c5), s5)
    inner3 = zero_padding(self.inner3(c4) + nearest(inner4, *c4.shape[1:3]), s4)
    inner2 = zero_padding(self.inner2(c3) + nearest(inner3, *c3.shape[1:3]), s3)
    p5 = zero_padding(self.layer4(inner4), s5)
    p4 = zero_padding(self.layer3(drop_block(inner3, self.dropblock, fold(key, 0))), s4)
    p3 = zero_padding(self.layer2(drop_block(inner2, self.dropblock, fold(key, 1))), s3)
    p6 = zero_padding(self.p6(p5), s6)
    p7 = zero_padding(self.p7(jax.nn.relu(p6)), s7)
    return [p3, p4, p5, p6, p7]

"""Modulated deformable 3x3 convolution, DCNv2 (reference 4.4), in plain XLA operations.

Every output cell looks at nine places of the input that it chooses itself: tap k = 3i + j samples, bilinearly and with
zeros outside, at (y*stride - 1 + i + dy, x*stride - 1 + j + dx), times a mask in (0, 1).

The columns of all nine taps together would be nine times the map (P3 of an 800x1344 picture: 155 MB per picture and
convolution), so a scan visits one tap at a time, and the backward pass computes each tap again. With p output cells,
c channels in and o out, one tap reads the four neighbours of every place as rows (16pc bytes in float32, 8pc FLOPs to
blend them), keeps one blended p x c array and multiplies it with its slice of the kernel (2pco FLOPs). The gradient
scatters the same rows. Measured on a CPU at 16x16x64, batch 16, forward and backward: blending four separate gathers
takes 40 ms, one gather of all four 150 ms, all taps at once 320 ms, sampling by a matrix of hat functions 80 ms.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from glipv2_jax.models.layers import torch_uniform, zeros

SIDE = 3


def deform_conv(x: jax.Array, offset: jax.Array, mask: jax.Array, kernel: jax.Array, *, stride: int = 1) -> jax.Array:
  """x b h w c, offset b y x 9 2 (dy, dx), mask b y x 9, kernel 3 3 c o -> b y x o float32.

  Products run in the dtype of x and kernel, positions and sums in float32.
  """
  b, h, w, c = x.shape
  _, rows, columns, taps, _ = offset.shape
  i, j = np.divmod(np.arange(taps), SIDE)
  offset = offset.astype(jnp.float32)
  y = offset[..., 0] + np.float32(np.arange(rows)[:, None, None] * stride - 1 + i)
  z = offset[..., 1] + np.float32(np.arange(columns)[:, None] * stride - 1 + j)

  @jax.checkpoint
  def visit(total, tap):
    *place, weight = tap
    sampled = sample(x, *place).astype(x.dtype)
    return total + jnp.einsum("bpc,co->bpo", sampled, weight, preferred_element_type=jnp.float32), None

  by_tap = [jnp.moveaxis(t.reshape(b, rows * columns, taps), 2, 0) for t in (y, z, mask.astype(jnp.float32))]
  total = jnp.zeros((b, rows * columns, kernel.shape[-1]), jnp.float32)
  total, _ = jax.lax.scan(visit, total, (*by_tap, kernel.reshape(taps, c, -1)))
  return total.reshape(b, rows, columns, -1)


def sample(x: jax.Array, y: jax.Array, z: jax.Array, mask: jax.Array) -> jax.Array:
  """x b h w c at the places y, z (b p float32, in cells), bilinear, zero outside, times mask (b p) -> b p c float32."""
  b, h, w, c = x.shape
  cells, total = x.reshape(b, h * w, c), 0.0
  top, left = jnp.floor(y), jnp.floor(z)
  for row in (top, top + 1):
    for column in (left, left + 1):
      inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
      weight = jnp.where(inside, (1 - jnp.abs(y - row)) * (1 - jnp.abs(z - column)) * mask, 0.0)
      index = (jnp.clip(row, 0, h - 1) * w + jnp.clip(column, 0, w - 1)).astype(jnp.int32)
      near = jax.vmap(lambda one, at: one.at[at].get(mode="promise_in_bounds"))(cells, index)
      total += near.astype(jnp.float32) * weight[..., None]
  return total


class DeformConv(nnx.Module):
  """Parameters of `deform_conv`; weights U(+-1/sqrt(9 d)), bias 0 (reference 4.4)."""

  def __init__(self, d: int, *, stride: int, dtype, rngs: nnx.Rngs):
    self.kernel = nnx.Param(torch_uniform(rngs.params(), (SIDE, SIDE, d, d), jnp.float32))
    self.bias = nnx.Param(zeros(rngs.params(), (d,), jnp.float32))
    self.stride, self.dtype = stride, dtype

  def __call__(self, x: jax.Array, offset: jax.Array, mask: jax.Array) -> jax.Array:
    x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
    return deform_conv(x, offset, mask, kernel, stride=self.stride) + self.bias[...]

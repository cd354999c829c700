"""The deformable convolution of deform.py for GPUs: the same numbers with all nine taps at once.

What the taps read becomes one array, 9c numbers for every output cell, in the dtype of the maps (P3 to P7 of a picture
of 800x1344 in bfloat16, all three convolutions of a stage: 155 MB), and the convolution is one product of it. The array
is kept for the backward pass, unless the layer is recomputed as a whole (`ModelConfig.remat`). There are no loops, so
few kernels run, each long enough to fill a GPU; deform.py needs a ninth of that memory and suits a CPU's cache.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from glipv2_jax.models.deform import SIDE, TAPS, Places, blend, neighbours, product


def deform_convs(
  cells: jax.Array,
  where: Sequence[Places],
  offset: jax.Array,
  mask: jax.Array,
  kernels: Sequence[jax.Array],
  biases: Sequence[jax.Array],
) -> list[jax.Array]:
  """`deform.deform_convs`: the same arguments, the same results."""
  splits = np.cumsum([len(part) for part in where])[:-1]
  parts = where, jnp.split(offset.astype(jnp.float32), splits, 1), jnp.split(mask.astype(jnp.float32), splits, 1)
  return [convolve(cells, *each) for each in zip(*parts, kernels, biases, strict=True)]


def convolve(cells, where: Places, offset, mask, kernel, bias) -> jax.Array:
  """One of the convolutions: b p o float32."""
  b, p, _ = mask.shape
  i, j = np.divmod(np.arange(TAPS, dtype=np.float32), SIDE)
  y = where.row[:, None] + i + offset[..., 0]
  x = where.column[:, None] + j + offset[..., 1]
  taps = Places(*(np.repeat(getattr(where, field.name), TAPS) for field in dataclasses.fields(Places)))
  columns = blend(cells, *neighbours(taps, *(t.reshape(b, p * TAPS) for t in (y, x, mask))))
  return product(columns.reshape(b, p, -1), kernel.reshape(-1, kernel.shape[-1])) + bias

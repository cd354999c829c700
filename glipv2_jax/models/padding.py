"""Which cells of a map belong to the picture: the one helper of `ModelConfig.mask_padding`.

The authors' network never knows where the padding is, so its outputs depend on the canvas (reference 12, quirk 4). With
`mask_padding` every level carries `size`, the valid height and width of each example (b 2 int32), and padded cells take
no part: they are zeros for convolutions and are left out of softmaxes and means. Without it `size` is None everywhere.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def level_sizes(image_size: jax.Array, strides: Sequence[int]) -> list[jax.Array]:
  """Valid cells (b 2) at each stride; every downsampling rounds up (reference 2.2)."""
  return [-(-image_size // stride) for stride in strides]


def cells_valid(size: jax.Array, h: int, w: int) -> jax.Array:
  """b h w bool, True where a cell lies inside `size` (b 2)."""
  return (jnp.arange(h)[:, None] < size[:, 0, None, None]) & (jnp.arange(w) < size[:, 1, None, None])


def zero_padding(x: jax.Array, size: jax.Array | None) -> jax.Array:
  """x (b h w d) with zeros in the padded cells."""
  return x if size is None else jnp.where(cells_valid(size, *x.shape[1:3])[..., None], x, jnp.zeros_like(x))

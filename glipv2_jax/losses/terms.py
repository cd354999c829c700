"""A loss term is a sum and a count; the caller divides, once, after both are summed over the whole global batch."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Term:
  """`total`: float32 scalar sum of the losses; `count`: float32 scalar that normalises it."""

  total: Any
  count: Any

  def mean(self, floor: float = 1.0):
    """total / max(count, floor): finite where nothing counts."""
    return self.total / jnp.maximum(self.count, floor)


def masked(values, mask, instead=0.0):
  """Values where the mask holds, elsewhere `instead`; float32.

  Applied to the *inputs* of a loss: selecting only its results would still let a NaN at a masked position reach the
  gradient, as 0 * NaN.
  """
  return jnp.where(mask, jnp.asarray(values, jnp.float32), instead)


def masked_sum(values, mask):
  """Sum of the values where the mask holds."""
  return jnp.sum(masked(values, mask))

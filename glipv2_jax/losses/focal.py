"""Sigmoid focal loss (Lin et al. 2017, equation 5), elementwise; used for the token logits (reference 5.4)."""

import jax
import jax.numpy as jnp


def sigmoid_focal(logits, targets, alpha: float = 0.25, gamma: float = 2.0):
  """alpha_t (1 - p_t)^gamma (-log p_t): logits ... float32, targets ... bool -> ... float32.

  Written in the logit of the right answer, so that it neither overflows nor loses digits at large logits.
  """
  right = jnp.where(targets, logits, -logits)
  weight = jnp.where(targets, alpha, 1.0 - alpha)
  return weight * jax.nn.sigmoid(-right) ** gamma * jax.nn.softplus(-right)

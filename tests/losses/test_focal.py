"""Focal loss against its formula written with probabilities in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glipv2_jax.losses import focal


def by_probability(z, t, alpha=0.25, gamma=2.0):
  p = 1 / (1 + np.exp(-np.float64(z)))
  p_t, alpha_t = p * t + (1 - p) * (1 - t), alpha * t + (1 - alpha) * (1 - t)
  return -alpha_t * (1 - p_t) ** gamma * np.log(p_t)


@pytest.mark.parametrize("alpha, gamma", [(0.25, 2.0), (0.6, 1.5), (0.5, 0.0)])
def test_values_and_gradients(alpha, gamma):
  z, t = np.meshgrid(np.linspace(-12, 12, 25), [True, False])
  np.testing.assert_allclose(
    focal.sigmoid_focal(jnp.float32(z), t, alpha, gamma), by_probability(z, t, alpha, gamma), rtol=2e-5
  )
  gradient = jax.grad(lambda z: focal.sigmoid_focal(z, t, alpha, gamma).sum())(jnp.float32(z))
  numeric = (by_probability(z + 1e-5, t, alpha, gamma) - by_probability(z - 1e-5, t, alpha, gamma)) / 2e-5
  np.testing.assert_allclose(gradient, numeric, rtol=1e-3, atol=1e-6)


def test_huge_logits_are_exact_and_finite():
  z = jnp.float32([5e4, -5e4, 5e4, -5e4])
  t = np.array([True, True, False, False])
  np.testing.assert_allclose(focal.sigmoid_focal(z, t), [0, 0.25 * 5e4, 0.75 * 5e4, 0], rtol=1e-6)
  np.testing.assert_allclose(jax.grad(lambda z: focal.sigmoid_focal(z, t).sum())(z), [0, -0.25, 0.75, 0], rtol=1e-6)

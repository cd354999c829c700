"""Sums and counts: NaN at masked positions stays out of values and gradients, empty counts stay finite."""

import jax
import jax.numpy as jnp
import numpy as np

from glipv2_jax.losses import terms


def test_masked_sum_ignores_what_is_masked():
  values, mask = np.float32([1.0, np.nan, 3.0, np.inf]), np.array([True, False, True, False])
  assert terms.masked_sum(values, mask) == 4.0


def test_nan_does_not_reach_the_gradient():
  values, mask = jnp.float32([4.0, jnp.nan, 9.0]), np.array([True, False, True])
  gradient = jax.grad(lambda v: terms.masked_sum(jnp.sqrt(terms.masked(v, mask, 1.0)), mask))(values)
  np.testing.assert_allclose(gradient, [1 / 4, 0, 1 / 6])


def test_sums_are_float32():
  assert terms.masked_sum(jnp.ones(3, jnp.bfloat16), jnp.ones(3, bool)).dtype == jnp.float32


def test_mean_divides_by_the_floored_count():
  total = jnp.float32(6)
  assert terms.Term(total, jnp.float32(3)).mean() == 2
  assert terms.Term(total, jnp.float32(0)).mean() == 6
  assert terms.Term(total, jnp.float32(3)).mean(floor=12.0) == 0.5


def test_a_term_is_a_tree():
  both = jax.tree.map(jnp.add, terms.Term(jnp.float32(1), jnp.float32(2)), terms.Term(jnp.float32(3), jnp.float32(4)))
  assert (both.total, both.count) == (4, 6)

"""The benchmarks' count of FLOPs against products counted by hand."""

import jax
import jax.numpy as jnp

from glipv2_jax.train import flops


def test_products_convolutions_and_loops():
  a, b = jnp.ones((3, 5)), jnp.ones((5, 7))
  product = 2 * 3 * 5 * 7
  assert flops.count(lambda a, b: jnp.tanh(a @ b), a, b) == product
  assert flops.count(jax.jit(jax.checkpoint(lambda a, b: a @ b)), a, b) == product
  batched = jnp.ones((4, 3, 5)), jnp.ones((4, 5, 7))
  assert flops.count(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), *batched) == 4 * product
  assert (
    flops.count(lambda a, b: jax.lax.scan(lambda c, _: (c + a @ b, None), jnp.zeros((3, 7)), None, 9), a, b)
    == 9 * product
  )

  def convolution(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

  assert flops.count(convolution, jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 3, 6))) == 2 * 4 * 4 * 6 * 3 * 3 * 3

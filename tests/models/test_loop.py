"""`ModelConfig.loop`: equal layers as loops of the program give the numbers of the layers one after the other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from glipv2_jax.models import glipv2
from glipv2_jax.train.state import RUN_ONCE
from tests import tiny


@pytest.mark.slow  # minutes of compilation on two slow cores
@pytest.mark.parametrize("kind", ["bert", "clip"])
def test_loops_change_nothing(kind):
  """With dropout and stochastic depth: every layer gets its own key and rate."""
  cfg = tiny.model()
  cfg = dataclasses.replace(
    cfg,
    swin=dataclasses.replace(cfg.swin, depths=(1, 1, 4, 1), drop_path=0.5),
    text=dataclasses.replace(cfg.text, kind=kind, layers=2, dropout=0.1),
    head=dataclasses.replace(cfg.head, stages=2, fusion_dropout=0.1),
  )
  make = jax.jit(lambda key: glipv2.init_params(cfg, key), compiler_options=RUN_ONCE)
  params, batch = make(jax.random.key(0)), tiny.batch(0, rows=2)

  def value_and_gradient(cfg):
    def loss(params):
      outputs = nnx.merge(glipv2.graphdef(cfg), params)(batch, jax.random.key(1))
      return jnp.sum(jnp.sin(outputs.token_logits)) + jnp.sum(outputs.deltas**2)

    return jax.jit(jax.value_and_grad(loss)).lower(params).compile(compiler_options=RUN_ONCE)(params)

  plain, looped = value_and_gradient(cfg), value_and_gradient(dataclasses.replace(cfg, loop=True))
  for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(looped), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-4 * float(jnp.abs(a).max()) + 1e-9)

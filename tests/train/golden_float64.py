"""Run by test_golden_step.py in a process of its own, with 64-bit types on: losses and gradient norms as JSON.

The network computes in float32 where precision matters most, whatever its compute dtype. Here those places get float64,
so the name `jnp.float32` stands for float64 before anything of the network is imported.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np

jnp.float32 = jnp.float64

from glipv2_jax.convert import names  # noqa: E402
from glipv2_jax.losses.grounding import LossConfig  # noqa: E402
from glipv2_jax.models import variants  # noqa: E402
from glipv2_jax.train import objective  # noqa: E402
from tests.authors import load, params, train_batch, without_dropout  # noqa: E402


def main():
  cfg = without_dropout(variants.get("glip_t", compute_dtype="float64"))
  grounding = objective.grounding(cfg, LossConfig(background_token=True))

  def losses(params, batch):
    targets, counts, _ = grounding.targets(batch)
    return grounding.loss(params, batch, targets, counts, None)

  weights = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params(cfg))
  params.cache_clear()
  (_, terms), gradients = jax.jit(jax.value_and_grad(losses, has_aux=True))(weights, train_batch(load("train")))
  norms = {}
  for entry, gradient in zip(names.entries(cfg), jax.tree.leaves(gradients), strict=True):
    parts = entry.to_torch(np.asarray(gradient))
    norms |= {name: float(np.linalg.norm(part)) for name, part in zip(entry.names, parts, strict=True)}
  print(json.dumps({"losses": {name: float(value) for name, value in terms.items()}, "norms": norms}))


if __name__ == "__main__":
  main()

"""Run by test_golden.py in a process of its own, with 64-bit types on: GLIP-L's distance to its recording as JSON.

The network computes in float32 where precision matters most, whatever its compute dtype. Here those places get float64,
so the name `jnp.float32` stands for float64 before anything of the network is imported.
"""

import json

import jax.numpy as jnp

jnp.float32 = jnp.float64

from glipv2_jax.models import variants  # noqa: E402
from tests.models.test_golden import bert, compare  # noqa: E402

if __name__ == "__main__":
  print(json.dumps(compare("glip_l", variants.get("glip_l", compute_dtype="float64"), bert, 1.0)))

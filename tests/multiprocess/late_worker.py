"""Program of test_late.py: PORT NUMBER SECONDS. Two processes add their numbers; the second compiles so much longer."""

import sys
import time

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def main(port: str, number: str, seconds: str) -> None:
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", 1)
  jax.distributed.initialize(f"localhost:{port}", 2, int(number))

  from glipv2_jax.parallel.jit import Jitted

  compiled = []

  def add(x):
    compiled.append(x.shape)
    if number == "1":
      time.sleep(float(seconds))
    return x.sum()

  mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
  rows = NamedSharding(mesh, PartitionSpec("data"))
  program = Jitted(add, out_shardings=NamedSharding(mesh, PartitionSpec()))
  for size in (2, 2, 4):
    x = jax.make_array_from_callback((size,), rows, lambda i: jnp.arange(float(size))[i])  # noqa: B023
    print(float(program(x)), len(compiled))
    seconds = "0"


if __name__ == "__main__":
  main(*sys.argv[1:])

"""`jax.jit` for programs that several processes run together: none begins one before all have compiled it.

The first run of a program connects its processes, and a transport gives up when one of them is late: Gloo, between
CPUs, after 30 seconds. Compiling takes minutes and not everywhere as long, least where one process finds the program in
its cache and another does not.
"""

from collections.abc import Callable
from typing import Any

import jax
from orbax.checkpoint import multihost

TIMEOUT = 3600  # seconds that the slowest process may compile longer than the fastest


class Jitted:
  """Called and lowered like `jax.jit(function, **options)`; all processes must call it with the same shapes in turn."""

  def __init__(self, function: Callable[..., Any], **options: Any):
    self.program = jax.jit(function, **options)
    self._compiled: set[Any] = set()

  def __call__(self, *args: Any) -> Any:
    if jax.process_count() > 1 and (signature := _signature(args)) not in self._compiled:
      self.program.lower(*args).compile()  # the program keeps it
      multihost.get_barrier_sync_fn()(key="compiled", timeout_ms=1000 * TIMEOUT)
      self._compiled.add(signature)
    return self.program(*args)

  def lower(self, *args: Any) -> jax.stages.Lowered:
    return self.program.lower(*args)


def _signature(args: Any) -> Any:
  leaves, tree = jax.tree.flatten(args)
  return tree, tuple((x.shape, x.dtype) if hasattr(x, "shape") else x for x in leaves)

"""Everything a run needs to go on: step, parameters, optimizer moments, and the running average of the parameters.

No random key is stored: keys are derived from the seed and the step, which makes resuming exact for free.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from glipv2_jax.parallel import rules as sharding_rules
from glipv2_jax.train.optim import Optimizer

# Hundreds of random draws run once: on a CPU, compiling them well takes far longer than running them.
RUN_ONCE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """`step` counts finished updates; `ema` is None when no average is kept."""

  step: jax.Array
  params: Any
  opt_state: Any
  ema: Any


def new_state(params: Any, optimizer: Optimizer) -> TrainState:
  """The state before the first step."""
  ema = jax.tree.map(jnp.copy, params) if optimizer.ema_decay else None
  return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.tx.init(params), ema=ema)


def abstract_state(
  init: Callable[[jax.Array], Any],
  optimizer: Optimizer,
  mesh: Mesh,
  rules: sharding_rules.Rules = sharding_rules.FSDP,
  min_size: int = sharding_rules.MIN_SIZE,
) -> TrainState:
  """The state as shapes with dtypes and shardings; no memory is used. `init(key)` gives the parameters."""
  shapes = jax.eval_shape(lambda key: new_state(init(key), optimizer), jax.random.key(0))
  places = sharding_rules.shardings(shapes, mesh, rules, min_size)
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, places)


def shardings_of(abstract: Any) -> Any:
  """A tree of arrays or shapes -> the tree of their shardings."""
  return jax.tree.map(lambda x: x.sharding, abstract)


def create_state(
  init: Callable[[jax.Array], Any], optimizer: Optimizer, abstract: TrainState, key: jax.Array
) -> TrainState:
  """A new state, every array born where `abstract` wants it: no parameter ever exists whole on one device."""
  make = jax.jit(
    lambda key: new_state(init(key), optimizer),
    out_shardings=shardings_of(abstract),
    compiler_options=RUN_ONCE if jax.default_backend() == "cpu" else None,
  )
  return make(key)

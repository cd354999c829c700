"""Where parameters come from when a run has no checkpoint of its own: random values, or those of another run."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp

from glipv2_jax.train.checkpoint import restore_params
from glipv2_jax.train.objective import Objective
from glipv2_jax.train.optim import Optimizer
from glipv2_jax.train.state import TrainState, create_state


def initialise(
  objective: Objective, optimizer: Optimizer, abstract: TrainState, seed: int, init_from: pathlib.Path | str | None
) -> TrainState:
  """The state of step 0. `init_from` is the folder of another run of the same network: its parameters, nothing else.

  Raises FileNotFoundError or CheckpointMismatch for an `init_from` that does not hold these parameters.
  """
  state = create_state(objective.init, optimizer, abstract, jax.random.key(seed))
  if init_from is None:
    return state
  params = restore_params(init_from, abstract.params)
  ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
  return dataclasses.replace(state, params=params, ema=ema)

"""Where parameters come from when a run has no checkpoint of its own: random values, another run, or weight files."""

import dataclasses
import logging
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from glipv2_jax.convert.from_torch import Weights
from glipv2_jax.parallel.rules import path_name
from glipv2_jax.train.checkpoint import restore_params
from glipv2_jax.train.objective import Objective
from glipv2_jax.train.optim import Optimizer
from glipv2_jax.train.state import TrainState, create_state

log = logging.getLogger(__name__)


def initialise(
  objective: Objective, optimizer: Optimizer, abstract: TrainState, seed: int, init_from: pathlib.Path | str | None
) -> TrainState:
  """The state of step 0. `init_from` gives parameters, nothing else. It is one of

  - the folder of another run of the same network;
  - a weight file of PyTorch, of the whole network or of an encoder (convert/files.py);
  - 'IMAGE,TEXT': two files, each of one encoder, as the paper starts. What no file holds stays random.

  Raises FileNotFoundError, or CheckpointMismatch or BadWeights (both ValueErrors) for what does not fit.
  """
  weights = None if init_from is None else _weights(objective, str(init_from))
  state = create_state(objective.init, optimizer, abstract, jax.random.key(seed))
  if init_from is None:
    return state
  params = restore_params(init_from, abstract.params) if weights is None else replace(state.params, weights)
  ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
  return dataclasses.replace(state, params=params, ema=ema)


def _weights(objective: Objective, init_from: str) -> Weights | None:
  """The checked weights of the files that `init_from` names; None where it is the folder of a run."""
  files = init_from.split(",")
  if not pathlib.Path(files[-1]).suffix or pathlib.Path(init_from).is_dir():
    return None
  if objective.read is None:
    raise ValueError(f"this network reads no weight files; init_from={init_from!r} must be the folder of a run")
  return objective.read(files)


def replace(params: Any, weights: Weights) -> Any:
  """`params` with the values that weight files hold, each placed like the value it replaces.

  `params` may hold `jax.ShapeDtypeStruct`s with shardings where `weights` has values.
  """
  if weights.fresh:
    log.info("%d parameters keep their initial values: %s", len(weights.fresh), ", ".join(summary(weights.fresh)))
  leaves, tree = jax.tree_util.tree_flatten_with_path(params)
  values = {path_name(path): leaf for path, leaf in leaves}
  for path, value in weights.arrays():
    values[path] = _placed(value, values[path].sharding)
  return jax.tree.unflatten(tree, list(values.values()))


def summary(paths: tuple[str, ...]) -> list[str]:
  """Paths by their first two parts, each once."""
  return sorted({"/".join(path.split("/")[:2]) for path in paths})


def _placed(value: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
  """Every process holds the whole value and gives its devices their parts."""
  return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

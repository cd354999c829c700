"""One training step, jitted on the mesh: targets and global counts, loss and gradients, clip, AdamW, average."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from glipv2_jax.parallel.jit import Jitted
from glipv2_jax.parallel.mesh import BATCH, batch_devices, batch_sharding, replicated
from glipv2_jax.schema import Batch
from glipv2_jax.train.objective import Numbers, Objective
from glipv2_jax.train.optim import Optimizer
from glipv2_jax.train.state import TrainState, shardings_of


@dataclasses.dataclass(frozen=True)
class Step:
  """(state, global batch) -> (state, metrics); the state that goes in is donated.

  The seed is an argument of the compiled program, so that runs which differ in it share what a compilation cache holds.
  """

  program: Jitted  # of state, batch, seed
  seed: np.uint32

  def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Numbers]:
    return self.program(state, batch, self.seed)

  def lower(self, state: TrainState, batch: Batch) -> jax.stages.Lowered:
    """For arrays or shapes; what it compiles to is called with (state, batch, seed)."""
    return self.program.lower(state, batch, jax.ShapeDtypeStruct((), jnp.uint32))


def make_train_step(
  objective: Objective,
  optimizer: Optimizer,
  mesh: Mesh,
  abstract: TrainState,
  seed: int = 0,
  accumulate: int = 1,
  global_negatives: bool = False,
) -> Step:
  """The step of a run.

  Metrics, float32 scalars: 'loss', every term under its name, the objective's own numbers ('num_pos'), 'grad_norm'
  (before clipping) and 'lr' (the scheduled rate, before multipliers). Randomness is fold_in(key(seed), step).
  With `accumulate` > 1 the batch passes through the network in that many parts; without dropout and L_inter the result
  equals that of one part up to rounding, since every part is divided by the counts of the whole batch. L_inter compares
  the images and words of one part only: the part's size sets the number of its negatives. With `global_negatives` they
  are those of the whole batch: the parts first pass the encoders once more, for their embeddings alone.
  It compiles once per canvas.
  """
  places = shardings_of(abstract)

  def step(state: TrainState, batch: Batch, seed: jax.Array) -> tuple[TrainState, Numbers]:
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    targets, counts, info = objective.targets(batch)

    def part(params, key, batch, targets, *asked):
      return objective.loss(params, batch, targets, counts, key, *asked)

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # L_inter goes over its devices
      if accumulate == 1:
        grads, loss, terms = _gradients(part, state.params, jax.random.fold_in(key, 0), batch, targets)
      else:
        surveys = objective if global_negatives and objective.survey is not None else None
        grads, loss, terms = _accumulated(part, state.params, key, (batch, targets), mesh, accumulate, surveys)
    grads = jax.lax.with_sharding_constraint(grads, places.params)
    clipped, norm = optimizer.clip(grads)
    updates, opt_state = optimizer.tx.update(clipped, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = None if state.ema is None else optimizer.average(state.ema, params)
    metrics = {"loss": loss, **terms, **info, "grad_norm": norm, "lr": optimizer.schedule(state.step)}
    return TrainState(step=state.step + 1, params=params, opt_state=opt_state, ema=ema), metrics

  program = Jitted(
    step,
    in_shardings=(places, batch_sharding(mesh), replicated(mesh)),
    out_shardings=(places, replicated(mesh)),
    donate_argnums=0,
  )
  return Step(program, np.uint32(seed))


def microbatches(tree: Any, mesh: Mesh, parts: int) -> Any:
  """Leaves of b rows -> parts x (b / parts) rows, every device keeping the rows it already holds.

  Raises ValueError when b cannot be cut like that.
  """
  devices = batch_devices(mesh)
  sharding = NamedSharding(mesh, PartitionSpec(None, *BATCH))

  def cut(x):
    rows = x.shape[0]
    if rows % (devices * parts):
      raise ValueError(
        f"a batch of {rows} rows cannot be accumulated in {parts} parts on {devices} devices; "
        f"choose a multiple of {devices * parts}"
      )
    x = x.reshape(devices, parts, rows // (devices * parts), *x.shape[1:])
    x = jnp.swapaxes(x, 0, 1).reshape(parts, rows // parts, *x.shape[3:])
    return jax.lax.with_sharding_constraint(x, sharding)

  return jax.tree.map(cut, tree)


def _joined(tree: Any, mesh: Mesh) -> Any:
  """The reverse of `microbatches`."""
  devices = batch_devices(mesh)

  def join(x):
    parts, rows = x.shape[:2]
    x = x.reshape(parts, devices, rows // devices, *x.shape[2:])
    x = jnp.swapaxes(x, 0, 1).reshape(parts * rows, *x.shape[3:])
    return jax.lax.with_sharding_constraint(x, batch_sharding(mesh))

  return jax.tree.map(join, tree)


def _gradients(part, params, key, *data):
  """(gradients, loss, terms). `part(params, key, *data)` -> (loss, terms)."""
  (loss, terms), grads = jax.value_and_grad(part, has_aux=True)(params, key, *data)
  return grads, loss, terms


def _accumulated(part, params, key, data, mesh: Mesh, parts: int, objective: Objective | None):
  """`_gradients` summed over microbatches; with `objective` its survey of all of them comes first."""
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(parts))
  micro = (keys, *microbatches(data, mesh, parts))
  if objective is not None:
    surveys = jax.lax.map(lambda m: objective.survey(params, m[1], m[2], m[0]), micro)
    micro += (microbatches(objective.whole(params, _joined(surveys, mesh)), mesh, parts),)
  one = functools.partial(_gradients, part, params)
  shapes = jax.eval_shape(one, *jax.tree.map(lambda x: x[0], micro))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  return jax.lax.scan(lambda total, m: (jax.tree.map(jnp.add, total, one(*m)), None), zeros, micro)[0]

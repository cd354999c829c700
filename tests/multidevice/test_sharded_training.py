"""The whole network on a 2 x 4 mesh with sharded parameters trains like one device, and its checkpoints travel."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from glipv2_jax.parallel import mesh as meshes
from glipv2_jax.parallel import rules
from glipv2_jax.train import checkpoint, optim, state, step
from tests import tiny

STEPS, MORE = 5, 2


# The same program, compiled faster: the code generator of XLA may not take its time.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class Machine:
  """A mesh with the compiled step of the tiny network."""

  def __init__(self, data, fsdp):
    objective = tiny.grounding()
    self.mesh = meshes.make_mesh(data, fsdp, devices=jax.devices()[: data * fsdp])
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    optimizer = optim.make_optimizer(tiny.optimizer_config(lr=1e-4), shapes, 100, objective.frozen)
    self.abstract = state.abstract_state(objective.init, optimizer, self.mesh, min_size=64)
    train_step = step.make_train_step(objective, optimizer, self.mesh, self.abstract)
    with jax.set_mesh(self.mesh):
      compiled = train_step.lower(self.abstract, tiny.batch(0)).compile(compiler_options=QUICK)
    self._step = lambda state, batch: compiled(state, batch, train_step.seed)

  def first_state(self):
    """Random numbers from NumPy, since compiling the network's own initialisation takes longer than this test."""
    rng = np.random.default_rng(0)

    def fill(path, x):
      name = rules.path_name(path)
      noise = rng.normal(size=x.shape) * 0.5 / np.sqrt(np.prod(x.shape[:-1]))
      values = noise + name.endswith("/scale") if name.startswith(("params", "ema")) else np.zeros(x.shape)
      return jax.device_put(values.astype(x.dtype), x.sharding)

    return jax.tree_util.tree_map_with_path(fill, self.abstract)

  def train(self, current, first, last):
    losses = []
    with jax.set_mesh(self.mesh):
      for index in range(first, last):
        current, metrics = self._step(current, meshes.to_global(tiny.batch(index), self.mesh))
        losses.append({name: float(value) for name, value in metrics.items()})
    return current, losses


def meta(number):
  return checkpoint.Meta(number, 8 * number, 0.0, "tiny", {}, "unknown", {}, {})


def test_eight_devices_train_like_one_and_the_checkpoint_goes_on_alone(tmp_path):
  eight, one = Machine(2, 4), Machine(1, 1)
  assert eight.abstract.params["text"]["embeddings"]["word"]["embedding"].sharding.spec == P("fsdp", None)
  split = [x for x in jax.tree.leaves(eight.abstract.params) if x.sharding.spec != P()]
  assert len(split) > 50  # FSDP is really on
  with checkpoint.manager(tmp_path, keep=5) as checkpoints:
    current = eight.first_state()
    checkpoint.save(checkpoints, current, meta(0))
    checkpoints.wait_until_finished()
    alone, _ = checkpoint.restore(checkpoints, one.abstract, "tiny")

    current, sharded = eight.train(current, 0, STEPS)
    checkpoint.save(checkpoints, current, meta(STEPS))
    checkpoints.wait_until_finished()
    alone, single = one.train(alone, 0, STEPS + MORE)
    for a, b in zip(sharded, single[:STEPS], strict=True):
      assert a == pytest.approx(b, rel=1e-5)

    restored, found = checkpoint.restore(checkpoints, one.abstract, "tiny")
    assert found.step == int(restored.step) == STEPS
    assert all(len(x.sharding.device_set) == 1 for x in jax.tree.leaves(restored))
    _, went_on = one.train(restored, STEPS, STEPS + MORE)
    for a, b in zip(went_on, single[STEPS:], strict=True):
      assert a == pytest.approx(b, rel=1e-5)

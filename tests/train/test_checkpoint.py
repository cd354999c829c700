"""Save and restore: equality, other meshes, parts, what is kept, and messages for what does not fit."""

import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glipv2_jax.parallel import mesh as meshes
from glipv2_jax.train import checkpoint, optim, state
from tests import tiny, toy


def build(data=1, fsdp=1, init=toy.init, ema_decay=0.9):
  mesh = meshes.make_mesh(data, fsdp, devices=jax.devices()[: data * fsdp])
  shapes = jax.eval_shape(init, jax.random.key(0))
  optimizer = optim.make_optimizer(tiny.optimizer_config(ema_decay=ema_decay), shapes, 10, toy.OBJECTIVE.frozen)
  abstract = state.abstract_state(init, optimizer, mesh, min_size=1)
  rng = np.random.default_rng(3)

  def fill(x):
    values = rng.normal(size=x.shape) if x.dtype == jnp.float32 else np.full(x.shape, 7)
    return jax.device_put(values.astype(x.dtype), x.sharding)

  return jax.tree.map(fill, abstract), abstract


def meta(step, variant="toy"):
  return checkpoint.Meta(
    step, 8 * step, 1.5, variant, {"optim": {"lr": 0.1, "rules": [[".*", 1.0]]}}, "abc", {"nan": 2}, {"many": 3}
  )


def save(folder, current, *steps, **kwargs):
  with checkpoint.manager(folder, **kwargs) as checkpoints:
    for step in steps:
      checkpoint.save(checkpoints, current, meta(step))


def assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("data, fsdp", [(1, 1), (8, 1), (1, 2)])
def test_round_trip_onto_another_mesh(tmp_path, data, fsdp):
  current, _ = build(2, 4)
  save(tmp_path / "checkpoints", current, 3)
  _, abstract = build(data, fsdp)
  with checkpoint.manager(tmp_path / "checkpoints") as checkpoints:
    restored, found = checkpoint.restore(checkpoints, abstract, "toy")
  assert_equal(restored, current)
  assert found == meta(3)
  assert jax.tree.all(jax.tree.map(lambda x, like: x.sharding == like.sharding, restored, abstract))


def test_saved_values_are_those_before_donation(tmp_path):
  current, abstract = build()
  before = jax.tree.map(np.asarray, current)
  with checkpoint.manager(tmp_path) as checkpoints:
    checkpoint.save(checkpoints, current, meta(1))
    jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)(current)
    checkpoints.wait_until_finished()
    restored, _ = checkpoint.restore(checkpoints, abstract, "toy")
  assert_equal(restored, before)


def test_nothing_to_restore(tmp_path):
  _, abstract = build()
  with checkpoint.manager(tmp_path) as checkpoints:
    assert checkpoint.restore(checkpoints, abstract, "toy") is None
  for read in (checkpoint.read_meta, lambda folder: checkpoint.restore_params(folder, abstract.params)):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
      read(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
      read(tmp_path / "nowhere")


def test_keep_policies(tmp_path):
  current, _ = build()
  save(tmp_path, current, *range(1, 8), keep=2, keep_every=3)
  with checkpoint.manager(tmp_path) as checkpoints:
    assert list(checkpoints.all_steps()) == [3, 6, 7]


def test_parameters_only(tmp_path):
  current, abstract = build(2, 4)
  save(tmp_path / "checkpoints", current, 3, 5, keep=2)
  assert_equal(checkpoint.restore_params(tmp_path, abstract.params), current.params)
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), abstract.params)
  average = checkpoint.restore_params(tmp_path / "checkpoints", shapes, ema=True, step=3)
  assert_equal(average, current.ema)
  assert checkpoint.read_meta(tmp_path).step == 5
  with pytest.raises(FileNotFoundError, match=r"step 4.*\[3, 5\]"):
    checkpoint.read_meta(tmp_path, step=4)


def test_no_average_to_restore(tmp_path):
  current, abstract = build(ema_decay=0.0)
  save(tmp_path, current, 1)
  with pytest.raises(checkpoint.CheckpointMismatch, match="ema_decay"):
    checkpoint.restore_params(tmp_path, abstract.params, ema=True)


def test_wrong_variant(tmp_path):
  current, abstract = build()
  save(tmp_path, current, 1)
  with checkpoint.manager(tmp_path) as checkpoints:
    with pytest.raises(checkpoint.CheckpointMismatch, match="'toy'.*'glipv2_t'"):
      checkpoint.restore(checkpoints, abstract, "glipv2_t")


def changed(key):
  params = toy.init(key)
  params["layers"][0]["kernel"] = jnp.zeros((96, 32))
  params["text"]["embedding"] = params["text"]["embedding"].astype(jnp.bfloat16)
  params["head"]["new"] = params["head"].pop("bias")
  return params


def test_every_path_that_does_not_fit_is_named(tmp_path):
  current, _ = build()
  save(tmp_path, current, 1)
  _, other = build(init=changed)
  lines = (
    r"missing in the checkpoint: params/head/new float32\[4\]",
    r"not in the network: params/head/bias float32\[4\]",
    r"params/layers/0/kernel: checkpoint float32\[96, 64\], network float32\[96, 32\]",
    r"params/text/embedding: checkpoint float32\[64, 32\], network bfloat16\[64, 32\]",
  )
  with checkpoint.manager(tmp_path) as checkpoints:
    with pytest.raises(checkpoint.CheckpointMismatch) as whole:
      checkpoint.restore(checkpoints, other, "toy")
  with pytest.raises(checkpoint.CheckpointMismatch) as part:
    checkpoint.restore_params(tmp_path, other.params)
  for line in lines:
    assert part.match(line)
  assert whole.match(r"not in the network: ema/head/bias") and whole.match(r"mu/head/new")


def test_unfinished_checkpoints_are_ignored(tmp_path):
  current, abstract = build()
  save(tmp_path, current, 1)
  (tmp_path / "00000002.orbax-checkpoint-tmp").mkdir()
  with checkpoint.manager(tmp_path) as checkpoints:
    _, found = checkpoint.restore(checkpoints, abstract, "toy")
  assert found.step == 1


def test_git_revision(monkeypatch):
  known = checkpoint.git_revision()
  assert known == "unknown" or len(known.removesuffix("+changes")) == 40

  def missing(*args, **kwargs):
    raise FileNotFoundError("git")

  monkeypatch.setattr(subprocess, "run", missing)
  assert checkpoint.git_revision() == "unknown"

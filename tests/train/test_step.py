"""One step: accumulation, randomness, sharding of rows, frozen parameters and dtypes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glipv2_jax.losses import inter
from glipv2_jax.losses.grounding import LossConfig
from glipv2_jax.models.layers import l2_normalise
from glipv2_jax.parallel import mesh as meshes
from glipv2_jax.schema import Embeddings
from glipv2_jax.train import objective as objectives
from glipv2_jax.train import optim, state, step
from tests import tiny, toy


@functools.cache
def program(data=1, fsdp=1, accumulate=1, objective=toy.OBJECTIVE, seed=0, ema_decay=0.75, global_negatives=False):
  """(mesh, function that makes the first state, step), compiled once for all tests."""
  mesh = meshes.make_mesh(data, fsdp, devices=jax.devices()[: data * fsdp])
  shapes = jax.eval_shape(objective.init, jax.random.key(0))
  optimizer = optim.make_optimizer(tiny.optimizer_config(ema_decay=ema_decay), shapes, 10, objective.frozen)
  abstract = state.abstract_state(objective.init, optimizer, mesh, min_size=1)
  first = state.create_state(objective.init, optimizer, abstract, jax.random.key(0))
  first = jax.tree.map(np.asarray, first)  # every test gets its own copy: steps donate their state
  return (
    mesh,
    lambda: jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), first, abstract),
    step.make_train_step(objective, optimizer, mesh, abstract, seed, accumulate, global_negatives),
  )


def run(steps=3, batch_of=tiny.batch, **kwargs):
  mesh, first, train_step = program(**kwargs)
  current, history = first(), []
  for index in range(steps):
    current, metrics = train_step(current, meshes.to_global(batch_of(index), mesh))
    history.append({name: float(value) for name, value in metrics.items()})
  return current, history


def test_loss_goes_down_and_metrics_are_complete():
  current, history = run(10, batch_of=lambda index: tiny.batch(0))
  assert set(history[0]) == {"loss", "box", "num_pos", "grad_norm", "lr"}
  assert history[-1]["loss"] < 0.95 * history[0]["loss"]
  assert int(current.step) == 10
  assert history[0]["lr"] == pytest.approx(1e-4) and history[2]["lr"] == pytest.approx(1e-3)


def test_num_pos_is_the_count_of_the_global_batch():
  _, history = run(1, data=2, fsdp=4)
  assert history[0]["num_pos"] == tiny.batch(0).boxes_valid.sum()


@pytest.mark.parametrize("data, fsdp, accumulate", [(1, 1, 4), (2, 2, 2)])
def test_accumulation_equals_the_whole_batch(data, fsdp, accumulate):
  whole, want = run()
  parts, found = run(data=data, fsdp=fsdp, accumulate=accumulate)
  for a, b in zip(found, want, strict=True):
    assert a == pytest.approx(b, rel=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), parts.params, whole.params)


def test_accumulation_that_does_not_divide_is_an_error():
  with pytest.raises(ValueError, match="batch of 8 rows.*3 parts on 2 devices.*multiple of 6"):
    run(data=2, accumulate=3)


def test_microbatches_stay_on_their_device():
  mesh = meshes.make_mesh(2, 4)
  rows = meshes.to_global(np.arange(32), mesh)
  parts = jax.jit(functools.partial(step.microbatches, mesh=mesh, parts=2))(rows)
  assert parts.shape == (2, 16)
  home = {shard.device: set(np.asarray(shard.data)) for shard in rows.addressable_shards}
  assert {shard.device: set(np.asarray(shard.data).ravel()) for shard in parts.addressable_shards} == home


def test_the_state_is_donated_and_keeps_its_place():
  mesh, first, train_step = program(data=2, fsdp=4)
  first = first()
  places = jax.tree.map(lambda x: x.sharding, first)
  kernel = first.params["layers"][0]["kernel"]
  after, _ = train_step(first, meshes.to_global(tiny.batch(0), mesh))
  assert kernel.is_deleted()
  assert jax.tree.all(jax.tree.map(lambda x, place: x.sharding == place, after, places))
  assert after.params["layers"][0]["kernel"].sharding.shard_shape((96, 64)) == (24, 64)


def test_frozen_parameters_stay_and_the_average_follows():
  before = program()[1]().params
  one, _ = run(1)
  assert (np.asarray(one.params["head"]["cls_logits"]["kernel"]) == 1).all()
  for path in ("text", "embedding"), ("head", "bias"):
    a, b, c = (tree[path[0]][path[1]] for tree in (before, one.params, one.ema))
    np.testing.assert_allclose(c, 0.75 * np.asarray(a) + 0.25 * np.asarray(b), rtol=1e-6, atol=1e-8)
    assert (np.asarray(a) != np.asarray(b)).any()


def test_no_average_when_the_decay_is_zero():
  current, _ = run(1, ema_decay=0.0)
  assert current.ema is None


def noisy(params, batch, want, counts, key):
  value, terms = toy.loss(params, batch, want, counts, key)
  return value, {**terms, "noise": jax.random.uniform(key)}


def test_randomness_follows_seed_and_step_only():
  objective = dataclasses.replace(toy.OBJECTIVE, loss=noisy)
  noise = [values["noise"] for values in run(4, objective=objective)[1]]
  assert len(set(noise)) == 4
  assert noise == [values["noise"] for values in run(4, objective=objective)[1]]
  assert noise != [values["noise"] for values in run(4, objective=objective, seed=1)[1]]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_and_state_are_float32(dtype):
  model = dataclasses.replace(tiny.model(), compute_dtype=dtype, remat=("swin", "text", "dyconv"))
  objective = objectives.grounding(model, LossConfig())
  params = jax.eval_shape(objective.init, jax.random.key(0))

  def gradients(params, batch):
    targets, counts, _ = objective.targets(batch)
    return jax.grad(objective.loss, has_aux=True)(params, batch, targets, counts, jax.random.key(0))

  grads, terms = jax.eval_shape(gradients, params, tiny.batch(0))
  assert {x.dtype for x in jax.tree.leaves((params, grads, terms))} == {jnp.dtype("float32")}
  assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, params)


def comparing_objective():
  """A linear model whose only loss is L_inter: regions from colours, words from tokens."""
  cfg = inter.InterConfig(regions=2, pairs=1)

  def init(key):
    a, b = jax.random.split(key)
    kernels = {"image": jax.random.normal(a, (3, 4)), "text": jax.random.normal(b, (64, 4))}
    return kernels | {"log_scale": jnp.zeros(1)}

  def targets(batch):
    matched = jnp.where(batch.boxes_valid, jnp.arange(tiny.BOXES), -1)
    counts = {"inter": batch.boxes_valid.sum(dtype=jnp.float32)}
    return matched, counts, {}

  def embed(params, batch, matched):
    regions = inter.choose(matched, batch.example_valid, cfg, None)
    colours = batch.image[:, :3, 0].astype(jnp.float32) @ params["image"]
    chosen = jnp.take_along_axis(colours, regions.location[..., None], axis=1)
    embeddings = Embeddings(l2_normalise(chosen), l2_normalise(params["text"][batch.tokens]), params["log_scale"])
    return embeddings, regions

  def loss(params, batch, matched, counts, key, pull=None):
    embeddings, regions = embed(params, batch, matched)
    if pull is None:
      term = inter.inter_term(embeddings, batch, regions, matched, cfg)
    else:
      term = inter.pulled_term(embeddings, pull, matched)
    return term.total / counts["inter"], {"inter": term.total / counts["inter"]}

  def survey(params, batch, matched, key):
    embeddings, regions = embed(params, batch, matched)
    return embeddings.regions, embeddings.words, inter.labels(batch, regions)

  def whole(params, surveys):
    regions, words, known = surveys
    return inter.pull(cfg, Embeddings(regions, words, params["log_scale"]), known)

  return objectives.Objective(init, targets, loss, survey=survey, whole=whole)


COMPARING = comparing_objective()


@pytest.mark.parametrize("data, fsdp", [(1, 1), (2, 2)])
def test_a_survey_gives_microbatches_the_negatives_of_the_whole_batch(data, fsdp):
  whole, want = run(objective=COMPARING)
  parts, found = run(objective=COMPARING, data=data, fsdp=fsdp, accumulate=2, global_negatives=True)
  for a, b in zip(found, want, strict=True):
    assert a == pytest.approx(b, rel=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), parts.params, whole.params)
  _, few = run(1, objective=COMPARING, data=data, fsdp=fsdp, accumulate=2)
  assert few[0]["inter"] < 0.95 * want[0]["inter"]  # fewer negatives, an easier task

"""Groups, schedule and one AdamW step against the authors' recorded numbers and against torch's formula in NumPy."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from glipv2_jax.convert import names
from glipv2_jax.models import glipv2, variants
from glipv2_jax.train import optim
from tests.authors import Recorded

SOLVER = {  # reference 1.1
  "glip_t": ("param_groups_glip_t_c.json", optim.OptimConfig()),
  "glip_l": ("param_groups_glip_l.json", optim.OptimConfig(weight_decay=0.01, ema_decay=0.0)),
}


def groups(variant, cfg):
  model = variants.get(variant)
  return optim.parameter_groups(cfg, glipv2.abstract_params(model), optim.model_frozen(model))


@pytest.mark.parametrize("variant", SOLVER)
def test_groups_equal_the_authors(variant, golden):
  file, cfg = SOLVER[variant]
  theirs = json.loads((golden / file).read_text())["groups"]
  ours = {}
  found = jax.tree.leaves(groups(variant, cfg), is_leaf=optim.is_group)
  for entry, group in zip(names.entries(variants.get(variant)), found, strict=True):
    for name in entry.names:
      ours[name] = group and [group.lr * cfg.lr, group.decay * cfg.weight_decay]
  assert ours.keys() == theirs.keys()
  assert {name for name in ours if ours[name] is None} == {name for name in theirs if theirs[name] is None}
  trained = [name for name in ours if ours[name]]
  np.testing.assert_allclose([ours[name] for name in trained], [theirs[name] for name in trained], rtol=1e-12)


@pytest.mark.parametrize("total", ["100000", "16383"])
def test_schedule_equals_the_authors(total, golden):
  recorded = json.loads((golden / "lr_schedule.json").read_text())[total]
  schedule = optim.make_schedule(optim.OptimConfig(), int(total))
  steps = np.asarray([int(step) for step in recorded["lr_used_by_step"]])
  base, text, base_bias, text_bias = np.asarray(list(recorded["lr_used_by_step"].values())).T
  ours = np.asarray(jax.jit(jax.vmap(schedule))(steps), np.float64)
  for theirs, multiplier in ((base, 1.0), (text, 0.1), (base_bias, 2.0), (text_bias, 0.2)):
    np.testing.assert_allclose(ours * multiplier, theirs, rtol=3e-7)


def test_cosine_schedule():
  cfg = optim.OptimConfig(lr=2.0, schedule="cosine", warmup_steps=10, warmup_factor=0.1)
  schedule = optim.make_schedule(cfg, 100)
  assert float(schedule(0)) == pytest.approx(0.2)
  assert float(schedule(50)) == pytest.approx(1.0)
  assert float(schedule(100)) == pytest.approx(0.0, abs=1e-7)
  rates = np.asarray([float(schedule(step)) for step in range(10, 101)])
  assert (np.diff(rates) < 0).all()


def test_decay_falls_as_in_the_authors_loop():
  """lr_schedule.json, weight_decay_schedule_L: after the scheduler's step, once per milestone."""
  cfg, total = optim.OptimConfig(weight_decay=0.01, decay_ratio=0.667, lr=1.0, warmup_steps=0), 1000
  decay, want, passed = 0.01, [], 0
  for step in range(total):
    want.append(decay)
    last_epoch = step + 1
    if passed < 2 and last_epoch >= (670, 890)[passed] * 0.667:
      decay, passed = decay * 0.1, passed + 1
  found = jax.vmap(optim.make_decay(cfg, total))(jnp.arange(total))
  np.testing.assert_allclose(found, want, rtol=1e-6)

  params = {"x": jnp.ones(1)}  # without a gradient the update is -lr decay x
  tx = optim.make_optimizer(cfg, params, total).tx
  state = jax.tree.map(lambda leaf: leaf + 600 if leaf.dtype == jnp.int32 else leaf, tx.init(params))
  update, _ = tx.update({"x": jnp.zeros(1)}, state, params)
  np.testing.assert_allclose(update["x"], -0.0001, rtol=1e-5)  # both drops of the decay, none of the rate
  with pytest.raises(ValueError, match="cosine"):
    optim.make_decay(dataclasses.replace(cfg, schedule="cosine"), total)
  with pytest.raises(ValueError, match="1.5"):
    optim.make_decay(dataclasses.replace(cfg, decay_ratio=1.5), total)


def test_no_warmup_and_unknown_schedule():
  assert float(optim.make_schedule(optim.OptimConfig(lr=0.5, warmup_steps=0), 100)(0)) == 0.5
  with pytest.raises(ValueError, match="'linear'"):
    optim.make_schedule(optim.OptimConfig(schedule="linear"), 100)


def torch_adamw(p, g, m, v, t, lr, decay, cfg):
  """The update of torch.optim.AdamW, float64."""
  p = p * (1 - lr * decay)
  m = cfg.beta1 * m + (1 - cfg.beta1) * g
  v = cfg.beta2 * v + (1 - cfg.beta2) * g * g
  denominator = np.sqrt(v) / np.sqrt(1 - cfg.beta2**t) + cfg.eps
  return p - lr / (1 - cfg.beta1**t) * m / denominator, m, v


def test_steps_equal_torch_formula():
  cfg = optim.OptimConfig(
    lr=0.05, warmup_steps=3, warmup_factor=0.1, weight_decay=0.2, clip_norm=1.0, ema_decay=0.9, frozen=("head/fixed",)
  )
  rng = np.random.default_rng(0)
  shapes = {"text": {"kernel": (3, 4), "bias": (4,)}, "head": {"kernel": (5,), "bias": (2,), "fixed": (3,)}}
  params = jax.tree.map(lambda s: rng.normal(size=s), shapes, is_leaf=lambda x: isinstance(x, tuple))
  tree = jax.tree.map(jnp.float32, params)
  optimizer = optim.make_optimizer(cfg, tree, total_steps=8)
  state, ema = optimizer.tx.init(tree), tree
  multipliers = {
    "text": {"kernel": (0.1, 1), "bias": (0.2, 0)},
    "head": {"kernel": (1, 1), "bias": (2, 0), "fixed": (0, 0)},
  }
  want, want_ema = params, params
  m = v = jax.tree.map(np.zeros_like, params)
  for step in range(8):
    scale = 0.1 if step == 4 else 10.0  # step 4 stays below the clipping norm
    grads = jax.tree.map(lambda p, scale=scale: rng.normal(size=p.shape) * scale, params)
    trained = [g for path, g in jax.tree_util.tree_leaves_with_path(grads) if path[-1].key != "fixed"]
    norm = np.sqrt(sum((g**2).sum() for g in trained))
    coefficient = min(1.0, 1.0 / (norm + 1e-6))
    clipped, found_norm = optimizer.clip(jax.tree.map(jnp.float32, grads))
    assert float(found_norm) == pytest.approx(norm, rel=1e-6)
    updates, state = optimizer.tx.update(clipped, state, tree)
    tree = optax.apply_updates(tree, updates)
    ema = optimizer.average(ema, tree)
    warmup = 0.1 * (1 - step / 3) + step / 3 if step < 3 else 1.0
    rate = 0.05 * warmup * 0.1 ** sum(milestone <= step for milestone in (5, 7))  # round(.67 * 8), round(.89 * 8)

    def update(p, g, m, v, k, c=coefficient, r=rate, t=step + 1):
      return torch_adamw(p, c * g, m, v, t, r * k[0], 0.2 * k[1], cfg)

    done = jax.tree.map(update, want, grads, m, v, multipliers)
    want, m, v = jax.tree.transpose(jax.tree.structure(params), jax.tree.structure((0, 0, 0)), done)
    want_ema = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, want_ema, want)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-7), tree, want)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-7), ema, want_ema)
  np.testing.assert_array_equal(tree["head"]["fixed"], np.float32(params["head"]["fixed"]))


@pytest.mark.parametrize(
  "variant, changes",
  [("step", {}), ("warmup0", {"warmup_steps": 2000}), ("amplified", {"lr": 0.01, "weight_decay": 0.5})],
)
def test_one_step_equals_the_authors_recorded_one(variant, changes, golden):
  recorded = Recorded()
  # One plain array per parameter group, made of the recorded elements. The norm of all gradients is not in them.
  kind = {"x": (1e-4, 1e-4), "bias": (2e-4, 0), "text/x": (1e-5, 1e-4), "text/bias": (2e-5, 0)}
  theirs = json.loads((golden / "param_groups_glip_t_c.json").read_text())["groups"]
  group_of = np.repeat([[path for path, group in kind.items() if theirs[name] == pytest.approx(group)][0]
                        for name in recorded.names], recorded["counts"])  # fmt: skip
  assert len(recorded.names) == 726

  def read(quantity):
    return {path: recorded[quantity][group_of == path] for path in kind}

  before, norm = read("before"), recorded["norm_torch_float32"]
  grads = jax.tree.map(lambda g: g * np.float32(1 / (norm + 1e-6)), read("grad"))
  cfg = dataclasses.replace(optim.OptimConfig(warmup_steps=0), **changes)
  optimizer = optim.make_optimizer(cfg, before, 10**6)
  updates, _ = optimizer.tx.update(grads, optimizer.tx.init(before), before)
  after = optax.apply_updates(before, updates)
  for path, delta in read(f"{variant}/delta").items():
    rate = float(optimizer.schedule(0)) * optimizer.groups[path].lr
    found = np.asarray(after[path]) - before[path]
    rounding = np.spacing(np.abs(before[path]))  # a difference of float32 numbers is quantised
    assert (np.abs(found - delta) <= 1e-4 * rate + rounding).all(), path
  if variant != "warmup0":
    average = optimizer.average(before, after)
    for path in kind:
      np.testing.assert_allclose(after[path], read(f"{variant}/after")[path], rtol=2e-7, atol=2e-7)
      np.testing.assert_allclose(average[path], read(f"{variant}/ema_decay_0.999")[path], rtol=2e-7, atol=2e-7)


def test_frozen_parameters_have_no_moments():
  params = {"a": jnp.ones(3), "b": jnp.ones(4)}
  optimizer = optim.make_optimizer(optim.OptimConfig(frozen=("b",)), params, 10)
  assert {x.shape for x in jax.tree.leaves(optimizer.tx.init(params))} == {(), (3,)}


def test_uncovered_and_misspelt_patterns_are_named():
  params = {"a": {"kernel": jnp.ones(3)}, "b": {"kernel": jnp.ones(4)}}
  with pytest.raises(ValueError, match="b/kernel"):
    optim.make_optimizer(optim.OptimConfig(rules=(("a/.*", 1.0, 1.0),)), params, 10)
  with pytest.raises(ValueError, match="swim/.*"):
    optim.make_optimizer(optim.OptimConfig(frozen=("swim/.*",)), params, 10)

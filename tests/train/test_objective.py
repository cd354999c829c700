"""How L_inter enters the objective: only with its head, and not at all at weight 0."""

import collections
import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from configs import common
from glipv2_jax.losses import grounding
from glipv2_jax.losses.grounding import LossConfig
from glipv2_jax.losses.inter import InterConfig
from glipv2_jax.models.heads import InterHead
from glipv2_jax.models.layers import Keys
from glipv2_jax.parallel.mesh import make_mesh
from glipv2_jax.train import objective, optim, state, step
from tests import tiny

# Compiled faster: the code generator of XLA may not take its time.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
WITHOUT = (("intra", 1.0), ("inter", 0.0), ("box", 2.0), ("centerness", 1.0))


@functools.cache
def operations(model, weights):
  """Every primitive of loss and gradient, in the order of the trace."""
  task = objective.grounding(model, LossConfig(weights))
  params = jax.eval_shape(task.init, jax.random.key(0))

  def loss(params, batch):
    targets, counts, _ = task.targets(batch)
    return task.loss(params, batch, targets, counts, jax.random.key(0))

  program = jax.make_jaxpr(jax.value_and_grad(loss, has_aux=True))(params, tiny.batch(0))
  return str(program.jaxpr).count(" = "), program.out_avals


def test_weight_zero_leaves_nothing_in_the_program():
  with_head = dataclasses.replace(tiny.model(), inter_dim=8)
  bare, _ = operations(tiny.model(), WITHOUT)
  off, results = operations(with_head, WITHOUT)
  on, _ = operations(with_head, (*WITHOUT[:1], ("inter", 0.5), *WITHOUT[2:]))
  zeros = 5  # the gradients of the unused head
  assert off - bare <= zeros and on > bare + 50
  parameters = jax.eval_shape(objective.grounding(with_head, LossConfig(WITHOUT)).init, jax.random.key(0))
  assert len(results) == 1 + 3 + len(jax.tree.leaves(parameters))


@functools.cache
def compiled(heads, terms):
  """A whole training step of one device: (what it computes, FLOPs). Parameters and copies of them are no work."""
  model = dataclasses.replace(tiny.model(), inter_dim=8, mlm=True) if heads else tiny.model()
  weights = tuple((name, 1.0 if name in terms else 0.0) for name in grounding.TERMS)
  task, mesh = objective.grounding(model, LossConfig(weights)), make_mesh(devices=jax.devices()[:1])
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  optimizer = optim.make_optimizer(tiny.optimizer_config(), shapes, 10, task.frozen)
  abstract = state.abstract_state(task.init, optimizer, mesh)
  batch = dataclasses.replace(tiny.batch(0), mlm_labels=tiny.batch(0).mlm_labels if "mlm" in terms else None)
  with jax.set_mesh(mesh):
    program = step.make_train_step(task, optimizer, mesh, abstract).lower(abstract, batch)
    program = program.compile(compiler_options=QUICK)
  work = collections.Counter(re.findall(r" = \S+ ([a-z\-]+)\(", program.as_text()))
  idle = ("parameter", "copy", "tuple", "get-tuple-element", "bitcast")
  return {name: count for name, count in work.items() if name not in idle}, program.cost_analysis()["flops"]


@pytest.mark.slow
def test_weight_zero_costs_nothing_in_the_compiled_step():
  """Table 4, row 3: with the heads but weights of 0 the program is that of a network without them."""
  assert compiled(True, common.TABLE_4["3"]) == compiled(False, common.TABLE_4["3"])
  _, all_terms = compiled(True, common.TABLE_4["6"])
  assert all_terms > 1.001 * compiled(True, common.TABLE_4["3"])[1]


def test_the_first_two_rows_of_table_4():
  """No term: no gradient and nothing to log. L_mlm alone: no anchor is assigned."""
  model = dataclasses.replace(tiny.model(), mlm=True)
  for row, values in (("1", ()), ("2", ("mlm",))):
    weights = tuple((name, 1.0 if name in common.TABLE_4[row] else 0.0) for name in grounding.TERMS)
    task = objective.grounding(model, LossConfig(weights))
    params = jax.eval_shape(task.init, jax.random.key(0))

    def loss(params, batch, task=task):
      targets, counts, info = task.targets(batch)
      value, terms = task.loss(params, batch, targets, counts, None)
      return value, (terms, info)

    value, (terms, info) = jax.eval_shape(loss, params, tiny.batch(0))
    assert value.shape == () and tuple(terms) == values and not info


def test_heads_that_are_not_asked_are_frozen():
  model = dataclasses.replace(tiny.model(), inter_dim=8, mlm=True)
  terms = {"inter": (r"inter/.*",), "mlm": (r"mlm/.*",)}
  common_part = set(objective.grounding(tiny.model(), LossConfig()).frozen)
  for name, pattern in terms.items():
    frozen = objective.grounding(model, LossConfig((("intra", 1.0), (name, 1.0)))).frozen
    (other,) = (p for other, p in terms.items() if other != name)
    assert set(frozen) - common_part == set(other) and not set(pattern) & set(frozen)


def test_the_survey_sees_what_the_loss_sees():
  """The same regions and the same dropout: L_inter of the surveyed embeddings is that of the outputs."""
  model = dataclasses.replace(tiny.model(), inter_dim=8, swin=dataclasses.replace(tiny.model().swin, drop_path=0.3))
  model = dataclasses.replace(model, text=dataclasses.replace(model.text, dropout=0.3))
  task = objective.grounding(model, LossConfig((("inter", 1.0),), inter=InterConfig(regions=4)))
  rng, batch, key = np.random.default_rng(0), tiny.batch(0), jax.random.key(0)
  draw = lambda x: rng.normal(size=x.shape).astype(np.float32) / np.sqrt(np.prod(x.shape[:-1]))  # noqa: E731
  params = jax.tree.map(draw, jax.eval_shape(task.init, key))

  @functools.partial(jax.jit, compiler_options=QUICK)
  def both(params, batch, key):
    targets, counts, _ = task.targets(batch)
    asked = task.whole(params, task.survey(params, batch, targets, key))
    pulled = task.loss(params, batch, targets, counts, key, asked)
    return task.loss(params, batch, targets, counts, key), pulled, asked.value.sum() / counts["inter"]

  (plain, _), (pulled, _), surveyed = both(params, batch, key)
  assert plain > 0.5
  np.testing.assert_allclose([pulled, surveyed], [plain, plain], rtol=1e-6)


def test_the_term_needs_the_head():
  with pytest.raises(ValueError, match="loss.weights.inter is 1.0.*set model.inter_dim .*64.*or the weight to 0"):
    objective.grounding(tiny.model(), LossConfig((("inter", 1.0),)))
  with pytest.raises(ValueError, match="loss.weights.mlm is 0.5.*set model.mlm=True"):
    objective.grounding(tiny.model(), LossConfig((("mlm", 0.5),)))
  with pytest.raises(ValueError, match="inter_dim.*need a text encoder"):
    plain = dataclasses.replace(tiny.model().head, fusion=False)
    model = dataclasses.replace(tiny.model(), text=None, head=plain, inter_dim=8)
    jax.eval_shape(objective.grounding(model, LossConfig(WITHOUT)).init, jax.random.key(0))


def test_the_head_starts_at_its_temperature():
  head = InterHead(dataclasses.replace(tiny.model(), inter_dim=8, inter_temperature=0.07), rngs=Keys(jax.random.key(0)))
  np.testing.assert_allclose(head.log_scale[...], np.log([0.07]), rtol=1e-6)
  assert head.projection_text.kernel.shape == (16, 8) and head.projection_image.kernel.shape == (16, 8)

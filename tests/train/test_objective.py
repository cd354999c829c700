"""How L_inter enters the objective: only with its head, and not at all at weight 0."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from glipv2_jax.losses.grounding import LossConfig
from glipv2_jax.losses.inter import InterConfig
from glipv2_jax.models.heads import InterHead
from glipv2_jax.models.layers import Keys
from glipv2_jax.train import objective
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

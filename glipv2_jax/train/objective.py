"""What a run minimises, as plain functions: the seam between the trainer and the network with its losses.

The trainer knows parameters, batches and numbers; it never looks into the network. A stage with other heads or losses
is another `Objective` for the same loop.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from glipv2_jax import anchors
from glipv2_jax.losses import grounding as losses
from glipv2_jax.losses import inter, mlm
from glipv2_jax.models.glipv2 import REGIONS, graphdef, init_params
from glipv2_jax.models.layers import fold
from glipv2_jax.models.variants import ModelConfig
from glipv2_jax.schema import Batch
from glipv2_jax.train.optim import model_frozen

Numbers = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Objective:
  """Parameters are a plain nested dict of float32 arrays.

  init(key) -> parameters.
  targets(batch) -> (targets, counts, info): what every prediction should answer (all leaves lead with the batch axis),
    the numbers that normalise the terms of the whole global batch, and numbers for the log.
  loss(params, batch, targets, counts, key) -> (loss, terms): of a batch or a microbatch; because the counts are those
    of the global batch, microbatches add up.
  frozen: patterns of parameters that this network never trains.
  """

  init: Callable[[jax.Array], Any]
  targets: Callable[[Batch], tuple[Any, Numbers, Numbers]]
  loss: Callable[[Any, Batch, Any, Numbers, jax.Array], tuple[jax.Array, Numbers]]
  frozen: tuple[str, ...] = ()


def grounding(model: ModelConfig, loss: losses.LossConfig) -> Objective:
  """Detection and grounding, paper equation 2: boxes, centerness, token logits, L_inter and L_mlm.

  L_inter sees the whole batch that `loss` gets: with gradient accumulation one microbatch, whose words are the only
  negatives. Raises ValueError when a term is asked of a network that has no head for it.
  """
  with_inter, with_mlm = loss.weight("inter") != 0, loss.weight("mlm") != 0
  for name, missing, field in (
    ("inter", with_inter and not model.inter_dim, "model.inter_dim (the authors' is 64)"),
    ("mlm", with_mlm and not model.mlm, "model.mlm=True"),
  ):
    if missing:
      raise ValueError(
        f"loss.weights.{name} is {loss.weight(name)}, but the network has no head for it; "
        f"set {field}, or the weight to 0.0"
      )

  def targets(batch: Batch):
    canvas = batch.image.shape[1:3]
    found = losses.make_targets(
      batch,
      anchors.anchors(canvas, model.strides, model.anchor_scale),
      anchors.level_counts(canvas, model.strides),
      loss,
    )
    counts = losses.counts(found)
    if with_mlm:
      counts["mlm"] = mlm.predicted(batch).sum(dtype=jnp.float32)
    return found, counts, {"num_pos": counts["intra"]}

  def value(params, batch: Batch, found, counts, key):
    network, regions, locations = nnx.merge(graphdef(model), params), None, None
    if with_inter:
      regions = inter.choose(found.matched, batch.example_valid, loss.inter, fold(key, REGIONS))
      locations = regions.location
    outputs = network(batch, key, locations)
    return losses.weighted_loss(losses.loss_terms(outputs, batch, found, loss, regions), counts, loss.weights)

  return Objective(functools.partial(init_params, model), targets, value, model_frozen(model))

"""What a run minimises, as plain functions: the seam between the trainer and the network with its losses.

The trainer knows parameters, batches and numbers; it never looks into the network. A stage with other heads or losses
is another `Objective` for the same loop.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from glipv2_jax import anchors
from glipv2_jax.convert import from_torch
from glipv2_jax.convert.from_torch import Weights
from glipv2_jax.losses import grounding as losses
from glipv2_jax.models.glipv2 import graphdef, init_params
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
  read(files) -> checked weights out of files of PyTorch (convert/from_torch.py), for `init_from`; None: cannot.
  """

  init: Callable[[jax.Array], Any]
  targets: Callable[[Batch], tuple[Any, Numbers, Numbers]]
  loss: Callable[[Any, Batch, Any, Numbers, jax.Array], tuple[jax.Array, Numbers]]
  frozen: tuple[str, ...] = ()
  read: Callable[[Sequence[str]], Weights] | None = None


def grounding(model: ModelConfig, loss: losses.LossConfig) -> Objective:
  """Detection and grounding (paper equation 2 without L_inter and L_mlm): boxes, centerness and token logits."""

  def targets(batch: Batch):
    canvas = batch.image.shape[1:3]
    found = losses.make_targets(
      batch,
      anchors.anchors(canvas, model.strides, model.anchor_scale),
      anchors.level_counts(canvas, model.strides),
      loss,
    )
    counts = losses.counts(found)
    return found, counts, {"num_pos": counts["intra"]}

  def value(params, batch: Batch, found, counts, key):
    outputs = nnx.merge(graphdef(model), params)(batch, key)
    return losses.weighted_loss(losses.loss_terms(outputs, batch, found, loss), counts, loss.weights)

  read = functools.partial(from_torch.load, cfg=model)
  return Objective(functools.partial(init_params, model), targets, value, model_frozen(model), read)

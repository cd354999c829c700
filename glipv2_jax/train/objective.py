"""What a run minimises, as plain functions: the seam between the trainer and the network with its losses.

The trainer knows parameters, batches and numbers; it never looks into the network. A stage with other heads or losses
is another `Objective` for the same loop.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from glipv2_jax import anchors
from glipv2_jax.convert import from_torch, names
from glipv2_jax.convert.from_torch import Weights
from glipv2_jax.losses import grounding as losses
from glipv2_jax.losses import inter, mlm
from glipv2_jax.models.glipv2 import REGIONS, graphdef, init_params
from glipv2_jax.models.layers import fold
from glipv2_jax.models.variants import ModelConfig
from glipv2_jax.schema import Batch, Embeddings
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
  survey, whole: for terms that compare all rows of a batch which passes the network in parts. survey(params, batch,
    targets, key) -> what such a term has to know of one part; whole(params, surveys of all rows) -> what every row
    should do, and `loss` takes its part's rows of that as a last argument. All leaves lead with the batch axis.
  frozen: patterns of parameters that this network never trains.
  read(files) -> checked weights out of files of PyTorch (convert/from_torch.py), for `init_from`; None: cannot.
  """

  init: Callable[[jax.Array], Any]
  targets: Callable[[Batch], tuple[Any, Numbers, Numbers]]
  loss: Callable[..., tuple[jax.Array, Numbers]]
  frozen: tuple[str, ...] = ()
  survey: Callable[[Any, Batch, Any, jax.Array], Any] | None = None
  whole: Callable[[Any, Any], Any] | None = None
  read: Callable[[Sequence[str]], Weights] | None = None


def grounding(model: ModelConfig, loss: losses.LossConfig) -> Objective:
  """Detection and grounding, paper equation 2: boxes, centerness, token logits, L_inter and L_mlm.

  L_inter compares the rows that `loss` gets, with gradient accumulation one microbatch, unless `loss` also gets what
  `whole` says of all of them. A term of weight 0 costs nothing: its head, if there is one, is frozen.
  Raises ValueError when a term is asked of a network that has no head for it.
  """
  with_inter, with_mlm = loss.weight("inter") != 0, loss.weight("mlm") != 0
  with_anchors = any(weight != 0 for name, weight in loss.weights if name != "mlm")
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
    info = {"num_pos": counts["intra"]} if with_anchors else {}  # else nothing asks which anchors have a box
    if with_mlm:
      counts["mlm"] = mlm.predicted(batch).sum(dtype=jnp.float32)
    return found, counts, info

  def choose(batch: Batch, found, key):
    return inter.choose(found.matched, batch.example_valid, loss.inter, fold(key, REGIONS))

  def value(params, batch: Batch, found, counts, key, pull=None):
    regions = choose(batch, found, key) if with_inter else None
    outputs = nnx.merge(graphdef(model), params)(batch, key, None if regions is None else regions.location)
    return losses.weighted_loss(losses.loss_terms(outputs, batch, found, loss, regions, pull), counts, loss.weights)

  def survey(params, batch: Batch, found, key):
    if model.inter_fused:
      raise ValueError("words after the fusion (model.inter_fused) cannot be compared across microbatches")
    network, regions = nnx.merge(graphdef(model), params), choose(batch, found, key)
    embeddings = network.embed(*network.encode(batch, key), regions.location)
    return embeddings.regions, embeddings.words, inter.labels(batch, regions)

  def whole(params, surveys):
    regions, words, known = surveys
    return inter.pull(loss.inter, Embeddings(regions, words, params["inter"]["log_scale"]), known)

  both = dict(survey=survey, whole=whole) if with_inter else {}
  options = from_torch.Options(allow_missing=names.TRAINING_HEADS)  # GLIP's weights begin a GLIPv2
  read = functools.partial(from_torch.load, cfg=model, options=options)
  # A head whose term is off stays as it is: no gradient, no moments, no update.
  idle = ((r"inter/.*",) if model.inter_dim and not with_inter else ()) + (
    (r"mlm/.*",) if model.mlm and not with_mlm else ()
  )
  return Objective(functools.partial(init_params, model), targets, value, model_frozen(model) + idle, read=read, **both)

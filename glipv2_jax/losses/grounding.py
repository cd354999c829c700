"""The grounding objective (paper equation 2) on one screen: targets, then terms, then their weighted sum.

Targets and counts depend on the data only, never on parameters. A step with gradient accumulation computes them for the
whole global batch first, cuts batch and targets into microbatches, and divides every microbatch's sums by the global
counts; the sum over microbatches is then the loss of the whole batch:

  targets = make_targets(batch, anchors, level_counts, cfg)
  denominators = counts(targets)
  loss, values = weighted_loss(loss_terms(outputs, batch, targets, cfg), denominators, cfg.weights)
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from glipv2_jax import assign
from glipv2_jax.losses import box, intra
from glipv2_jax.losses.inter import InterConfig, Pull, Regions, inter_term, pulled_term
from glipv2_jax.losses.mlm import mlm_term
from glipv2_jax.losses.terms import Term
from glipv2_jax.parallel.mesh import on_each_device
from glipv2_jax.schema import Batch, Outputs

TERMS = ("intra", "inter", "box", "centerness", "mlm")
TINY = 1e-6


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """What is trained and how much. A weight of 0 removes the term and its computation.

  The authors' sum has weight 1 everywhere and a factor 2 inside the box loss (reference 5.8), here a plain weight.
  Raises ValueError for an unknown term.
  """

  weights: tuple[tuple[str, float], ...] = (("intra", 1.0), ("box", 2.0), ("centerness", 1.0))
  background_token: bool = True  # the last token is positive for background (intra.py); False without language
  topk: int = 9  # ATSS candidates per level and box
  alpha: float = 0.25  # focal loss
  gamma: float = 2.0
  inter: InterConfig = InterConfig()

  def __post_init__(self):
    unknown = [name for name, _ in self.weights if name not in TERMS]
    if unknown:
      raise ValueError(f"loss weights name unknown terms {unknown}; known terms: {', '.join(TERMS)}")

  def weight(self, term: str) -> float:
    """The weight of a term, 0 when it is not listed."""
    return sum(weight for name, weight in self.weights if name == term)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Targets:
  """What every anchor should answer. All fields lead with the batch axis, so microbatches are slices of the tree.

  Token targets (b n m) are not stored: `intra.token_targets` gathers them from the batch's positive_map.
  """

  matched: Any  # b n int32, index of the ground-truth box, -1 background
  anchors: Any  # b n 4 float32
  boxes: Any  # b n 4 float32, the matched box; the anchor itself for background
  centerness: Any  # b n float32, 0 for background


def make_targets(batch: Batch, anchors, level_counts: tuple[int, ...], cfg: LossConfig) -> Targets:
  """Assigns the boxes of every image to anchors (n 4 float32). Padding examples are background everywhere."""
  valid = batch.boxes_valid & batch.example_valid[:, None]
  one_image = functools.partial(assign.assign, anchors, level_counts, topk=cfg.topk)
  matched = on_each_device(jax.vmap(one_image))(batch.boxes_xyxy_px, valid)
  positive = matched >= 0
  anchors = jnp.broadcast_to(anchors, (*matched.shape, 4))
  boxes = jnp.take_along_axis(batch.boxes_xyxy_px, jnp.maximum(matched, 0)[..., None], axis=1)
  boxes = jnp.where(positive[..., None], boxes, anchors)
  return Targets(matched, anchors, boxes, box.centerness_targets(anchors, boxes, positive))


def counts(targets: Targets) -> dict[str, Any]:
  """What normalises each term, float32 scalars: the positive anchors, for 'box' the sum of their centerness."""
  positives = (targets.matched >= 0).sum(dtype=jnp.float32)
  return {"intra": positives, "inter": positives, "box": targets.centerness.sum(), "centerness": positives}


def loss_terms(
  outputs: Outputs,
  batch: Batch,
  targets: Targets,
  cfg: LossConfig,
  regions: Regions | None = None,
  pull: Pull | None = None,
) -> dict[str, Term]:
  """Sums and counts of the terms whose weight is not 0, for a batch or a microbatch.

  Only L_inter needs `regions`, those that `outputs.embeddings` are of, and `pull`, for a microbatch that is to see the
  negatives of the whole batch.
  """

  def inter():
    if pull is not None:
      return pulled_term(outputs.embeddings, pull, targets.matched)
    return inter_term(outputs.embeddings, batch, regions, targets.matched, cfg.inter)

  compute = {
    "intra": lambda: intra.intra_term(
      outputs.token_logits, batch, targets.matched, cfg.background_token, cfg.alpha, cfg.gamma
    ),
    "inter": inter,
    "box": lambda: box.box_term(outputs.deltas, targets),
    "centerness": lambda: box.centerness_term(outputs.centerness, targets),
    "mlm": lambda: mlm_term(outputs.word_logits, batch),
  }
  return {name: compute[name]() for name, weight in cfg.weights if weight != 0}


def weighted_loss(terms: dict[str, Term], counts: dict[str, Any], weights, floor: float = 1.0):
  """(loss, values): values[name] = total / max(count, floor) per term, before its weight; loss is the weighted sum.

  `floor` 1 on the global count; the number of devices reproduces the authors, who average per-device losses with
  max(N_pos / R, 1) (reference 5.4). The box term is a weighted mean already, so it is only kept from 0 / 0.
  """
  values = {
    name: term.total / jnp.maximum(counts[name], TINY if name == "box" else floor) for name, term in terms.items()
  }
  weights = dict(weights)
  return sum((weights[name] * value for name, value in values.items()), jnp.zeros(())), values

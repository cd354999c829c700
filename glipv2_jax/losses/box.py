"""L_loc: GIoU of the decoded boxes weighted by how central the anchor is, and that centerness (reference 5.4)."""

import jax
import jax.numpy as jnp

from glipv2_jax import boxes as boxlib
from glipv2_jax.losses import terms


def centerness_targets(anchors, boxes, positive):
  """sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)) of the anchor's centre in its box (reference 5.3).

  anchors ... 4, boxes ... 4 (the matched ones), positive ... bool -> ... float32 in [0, 1], 0 where not positive.
  """
  centre = (anchors[..., :2] + anchors[..., 2:]) / 2
  to_left_top, to_right_bottom = centre - boxes[..., :2], boxes[..., 2:] - centre
  near, far = jnp.minimum(to_left_top, to_right_bottom), jnp.maximum(to_left_top, to_right_bottom)
  ratio = jnp.where(positive[..., None], near / jnp.where(positive[..., None], far, 1.0), 0.0)
  return jnp.sqrt(ratio.clip(min=0.0).prod(-1))


def box_term(deltas, targets) -> terms.Term:
  """Sum of centerness * (1 - GIoU) over the positive anchors, counted by the sum of centerness.

  deltas b n 4; targets: `grounding.Targets`. The authors decode the encoded ground truth; that is the box itself.
  """
  positive = targets.matched >= 0
  predicted = boxlib.decode(terms.masked(deltas, positive[..., None]), targets.anchors)
  actual = jnp.where(positive[..., None], targets.boxes, targets.anchors)
  losses = targets.centerness * (1.0 - boxlib.giou_aligned(predicted, actual))
  return terms.Term(terms.masked_sum(losses, positive), targets.centerness.sum())


def centerness_term(logits, targets) -> terms.Term:
  """Binary cross-entropy against the centerness targets over the positive anchors: logits b n."""
  positive = targets.matched >= 0
  logits = terms.masked(logits, positive)
  losses = jax.nn.softplus(logits) - logits * targets.centerness
  return terms.Term(terms.masked_sum(losses, positive), terms.masked_sum(positive, positive))

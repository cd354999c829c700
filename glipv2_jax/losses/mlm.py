"""L_mlm: naming the words that the pipeline has hidden, from text features after the fusion (reference 5.7)."""

import jax.numpy as jnp
import optax

from glipv2_jax.losses import terms
from glipv2_jax.schema import Batch


def predicted(batch: Batch):
  """The tokens that have a label, b m bool. Raises ValueError when the pipeline hides no words."""
  if batch.mlm_labels is None:
    raise ValueError("L_mlm needs batches with mlm_labels; give the pipeline a MaskingConfig, or the term weight 0.0")
  return (batch.mlm_labels >= 0) & batch.example_valid[:, None]


def mlm_term(logits, batch: Batch) -> terms.Term:
  """Cross-entropy summed over the predicted tokens, counted by them: logits b m v."""
  mask = predicted(batch)
  logits = terms.masked(logits, mask[..., None])
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(mask, batch.mlm_labels, 0))
  return terms.Term(terms.masked_sum(losses, mask), terms.masked_sum(mask, mask))

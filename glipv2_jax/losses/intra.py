"""L_intra: every anchor says which tokens of its own text name it (paper equation 3; reference 5.3, 5.4)."""

import jax
import jax.numpy as jnp

from glipv2_jax.losses import focal, terms


def token_targets(positive_map, matched, background_token: bool):
  """Tokens that each anchor should answer to: positive_map b g m bool, matched b n int32 -> b n m bool.

  Background anchors answer to no token or, with `background_token`, to the last one (index 255 in the authors' code).
  That position is [SEP] or a word when the text fills all tokens and padding, hence masked, otherwise.
  """
  positive = matched >= 0
  named = jnp.take_along_axis(positive_map, jnp.maximum(matched, 0)[..., None], axis=1)
  tokens = positive_map.shape[-1]
  otherwise = (jnp.arange(tokens) == tokens - 1) if background_token else jnp.zeros(tokens, bool)
  return jnp.where(positive[..., None], named, otherwise)


def intra_term(logits, batch, matched, background_token: bool, alpha: float, gamma: float) -> terms.Term:
  """Focal loss summed over all anchors and valid tokens, counted by the positive anchors.

  logits b n m; batch: `schema.Batch`; matched b n int32. Without language the tokens are classes and
  `background_token` must be False. The targets (b n m) and the intermediate values of the focal loss are recomputed in
  the backward pass: at 22,400 anchors and 256 tokens each would take 23 MB per image.
  """
  tokens_valid = batch.tokens_valid & batch.example_valid[:, None]
  positive = matched >= 0

  @jax.checkpoint
  def total(logits):
    targets = token_targets(batch.positive_map, matched, background_token)
    mask = jnp.broadcast_to(tokens_valid[:, None], logits.shape)
    losses = focal.sigmoid_focal(terms.masked(logits, mask), targets, alpha, gamma)
    return terms.masked_sum(losses, mask)

  return terms.Term(total(logits), terms.masked_sum(positive, positive))

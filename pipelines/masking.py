"""Masked language modelling on the host: which tokens are hidden, and which of them the network has to name.

As in the published code (reference 5.7): 15 % of all tokens, special ones included, are hit; of those 80 % become the
mask token, 10 % a random one and 10 % stay. Only words that stand for something in the picture are predicted: in a
detection prompt the names of classes that have boxes, in a caption every word; where other captions are packed around
it, theirs too, as published, or with `own_caption_only` not.
"""

import dataclasses

import numpy as np

from pipelines.prompts import Named
from pipelines.records import Span
from pipelines.words import Encoding, Words

IGNORE = -100  # the label of a token that is not predicted


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
  """What is hidden. Texts of kinds that are not listed stay as they are."""

  kinds: tuple[str, ...] = ("detection", "grounding")
  probability: float = 0.15
  masked: float = 0.8  # of the tokens that are hit; the rest of this and the next number stays
  random: float = 0.1
  own_caption_only: bool = False  # published option: MLM_OBJ_FOR_ONLY_POSITIVE


def predictable(kind: str, encoding: Encoding, named: Named, within: Span | None = None) -> np.ndarray:
  """Tokens that may be predicted, m bool; of a caption only those `within` the given characters."""
  if kind == "detection":
    return named.positive_map.any(axis=0)
  begins, ends = encoding.offsets.T
  real = begins < ends  # special tokens and padding cover no characters
  return real if within is None else real & (begins >= within[0]) & (ends <= within[1])


def mask_words(
  kind: str,
  encoding: Encoding,
  named: Named,
  words: Words,
  cfg: MaskingConfig,
  rng: np.random.Generator,
  own: Span | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """(tokens, labels), m int32 each: the text with hidden words, and the original ids where they are to be predicted.

  `own`: the characters of the example's own caption where others are packed around it (prompts.Prompt.own).
  `IGNORE` elsewhere. Draws three numbers per token from `rng`, whatever the text, and none for an unlisted kind.
  """
  tokens, labels = encoding.tokens, np.full_like(encoding.tokens, IGNORE)
  if kind not in cfg.kinds:
    return tokens, labels
  hit = (rng.random(len(tokens)) < cfg.probability) & (tokens != words.pad_id)
  fate, other = rng.random(len(tokens)), rng.integers(words.vocab_size, size=len(tokens), dtype=np.int32)
  changed = np.where(fate < cfg.masked, words.mask_id, np.where(fate < cfg.masked + cfg.random, other, tokens))
  within = own if cfg.own_caption_only else None
  labels = np.where(hit & predictable(kind, encoding, named, within), tokens, labels)
  return np.where(hit, changed, tokens).astype(np.int32), labels

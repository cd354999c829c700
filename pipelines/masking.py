"""Masked language modelling on the host: which tokens are hidden, and which of them the network has to name.

As in the published code (reference 5.7): 15 % of all tokens, special ones included, are hit; of those 80 % become the
mask token, 10 % a random one and 10 % stay. Only words that stand for something in the picture are predicted: in a
detection prompt the names of classes that have boxes, in a caption every word.
"""

import dataclasses

import numpy as np

from pipelines.prompts import Named
from pipelines.words import Encoding, Words

IGNORE = -100  # the label of a token that is not predicted


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
  """What is hidden. Texts of kinds that are not listed stay as they are."""

  kinds: tuple[str, ...] = ("detection", "grounding")
  probability: float = 0.15
  masked: float = 0.8  # of the tokens that are hit; the rest of this and the next number stays
  random: float = 0.1


def predictable(kind: str, encoding: Encoding, named: Named) -> np.ndarray:
  """Tokens that may be predicted, m bool."""
  if kind == "detection":
    return named.positive_map.any(axis=0)
  return encoding.offsets[:, 0] < encoding.offsets[:, 1]  # special tokens and padding cover no characters


def mask_words(
  kind: str, encoding: Encoding, named: Named, words: Words, cfg: MaskingConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """(tokens, labels), m int32 each: the text with hidden words, and the original ids where they are to be predicted.

  `IGNORE` elsewhere. Draws three numbers per token from `rng`, whatever the text, and none for an unlisted kind.
  """
  tokens, labels = encoding.tokens, np.full_like(encoding.tokens, IGNORE)
  if kind not in cfg.kinds:
    return tokens, labels
  hit = (rng.random(len(tokens)) < cfg.probability) & (tokens != words.pad_id)
  fate, other = rng.random(len(tokens)), rng.integers(words.vocab_size, size=len(tokens), dtype=np.int32)
  changed = np.where(fate < cfg.masked, words.mask_id, np.where(fate < cfg.masked + cfg.random, other, tokens))
  labels = np.where(hit & predictable(kind, encoding, named), tokens, labels)
  return np.where(hit, changed, tokens).astype(np.int32), labels

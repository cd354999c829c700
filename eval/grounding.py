"""Phrase grounding: Recall@k with the any-box rule of Flickr30k Entities (reference 8), from arrays.

A phrase is found at k when one of its first k boxes overlaps any of its true boxes with IoU >= 0.5 (plain areas,
without the "+1" of inclusive boxes).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

RANKS = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class GroundedPhrase:
  """One phrase of one image: its ranked predictions and its ground truth, in the same pixels."""

  predicted_xyxy_px: np.ndarray  # k 4, best first; k may be 0
  truth_xyxy_px: np.ndarray  # g 4, g >= 1
  kinds: tuple[str, ...] = ()  # phrase types to report apart ('people', 'animals', ...)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Overlap k g of boxes k 4 and g 4, plain areas; empty boxes overlap nothing."""
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  top_left = np.maximum(a[:, None, :2], b[None, :, :2])
  bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])
  inter = np.prod(np.maximum(bottom_right - top_left, 0), axis=-1)
  area_a, area_b = (np.prod(np.maximum(x[:, 2:] - x[:, :2], 0), axis=-1) for x in (a, b))
  union = area_a[:, None] + area_b[None] - inter
  return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def rank_of_hit(phrase: GroundedPhrase, min_iou: float = 0.5) -> int | None:
  """Place (from 1) of the first prediction that hits, None when none does."""
  hits = np.flatnonzero((iou(phrase.predicted_xyxy_px, phrase.truth_xyxy_px) >= min_iou).any(axis=1))
  return int(hits[0]) + 1 if len(hits) else None


def recall(
  phrases: Sequence[GroundedPhrase], ranks: Sequence[int] = RANKS, min_iou: float = 0.5
) -> dict[str, float | None | Mapping[str, Mapping[str, float]]]:
  """Recall at each of `ranks` and over all given boxes ('upper_bound'), the number of phrases, and the same per kind.

  Keys: grounding_recall_at_1, ..., grounding_recall_upper_bound, phrases, per_kind. Without any phrase the recalls
  are None. Raises ValueError naming the phrase when boxes are not k 4, are not finite, or the truth is empty.
  """
  for i, phrase in enumerate(phrases):
    _check(i, phrase)
  places = [rank_of_hit(phrase, min_iou) for phrase in phrases]
  kinds = sorted({kind for phrase in phrases for kind in phrase.kinds})
  per_kind = {kind: _recalls([place for place, p in zip(places, phrases) if kind in p.kinds], ranks) for kind in kinds}
  return {**_recalls(places, ranks), "phrases": len(places), "per_kind": per_kind}


def _recalls(places: Sequence[int | None], ranks: Sequence[int]) -> dict[str, float | None]:
  def share(limit):
    if not places:
      return None
    return sum(place is not None and place <= limit for place in places) / len(places)

  recalls = {f"grounding_recall_at_{k}": share(k) for k in ranks}
  return {**recalls, "grounding_recall_upper_bound": share(float("inf"))}


def _check(i: int, phrase: GroundedPhrase) -> None:
  for name in ("predicted_xyxy_px", "truth_xyxy_px"):
    boxes = np.asarray(getattr(phrase, name))
    if boxes.ndim != 2 or boxes.shape[1] != 4:
      raise ValueError(f"phrase {i}: {name} has shape {boxes.shape}; give k 4 (0 4 when there is no box)")
    if not np.isfinite(boxes).all():
      raise ValueError(f"phrase {i}: {name} holds a number that is not finite; drop such boxes before ranking")
  if not len(phrase.truth_xyxy_px):
    raise ValueError(f"phrase {i} has no true box; leave phrases without boxes out of the evaluation")

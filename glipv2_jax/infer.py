"""From `Outputs` to boxes: the authors' post-processing (reference 7) in static shapes, and what the host does then.

The first half runs on the device, written per image and vmapped: phrase scores -> candidates of each level -> greedy
suppression. The second half is NumPy: phrase maps, original coordinates, several prompts of one image, boxes by phrase.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from glipv2_jax import boxes as box_ops
from glipv2_jax.schema import Array, Outputs

AGGREGATES = ("mean", "max")
MERGES = ("nms", "soft_nms", "vote")


@dataclasses.dataclass(frozen=True)
class InferConfig:
  """Constants of the post-processing; the defaults are the authors' (reference 1.1)."""

  threshold: float = 0.05  # on the phrase score, before centerness
  pre_nms_top_n: int = 1000  # candidates kept per level
  nms_iou: float = 0.6  # a box is suppressed above this overlap (strictly)
  max_detections: int = 100  # per image, over all its prompts
  aggregate: str = "mean"  # how the scores of a phrase's tokens become one: 'mean' | 'max'
  # Test-time augmentation (glipv2_jax/augment.py). Scales: (factor of the canvas, from, to); a box counts where the
  # root of its area on the canvas lies between the two. () is the canvas as it is, with every box.
  scales: tuple[tuple[float, float, float], ...] = ()
  mirror: bool = False  # every scale also with the picture mirrored
  merge: str = "nms"  # how the boxes of all these pictures become one list, with `nms_iou`: one of MERGES

  def __post_init__(self):
    for name, known in (("aggregate", AGGREGATES), ("merge", MERGES)):
      if getattr(self, name) not in known:
        raise ValueError(f"{name} {getattr(self, name)!r} is not known; known: {', '.join(known)}")
    for scale in self.scales:
      if len(scale) != 3 or not scale[0] > 0 or not 0 <= scale[1] < scale[2]:
        raise ValueError(f"scales has {scale!r}; give (factor, from, to), for example (1.5, 0, 96)")
    for name in ("pre_nms_top_n", "max_detections"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

  @property
  def augmented(self) -> bool:
    """Whether a picture is looked at more than once."""
    return bool(self.scales) or self.mirror


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Detections:
  """Boxes of b images, k slots each, best first; where `valid` is False the slot is empty (zeros, label -1)."""

  boxes_xyxy_px: Array  # b k 4 float32, pixels of the canvas
  scores: Array  # b k float32
  labels: Array  # b k int32, index of the phrase
  valid: Array  # b k bool


def postprocess(
  outputs: Outputs,
  image_size: Array,
  phrase_map: Array,
  anchors: Array,
  level_slices: Sequence[slice],
  cfg: InferConfig,
) -> Detections:
  """Reference 7, steps 3 to 6, for a batch.

  `image_size` b 2 (valid height and width on the canvas), `phrase_map` b c m bool (tokens of each phrase; a phrase
  without tokens is never detected), `anchors` n 4, `level_slices` the static ranges of the levels in n, `cfg` static.

  Difference to the authors: where scores tie at the last place they may return more than `max_detections` boxes, here
  the earlier candidate (level, score, location, phrase) wins. Memory per image: n m + n c floats.

  With test-time augmentation nothing is suppressed here (step 5): all candidates are returned, in no order.
  """
  one_image = functools.partial(_postprocess_one, anchors=jnp.asarray(anchors), level_slices=level_slices, cfg=cfg)
  return jax.vmap(one_image)(outputs, image_size, phrase_map)


def phrase_scores(token_logits: Array, phrase_map: Array, aggregate: str) -> Array:
  """Scores n c of phrases from logits n m of tokens: mean (or maximum) of the tokens' probabilities (reference 7.3).

  A phrase without tokens scores 0 (the authors' NaN, which no threshold passes either).
  """
  p = jax.nn.sigmoid(token_logits.astype(jnp.float32))
  if aggregate == "max":
    return jax.lax.map(lambda tokens: jnp.max(jnp.where(tokens, p, 0.0), axis=-1), phrase_map).T
  member = phrase_map.astype(jnp.float32)
  total = jnp.einsum("nm,cm->nc", p, member, precision=jax.lax.Precision.HIGHEST)
  return total / jnp.maximum(member.sum(-1), 1.0)


def _postprocess_one(outputs, image_size, phrase_map, *, anchors, level_slices, cfg) -> Detections:
  scores = phrase_scores(outputs.token_logits, phrase_map, cfg.aggregate)  # n c
  candidate = scores > cfg.threshold  # before centerness
  ranked = jnp.where(candidate, scores * jax.nn.sigmoid(outputs.centerness)[:, None], -1.0)
  level_tops = [_top_of_level(ranked, level, cfg.pre_nms_top_n) for level in level_slices]
  score, location, label = (jnp.concatenate(parts) for parts in zip(*level_tops, strict=True))
  found = box_ops.decode(outputs.deltas[location], anchors[location])
  found = box_ops.clip(found, image_size)
  score = jnp.where(score >= 0, jnp.sqrt(jnp.maximum(score, 0.0)), -1.0)
  if cfg.augmented:
    return Detections(found, score, label.astype(jnp.int32), score >= 0)
  return _suppress(found, score, label, cfg)


def _top_of_level(ranked, level: slice, top_n: int):
  """The best (location, phrase) pairs of one level: scores, locations in n, phrases; the lower index wins a tie."""
  rows = ranked[level]
  score, index = jax.lax.top_k(rows.reshape(-1), min(top_n, rows.size))
  location, label = jnp.divmod(index, rows.shape[1])
  return score, location + level.start, label


def _suppress(found, score, label, cfg: InferConfig) -> Detections:
  """Exact greedy class-wise suppression, best first; a negative score marks an empty candidate.

  Taking the best remaining box `max_detections` times and striking out what it suppresses gives the best
  `max_detections` survivors of the full greedy algorithm without ever forming the matrix of all overlaps.
  """
  k = cfg.max_detections
  empty = Detections(
    boxes_xyxy_px=jnp.zeros((k, 4), jnp.float32),
    scores=jnp.zeros((k,), jnp.float32),
    labels=jnp.full((k,), -1, jnp.int32),
    valid=jnp.zeros((k,), bool),
  )

  def more(carry):
    slot, remaining, _ = carry
    return (slot < k) & jnp.any(remaining >= 0)

  def take_best(carry):
    slot, remaining, kept = carry
    best = jnp.argmax(remaining)
    overlap = box_ops.iou(found[best][None], found)[0]  # "+1" convention
    struck = (label == label[best]) & (overlap > cfg.nms_iou)
    kept = Detections(
      boxes_xyxy_px=kept.boxes_xyxy_px.at[slot].set(found[best]),
      scores=kept.scores.at[slot].set(remaining[best]),
      labels=kept.labels.at[slot].set(label[best].astype(jnp.int32)),
      valid=kept.valid.at[slot].set(True),
    )
    return slot + 1, jnp.where(struck, -1.0, remaining).at[best].set(-1.0), kept

  return jax.lax.while_loop(more, take_best, (0, score, empty))[2]


# ------------------------------------------------------------------------------------------------- on the host


def phrase_map(phrases: Sequence[Sequence[Any] | None], columns: int, tokens: int) -> np.ndarray:
  """The b c m bool map of `postprocess` from the phrases of each image (objects with `.tokens`); None = padding image.

  Raises ValueError when an image has more than `columns` phrases or a token position outside 0..tokens-1.
  """
  table = np.zeros((len(phrases), columns, tokens), bool)
  for b, of_image in enumerate(phrases):
    if of_image is None:
      continue
    if len(of_image) > columns:
      raise ValueError(
        f"image {b} of the batch has {len(of_image)} phrases; give at least as many columns (now {columns})"
      )
    for c, phrase in enumerate(of_image):
      outside = [t for t in phrase.tokens if not 0 <= t < tokens]
      if outside:
        raise ValueError(f"phrase {c} of image {b} names token {outside[0]}, the text has {tokens}; split the prompt")
      table[b, c, list(phrase.tokens)] = True
  return table


@dataclasses.dataclass(frozen=True)
class ImageDetections:
  """The detections of one image on the host, best first, without empty slots."""

  boxes_xyxy_px: np.ndarray  # k 4 float32
  scores: np.ndarray  # k float32
  labels: np.ndarray  # k int32

  def __len__(self) -> int:
    return len(self.scores)


def of_image(detections: Detections, b: int) -> ImageDetections:
  """Image `b` of a batch of NumPy detections, without its empty slots."""
  valid = np.asarray(detections.valid[b])
  return ImageDetections(
    np.asarray(detections.boxes_xyxy_px[b], np.float32)[valid],
    np.asarray(detections.scores[b], np.float32)[valid],
    np.asarray(detections.labels[b], np.int32)[valid],
  )


def original_boxes(
  boxes_xyxy_px: np.ndarray, image_size: tuple[int, int], original_size: tuple[int, int]
) -> np.ndarray:
  """Boxes k 4 of a picture resized to `image_size` (height, width) in pixels of the original one (reference 7.6).

  Corners are multiplied by the ratio, as the resize of the ground truth does, and clipped to the picture.
  """
  (h, w), (original_h, original_w) = image_size, original_size
  ratio = np.array([original_w / w, original_h / h] * 2, np.float32)
  limit = np.array([original_w - 1, original_h - 1] * 2, np.float32)
  return np.clip(boxes_xyxy_px * ratio, 0, limit)


def merge(parts: Sequence[ImageDetections], max_detections: int | None) -> ImageDetections:
  """The detections of several prompts of one image as one list, best first.

  Labels must already name the whole vocabulary, so that prompts do not overlap and no suppression crosses them.
  `max_detections` limits the union; None keeps all of them, as the authors do for chunked vocabularies (reference 7).
  """
  if not parts:
    return ImageDetections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))
  together = [np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(ImageDetections)]
  order = np.argsort(-together[1], kind="stable")[:max_detections]
  return ImageDetections(*(values[order] for values in together))


def by_phrase(found: ImageDetections, phrases: int) -> tuple[np.ndarray, ...]:
  """Grounding: for each of `phrases` phrases its boxes k 4, best first (the ranking of the Flickr30k evaluation)."""
  order = np.argsort(-found.scores, kind="stable")
  labels = found.labels[order]
  return tuple(found.boxes_xyxy_px[order][labels == c] for c in range(phrases))

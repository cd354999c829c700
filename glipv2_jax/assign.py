"""Which anchor answers for which ground-truth box: adaptive training sample selection, ATSS (reference 5.2)."""

import itertools

import jax
import jax.numpy as jnp

from glipv2_jax import boxes as boxlib

CENTRE_MARGIN = 0.01  # pixels that an anchor's centre must lie inside the box


def assign(anchors, level_counts: tuple[int, ...], boxes, boxes_valid, topk: int = 9):
  """Matches the anchors of one image; `jax.vmap` over boxes and boxes_valid for a batch.

  Each box takes as candidates the `topk` anchors of every level whose centres are nearest to its own (all of a smaller
  level; equal distances in order of index). Candidates become positive when their IoU with the box reaches the mean
  plus the (unbiased) standard deviation over that box's candidates and their centre lies inside the box. An anchor that
  several boxes claim goes to the one it overlaps most (equal overlaps: the lowest index).

  Args:
    anchors: n 4 float32, levels one after the other.
    level_counts: anchors per level, static; they sum to n.
    boxes: g 4 float32 inclusive pixels; the values of padded boxes are never looked at.
    boxes_valid: g bool. No valid box at all makes every anchor background.
    topk: candidates per level and box.

  Returns:
    n int32: index of the matched box, -1 for background.

  Memory: two g n float32 arrays per image, 2 x 9 MB at 22,400 anchors and 100 boxes; overlaps are computed for the
  candidates only (g x 45).

  Raises:
    ValueError: level_counts do not sum to n.
  """
  if sum(level_counts) != anchors.shape[0]:
    raise ValueError(
      f"level_counts {level_counts} sum to {sum(level_counts)} for {anchors.shape[0]} anchors; take both from "
      "anchors.py with the same canvas and strides"
    )
  anchors = jnp.asarray(anchors)
  boxes = jnp.where(boxes_valid[:, None], boxes, 0.0)
  centres = _centre(anchors)
  candidates = _nearest(centres, level_counts, _centre(boxes), topk)  # g k
  overlap = boxlib.iou_aligned(boxes[:, None], anchors[candidates])  # g k
  threshold = overlap.mean(1) + overlap.std(1, ddof=min(1, candidates.shape[1] - 1))
  margins = jnp.concat([centres[candidates] - boxes[:, None, :2], boxes[:, None, 2:] - centres[candidates]], axis=-1)
  positive = (overlap >= threshold[:, None]) & (margins.min(-1) > CENTRE_MARGIN) & boxes_valid[:, None]

  rows = jnp.arange(boxes.shape[0])[:, None]
  claim = jnp.full((boxes.shape[0], anchors.shape[0]), -1.0)
  claim = claim.at[rows, candidates].set(jnp.where(positive, overlap, -1.0))
  return jnp.where(claim.max(0) >= 0, claim.argmax(0), -1).astype(jnp.int32)


def _nearest(centres, level_counts, box_centres, topk: int):
  """Indices g k of the anchors nearest to each box centre, topk per level."""
  ends = itertools.accumulate(level_counts, initial=0)
  found = []
  for begin, end in itertools.pairwise(ends):
    distance = ((centres[None, begin:end] - box_centres[:, None]) ** 2).sum(-1)
    found.append(begin + jax.lax.top_k(-distance, min(topk, end - begin))[1])
  return jnp.concat(found, axis=1)


def _centre(boxes):
  return (boxes[..., :2] + boxes[..., 2:]) / 2

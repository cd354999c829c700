"""Stacks `Prepared` examples into a `HostBatch` of static shapes."""

from collections.abc import Sequence

import numpy as np

from glipv2_jax.schema import Batch
from pipelines.records import BadRecord, HostBatch, Info, Prepared


def _padded(rows: Sequence[np.ndarray], length: int, fill: int | float | bool) -> np.ndarray:
  """Arrays g_i ... -> b length ..., filled up with `fill`."""
  out = np.full((len(rows), length, *rows[0].shape[1:]), fill, rows[0].dtype)
  for target, row in zip(out, rows, strict=True):
    target[: len(row)] = row
  return out


def _drawn(row: np.ndarray, p: Prepared) -> Prepared:
  """Draws the picture onto its row of the batch; returns the example, or what stands in for one that is broken."""
  try:
    p.draw(row)
  except BadRecord:
    if p.instead is None:
      raise
    p = p.instead()
    p.draw(row)
  return p


def _info(p: Prepared) -> Info | None:
  if not p.valid:
    return None
  return Info(p.source, p.image_id, p.original_size, p.image_size, p.text, p.phrases, p.mirrored, p.text_id)


def collate(examples: Sequence[Prepared], max_boxes: int) -> HostBatch:
  """b examples on one canvas, each with at most `max_boxes` boxes -> HostBatch (shapes: glipv2_jax/schema.py)."""
  image = np.empty((len(examples), *examples[0].canvas, 3), np.uint8)
  examples = list(map(_drawn, image, examples))
  counts = np.array([len(p.boxes_xyxy_px) for p in examples])
  batch = Batch(
    image=image,
    image_size=np.array([p.image_size for p in examples], np.int32),
    tokens=np.stack([p.tokens for p in examples]),
    tokens_valid=np.stack([p.tokens_valid for p in examples]),
    boxes_xyxy_px=_padded([p.boxes_xyxy_px for p in examples], max_boxes, 0.0),
    boxes_valid=np.arange(max_boxes) < counts[:, None],
    positive_map=_padded([p.positive_map for p in examples], max_boxes, False),
    box_concept=_padded([p.box_concept for p in examples], max_boxes, -1),
    token_concept=np.stack([p.token_concept for p in examples]),
    example_valid=np.array([p.valid for p in examples]),
    mlm_labels=None if examples[0].mlm_labels is None else np.stack([p.mlm_labels for p in examples]),
  )
  return HostBatch(
    batch=batch,
    info=tuple(map(_info, examples)),
    skipped=sum((p.skipped for p in examples), ()),
    reduced=sum((p.reduced for p in examples), ()),
  )

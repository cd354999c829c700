"""`Example` <-> bytes, for shards: one msgpack map per record, every field as the source gave it.

Pictures stay encoded as they are; pixels become a PNG, which loses nothing. Arrays are little-endian bytes: boxes
float32, polygons float64, run lengths uint32. Nothing in a record is executed when it is read.
"""

import dataclasses
import io
from typing import Any

import msgpack
import numpy as np
from PIL import Image

from pipelines.masks import Mask, from_runs
from pipelines.records import KINDS, Example, Question

_LARGEST = 1 << 30  # bytes of one field


def to_bytes(example: Example) -> bytes:
  """Raises ValueError for a mask that was moved to a canvas (of a source none is)."""
  fields = {field.name: getattr(example, field.name) for field in dataclasses.fields(Example)}
  fields["image"] = encoded(example.image)
  fields["boxes_xyxy_px"] = np.ascontiguousarray(example.boxes_xyxy_px, "<f4").tobytes()
  fields["questions"] = [(q.text, q.answers, q.id) for q in example.questions]
  if example.masks is not None:
    fields["masks"] = [None if mask is None else _from_mask(mask) for mask in example.masks]
  return msgpack.packb(fields)


def from_bytes(data: bytes) -> Example:
  """The inverse of `to_bytes`, apart from pixels, which come back as a PNG.

  Raises ValueError for bytes that are no such record.
  """
  try:
    fields = msgpack.unpackb(data, use_list=False, max_bin_len=_LARGEST, max_str_len=_LARGEST, strict_map_key=True)
    fields["boxes_xyxy_px"] = np.frombuffer(fields["boxes_xyxy_px"], "<f4").reshape(-1, 4).astype(np.float32)
    fields["questions"] = tuple(Question(*question) for question in fields["questions"])
    if fields["masks"] is not None:
      fields["masks"] = tuple(None if mask is None else _to_mask(*mask) for mask in fields["masks"])
    example = Example(**fields)
  except (msgpack.UnpackException, ValueError, TypeError, KeyError, AttributeError) as error:
    raise ValueError(f"{len(data)} bytes are no example: {error!r:.200}") from error
  if example.kind not in KINDS or not isinstance(example.image, bytes) or type(example.image_id) is not int:
    raise ValueError(f"{len(data)} bytes are no example: kind {example.kind!r:.40}, id {example.image_id!r:.40}")
  return example


def encoded(image: bytes | np.ndarray) -> bytes:
  """The picture of an Example as a file: as it is, or pixels (h w 3 uint8) as a PNG."""
  if not isinstance(image, np.ndarray):
    return bytes(image)
  stream = io.BytesIO()
  Image.fromarray(image).save(stream, "PNG")
  return stream.getvalue()


def _from_mask(mask: Mask) -> tuple[Any, ...]:
  if mask.geometry is not None:
    raise ValueError("a mask on a canvas cannot be kept; keep that of the picture")
  polygons = [np.ascontiguousarray(polygon, "<f8").tobytes() for polygon in mask.polygons]
  return mask.size, polygons, None if mask.runs is None else mask.runs.astype("<u4").tobytes()


def _to_mask(size: tuple[int, int], polygons: tuple[bytes, ...], runs: bytes | None) -> Mask:
  if runs is not None:
    return from_runs(np.frombuffer(runs, "<u4").tolist(), size)
  return Mask(size, tuple(np.frombuffer(polygon, "<f8").reshape(-1, 2).astype(np.float64) for polygon in polygons))

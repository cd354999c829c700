"""What is wrong with a data set, before training meets it: the faults for which training would leave a record out,
ids that occur twice, and pictures that look like one of an evaluation split.

Likeness is a difference hash of 128 bits (which of two neighbouring cells of the 9 x 9 picture is brighter, along rows
and along columns): a picture that was encoded again, made smaller or mirrored differs in a few bits only. It points at
pictures to look at; pictures without any structure (blank ones) resemble each other too.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from pipelines import images
from pipelines.prepare_example import usable_boxes
from pipelines.records import BadRecord, Example, Source

SHOWN = 10  # records that are named for each kind of fault
ALIKE = 8  # bits of 128 in which the hashes of one picture may differ
_NO_TEXT = -(2**63)  # stands for text_id None


@dataclasses.dataclass(frozen=True)
class Hashes:
  """Pictures to look for: n records, their hashes n 2 uint64 and those of their mirror images."""

  records: tuple[str, ...] = ()
  plain: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 2), np.uint64))
  mirrored: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 2), np.uint64))

  def nearest(self, picture: np.ndarray) -> tuple[str, int] | None:
    """The record that a picture h w 3 uint8 resembles most and the bits in which they differ; None beyond `ALIKE`."""
    if not self.records:
      return None
    own = difference_hash(picture)
    bits = np.minimum(*(np.bitwise_count(other ^ own).sum(axis=1) for other in (self.plain, self.mirrored)))
    best = int(np.argmin(bits))
    return (self.records[best], int(bits[best])) if bits[best] <= ALIKE else None

  @staticmethod
  def of(source: Source, part: range) -> "Hashes":
    """Of the readable pictures; the others are named when the evaluation split itself is checked."""
    records, plain, mirrored = [], [], []
    for index in part:
      try:
        example = source[index]
        picture = images.decode(example.image, example.record)
      except BadRecord:
        continue
      records.append(example.record)
      plain.append(difference_hash(picture))
      mirrored.append(difference_hash(picture[:, ::-1]))
    return Hashes(tuple(records), *(np.array(x, np.uint64).reshape(-1, 2) for x in (plain, mirrored)))

  @staticmethod
  def joined(parts: Iterable["Hashes"]) -> "Hashes":
    parts = [Hashes(), *parts]
    names = tuple(name for part in parts for name in part.records)
    return Hashes(names, *(np.concatenate([getattr(p, field) for p in parts]) for field in ("plain", "mirrored")))


def difference_hash(picture: np.ndarray) -> np.ndarray:
  """h w 3 uint8 -> 2 uint64."""
  grey = np.asarray(Image.fromarray(picture).convert("L").resize((9, 9), Image.Resampling.BOX), np.int16)
  bits = np.stack([grey[:8, 1:] > grey[:8, :-1], grey[1:, :8] > grey[:-1, :8]])
  return np.packbits(bits.reshape(2, 64), axis=1).view(np.uint64)[:, 0]


@dataclasses.dataclass
class Findings:
  """What was found in a part of a source; parts are added up with `add`."""

  records: int = 0
  boxes: int = 0
  counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  named: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # fault -> the first records with it
  ids: list[np.ndarray] = dataclasses.field(default_factory=list)  # n 2 int64: image id, text id; 16 bytes a record

  def fault(self, reason: str, message: str, count: int = 1) -> None:
    self.counts[reason] += count
    named = self.named.setdefault(reason, [])
    if len(named) < SHOWN:
      named.append(message)

  def add(self, other: "Findings") -> None:
    self.records += other.records
    self.boxes += other.boxes
    self.counts += other.counts
    for reason, messages in other.named.items():
      named = self.named.setdefault(reason, [])
      named += messages[: SHOWN - len(named)]
    self.ids += other.ids

  def count_duplicates(self, name: str) -> None:
    """For the end: every record beyond the first of its id is a fault 'duplicate_id'."""
    ids = np.concatenate(self.ids) if self.ids else np.zeros((0, 2), np.int64)
    ids = ids[np.lexsort(ids.T)]
    again = ids[1:][(ids[1:] == ids[:-1]).all(axis=1)]
    for image_id, text_id in again[:SHOWN].tolist():
      self.fault("duplicate_id", f"{name}/{image_id}" + ("" if text_id == _NO_TEXT else f"#{text_id}"), 0)
    if len(again):
      self.counts["duplicate_id"] += len(again)

  def summary(self) -> Mapping[str, Any]:
    """JSON: records, boxes, and for each fault its count and the first records."""
    faults = {reason: {"count": n, "first": self.named[reason]} for reason, n in self.counts.most_common()}
    return {"records": self.records, "boxes": self.boxes, "faults": faults}


def check_part(source: Source, part: range, evaluation: Hashes, tolerance: float = 1.0) -> Findings:
  """Reads and decodes the records of a part. `tolerance`: pixels that a box may reach outside, as in training.

  A record is counted once for each of its faults; reasons are those of `BadRecord`, 'label_unknown' (a class that the
  source does not list) and 'in_evaluation'.
  """
  found, ids, classes = Findings(), [], frozenset(source.classes)
  for index in part:
    found.records += 1
    try:
      example = source[index]
    except BadRecord as error:
      found.fault(error.reason, str(error))
      continue
    ids.append((example.image_id, _NO_TEXT if example.text_id is None else example.text_id))
    found.boxes += len(example.boxes_xyxy_px)
    _check_texts(found, example, classes)
    try:
      picture = images.decode(example.image, example.record)
      if example.image_size not in (None, picture.shape[:2]):
        detail = f"annotated {example.image_size}, decoded {picture.shape[:2]}"
        found.fault("image_size", f"{example.record}: {detail}")
      if twin := evaluation.nearest(picture):
        found.fault("in_evaluation", f"{example.record} looks like {twin[0]} ({twin[1]} of 128 bits differ)")
      usable_boxes(example, picture.shape[:2], tolerance)
    except BadRecord as error:
      found.fault(error.reason, str(error))
  found.ids.append(np.array(ids, np.int64).reshape(-1, 2))
  return found


def _check_texts(found: Findings, example: Example, classes: frozenset[str]) -> None:
  strangers = sorted(set(example.labels) - classes)
  if strangers:
    found.fault("label_unknown", f"{example.record}: {strangers!r:.80}")
  if example.kind in ("grounding", "caption") and not example.caption.strip():
    found.fault("empty_caption", example.record)
  for begin, end in (span for spans in example.spans for span in spans):
    if not 0 <= begin < end <= len(example.caption):
      found.fault("span_outside", f"{example.record}: [{begin}, {end}) in {len(example.caption)} characters")
      break

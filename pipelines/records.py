"""The records of the host pipeline, in the order the data meets them: Example -> Prepared -> HostBatch.

A source (pipelines/sources) turns its dialect into `Example`s; `pipelines/prepare_example.py` turns an Example into a
`Prepared` (pixels on a canvas, tokens, boxes that moved along); `pipelines/collate.py` stacks those into a `HostBatch`.
"""

import dataclasses
from typing import Protocol

import numpy as np

from glipv2_jax.schema import Batch

Span = tuple[int, int]  # half-open character range


class BadRecord(Exception):
  """A record that cannot be trained on. `reason` is a short fixed word for counting ('undecodable_image', ...)."""

  def __init__(self, reason: str, record: str, detail: str = ""):
    super().__init__(f"{record}: {reason}" + (f" ({detail})" if detail else ""))
    self.reason, self.record, self.detail = reason, record, detail

  def __reduce__(self):  # exceptions with several arguments do not pickle by themselves
    return BadRecord, (self.reason, self.record, self.detail)


@dataclasses.dataclass(frozen=True)
class Example:
  """One picture with its annotation, as the source gives it.

  kind 'detection': every box has a class name in `labels`; the source's vocabulary is `source.classes`.
  kind 'grounding': `caption` with the character spans of every box in `spans`.
  """

  source: str  # name of the source, for messages and counts
  image_id: int  # the data set's own id (may exceed 32 bits)
  kind: str  # 'detection' | 'grounding'
  image: bytes | np.ndarray  # encoded file, or h w 3 uint8 RGB
  boxes_xyxy_px: np.ndarray  # g 4 float32, pixels of the original image, inclusive convention (schema.py)
  labels: tuple[str, ...] = ()  # detection: class name of each box
  caption: str = ""  # grounding
  spans: tuple[tuple[Span, ...], ...] = ()  # grounding: per box, character spans into caption
  masks: np.ndarray | None = None  # g h w bool
  questions: tuple[tuple[str, str], ...] = ()  # (question, answer)
  image_size: tuple[int, int] | None = None  # height, width that the annotation states; checked against the pixels

  @property
  def record(self) -> str:
    """How messages and counts call this record."""
    return f"{self.source}/{self.image_id}"


class Source(Protocol):
  """Random access to Examples. Must pickle (worker processes get a copy) and be deterministic."""

  name: str
  classes: tuple[str, ...]  # detection vocabulary in label order, () for pure grounding sources

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example:
    """Raises BadRecord when this record cannot be used."""
    ...


@dataclasses.dataclass(frozen=True)
class Phrase:
  """One thing that a prompt names: a class or a noun phrase, with the tokens that name it."""

  name: str
  tokens: tuple[int, ...]  # token positions (reference 6.1)
  span: Span = (0, 0)  # characters of the text that name it (training, where nobody asks: unset)


@dataclasses.dataclass(frozen=True)
class Prepared:
  """One example ready to be stacked: fixed shapes apart from the number of boxes."""

  image: np.ndarray  # h w 3 uint8 on the canvas
  image_size: tuple[int, int]  # valid height, width on the canvas
  original_size: tuple[int, int]  # height, width of the original image
  tokens: np.ndarray  # m int32
  tokens_valid: np.ndarray  # m bool
  boxes_xyxy_px: np.ndarray  # g 4 float32 on the canvas
  positive_map: np.ndarray  # g m bool
  box_concept: np.ndarray  # g int32
  token_concept: np.ndarray  # m int32
  mlm_labels: np.ndarray | None  # m int32, -100 where nothing is predicted; None: no word is hidden
  source: str
  image_id: int
  text: str  # the prompt or caption that was tokenised
  phrases: tuple[Phrase, ...]  # what the prompt names, in order
  mirrored: bool = False
  skipped: tuple[tuple[str, str], ...] = ()  # (reason, record) of bad records passed over to get this one
  reduced: tuple[tuple[str, str], ...] = ()  # (reason, record) when boxes of this one had to be left out
  valid: bool = True  # False: fills up the last batch of an evaluation


@dataclasses.dataclass(frozen=True)
class Info:
  """What the host keeps of an example while its batch is on the device."""

  source: str
  image_id: int
  original_size: tuple[int, int]
  image_size: tuple[int, int]
  text: str
  phrases: tuple[Phrase, ...]
  mirrored: bool


@dataclasses.dataclass(frozen=True)
class HostBatch:
  """A local batch (NumPy) with its host-side information; `info` is None where example_valid is False."""

  batch: Batch
  info: tuple[Info | None, ...]
  skipped: tuple[tuple[str, str], ...]
  reduced: tuple[tuple[str, str], ...] = ()

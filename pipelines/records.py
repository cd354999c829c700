"""The records of the host pipeline, in the order the data meets them: Example -> Prepared -> HostBatch.

A source (pipelines/sources) turns its dialect into `Example`s; `pipelines/prepare_example.py` turns an Example into a
`Prepared` (pixels on a canvas, tokens, boxes that moved along); `pipelines/collate.py` stacks those into a `HostBatch`.
"""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from glipv2_jax.schema import Batch
from pipelines.masks import Mask

Span = tuple[int, int]  # half-open character range


KINDS = ("detection", "grounding", "caption", "vqa")  # of Examples
GROUNDED = ("detection", "grounding")  # those that say where things are


def record_name(source: str, image_id: int, text_id: int | None = None) -> str:
  """How messages and counts call a record."""
  return f"{source}/{image_id}" if text_id is None else f"{source}/{image_id}#{text_id}"


class BadRecord(Exception):
  """A record that cannot be trained on. `reason` is a short fixed word for counting ('undecodable_image', ...)."""

  def __init__(self, reason: str, record: str, detail: str = ""):
    super().__init__(f"{record}: {reason}" + (f" ({detail})" if detail else ""))
    self.reason, self.record, self.detail = reason, record, detail

  def __reduce__(self):  # exceptions with several arguments do not pickle by themselves
    return BadRecord, (self.reason, self.record, self.detail)


@dataclasses.dataclass(frozen=True)
class Question:
  """One question about a picture."""

  text: str
  answers: tuple[str, ...] = ()  # one, or those of several people (VQA v2: ten); () where they are kept back
  id: int | None = None  # the data set's own


@dataclasses.dataclass(frozen=True)
class Example:
  """One picture with its annotation, as the source gives it.

  kind 'detection': every box has a class name in `labels`; the source's vocabulary is `source.classes`.
  kind 'grounding': `caption` with the character spans of every box in `spans`.
  kind 'caption': `caption` alone, without boxes.
  kind 'vqa': one entry in `questions`, without boxes.

  The last two say nothing about where things are. The losses on boxes would learn from them that every word names
  background, so only the first two are pre-trained on (`GROUNDED`).
  """

  source: str  # name of the source, for messages and counts
  image_id: int  # the data set's own id (may exceed 32 bits)
  kind: str  # one of KINDS
  image: bytes | np.ndarray  # encoded file, or h w 3 uint8 RGB
  boxes_xyxy_px: np.ndarray  # g 4 float32, pixels of the original image, inclusive convention (schema.py)
  labels: tuple[str, ...] = ()  # detection: class name of each box
  caption: str = ""  # grounding, caption
  spans: tuple[tuple[Span, ...], ...] = ()  # grounding: per box, character spans into caption
  absent: tuple[str, ...] | None = None  # detection: classes known not to be in the picture; None: all others
  unsure: tuple[str, ...] = ()  # detection: classes of which something may be in the picture without a box (crowds)
  masks: tuple[Mask | None, ...] | None = None  # per box, None for a box without one; None: the source gives none
  questions: tuple[Question, ...] = ()
  image_size: tuple[int, int] | None = None  # height, width that the annotation states; checked against the pixels
  text_id: int | None = None  # the data set's own id of the caption, sentence or question, where a picture has several

  @property
  def record(self) -> str:
    """How messages and counts call this record."""
    return record_name(self.source, self.image_id, self.text_id)

  def vocabulary(self, classes: tuple[str, ...]) -> tuple[str, ...]:
    """The classes of the source that a prompt for this picture may name: those of its boxes, and others only where
    their absence is known. Any other one would teach that what is there is background."""
    if self.absent is None and not self.unsure:
      return classes
    allowed = set(classes if self.absent is None else self.absent).difference(self.unsure).union(self.labels)
    return tuple(name for name in classes if name in allowed)


class Source(Protocol):
  """Random access to Examples. Must pickle (worker processes get a copy) and be deterministic.

  Sources of captions (kinds 'grounding' and 'caption') also have `caption(index) -> str`, the text of a record without
  its picture: other captions to pack a caption with.
  """

  name: str
  kind: str  # of all its Examples, one of KINDS
  classes: tuple[str, ...]  # detection vocabulary in label order, () for pure grounding sources

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example:
    """Raises BadRecord when this record cannot be used."""
    ...


@runtime_checkable
class KnowsSizes(Protocol):
  """A source whose index tells how large the pictures are, so that a batch takes pictures of one shape (mixture.py)."""

  def sizes(self) -> np.ndarray:
    """n 2 int32: height and width of every record, 0 0 where the index does not tell."""
    ...


@runtime_checkable
class KnowsCaptions(Protocol):
  """A grounding source that can read a caption without its picture: others' captions are packed around it
  (prompts.packed_prompt)."""

  def caption(self, index: int) -> str:
    """Raises BadRecord."""
    ...


@runtime_checkable
class KnowsSynonyms(Protocol):
  """A detection source that knows other names of its classes (pipelines/synonyms.py); {}: its file has none."""

  synonyms: Mapping[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Phrase:
  """One thing that a prompt names: a class or a noun phrase, with the tokens that name it."""

  name: str
  tokens: tuple[int, ...]  # token positions (reference 6.1)
  span: Span = (0, 0)  # characters of the text that name it (training, where nobody asks: unset)


class Phrases(Sequence[Phrase]):
  """The phrases of a prompt as columns: it may name a hundred, and in training nobody asks for them.

  Attributes:
    names, spans: n.
    first, count: n, the tokens of each: so many from the first one on.
  """

  def __init__(self, names: Sequence[str], spans: Sequence[Span], first: Sequence[int], count: Sequence[int]):
    self.names, self.spans, self.first, self.count = names, spans, first, count

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, i: int) -> Phrase:
    first = self.first[i]
    return Phrase(self.names[i], tuple(range(first, first + self.count[i])), self.spans[i])

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Sequence) and tuple(self) == tuple(other)

  def __hash__(self) -> int:
    return hash(tuple(self))


@dataclasses.dataclass(frozen=True)
class Prepared:
  """One example ready to be stacked: fixed shapes apart from the number of boxes."""

  canvas: tuple[int, int]  # height, width
  draw: Callable[[np.ndarray], None]  # writes the picture onto an h w 3 uint8 canvas: a row of the batch
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
  phrases: Sequence[Phrase]  # what the prompt names, in order
  mirrored: bool = False
  text_id: int | None = None
  masks: tuple[Mask | None, ...] | None = None  # of the boxes, moved to the canvas and not drawn yet
  skipped: tuple[tuple[str, str], ...] = ()  # (reason, record) of bad records passed over to get this one
  reduced: tuple[tuple[str, str], ...] = ()  # (reason, record) when boxes of this one had to be left out
  valid: bool = True  # False: fills up the last batch of an evaluation
  instead: Callable[[], "Prepared"] | None = None  # what to take where `draw` raises BadRecord; None: it does not

  @property
  def image(self) -> np.ndarray:
    """The picture on a canvas of its own, h w 3 uint8."""
    out = np.empty((*self.canvas, 3), np.uint8)
    self.draw(out)
    return out


@dataclasses.dataclass(frozen=True)
class Info:
  """What the host keeps of an example while its batch is on the device."""

  source: str
  image_id: int
  original_size: tuple[int, int]
  image_size: tuple[int, int]
  text: str
  phrases: Sequence[Phrase]
  mirrored: bool
  text_id: int | None


@dataclasses.dataclass(frozen=True)
class HostBatch:
  """A local batch (NumPy) with its host-side information; `info` is None where example_valid is False."""

  batch: Batch
  info: tuple[Info | None, ...]
  skipped: tuple[tuple[str, str], ...]
  reduced: tuple[tuple[str, str], ...] = ()

  @property
  def rows(self) -> Mapping[str, int]:
    """How many rows came from each source."""
    return collections.Counter(info.source for info in self.info if info)


def take_apart(host: HostBatch) -> tuple[dict[str, np.ndarray], HostBatch]:
  """(the arrays of the batch by name, everything else): what crosses from a worker process."""
  arrays = {field.name: getattr(host.batch, field.name) for field in dataclasses.fields(host.batch)}
  return {name: x for name, x in arrays.items() if x is not None}, dataclasses.replace(host, batch=None)


def put_together(parts: tuple[dict[str, np.ndarray], HostBatch]) -> HostBatch:
  """The inverse of `take_apart`. The arrays may be views of shared memory, which they keep alive."""
  arrays, host = parts
  return dataclasses.replace(host, batch=Batch(**{name: np.asarray(x) for name, x in arrays.items()}))

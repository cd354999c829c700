"""Example -> Prepared: pixels on a canvas, the prompt as tokens, boxes that moved along and the words that name them.

`train_example` draws (mirror, prompt, box subset, hidden words) from the given generator; `evaluation_example` draws
nothing. Both are pure functions and share their steps. `Prepare` applies the first to a position of the endless
training stream.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from pipelines import images, mirror
from pipelines.concepts import NO_CONCEPT
from pipelines.masking import MaskingConfig, mask_words
from pipelines.masks import Mask
from pipelines.mixture import Mixture, Place
from pipelines.prompts import (
  Named,
  Prompt,
  PromptConfig,
  grounding_prompt,
  name_boxes_by_spans,
  phrases,
  prompt_example,
  unnamed,
)
from pipelines.records import BadRecord, Example, KnowsCaptions, KnowsSynonyms, Prepared, Source
from pipelines.synonyms import NO_SYNONYMS, Synonyms
from pipelines.words import Encoding, Words

TRIES = 20  # records in a row that may be unusable before the source is given up
PIXELS = ("exact", "fast")


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
  """How examples are prepared."""

  canvases: tuple[tuple[int, int], ...]  # height, width; one per batch
  batch: int  # global batch size
  max_boxes: int = 100
  flip: float = 0.5  # probability of mirroring in training
  swap_sides: bool = True  # mirror the words left and right too; False: as the authors (reference 6.8)
  box_tolerance_px: float = 1.0  # a box may reach so far outside the picture and is then clipped (rounding)
  max_pixels: int = images.MAX_PIXELS
  pixels: str = "exact"  # resizing in training: 'exact' as in evaluation | 'fast' (pipelines/images.py)
  prompt: PromptConfig = PromptConfig()
  masking: MaskingConfig | None = None  # words to hide in training; None: none

  def __post_init__(self):
    if self.pixels not in PIXELS:
      raise ValueError(f"pixels {self.pixels!r} is not known; known: {', '.join(PIXELS)}")


def usable_boxes(example: Example, size: tuple[int, int], tolerance: float) -> np.ndarray:
  """The boxes of `example` inside a picture of `size` (height, width), g 4 float32.

  One rule: a box may reach at most `tolerance` pixels outside and is then clipped. Any other fault makes the whole
  record unusable, because training on what is left would teach that the lost object is background.

  Raises:
    BadRecord: 'box_nan' (or infinite), 'box_empty' (x2 < x1 or y2 < y1), 'box_outside'.
  """
  boxes = np.asarray(example.boxes_xyxy_px, np.float32).reshape(-1, 4)
  limit = np.array([size[1] - 1, size[0] - 1] * 2, np.float32)
  inside = np.minimum(np.maximum(boxes, 0), limit)
  # NaN compares as False, so that what passes has none of the faults below.
  if (abs(inside - boxes) <= tolerance).all() and (boxes[:, 2:] >= boxes[:, :2]).all():
    return inside
  faults = (
    ("box_nan", ~np.isfinite(boxes).all(axis=1)),
    ("box_empty", (boxes[:, 2:] < boxes[:, :2]).any(axis=1)),
    ("box_outside", ((boxes < -tolerance) | (boxes > limit + tolerance)).any(axis=1)),
  )
  for reason, bad in faults:
    if bad.any():
      raise BadRecord(reason, example.record, f"box {boxes[bad][0].tolist()} in a picture of {size[1]} x {size[0]}")
  return inside  # within the tolerance but for rounding


def _size(example: Example, cfg: PrepareConfig) -> tuple[int, int]:
  """Height and width of the picture as it is stored."""
  size = images.size_of(example.image, example.record, cfg.max_pixels)
  if example.image_size not in (None, size):
    raise BadRecord("image_size", example.record, f"annotated {example.image_size}, decoded {size}")
  return size


def _check_caption(example: Example) -> None:
  if not example.caption.strip():
    raise BadRecord("empty_caption", example.record)
  for begin, end in (span for box in example.spans for span in box):
    if not 0 <= begin < end <= len(example.caption):
      raise BadRecord("span_outside", example.record, f"[{begin}, {end}) in {len(example.caption)} characters")


@functools.lru_cache(maxsize=256)
def _any_side(classes: tuple[str, ...]) -> bool:
  return any(map(mirror.names_a_side, classes))


def _mirrored(example: Example) -> Example:
  """The example with left and right exchanged in its caption."""
  caption, spans = mirror.swap_sides(example.caption, example.spans)
  return dataclasses.replace(example, caption=caption, spans=spans)


def _draw(out: np.ndarray, example: Example, geometry: images.Geometry, cfg: PrepareConfig, fast: bool) -> None:
  """Decodes the picture onto the canvas `out`. Raises BadRecord."""
  enough = geometry.size if fast else None
  geometry.draw(images.decode(example.image, example.record, cfg.max_pixels, enough), out, fast)


def _drawn(draw: Callable[[np.ndarray], None], canvas: tuple[int, int]) -> Callable[[np.ndarray], None]:
  """Draws now, to be copied later. Raises BadRecord."""
  out = np.empty((*canvas, 3), np.uint8)
  draw(out)
  return functools.partial(np.copyto, src=out)


def _assemble(
  example: Example,
  text: str,
  encoding: Encoding,
  named: Named,
  boxes: np.ndarray,
  draw: Callable[[np.ndarray], None],
  geometry: images.Geometry,
  max_boxes: int,
  rng: np.random.Generator | None,
  masks: Sequence[Mask | None] | None = None,
  instead: Callable[[], Prepared] | None = None,
  skipped: tuple[tuple[str, str], ...] = (),
) -> Prepared:
  """Everything on its canvas; boxes that no token names, and those beyond `max_boxes`, are left out and reported.
  `boxes` g 4, and `masks` if given, are those that `named.kept` speaks of; without `rng` the first `max_boxes` stay."""
  positive_map, box_concept, reduced = named.positive_map, named.box_concept, []
  rows = np.flatnonzero(named.kept)
  if len(rows) < len(boxes):
    reduced.append(("caption_truncated" if encoding.truncated else "box_not_named", example.record))
  if len(rows) > max_boxes:
    reduced.append(("too_many_boxes", example.record))
    every = np.arange(len(rows))
    chosen = every[:max_boxes] if rng is None else np.sort(rng.choice(every, max_boxes, replace=False))
    rows, positive_map, box_concept = rows[chosen], positive_map[chosen], box_concept[chosen]
  if masks is not None:
    masks = [masks[i] for i in rows]
  return Prepared(
    canvas=geometry.canvas,
    draw=draw,
    image_size=geometry.size,
    original_size=geometry.original,
    tokens=encoding.tokens,
    tokens_valid=encoding.tokens_valid,
    boxes_xyxy_px=geometry.to_canvas(boxes[rows]),
    positive_map=positive_map,
    box_concept=box_concept,
    token_concept=named.token_concept,
    mlm_labels=None,
    source=example.source,
    image_id=example.image_id,
    text=text,
    phrases=named.phrases,
    mirrored=geometry.flipped,
    text_id=example.text_id,
    masks=None if masks is None else tuple(None if mask is None else mask.moved(geometry) for mask in masks),
    skipped=skipped,
    reduced=tuple(reduced),
    instead=instead,
  )


def train_example(
  example: Example,
  classes: tuple[str, ...],
  words: Words,
  cfg: PrepareConfig,
  canvas: tuple[int, int],
  rng: np.random.Generator,
  captions: Sequence[str] = (),
  synonyms: Synonyms = NO_SYNONYMS,
  instead: Callable[[], Prepared] | None = None,
  skipped: tuple[tuple[str, str], ...] = (),
) -> Prepared:
  """One example as training sees it, words hidden if so configured. `classes`: the vocabulary of its source,
  `synonyms`: how they may be called too; `captions`: others of its source, to pack its own with. Where there is
  something to take `instead`, the picture is decoded by `Prepared.draw` only, which may raise the BadRecord then.
  `skipped`: records that were passed over to get this one.

  A mirrored caption has left and right exchanged; a vocabulary that names sides ("left hand") is never mirrored.

  Raises:
    BadRecord: the picture, a box or the caption cannot be used.
  """
  flipped = bool(rng.random() < cfg.flip)
  if example.kind == "grounding":
    _check_caption(example)
    example = _mirrored(example) if flipped and cfg.swap_sides else example
  elif cfg.swap_sides:
    flipped = flipped and not _any_side(classes)
  if not cfg.prompt.wordings:  # they are written for all classes of the source
    classes = example.vocabulary(classes)
  prompt, encoding, named = prompt_example(example, classes, rng, words, cfg.prompt, captions, synonyms)
  size = _size(example, cfg)
  geometry = images.fit(size, canvas, flipped)
  draw = functools.partial(_draw, example=example, geometry=geometry, cfg=cfg, fast=cfg.pixels == "fast")
  if instead is None:
    draw = _drawn(draw, canvas)
  boxes = usable_boxes(example, size, cfg.box_tolerance_px)
  prepared = _assemble(
    example, prompt.text, encoding, named, boxes, draw, geometry, cfg.max_boxes, rng, example.masks, instead, skipped
  )
  if cfg.masking is None:
    return prepared
  tokens, labels = mask_words(example.kind, encoding, named, words, cfg.masking, rng, prompt.own)
  return dataclasses.replace(prepared, tokens=tokens, mlm_labels=labels)


def evaluation_example(
  example: Example,
  words: Words,
  cfg: PrepareConfig,
  canvas: tuple[int, int],
  mirrored: bool = False,
  prompt: Prompt | None = None,
) -> Prepared:
  """One example without augmentation. Grounding: its caption, and its distinct spans in order as the phrases (left and
  right exchanged where the picture is mirrored and cfg.swap_sides). Detection: no text, because all pictures of a
  source are asked the same (`prompts.all_classes_prompts`), or that of `prompt`; its boxes carry concepts only.

  Boxes that training would refuse are left out here: the ground truth of an evaluation is the annotation itself, and
  every picture must be predicted.

  Raises:
    BadRecord: the picture or the caption cannot be used.
  """
  boxes = np.asarray(example.boxes_xyxy_px, np.float32).reshape(-1, 4)
  height, width = _size(example, cfg)
  fine = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] >= np.maximum(boxes[:, :2], 0)).all(axis=1)
  fine &= (boxes[:, 0] < width) & (boxes[:, 1] < height)
  if example.kind == "grounding":
    _check_caption(example)
    example = _mirrored(example) if mirrored and cfg.swap_sides else example
    prompt = grounding_prompt(example.caption, example.spans)
    encoding = words.encode(prompt.text)
    named = name_boxes_by_spans(prompt.text, encoding, [s for s, keep in zip(example.spans, fine, strict=True) if keep])
    named = dataclasses.replace(named, phrases=phrases(prompt, encoding))
  else:
    prompt = prompt or Prompt("", ())
    encoding = prompt.encode(words)
    named = unnamed([label for label, keep in zip(example.labels, fine, strict=True) if keep], encoding)
    named = dataclasses.replace(named, phrases=phrases(prompt, encoding))
  boxes = np.clip(boxes[fine], 0, np.array([width - 1, height - 1] * 2, np.float32))
  geometry = images.fit((height, width), canvas, mirrored)
  draw = functools.partial(_draw, example=example, geometry=geometry, cfg=cfg, fast=False)
  draw = _drawn(draw, canvas)
  return _assemble(example, prompt.text, encoding, named, boxes, draw, geometry, cfg.max_boxes, None)


def _black(out: np.ndarray) -> None:
  out[...] = 0


def blank(words: Words, canvas: tuple[int, int], skipped: tuple[tuple[str, str], ...] = ()) -> Prepared:
  """A black picture that no metric counts: fills up the last batch, or stands for an unusable record."""
  encoding = words.encode("")
  m = len(encoding.tokens)
  return Prepared(
    canvas=canvas,
    draw=_black,
    image_size=canvas,
    original_size=canvas,
    tokens=encoding.tokens,
    tokens_valid=encoding.tokens_valid,
    boxes_xyxy_px=np.zeros((0, 4), np.float32),
    positive_map=np.zeros((0, m), bool),
    box_concept=np.zeros(0, np.int32),
    token_concept=np.full(m, NO_CONCEPT, np.int32),
    mlm_labels=None,
    source="",
    image_id=-1,
    text="",
    phrases=(),
    skipped=skipped,
    valid=False,
  )


class OtherCaptions(Sequence[str]):
  """The captions of a source but for `own`, which read '' as those that cannot be read (they are counted when it is
  their turn): no picture gets its own words as those of another one, be it mirrored or not."""

  def __init__(self, source: Source, own: str):
    self._source, self._own = source, own

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> str:
    try:
      caption = self._source.caption(index)
    except BadRecord:
      return ""
    return "" if caption == self._own else caption


@dataclasses.dataclass(frozen=True)
class Prepare:
  """Position k of the training stream -> Prepared, a pure function of (seed, k) and the record drawn for k."""

  sources: tuple[Source, ...]
  words: Words
  cfg: PrepareConfig
  mixture: Mixture

  def __call__(self, k: int, place: Place) -> Prepared:
    """The picture is decoded when the batch is stacked (`Prepared.draw`): one after the other, with the processor's
    caches for it alone. One that turns out to be broken then is replaced by `Prepared.instead`.

    Raises as `at_once`.
    """
    return self._prepared(k, place, functools.partial(self.at_once, k, place))

  def at_once(self, k: int, place: Place) -> Prepared:
    """An unusable record is replaced by another one of its source and shape (`mixture.parts`).

    Raises RuntimeError when `TRIES` records in a row are unusable.
    """
    return self._prepared(k, place, None)

  def _prepared(self, k: int, place: Place, instead: Callable[[], Prepared] | None) -> Prepared:
    source, part, index = self.sources[place.source], self.mixture.parts[place.part], place.record
    rng = np.random.default_rng((self.mixture.seed, k))
    has_captions, synonyms = self._about[place.source]
    skipped: list[tuple[str, str]] = []
    for _ in range(TRIES):
      try:
        example = source[index]
        captions = OtherCaptions(source, example.caption) if has_captions else ()
        return train_example(
          example, source.classes, self.words, self.cfg, place.canvas, rng, captions, synonyms, instead, tuple(skipped)
        )
      except BadRecord as error:
        skipped.append((error.reason, error.record))
        index = part.record(int(rng.integers(len(part))))
    raise RuntimeError(f"source {source.name!r}: {TRIES} records in a row cannot be used: {skipped}; repair it")

  @functools.cached_property
  def _about(self) -> list[tuple[bool, Synonyms]]:
    """Of each source: whether it can read single captions, and how its classes may be called too."""
    return [
      (
        isinstance(source, KnowsCaptions),
        source.synonyms if self.cfg.prompt.synonyms and isinstance(source, KnowsSynonyms) else NO_SYNONYMS,
      )
      for source in self.sources
    ]

"""From a configuration to batches: `train_batches` (endless, exact resume), `evaluation_batches` (each image once)."""

import atexit
import dataclasses
import functools
import math
import weakref
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from pipelines import images, mixture
from pipelines.collate import collate
from pipelines.masking import MaskingConfig
from pipelines.prepare_example import Prepare, PrepareConfig, blank, evaluation_example
from pipelines.prompts import PromptConfig, check_classes
from pipelines.records import (
  GROUNDED,
  BadRecord,
  HostBatch,
  KnowsCaptions,
  KnowsSizes,
  KnowsSynonyms,
  Prepared,
  Source,
  put_together,
  take_apart,
)
from pipelines.sources import open_source
from pipelines.words import Words, load_words

SourceEntry = tuple[str, float, tuple[tuple[str, Any], ...]]  # kind, weight, options as pairs


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """What training reads."""

  sources: tuple[SourceEntry, ...]  # for example (("coco_json", 1.0, (("annotations", "a.json"), ("images", "dir"))),)
  tokenizer: str  # pipelines/words.py
  max_tokens: int
  canvases: tuple[tuple[int, int], ...]  # height, width; each batch has one and pictures of its shape (mixture.py)
  batch: int  # global
  weighting: str = "share"  # weights are 'share's of the examples | 'repeats': passes over a source (mixture.shares)
  temperature: float = 1.0  # above 1 the shares come closer to each other
  max_boxes: int = 100
  flip: float = 0.5
  swap_sides: bool = True  # mirror "left" and "right" in captions with the picture
  box_tolerance_px: float = 1.0
  max_pixels: int = images.MAX_PIXELS
  pixels: str = "exact"  # resizing in training: 'exact' as in evaluation | 'fast' (pipelines/images.py)
  prompt: PromptConfig = PromptConfig()
  masking: MaskingConfig | None = None  # hidden words for L_mlm
  seed: int = 0
  workers: int = 0  # processes; 0: a thread of this one
  skip_limit: float = 0.05  # fraction of unusable records above which training stops (train/skips.py)
  accept_changed: bool = False  # a run may go on with other sources, weights, canvases, batch or seed

  def prepare(self) -> PrepareConfig:
    """The part that `pipelines/prepare_example.py` needs."""
    names = (field.name for field in dataclasses.fields(PrepareConfig))
    return PrepareConfig(**{name: getattr(self, name) for name in names})


class Batches(Iterator[HostBatch]):
  """Iterator over HostBatches that owns its threads and worker processes: use it in `with`, or call `close`.

  A loop that ends without closing is closed at exit while Python is still whole, so that no traceback appears.
  """

  def __init__(self, batches: grain.MapDataset, workers: int, batch_bytes: int):
    self.length = len(batches)  # astronomic for training
    self._open = [mixture.iterate(batches, workers, take_apart, put_together, batch_bytes)]
    self.close = weakref.finalize(self, _close, self._open)
    atexit.register(_close, self._open)  # before multiprocessing's own, which would wait for the workers

  def __next__(self) -> HostBatch:
    if not self._open:
      raise ValueError("these batches are closed; build them again")
    return next(self._open[0])

  def __enter__(self) -> "Batches":
    return self

  def __exit__(self, *_) -> None:
    self.close()


def _close(iterators: list[grain.DatasetIterator]) -> None:
  """Empties the list, so that grain's own clean-up runs now too."""
  while iterators:
    iterators.pop().close()


def open_sources(cfg: DataConfig, words: Words) -> tuple[Source, ...]:
  """Opens every source of the mixture and checks that its class names can be prompted. Errors stop the start-up."""
  sources = tuple(open_source(kind, **dict(options)) for kind, _, options in cfg.sources)
  for source in sources:
    check_classes(source.classes, words, cfg.prompt.separator)
  if cfg.prompt.synonyms:
    known = [source.synonyms for source in sources if isinstance(source, KnowsSynonyms) and source.synonyms]
    if not known:
      raise ValueError(
        f"prompt.synonyms: none of the sources {[source.name for source in sources]} knows other names of its classes; "
        "LVIS read by coco_json does; set it to False"
      )
    check_classes([text for names in known for texts in names.values() for text in texts], words, cfg.prompt.separator)
  return sources


def train_batches(
  cfg: DataConfig,
  *,
  start_step: int = 0,
  host: int = 0,
  hosts: int = 1,
  words: Words | None = None,
  sources: tuple[Source, ...] | None = None,
) -> Batches:
  """Endless local batches from global batch `start_step` on; which rows a host reads: pipelines/mixture.py.

  Batch n is a function of (cfg without `workers`, n): the same for any number of workers, hosts and restarts.
  `words`, `sources`: what cfg names, where it is open already.

  Raises ValueError for an impossible configuration, whatever the sources raise at start-up, and while iterating
  RuntimeError when a source gives nothing but unusable records.
  """
  if not cfg.sources or not cfg.canvases:
    raise ValueError(f"sources={cfg.sources!r}, canvases={cfg.canvases!r}: training needs at least one of each")
  words = words or load_words(cfg.tokenizer, cfg.max_tokens)
  sources = sources or open_sources(cfg, words)
  for source in sources:
    if source.kind not in GROUNDED:
      raise ValueError(
        f"source {source.name!r} has no boxes (kind {source.kind!r}): trained on, it would teach that every word names "
        "background; let a teacher find boxes first (`glipv2 pseudo-label`) and train on what that writes"
      )
  place = mix(cfg, sources)
  examples = mixture.stream(place).map_with_index(Prepare(sources, words, cfg.prepare(), place))
  return _batches(examples, cfg, host, hosts, cfg.workers, start_step)


def mix(cfg: DataConfig, sources: tuple[Source, ...]) -> mixture.Mixture:
  """Where every position of the training stream leads (pipelines/mixture.py).

  Raises ValueError for weights that cannot be, and for a grounding source without readable captions when cfg.prompt
  packs captions.
  """
  for source in sources:
    if cfg.prompt.pack and source.kind == "grounding" and not isinstance(source, KnowsCaptions):
      raise ValueError(f"prompt.pack={cfg.prompt.pack}: source {source.name!r} cannot read single captions; use 0")

  def sizes(source: int) -> np.ndarray | None:
    return sources[source].sizes() if isinstance(sources[source], KnowsSizes) else None

  lengths = [len(source) for source in sources]
  weights = [weight for _, weight, _ in cfg.sources]
  shares = mixture.shares(lengths, weights, cfg.weighting, cfg.temperature)
  return mixture.Mixture(lengths, shares, cfg.canvases, cfg.batch, cfg.seed, sizes)


def _batches(
  examples: grain.MapDataset,
  cfg: DataConfig | PrepareConfig,
  host: int,
  hosts: int,
  workers: int,
  start: int = 0,
  largest: float = 1.0,
) -> Batches:
  """`largest`: the factor of the canvases at which the largest pictures are read."""
  join = functools.partial(collate, max_boxes=cfg.max_boxes)
  local = mixture.local_batches(examples, join, batch=cfg.batch, host=host, hosts=hosts, start=start)
  pixels = max(math.prod(images.scaled(canvas, largest)) for canvas in cfg.canvases)
  return Batches(local, workers, 3 * pixels * cfg.batch // hosts)


@dataclasses.dataclass(frozen=True)
class Look:
  """One look at a picture: on its canvas times `factor`, perhaps mirrored. Several are test-time augmentation."""

  factor: float = 1.0
  mirrored: bool = False


@dataclasses.dataclass(frozen=True)
class _Rows:
  """The rows of an evaluation: row -> (image, canvas, look); image -1 fills up a batch."""

  source: Source
  words: Words
  cfg: PrepareConfig
  looks: tuple[Look, ...]
  rows: np.ndarray  # r 3 int32: index in the source, in cfg.canvases, in looks

  def __call__(self, row: int) -> Prepared:
    image, canvas, look = self.rows[row].tolist()
    look = self.looks[look]
    canvas = images.scaled(self.cfg.canvases[canvas], look.factor)
    if image < 0:
      return blank(self.words, canvas)
    try:
      return evaluation_example(self.source[image], self.words, self.cfg, canvas, look.mirrored)
    except BadRecord as error:
      return blank(self.words, canvas, ((error.reason, error.record),))


def _best_canvas(source: Source, index: int, cfg: PrepareConfig) -> int:
  """The canvas on which the image becomes largest (the first of equals); 0 for an image that cannot be read."""
  if len(cfg.canvases) == 1:
    return 0
  try:
    example = source[index]
    size = images.size_of(example.image, example.record, cfg.max_pixels)
  except BadRecord:
    return 0
  return int(np.argmax([np.prod(images.fit(size, canvas).size) for canvas in cfg.canvases]))


def evaluation_plan(source: Source, cfg: PrepareConfig, limit: int | None = None) -> np.ndarray:
  """Which images stand in which global batch: n cfg.batch 2 int32 of (index in the source, index in cfg.canvases).

  Every image (or the first `limit`) once, grouped by canvas: each image takes the one on which it becomes largest, so
  with several canvases every image header is read. Groups are filled up with index -1.
  """
  count = len(source) if limit is None else min(limit, len(source))
  canvas_of = np.array([_best_canvas(source, i, cfg) for i in range(count)], int)
  rows: list[tuple[int, int]] = []
  for canvas in range(len(cfg.canvases)):
    rows += [(image, canvas) for image in np.flatnonzero(canvas_of == canvas)]
    rows += [(-1, canvas)] * (-len(rows) % cfg.batch)
  return np.array(rows, np.int32).reshape(-1, cfg.batch, 2)


def evaluation_batches(
  source: Source,
  words: Words,
  cfg: PrepareConfig,
  plan: np.ndarray,
  *,
  looks: tuple[Look, ...] = (Look(),),
  host: int = 0,
  hosts: int = 1,
  workers: int = 0,
) -> Batches:
  """The batches of `plan` (a part of what `evaluation_plan` gave) in order, each once for every look, without other
  augmentation; this host's cfg.batch / hosts rows of each.

  Every host has the same number of batches with the same canvases. Rows that fill up, and those of images that cannot
  be used (which stand in `skipped`), have `example_valid` False and no `info`.

  Args:
    source: one data set; its `coco_json` option keep_empty must be on.
    words: tokenizer.
    cfg: canvases, global batch and max_boxes; flip and prompt play no part.
    plan: the batches.
    looks: at each picture; it is decoded for each.
    host: this process.
    hosts: number of processes.
    workers: processes for reading.
  """
  rows = np.stack([np.insert(plan, 2, k, axis=2) for k in range(len(looks))], axis=1)  # batch, look, row, 3
  rows = _Rows(source, words, cfg, looks, rows.reshape(-1, 3))
  largest = max(look.factor for look in looks)
  return _batches(grain.MapDataset.range(len(rows.rows)).map(rows), cfg, host, hosts, workers, largest=largest)

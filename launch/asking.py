"""Pictures of one's own and a question -> detections: the middle of `glipv2 predict`, also for use from Python."""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from glipv2_jax import infer
from launch.predicting import Predictor, looks, predict_batches
from pipelines import images, noun_phrases
from pipelines.build import Look
from pipelines.collate import collate
from pipelines.prepare_example import PrepareConfig, blank, evaluation_example
from pipelines.prompts import Prompt, all_classes_prompts
from pipelines.records import Example, HostBatch
from pipelines.words import Words


@dataclasses.dataclass(frozen=True)
class Question:
  """What to look for: one or more prompts (a long list of classes does not fit into one)."""

  text: str  # for people
  prompts: tuple[Prompt, ...]

  @property
  def phrases(self) -> tuple[str, ...]:
    """All that is asked for, in order; the labels of `Answer.found` index it."""
    return tuple(name for prompt in self.prompts for name, _ in prompt.spans)


@dataclasses.dataclass(frozen=True)
class Answer:
  """The detections of one picture, best first, in its own pixels."""

  image: np.ndarray  # h w 3 uint8, as decoded
  found: infer.ImageDetections


def ask_classes(classes: Sequence[str], words: Words, separator: str = ". ") -> Question:
  """Looks for every class. Raises ValueError for no class, an empty one, or one given twice."""
  names = [name.strip() for name in classes]
  if not all(names) or not names:
    raise ValueError(f"classes {list(classes)} hold an empty name; write for example 'person,traffic light'")
  twice = [name for name, count in collections.Counter(names).items() if count > 1]
  if twice:
    raise ValueError(f"class {twice[0]!r} is given twice; name every class once")
  return Question(", ".join(names), tuple(all_classes_prompts(names, words, separator)))


def ask_caption(text: str, words: Words) -> Question:
  """Grounds the phrases of a caption, marked '[a dog] on [a sofa]' or found by pipelines/noun_phrases.py.

  Raises ValueError when nothing is marked or found, or when the caption has more tokens than the network reads.
  """
  caption, spans = noun_phrases.mark(text)
  if words.encode(caption).truncated:
    raise ValueError(f"the caption has more than the {words.max_tokens} tokens that this network reads; shorten it")
  return Question(caption, (Prompt(caption, tuple((caption[begin:end], (begin, end)) for begin, end in spans)),))


def answer(
  predictor: Predictor,
  params: Any,
  files: Sequence[tuple[str, bytes | np.ndarray]],
  question: Question,
  words: Words,
  cfg: PrepareConfig,
) -> list[Answer]:
  """The detections in each of `files` (name, encoded picture or h w 3 uint8), in their order; single process.

  Every picture goes onto the canvas of `cfg` on which it becomes largest, `cfg.batch` rows at a time, and is looked at
  as the predictor's configuration says (glipv2_jax/augment.py). Raises BadRecord naming the first file that is no
  picture.
  """
  pictures = [images.decode(data, name, cfg.max_pixels) for name, data in files]
  batches = _batches(pictures, looks(predictor.cfg, question.prompts), words, cfg)
  found: dict[int, infer.ImageDetections] = {}
  for _, rows in predict_batches(predictor, params, batches, question.prompts, words, predictor.cfg.max_detections):
    found |= {row.info.image_id: row.found for row in rows if row is not None}
  return [Answer(picture, found[i]) for i, picture in enumerate(pictures)]


def _batches(
  pictures: Sequence[np.ndarray], passes: Sequence[Look], words: Words, cfg: PrepareConfig
) -> Iterator[HostBatch]:
  """The pictures grouped by canvas, each group filled up; every batch once for each pass."""
  groups = collections.defaultdict(list)
  for i, picture in enumerate(pictures):
    groups[max(cfg.canvases, key=lambda canvas: np.prod(images.fit(picture.shape[:2], canvas).size))].append(i)
  for canvas, members in groups.items():
    for start in range(0, len(members), cfg.batch):
      rows = members[start : start + cfg.batch]
      for look in passes:
        size = images.scaled(canvas, look.factor)
        examples = [evaluation_example(_example(i, pictures[i]), words, cfg, size, look.mirrored) for i in rows]
        yield collate([*examples, *[blank(words, size)] * (cfg.batch - len(rows))], max_boxes=1)


def _example(number: int, picture: np.ndarray) -> Example:
  return Example("picture", number, "detection", picture, np.zeros((0, 4), np.float32))

"""What the network is asked: class names or captions become one text, with the characters that name each thing.

Training: `detection_prompt` (sampled or all classes of the source), `grounding_prompt` (a caption as it is),
`packed_prompt` (a caption among other captions). Inference: `all_classes_prompts`. `name_boxes` and
`name_boxes_by_spans` then carry the characters over to tokens. `prompt_example` is all of that for one Example.

A vocabulary that does not fit into one prompt is cut: into several prompts for inference, and in training into what
the picture needs (the classes of its boxes) and as many others as fit.

Randomness comes from an `np.random.Generator`, of which only `Draws` is used.
"""

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from pipelines.concepts import NO_CONCEPT, clean_name, concept_id, normalised_name
from pipelines.draws import Draws
from pipelines.names import Wording, entries_of, fitting
from pipelines.records import Example, Phrase, Phrases, Span
from pipelines.synonyms import NO_SYNONYMS, Synonyms, draw
from pipelines.words import SPECIAL_TOKENS, Encoding, Words, span_to_tokens

BACKGROUND = "__background__"


@dataclasses.dataclass(frozen=True)
class PromptConfig:
  """How prompts are made. The defaults are GLIP's pre-training settings, safer in the two places marked 'published'."""

  # 'sample': positives and drawn negatives (reference 6.3) | 'all': every class (reference 6.4), or where not all fit,
  # those of the boxes before others.
  mode: str = "sample"
  separator: str = ". "  # between class names; ends in white space, so that names tokenise on their own
  prefix: str = ""  # published alternative: 'object detection : '
  shuffle: bool = True  # mode 'all': in random order; False: in the order of the source
  random_negatives: int = 85  # mode 'sample': at most so many classes are drawn as negatives
  # Probabilities of one negative, no negative, all negatives; otherwise uniform in 1..random_negatives. The fourth,
  # the published chance to drop positives, has to be 0: positives are always kept.
  control_probabilities: tuple[float, float, float, float] = (0.0, 0.0, 0.5, 0.0)
  # No negative reads like a class of the picture, and names that read alike share one place in the text.
  # published: False, so 'bow_(weapon)' can be a negative beside 'bow_(decorative_ribbons)'.
  distinct: bool = True
  draw_background: bool = False  # published: True, the text ' background ' can be a negative (reference 12, 18)
  wordings: tuple[Wording, ...] = ()  # per class of the source: caption prompts (reference 6.4)
  synonyms: bool = False  # ask for a class by any of the names that its source knows (LVIS), drawn for each picture
  pack: int = 0  # captions: so many other captions are added (published: 20), 0 none (reference 6.6)
  pack_none: float = 0.4  # probability to add none
  pack_all: float = 0.5  # otherwise: probability to add `pack`; else uniform in 0..pack-1
  pack_own: bool = False  # published: True, an added caption can be the example's own one

  def __post_init__(self):
    if self.mode not in ("sample", "all"):
      raise ValueError(f"prompt mode {self.mode!r} is not known; use 'sample' or 'all'")
    if not self.separator[-1:].isspace():
      raise ValueError(f"separator {self.separator!r} has to end in white space, else two names can share a token")
    if self.prefix and not self.prefix[-1].isspace():
      raise ValueError(f"prefix {self.prefix!r} has to end in white space, else it shares a token with the first name")
    if len(self.control_probabilities) != 4 or sum(self.control_probabilities[:3]) > 1:
      raise ValueError(f"control_probabilities {self.control_probabilities} have to be four, the first three at most 1")
    if self.control_probabilities[3] != 0:
      raise ValueError(f"control_probabilities {self.control_probabilities}: positives are never dropped, end with 0")
    if self.wordings and self.mode != "all":
      raise ValueError("wordings are made for the classes of mode 'all'; use mode='all' or drop the wordings")
    if self.wordings and self.synonyms:
      raise ValueError("wordings say how every class is called; drop them or set synonyms=False")


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A text and what it names: (name, characters [begin, end)) in the order of the text. Class names are as the source
  spells them; their characters show the cleaned name.

  `pieces`: the text of class names cut after each separator, `first` and `count` the tokens of each name in it. `own`:
  the characters of the example's own caption where others were packed around it.
  """

  text: str
  spans: tuple[tuple[str, Span], ...]
  pieces: tuple[str, ...] = ()
  first: tuple[int, ...] = ()
  count: tuple[int, ...] = ()
  own: Span | None = None

  def encode(self, words: Words) -> Encoding:
    """The text as tokens."""
    return words.encode_names(self.pieces) if self.pieces else words.encode(self.text)


@dataclasses.dataclass(frozen=True)
class Named:
  """A tokenised prompt seen from the boxes. Boxes that no token names are left out and marked in `kept`."""

  kept: np.ndarray  # g bool, over the boxes given; the arrays below have one row per True
  phrases: Sequence[Phrase]  # everything the prompt names, in its order; tokens () where it was cut off
  positive_map: np.ndarray  # g m bool
  box_concept: np.ndarray  # g int32, -1 in captions
  token_concept: np.ndarray  # m int32, -1 outside class names


def prompt_example(
  example: Example,
  classes: Sequence[str],
  rng: Draws,
  words: Words,
  cfg: PromptConfig,
  captions: Sequence[str] = (),
  synonyms: Synonyms = NO_SYNONYMS,
) -> tuple[Prompt, Encoding, Named]:
  """The prompt of one example, tokenised, and what it says about the boxes.

  `classes`: the vocabulary of a detection source (for a federated data set: the classes that may be negatives).
  `captions`: where a grounding source with cfg.pack > 0 takes other captions from; '' is passed over.
  `synonyms`: how its classes may be called too.
  Raises ValueError for an unknown kind.
  """
  if example.kind == "detection":
    prompt, _ = detection_prompt(example.labels, classes, rng, words, cfg, synonyms)
    encoding = prompt.encode(words)
    return prompt, encoding, name_boxes(prompt, encoding, example.labels)
  if example.kind != "grounding":
    raise ValueError(f"example kind {example.kind!r} is not known; sources give 'detection' or 'grounding'")
  prompt, shift = grounding_prompt(example.caption, example.spans), 0
  if cfg.pack and captions:
    prompt, shift = packed_prompt(prompt, captions, rng, words, cfg)
  encoding = words.encode(prompt.text)
  spans = [[(begin + shift, end + shift) for begin, end in box] for box in example.spans]
  return prompt, encoding, name_boxes_by_spans(prompt.text, encoding, spans)


# Class names.


def check_classes(classes: Sequence[str], words: Words, separator: str = ". ") -> None:
  """For start-up: raises ValueError when a class has no text or does not fit into a prompt at all."""
  for name in classes:
    tokens = words.count(clean_name(name) + separator)
    if not normalised_name(name):
      raise ValueError(f"class {name!r} has no text once parentheses are removed; give it a name")
    if tokens > words.max_tokens - SPECIAL_TOKENS:
      raise ValueError(f"class {name!r} has {tokens} tokens, a prompt holds {words.max_tokens}; shorten the name")


def detection_prompt(
  labels: Sequence[str],
  classes: Sequence[str],
  rng: Draws,
  words: Words,
  cfg: PromptConfig,
  synonyms: Synonyms = NO_SYNONYMS,
) -> tuple[Prompt, np.ndarray]:
  """A prompt for boxes with class names `labels` (one per box), and which boxes the prompt names (g bool).

  Mode 'sample' (reference 6.3): the classes of the boxes, as many as fit in random order, then random other classes of
  `classes` in the room that is left, all shuffled. Mode 'all' (reference 6.4): all of `classes`; where they do not
  fit, those of the boxes and as many others as do. A class in `synonyms` is called by one of its names, drawn here.
  Raises ValueError when cfg.wordings do not belong to `classes`.
  """
  wordings = _wordings(classes, cfg.wordings)
  if synonyms:
    wordings = {name: ("", text, "") for name, text in draw((*labels, *classes), synonyms, rng).items()}
  if cfg.mode == "sample":
    names = _sampled_names(labels, classes, wordings, rng, words, cfg)
  else:
    order = _shuffled(classes, rng) if cfg.shuffle else list(classes)
    used = words.count_name(cfg.prefix)
    names = fitting(order, wordings, words, cfg.separator, used)
    if len(names) < len(order):
      wanted = set(labels)
      first = sorted(order, key=lambda name: name not in wanted)  # stable: the order within both halves stays
      chosen = set(fitting(first, wordings, words, cfg.separator, used))
      names = [name for name in order if name in chosen]
  prompt = _join(names, wordings, words, cfg.separator, cfg.prefix, cfg.distinct)
  named = {name for name, _ in prompt.spans}
  return prompt, np.array([label in named for label in labels], bool)


def all_classes_prompts(
  classes: Sequence[str],
  words: Words,
  separator: str = ". ",
  per_prompt: int | None = None,
  wordings: Sequence[Wording] = (),
) -> list[Prompt]:
  """The vocabulary in its order, cut into prompts that fit into `words.max_tokens` (reference 7.1).

  `per_prompt`: at most so many classes each (the authors evaluate LVIS with 40).
  Raises ValueError for a class that does not fit alone.
  """
  check_classes(classes, words, separator)
  worded, rest, prompts = _wordings(classes, wordings), list(classes), []
  while rest:
    names = fitting(rest[:per_prompt], worded, words, separator, 0)
    if not names:
      raise ValueError(f"class {rest[0]!r} with its wording does not fit into {words.max_tokens} tokens; shorten it")
    prompts.append(_join(names, worded, words, separator, prefix="", distinct=False))
    rest = rest[len(names) :]
  return prompts


def _wordings(classes: Sequence[str], wordings: Sequence[Wording]) -> dict[str, Wording]:
  if wordings and len(wordings) != len(classes):
    raise ValueError(f"{len(wordings)} wordings for {len(classes)} classes; give one (before, name, after) per class")
  return dict(zip(classes, wordings, strict=False))


def _sampled_names(
  labels: Sequence[str],
  classes: Sequence[str],
  wordings: dict[str, Wording],
  rng: Draws,
  words: Words,
  cfg: PromptConfig,
) -> list[str]:
  """Positives and negatives in random order (reference 6.3)."""
  room = words.max_tokens - SPECIAL_TOKENS - words.count_name(cfg.prefix)

  def spent(names: list[str]) -> list[int]:
    """Tokens of the first name, the first two, ..."""
    return list(itertools.accumulate([entry.tokens for entry in entries_of(names, wordings, words, cfg.separator)]))

  order = _shuffled(list(dict.fromkeys(labels)), rng)
  needed = spent(order)
  positives = order[: bisect.bisect_right(needed, room)]
  room -= needed[min(len(positives), len(needed) - 1)] if needed else 0  # one that overflows leaves none for negatives
  order = _shuffled(_drawn_negatives(positives, classes, rng, cfg), rng)
  negatives = order[: bisect.bisect_left(spent(order), room)]  # one token stays free
  return _shuffled(negatives + positives, rng)


def _shuffled(names: Sequence[str], rng: Draws) -> list[str]:
  return rng.permutation(np.array(names, object)).tolist()  # objects: the texts themselves are not copied


def _drawn_negatives(positives: list[str], classes: Sequence[str], rng: Draws, cfg: PromptConfig) -> list[str]:
  pool = _pool(tuple(classes), cfg.draw_background)
  count = min(_negative_count(min(cfg.random_negatives, len(pool)), rng, cfg), len(pool))
  drawn = rng.choice(pool, size=count, replace=False).tolist()
  if not cfg.distinct:
    return [name for name in drawn if name not in positives]
  by_text = dict(zip(map(normalised_name, drawn), drawn, strict=True))
  for name in positives:
    by_text.pop(normalised_name(name), None)
  return list(by_text.values())


@functools.lru_cache(maxsize=256)
def _pool(classes: tuple[str, ...], draw_background: bool) -> np.ndarray:
  """What may be drawn as a negative: every name once, without a background class that the source lists by itself."""
  names = [name for name in dict.fromkeys(classes) if normalised_name(name) != "background"]
  return np.array(names + [BACKGROUND] * draw_background, object)


def _negative_count(most: int, rng: Draws, cfg: PromptConfig) -> int:
  u = rng.random()
  one, none, full, _ = itertools.accumulate(cfg.control_probabilities)
  if u < one:
    return 1
  if u < none:
    return 0
  return most if u < full else int(rng.integers(max(1, most))) + 1


def _join(
  names: list[str], wordings: dict[str, Wording], words: Words, separator: str, prefix: str, distinct: bool
) -> Prompt:
  """The names in one text; with `distinct`, names that read alike share one place."""
  entries, places = entries_of(names, wordings, words, separator), None
  if distinct and len({entry.key for entry in entries}) < len(entries):
    first = {entry.key: entry for entry in reversed(entries)}
    number = {key: i for i, key in enumerate(dict.fromkeys(entry.key for entry in entries))}
    places = [number[entry.key] for entry in entries]
    entries = [first[key] for key in number]
  pieces = [entry.text for entry in entries]
  begins = itertools.accumulate(map(len, pieces), initial=len(prefix))
  spans = [(begin + entry.begin, begin + entry.end) for begin, entry in zip(begins, entries, strict=False)]
  tokens = itertools.accumulate([entry.tokens for entry in entries], initial=1 + words.count_name(prefix))
  first = [start + entry.first for start, entry in zip(tokens, entries, strict=False)]
  count = [entry.count for entry in entries]
  if places:
    spans, first, count = ([column[i] for i in places] for column in (spans, first, count))
  if entries:
    pieces[-1] = entries[-1].bare
  if prefix:
    pieces.insert(0, prefix)
  return Prompt("".join(pieces), tuple(zip(names, spans, strict=True)), tuple(pieces), tuple(first), tuple(count))


# Captions.


def grounding_prompt(caption: str, spans: Iterable[Iterable[Span]]) -> Prompt:
  """A caption as it is (reference 6.5), naming what the spans of its boxes cover."""
  distinct = sorted({(int(begin), int(end)) for box in spans for begin, end in box})
  return Prompt(caption, tuple((caption[begin:end], (begin, end)) for begin, end in distinct))


def packed_prompt(
  prompt: Prompt, captions: Sequence[str], rng: Draws, words: Words, cfg: PromptConfig
) -> tuple[Prompt, int]:
  """The caption among random others, in random order, and by how many characters its spans moved (reference 6.6).

  The others take part while everything fits into `words.max_tokens`. Without others the caption stays as it is.
  """
  others = [captions[int(rng.integers(len(captions)))] for _ in range(_pack_count(rng, cfg))]
  if not cfg.pack_own:
    others = [caption for caption in others if caption.strip() and caption != prompt.text]
  room = words.max_tokens - words.count(prompt.text) - SPECIAL_TOKENS
  texts = [prompt.text]
  for caption in rng.permutation(others).tolist():
    room -= words.count(caption) + SPECIAL_TOKENS  # generous: pays for a full stop
    if room <= 0:
      break
    texts.append(caption)
  if len(texts) == 1:
    return prompt, 0
  packed, shift = "", 0
  for caption in rng.permutation(texts).tolist():
    shift = len(packed) if caption == prompt.text else shift
    packed += caption + ("" if caption.endswith(".") else ".") + " "
  moved = tuple((name, (begin + shift, end + shift)) for name, (begin, end) in prompt.spans)
  return Prompt(packed, moved, own=(shift, shift + len(prompt.text))), shift


def _pack_count(rng: Draws, cfg: PromptConfig) -> int:
  if rng.random() < cfg.pack_none:
    return 0
  return cfg.pack if rng.random() < cfg.pack_all else int(rng.integers(cfg.pack))


# From characters to tokens.


def phrases(prompt: Prompt, encoding: Encoding) -> Phrases:
  """Everything the prompt names with its token positions, () where the text was cut off."""
  first, count = prompt.first, prompt.count
  if encoding.truncated or not prompt.pieces:
    tokens = [span_to_tokens(encoding, (span,)) for _, span in prompt.spans]
    first, count = [found[0] if found else 0 for found in tokens], list(map(len, tokens))
  return Phrases([name for name, _ in prompt.spans], [span for _, span in prompt.spans], first, count)


def phrase_map(named: Sequence[Phrase], max_tokens: int) -> np.ndarray:
  """[c m] bool: the tokens of each phrase."""
  rows = np.zeros((len(named), max_tokens), bool)
  for row, phrase in zip(rows, named, strict=True):
    row[list(phrase.tokens)] = True
  return rows


def name_boxes(prompt: Prompt, encoding: Encoding, labels: Sequence[str]) -> Named:
  """Boxes with class names `labels`, named by a prompt of class names. Concepts stand on the boxes and on the tokens of
  every class in the prompt (reference 6.1, 11.9)."""
  named = phrases(prompt, encoding)
  place = {name: (first, count) for name, first, count in zip(named.names, named.first, named.count, strict=True)}
  positive_map = np.zeros((len(labels), len(encoding.tokens)), bool)
  for row, label in zip(positive_map, labels, strict=True):
    first, count = place.get(label, (0, 0))
    row[first : first + count] = True
  token_concept = [NO_CONCEPT] * len(encoding.tokens)
  for name, (first, count) in place.items():
    token_concept[first : first + count] = [concept_id(name)] * count
  return _named(positive_map, named, list(map(concept_id, labels)), np.array(token_concept, np.int32))


def unnamed(labels: Sequence[str], encoding: Encoding) -> Named:
  """Boxes with class names that the text does not speak of: they keep their concepts, no token names them."""
  count, tokens = len(labels), len(encoding.tokens)
  concepts = np.array([concept_id(label) for label in labels], np.int32)
  nothing = np.full(tokens, NO_CONCEPT, np.int32)
  return Named(np.ones(count, bool), (), np.zeros((count, tokens), bool), concepts, nothing)


def name_boxes_by_spans(text: str, encoding: Encoding, spans: Sequence[Sequence[Span]]) -> Named:
  """Boxes of a caption: `spans` are the characters that name each box (reference 6.1). A phrase is one set of spans."""
  boxes = [tuple(sorted((int(begin), int(end)) for begin, end in box)) for box in spans]
  named = [
    Phrase(" ".join(text[begin:end] for begin, end in box), span_to_tokens(encoding, box))
    for box in sorted(set(boxes))
    if box
  ]
  positive_map = phrase_map([Phrase("", span_to_tokens(encoding, box)) for box in boxes], len(encoding.tokens))
  token_concept = np.full(len(encoding.tokens), NO_CONCEPT, np.int32)
  return _named(positive_map, tuple(named), [NO_CONCEPT] * len(boxes), token_concept)


def _named(
  positive_map: np.ndarray, named: Sequence[Phrase], box_concept: list[int], token_concept: np.ndarray
) -> Named:
  kept = positive_map.any(axis=1)
  if kept.all():
    return Named(kept, named, positive_map, np.array(box_concept, np.int32), token_concept)
  return Named(kept, named, positive_map[kept], np.array(box_concept, np.int32)[kept], token_concept)

"""Captions and questions of the embedded data set `shapes`, true by construction.

A phrase ("small red circles") is a `Description`; the things that fit it are found by reading every thing of the scene,
so a caption never leaves out a thing that a phrase names. A phrase that fits too much is made unique by a relation
("the red circle left of the star"); then it stands for the things of which the relation is true, and is used only where
it is clearly true or clearly false of each.
"""

import dataclasses
from types import MappingProxyType

import numpy as np

from pipelines.records import Span
from pipelines.sources.shapes_scene import COLOURS, KINDS, SIZES, TEXTURES, Pair, Thing, relation

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
NOUNS = ("shape", "object", "thing")  # fit every kind
RELATIONS = MappingProxyType(  # wording -> meaning
  {
    "left of": "left of",
    "to the left of": "left of",
    "right of": "right of",
    "to the right of": "right of",
    "above": "above",
    "below": "below",
    "under": "below",
  }
)
ANSWERS = ("yes", "no", *NUMBERS, *SIZES, *TEXTURES, *COLOURS, *KINDS)
NOTHING = ("a picture with no shapes", "there are no objects in this picture", "a background and no shapes")
OPENINGS = ("", "", "a picture of ", "an image with ", "the picture shows ", "this image shows ")

ADJECTIVES = ("size", "texture", "colour")  # in the order they are said
PLANS = (  # which adjectives a phrase uses, drawn uniformly
  (),
  ("colour",),
  ("colour",),
  ("colour",),
  ("size",),
  ("texture",),
  ("size", "colour"),
  ("texture", "colour"),
  ("size", "texture"),
  ("size", "texture", "colour"),
)
VALUES = MappingProxyType({"size": SIZES, "texture": TEXTURES, "colour": COLOURS, "noun": KINDS})
LONG = 14  # words after which a caption takes no further clause; it then has at most 36
QUESTIONS = 4  # asked about each scene, fewer where a scene has no answer to them


@dataclasses.dataclass(frozen=True)
class Description:
  """What a phrase says; None where it says nothing."""

  noun: str  # a kind or one of NOUNS
  size: str | None = None
  texture: str | None = None
  colour: str | None = None

  def fits(self, thing: Thing) -> bool:
    """Whether every word of the phrase is true of the thing."""
    return (
      self.noun in (thing.kind, *NOUNS)
      and self.size in (None, thing.size)
      and self.texture in (None, thing.texture)
      and self.colour in (None, thing.colour)
    )

  def words(self, plural: bool = False) -> str:
    """The phrase without article or number: 'small red circles'."""
    adjectives = [word for word in (self.size, self.texture, self.colour) if word]
    return " ".join([*adjectives, plural_of(self.noun) if plural else self.noun])


@dataclasses.dataclass(frozen=True)
class Mention:
  """A phrase in a caption: where it stands (without article and number) and the things that it names."""

  span: Span
  things: tuple[int, ...]


def plural_of(noun: str) -> str:
  """'circle' -> 'circles', 'cross' -> 'crosses'."""
  return noun + ("es" if noun.endswith("s") else "s")


def select(things: tuple[Thing, ...], description: Description) -> tuple[int, ...]:
  """Indices of the things that fit."""
  return tuple(i for i, thing in enumerate(things) if description.fits(thing))


def describe(thing: Thing, rng: np.random.Generator, silent: str = "") -> Description:
  """A random true phrase for a thing, which says nothing about the attribute `silent` ('noun' for its kind)."""
  generic = silent == "noun" or rng.random() < 0.15
  noun = NOUNS[rng.integers(len(NOUNS))] if generic else thing.kind
  plan = PLANS[rng.integers(len(PLANS))]
  if thing.texture == "solid" and rng.random() < 0.6:  # people seldom say it
    plan = tuple(name for name in plan if name != "texture")
  return Description(noun, **{name: getattr(thing, name) for name in plan if name != silent})


class _Caption:
  """A caption in the making; it knows the character position of every phrase."""

  def __init__(self, opening: str):
    self.text = opening
    self.mentions: list[Mention] = []

  def mention(self, determiner: str, description: Description, things: tuple[int, ...]) -> None:
    words = description.words(plural=len(things) > 1)
    if determiner == "a" and words[0] in "aeiou":
      determiner = "an"
    begin = len(self.text) + len(determiner) + 1
    self.text += f"{determiner} {words}"
    self.mentions.append(Mention((begin, begin + len(words)), things))

  @property
  def mentioned(self) -> set[int]:
    return {i for mention in self.mentions for i in mention.things}


def write_caption(things: tuple[Thing, ...], side: float, rng: np.random.Generator) -> tuple[str, tuple[Mention, ...]]:
  """A caption with its phrases.

  Args: things: of the scene. side: the picture's shorter side in pixels. rng: consumed.
  Returns: the text and the mentions in the order of the text. A thing may be mentioned more than once.
  """
  if not things:
    return NOTHING[rng.integers(len(NOTHING))], ()
  sentences = rng.random() < 0.4  # "a is above b; ..." rather than "a above b, and ..."
  caption = _Caption("" if sentences else OPENINGS[rng.integers(len(OPENINGS))])
  clauses = int(rng.integers(1, 4))
  for clause in range(clauses):
    before = len(caption.text)
    joint = ", and " if clause == clauses - 1 else "; " if sentences else ", "
    caption.text += joint if clause else ""
    if not _clause(caption, things, side, sentences, rng):
      caption.text = caption.text[:before]
      break
    if len(caption.text.split()) > LONG:
      break
  return caption.text, tuple(caption.mentions)


def _clause(caption: _Caption, things, side: float, sentence: bool, rng: np.random.Generator) -> bool:
  """Adds one clause about things not mentioned before; False where none was found."""
  plan = rng.random()
  if plan < 0.4 and _unique_by_relation(caption, things, side, sentence, rng):
    return True
  if sentence and caption.mentions and plan < 0.6 and _more_about_last(caption, things, side, rng):
    return True
  found = _group(caption.mentioned, things, rng)
  if found is None:
    return False
  other = _group(caption.mentioned.union(found[1]), things, rng) if plan < 0.9 else None
  wordings = _true_wordings(found[1], other[1], things, side) if other else []
  if sentence and not wordings:
    caption.text += "there is " if len(found[1]) == 1 else "there are "
  caption.mention(_determiner(found[1], rng), *found)
  if wordings:
    _relate(caption, len(found[1]), wordings, sentence, rng)
    caption.mention(_determiner(other[1], rng), *other)
  return True


def _group(taken: set[int], things, rng: np.random.Generator) -> tuple[Description, tuple[int, ...]] | None:
  """A phrase with all the things that fit it, none of them in `taken`."""
  for _ in range(6):
    description = describe(things[rng.integers(len(things))], rng)
    chosen = select(things, description)
    if not taken.intersection(chosen):
      return description, chosen
  return None


def _determiner(chosen: tuple[int, ...], rng: np.random.Generator) -> str:
  number = NUMBERS[len(chosen)]
  options = ("a", "a", "the") if len(chosen) == 1 else (number, number, f"the {number}", "all", "the")
  return options[rng.integers(len(options))]


def _true_wordings(subjects, others, things, side: float) -> list[str]:
  """Wordings of the relations that are true between each subject and each other."""
  meanings = [
    meaning
    for meaning in ("left of", "right of", "above", "below")
    if all(relation(meaning, things[a], things[b], side) for a in subjects for b in others)
  ]
  return [wording for wording, meaning in RELATIONS.items() if meaning in meanings]


def _relate(caption: _Caption, subjects: int, wordings: list[str], sentence: bool, rng: np.random.Generator) -> None:
  verb = ("is " if subjects == 1 else "are ") if sentence else ""
  caption.text += f" {verb}{wordings[rng.integers(len(wordings))]} "


def _unique_by_relation(caption: _Caption, things, side: float, sentence: bool, rng: np.random.Generator) -> bool:
  """Adds '(there is) the red circle left of the star', where 'red circle' alone would fit more things."""
  for _ in range(6):
    description = dataclasses.replace(describe(things[rng.integers(len(things))], rng), size=None, texture=None)
    candidates = select(things, description)
    if len(candidates) < 2:
      continue
    anchor = describe(things[rng.integers(len(things))], rng)
    anchors = select(things, anchor)
    if len(anchors) != 1 or anchors[0] in candidates:
      continue
    wordings = tuple(RELATIONS)
    for wording in (wordings[i] for i in rng.permutation(len(wordings))):
      truth = [relation(RELATIONS[wording], things[i], things[anchors[0]], side) for i in candidates]
      chosen = tuple(i for i, true in zip(candidates, truth, strict=True) if true)
      if None in truth or not 0 < len(chosen) < len(candidates) or caption.mentioned.intersection(chosen + anchors):
        continue
      if sentence:
        caption.text += "there is " if len(chosen) == 1 else "there are "
      caption.mention("the" if len(chosen) == 1 else f"the {NUMBERS[len(chosen)]}", description, chosen)
      caption.text += f" {wording} "
      caption.mention("the", anchor, anchors)
      return True
  return False


def _more_about_last(caption: _Caption, things, side: float, rng: np.random.Generator) -> bool:
  """Adds a sentence whose subject is the group mentioned last, perhaps in other words."""
  subjects = caption.mentions[-1].things
  other = _group(caption.mentioned, things, rng)
  wordings = _true_wordings(subjects, other[1], things, side) if other else []
  for _ in range(4 if wordings else 0):
    description = describe(things[subjects[0]], rng)
    if select(things, description) == subjects:
      caption.mention("the", description, subjects)
      _relate(caption, len(subjects), wordings, True, rng)
      caption.mention(_determiner(other[1], rng), *other)
      return True
  return False


def write_questions(
  things: tuple[Thing, ...], side: float, pairs: frozenset[Pair], rng: np.random.Generator
) -> tuple[tuple[str, str], ...]:
  """Questions about a scene with answers from ANSWERS.

  Args: things, side, rng: as in `write_caption`. pairs: colour-kind pairs that questions may name, present or not.
  """
  asked: dict[str, str] = {}
  for number in rng.permutation(7)[:QUESTIONS].tolist():
    if number == 0:
      found = _count(things, pairs, rng)
    elif number == 1:
      found = _existence(things, pairs, rng)
    elif not things:
      found = None
    elif number == 2:
      found = _true_or_not(things, side, rng)
    else:
      found = _attribute(("noun", *ADJECTIVES)[number - 3], things, rng)
    if found:
      asked[found[0]] = found[1]
  return tuple(asked.items())


def _maybe_absent(things, pairs: frozenset[Pair], rng: np.random.Generator) -> Description:
  """A phrase for a thing of the scene with, half of the time, one word exchanged; only pairs of `pairs` are named."""
  while True:
    if things:
      description = describe(things[rng.integers(len(things))], rng)
    else:
      description = Description(KINDS[rng.integers(len(KINDS))], colour=COLOURS[rng.integers(len(COLOURS))])
    if rng.random() < 0.5:
      said = [name for name in VALUES if getattr(description, name)]
      name = said[rng.integers(len(said))]
      description = dataclasses.replace(description, **{name: VALUES[name][rng.integers(len(VALUES[name]))]})
    pair = description.colour, description.noun
    if description.colour is None or description.noun in NOUNS or pair in pairs:
      return description


def _count(things, pairs, rng: np.random.Generator) -> tuple[str, str]:
  description = _maybe_absent(things, pairs, rng)
  return f"how many {description.words(plural=True)} are there?", NUMBERS[len(select(things, description))]


def _existence(things, pairs, rng: np.random.Generator) -> tuple[str, str]:
  description = _maybe_absent(things, pairs, rng)
  words = description.words()
  article = "an" if words[0] in "aeiou" else "a"
  return f"is there {article} {words}?", "yes" if select(things, description) else "no"


def _only(things, rng: np.random.Generator, silent: str = "") -> tuple[Description, Thing] | None:
  """A phrase that fits one thing, and the thing."""
  for _ in range(6):
    thing = things[rng.integers(len(things))]
    description = describe(thing, rng, silent)
    if len(select(things, description)) == 1:
      return description, thing
  return None


def _true_or_not(things, side: float, rng: np.random.Generator) -> tuple[str, str] | None:
  first, second = _only(things, rng), _only(things, rng)
  if first is None or second is None or first[1] is second[1]:
    return None
  wording = tuple(RELATIONS)[rng.integers(len(RELATIONS))]
  truth = relation(RELATIONS[wording], first[1], second[1], side)
  if truth is None:
    return None
  return f"is the {first[0].words()} {wording} the {second[0].words()}?", "yes" if truth else "no"


def _attribute(name: str, things, rng: np.random.Generator) -> tuple[str, str] | None:
  found = _only(things, rng, silent=name)
  if found is None:
    return None
  asked = {"noun": "kind of shape", "size": "size", "texture": "texture", "colour": "colour"}[name]
  answer = found[1].kind if name == "noun" else getattr(found[1], name)
  if answer == "solid" and rng.random() < 0.6:  # else 'solid' is always a good guess
    return None
  return f"what {asked} is the {found[0].words()}?", answer


def vocabulary() -> tuple[str, ...]:
  """Every word and punctuation mark that captions, class names, questions and answers use, sorted."""
  glue = "a an the all and is are there in this with no of picture image background shows , ;"
  asked = "how many what kind shape size texture colour ?"
  lines = (*NOTHING, *OPENINGS, *RELATIONS, *NUMBERS, *SIZES, *TEXTURES, *COLOURS, glue, asked, "yes no")
  nouns = [form for noun in (*KINDS, *NOUNS) for form in (noun, plural_of(noun))]
  return tuple(sorted({word for line in lines for word in line.split()}.union(nouns)))

"""Other names of classes as wordings of training prompts (`PromptConfig.synonyms`). LVIS lists up to eight of each.

The authors ask for every class by its own name; so does evaluation here. A class asked for by another name stays the
same concept.
"""

import types
from collections.abc import Iterable, Mapping, Sequence

from pipelines.concepts import clean_name, normalised_name
from pipelines.draws import Draws
from pipelines.mirror import names_a_side

Synonyms = Mapping[str, tuple[str, ...]]  # class -> how it may be called, its own name first
NO_SYNONYMS: Synonyms = types.MappingProxyType({})


def unambiguous(classes: Sequence[str], listed: Sequence[Sequence[str]]) -> dict[str, tuple[str, ...]]:
  """The classes that have another name, with all of theirs: those of `listed` (one list per class) that, cleaned, no
  other class has among its own, and that name no side (a mirrored picture would turn them wrong)."""
  texts = [
    list(dict.fromkeys(map(normalised_name, (name, *others)))) for name, others in zip(classes, listed, strict=True)
  ]
  owners: dict[str, set[str]] = {}
  for name, own in zip(classes, texts, strict=True):
    for text in own:
      owners.setdefault(text, set()).add(name)
  found = {}
  for name, (_, *others) in zip(classes, texts, strict=True):
    clear = tuple(text for text in others if text and len(owners[text]) == 1 and not names_a_side(text))
    if clear:
      found[name] = (clean_name(name), *clear)
  return found


def draw(asked: Iterable[str], synonyms: Synonyms, rng: Draws) -> dict[str, str]:
  """How each of the classes `asked` is called this time, each of its names as likely; those without another name are
  left out."""
  known = ((name, synonyms[name]) for name in dict.fromkeys(asked) if name in synonyms)
  return {name: names[int(rng.integers(len(names)))] for name, names in known}

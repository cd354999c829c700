"""Class names as pieces of a prompt: their texts and tokens, found once for a tokenizer and remembered.

Separators end in white space (prompts.PromptConfig), which no token reaches over; so a name has the same tokens in
every prompt, and the tokens of a prompt are those of its pieces.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from pipelines.concepts import clean_name, normalised_name
from pipelines.words import SPECIAL_TOKENS, Words, span_to_tokens

Wording = tuple[str, str, str]  # text before a name, the name, text after it
REMEMBERED = 1 << 17  # names that are kept


class Entry(NamedTuple):
  """A class name as a piece of a prompt."""

  text: str  # with its wording and the separator
  bare: str  # without the separator
  key: str  # equal for names that read alike
  begin: int  # characters of the name in the text
  end: int
  tokens: int  # of the text
  first: int  # of those the name has `count` tokens from this one on
  count: int


class _Entries(dict):
  """Name, or (name, wording), -> Entry: what one tokenizer makes of it, remembered."""

  def __init__(self, words: Words, separator: str):
    super().__init__()
    self._words, self._separator = words, separator

  def __missing__(self, key: str | tuple[str, Wording]) -> Entry:
    before, shown, after = ("", clean_name(key), "") if isinstance(key, str) else key[1]
    bare, span = before + shown + after, (len(before), len(before) + len(shown))
    text = bare + self._separator
    tokens = self._words.count_name(text)
    alone = dataclasses.replace(self._words, max_tokens=tokens + SPECIAL_TOKENS).encode(text)
    begin = len(before + shown) - len(shown.lstrip())  # the span has the white space at its ends, as published
    own = span_to_tokens(alone, ((begin, begin + len(shown.strip())),))
    first = own[0] - 1 if own else 0  # [CLS] stands before them
    if len(self) >= REMEMBERED:
      self.clear()
    self[key] = entry = Entry(text, bare, normalised_name(shown), *span, tokens, first, len(own))
    return entry


def entries_of(names: Sequence[str], wordings: dict[str, Wording], words: Words, separator: str) -> list[Entry]:
  """Every name as it is in a prompt, with its wording if there is one."""
  key = _Entries, separator
  if key not in words.remembered:
    words.remembered[key] = _Entries(words, separator)
  known = words.remembered[key]
  if not wordings:
    return list(map(known.__getitem__, names))
  return [known[(name, wordings[name]) if name in wordings else name] for name in names]


def fitting(names: list[str], wordings: dict[str, Wording], words: Words, separator: str, used: int) -> list[str]:
  """The first names whose prompt fits; `used` tokens are taken already."""
  room = words.max_tokens - SPECIAL_TOKENS - used
  for i, entry in enumerate(entries_of(names, wordings, words, separator)):
    if words.count_name(entry.bare) > room:  # the last name has no separator
      return names[:i]
    room -= entry.tokens
  return names

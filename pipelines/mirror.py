"""Left and right in the text of a mirrored picture.

The authors mirror pictures and leave captions alone, so "the dog on the left" turns wrong (reference 6.8). Here the two
words change places and the character spans move along.
"""

import re
from collections.abc import Iterable

from pipelines.records import Span

SIDES = re.compile(r"\b(left|right)(?=(?:most|wards?|hand(?:ed)?)?\b)", re.IGNORECASE)


def names_a_side(text: str) -> bool:
  """Whether `text` contains left, right, leftmost, right-hand, ..."""
  return SIDES.search(text) is not None


def _other(word: str) -> str:
  other = "right" if word.lower() == "left" else "left"
  return other.upper() if word.isupper() else other.title() if word.istitle() else other


def swap_sides(text: str, spans: Iterable[tuple[Span, ...]] = ()) -> tuple[str, tuple[tuple[Span, ...], ...]]:
  """`text` with left and right exchanged, and the spans of each box moved to the same words."""
  places = [(match.start(), match.end(), _other(match.group())) for match in SIDES.finditer(text)]

  def move(offset: int) -> int:
    shift = 0
    for begin, end, other in places:
      if begin < offset < end:  # inside the word: as far into the new one as it is long
        return begin + shift + min(offset - begin, len(other))
      if offset >= end:
        shift += len(other) - (end - begin)
    return offset + shift

  moved = tuple(tuple((move(begin), move(end)) for begin, end in box) for box in spans)
  return SIDES.sub(lambda match: _other(match.group()), text), moved

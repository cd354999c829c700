"""Character spans of boxes: read from json with everything checked, and kept compactly."""

from array import array
from collections.abc import Iterable, Sequence
from typing import Any

from pipelines.records import Span

_MOST = 1 << 30  # characters; larger numbers are nonsense and must not overflow


def read_spans(value: Any) -> list[Span]:
  """[[begin, end], ...] of json. Whether they lie inside the caption is asked when the record is used.

  Raises ValueError, starting with 'needs'.
  """
  if not isinstance(value, list):
    raise ValueError(f"needs a list of character ranges [begin, end], not {value!r:.80}")
  for span in value:
    if not (isinstance(span, list) and len(span) == 2 and all(type(x) is int and abs(x) < _MOST for x in span)):
      raise ValueError(f"needs character ranges [begin, end] of whole numbers, not {span!r:.80}")
  return [(begin, end) for begin, end in value]


class Spans(Sequence[tuple[Span, ...]]):
  """n lists of spans, 8 bytes for each list and each span. Grows by `append`."""

  def __init__(self):
    self._values, self._ends = array("i"), array("q", [0])

  def append(self, spans: Iterable[Span]) -> None:
    for span in spans:
      self._values.extend(span)
    self._ends.append(len(self._values))

  def __len__(self) -> int:
    return len(self._ends) - 1

  def __getitem__(self, i: int) -> tuple[Span, ...]:
    if not 0 <= i < len(self):
      raise IndexError(f"list {i} of {len(self)}")
    values = self._values[self._ends[i] : self._ends[i + 1]]
    return tuple(zip(values[::2], values[1::2], strict=True))

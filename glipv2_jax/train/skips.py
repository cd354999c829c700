"""Counts of broken records that the data pipeline passed over; too many of them stop the run."""

import collections
from collections.abc import Callable, Iterable, Mapping

SHOWN = 5  # records named in full
GRACE = 200  # examples before the fraction means anything


class TooManySkipped(RuntimeError):
  """More broken records than the configured fraction."""


class Skips:
  """limit: largest accepted fraction of skipped records among this process's examples; counts: from a checkpoint."""

  def __init__(self, limit: float, counts: Mapping[str, int], note: Callable[[str], None]):
    self.counts = collections.Counter(counts)
    self._limit, self._note = limit, note
    self._here = self._examples = 0

  def add(self, skipped: Iterable[tuple[str, str]], examples: int) -> None:
    """skipped: (reason, record) pairs met while drawing `examples` examples. Raises TooManySkipped."""
    self._examples += examples
    for reason, record in skipped:
      self.counts[reason] += 1
      self._here += 1
      if self._here <= SHOWN:
        self._note(f"skipped record {record}: {reason}" + (" (further ones are only counted)" * (self._here == SHOWN)))
    if self._examples >= GRACE and self._here > self._limit * (self._examples + self._here):
      reasons = ", ".join(f"{reason} {count}" for reason, count in self.counts.most_common())
      raise TooManySkipped(
        f"{self._here} of {self._examples + self._here} records could not be used ({reasons}), more than "
        f"skip_limit = {self._limit}; repair the data or raise the limit"
      )

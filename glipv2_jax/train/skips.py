"""Counts of records that the data pipeline passed over (too many stop the run) or used without some of their boxes."""

import collections
from collections.abc import Callable, Iterable, Mapping

SHOWN = 5  # records named in full, of each reason
WORST = 5  # sources and reasons that the message of a stop lists
GRACE = 200  # examples before the fraction means anything

Pairs = Iterable[tuple[str, str]]  # (reason, record)


class TooManySkipped(RuntimeError):
  """More broken records than the configured fraction."""


class Skips:
  """limit: largest accepted fraction of skipped records among this process's examples; skipped, reduced: counts from a
  checkpoint."""

  def __init__(self, limit: float, skipped: Mapping[str, int], reduced: Mapping[str, int], note: Callable[[str], None]):
    self.skipped, self.reduced = collections.Counter(skipped), collections.Counter(reduced)
    self._limit, self._note = limit, note
    self._named = collections.Counter()
    self._offenders: dict[tuple[str, str], list[str]] = {}  # (source, reason) -> the first records
    self._offences = collections.Counter()
    self._here = self._examples = 0

  def add(self, skipped: Pairs, reduced: Pairs, examples: int) -> None:
    """What was met while drawing `examples` examples. Raises TooManySkipped."""
    self._examples += examples
    self._count(self.reduced, reduced, "reduced")
    skipped = tuple(skipped)
    self._here += self._count(self.skipped, skipped, "skipped")
    for reason, record in skipped:
      offender = (record.rpartition("/")[0], reason)
      self._offences[offender] += 1
      records = self._offenders.setdefault(offender, [])
      if len(records) < SHOWN and record not in records:
        records.append(record)
    if self._examples >= GRACE and self._here > self._limit * (self._examples + self._here):
      raise TooManySkipped(
        f"{self._here} of {self._examples + self._here} records could not be used (worst: {self._worst()}), more than "
        f"skip_limit = {self._limit}; repair the data or raise the limit"
      )

  def _worst(self) -> str:
    """Sources and reasons with the most skipped records since this start, and records to look at."""
    shown = []
    for (source, reason), count in self._offences.most_common(WORST):
      records = self._offenders[source, reason]
      shown.append(f"{source}: {reason} {count} ({', '.join(records)}{', ...' if count > len(records) else ''})")
    return ", ".join(shown)

  def _count(self, counts: collections.Counter, pairs: Pairs, verb: str) -> int:
    """Adds `pairs` to `counts`, names the first records of every reason and returns the number of pairs."""
    pairs = tuple(pairs)
    for reason, record in pairs:
      counts[reason] += 1
      self._named[verb, reason] += 1
      if (seen := self._named[verb, reason]) <= SHOWN:
        more = " (further ones are only counted)" if seen == SHOWN else ""
        self._note(f"{verb} record {record}: {reason}{more}")
    return len(pairs)

  def numbers(self) -> dict[str, dict[str, int]]:
    """For the log and the checkpoint: {"skipped": {reason: count}, "reduced": {reason: count}}."""
    return {"skipped": dict(self.skipped), "reduced": dict(self.reduced)}

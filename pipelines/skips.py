"""Counts of what the pipeline could not use, and the limit above which training stops."""

import collections

from pipelines.records import HostBatch

SHOWN = 5  # records named per reason
PATIENCE = 200  # examples before the fraction means anything


class SkipStats:
  """Adds up `HostBatch.skipped` (records passed over) and `.reduced` (records that lost boxes)."""

  def __init__(self, limit: float):
    """`limit`: fraction of the records read that may be unusable, 0 .. 1."""
    self.limit = limit
    self.read = 0  # records read, the unusable ones included
    self.skipped: collections.Counter[str] = collections.Counter()
    self.reduced: collections.Counter[str] = collections.Counter()
    self.first: dict[str, list[str]] = collections.defaultdict(list)

  def add(self, batch: HostBatch) -> list[str]:
    """Counts one batch; returns a line for each record worth logging, the first few of every reason.

    Raises RuntimeError with counts and records when more than `limit` of the records read could not be used.
    """
    lines = []
    for counts, pairs, verb in ((self.skipped, batch.skipped, "skipped"), (self.reduced, batch.reduced, "reduced")):
      for reason, record in pairs:
        counts[reason] += 1
        if len(self.first[reason]) < SHOWN:
          self.first[reason].append(record)
          lines.append(f"{verb} {record}: {reason}")
    skipped = len(batch.skipped)
    self.read += sum(info is not None for info in batch.info) + skipped
    total = sum(self.skipped.values())
    if skipped and self.read >= PATIENCE and total > self.limit * self.read:
      raise RuntimeError(
        f"{total} of {self.read} records could not be used, more than skip_limit={self.limit}: "
        f"{self._named(self.skipped)}; repair the data set or raise skip_limit"
      )
    return lines

  def metrics(self) -> dict[str, int]:
    """Name -> count since the start, for the metrics log."""
    skipped = {f"skipped/{reason}": n for reason, n in sorted(self.skipped.items())}
    return skipped | {f"reduced/{reason}": n for reason, n in sorted(self.reduced.items())}

  def _named(self, counts: collections.Counter[str]) -> str:
    return ", ".join(f"{reason} {n} ({', '.join(self.first[reason])})" for reason, n in sorted(counts.items()))

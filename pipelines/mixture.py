"""Which record stands where in the endless training stream, on which canvas, and who reads it.

The stream is a function of (sources, weights, canvases, batch, seed) alone. Local batches are cut from it before any
worker or host comes in: global batch n of B examples is stream positions n B .. (n + 1) B - 1, and host h of H reads
the h-th of its H equal parts. So the batches of the hosts, concatenated in order, are the batches of a single host,
workers change nothing, and a run resumes at batch n by starting to read there. Nothing is counted up on the way: where
a position leads is computed, so that any position is reached at once.

A batch has one canvas. Canvases of about one aspect ratio form a shape, a record belongs to the shape that it fills
best, and every batch takes its records from one shape: little of a canvas is padding, and no host needs to see what
another one reads. Records whose size the index does not tell belong to the shape of the first canvas.
"""

import dataclasses
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from pipelines.children import end_with_parent

Canvas = tuple[int, int]  # height, width
SAME_SHAPE = 1.1  # canvases whose aspect ratios follow each other within this factor form one shape
ROUNDS = 4
WEIGHTINGS = ("share", "repeats")
WORKER_BUFFER = 2  # batches that a worker process is ahead
SHARED_FROM = 1 << 16  # bytes; smaller arrays are pickled


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a position of the stream leads."""

  canvas: Canvas
  part: int  # of Mixture.parts
  source: int
  record: int  # index in the source


class Part:
  """The records of one source that belong to one shape, in a new random order for every epoch.

  The order is a Feistel network with random tables over rows x columns >= length: a permutation of any size for memory
  of its square root, where drawing one takes 8 bytes per record and process (grain's `shuffle` needs no memory either,
  but 11 ms per example for 3 records, and it may change with its version).
  """

  def __init__(self, source: int, length: int, key: tuple[int, ...], records: np.ndarray | None = None):
    """`key` seeds the orders; `records` n int32: indices in the source, None: all `length` of them."""
    self.source, self.length, self.records, self._key = source, length, records, key
    self._rows = max(1, math.isqrt(length - 1) + 1)
    self._columns = -(-length // self._rows)
    self._kept: tuple[int, list, list] = (-1, [], [])

  def __len__(self) -> int:
    return self.length

  def record(self, position: int) -> int:
    """The index in the source of the record that `position` (without shuffling) stands for."""
    return position if self.records is None else int(self.records[position])

  def __call__(self, k: int) -> int:
    """The index in the source of the k-th record read: epoch k // length, everything once in each."""
    epoch, place = divmod(k, self.length)
    kept = self._kept  # one assignment each way: threads may read while another one replaces it
    if kept[0] != epoch:
      rng = np.random.default_rng((*self._key, epoch))
      shifts = rng.integers(self._rows, size=(ROUNDS, self._columns))
      self._kept = kept = (epoch, shifts, rng.integers(self._columns, size=(ROUNDS, self._rows)))
    while True:  # the few places that lead outside are led on until they come back
      row, column = divmod(place, self._columns)
      for down, along in zip(kept[1], kept[2], strict=True):
        row = (row + int(down[column])) % self._rows
        column = (column + int(along[row])) % self._columns
      place = row * self._columns + column
      if place < self.length:
        return self.record(place)


def shares(lengths: Sequence[int], weights: Sequence[float], weighting: str, temperature: float) -> list[float]:
  """The fraction of the stream that each source gets, in the sum 1.

  weighting 'share': `weights` are proportions of examples; 'repeats': so many passes over each source while the others
  make theirs, so a weight counts length times. Then q ** (1 / temperature): 1 leaves the proportions, more evens them.
  Raises ValueError for an unknown weighting, a weight or temperature that is not above 0, an empty source.
  """
  if weighting not in WEIGHTINGS:
    raise ValueError(f"weighting {weighting!r} is not known; known: {', '.join(WEIGHTINGS)}")
  if not 0 < temperature < math.inf:
    raise ValueError(f"temperature {temperature} has to be a number above 0; 1 leaves the weights as they are")
  if not all(0 < weight < math.inf for weight in weights) or not all(lengths):
    raise ValueError(f"weights {list(weights)}, lengths {list(lengths)}: both must be above 0; drop the source")
  amounts = weights if weighting == "share" else [w * n for w, n in zip(weights, lengths, strict=True)]
  evened = [(amount / sum(amounts)) ** (1 / temperature) for amount in amounts]
  return [amount / sum(evened) for amount in evened]


def interleave(k: int, parts: Sequence[int]) -> tuple[int, int]:
  """Position k of an even interleaving of endless streams -> (which stream, position in it). `parts`: proportions.

  The first stream takes each position at which floor(k p / total) grows, the second one what is due to it of the rest,
  and so on: after any number of positions every stream is within a few elements of its share.
  """
  rest = sum(parts)
  for which, part in enumerate(parts):
    before, after = k * part // rest, (k + 1) * part // rest
    if after > before:
      return which, before
    k, rest = k - before, rest - part
  raise ValueError(f"proportions {parts} have to be whole numbers above 0")


def shapes(canvases: Sequence[Canvas]) -> list[list[Canvas]]:
  """The canvases grouped by aspect ratio, each group in the given order; the first canvas is in the first group."""
  order = sorted(range(len(canvases)), key=lambda i: canvases[i][0] / canvases[i][1])
  groups = [[order[0]]]
  for last, i in zip(order, order[1:], strict=False):
    apart = canvases[i][0] * canvases[last][1] > SAME_SHAPE * canvases[last][0] * canvases[i][1]
    groups.append([i]) if apart else groups[-1].append(i)
  return [[canvases[i] for i in group] for group in sorted(map(sorted, groups))]


def best_shape(groups: Sequence[Sequence[Canvas]], sizes: np.ndarray) -> np.ndarray:
  """For sizes n 2 (height, width; 0 0 unknown) the number of the shape that is filled best, n int; 0 where unknown."""
  centres = [np.mean([math.log(height / width) for height, width in group]) for group in groups]
  known = (sizes > 0).all(axis=1)
  ratio = np.log(sizes[known, 0] / sizes[known, 1])
  found = np.zeros(len(sizes), np.int8)
  found[known] = np.argmin(np.abs(ratio[:, None] - centres), axis=1)
  return found


class Mixture:
  """Stream position -> Place, for any position, without state.

  Attributes:
    parts: every (shape, source) that has records.
  """

  def __init__(
    self,
    lengths: Sequence[int],
    shares: Sequence[float],
    canvases: Sequence[Canvas],
    batch: int,
    seed: int,
    sizes: Callable[[int], np.ndarray | None] = lambda source: None,
  ):
    """`shares`: of the sources; `sizes(source)`: n 2 height, width of its records (0 0: unknown), None: all unknown.
    It is called only when the canvases have several shapes."""
    self.batch, self.seed, self.shapes = batch, seed, shapes(canvases)
    self.parts: list[Part] = []
    amounts: list[list[float]] = [[] for _ in self.shapes]
    members: list[list[int]] = [[] for _ in self.shapes]
    for source, (length, share) in enumerate(zip(lengths, shares, strict=True)):
      for shape, records in enumerate(self._split(length, lambda source=source: sizes(source))):
        count = length if records is None else len(records)
        if count:
          members[shape].append(len(self.parts))
          amounts[shape].append(share * count / length)
          key = (seed, source) if shape == 0 else (seed, source, 0x73686170, shape)
          self.parts.append(Part(source, count, key, records))
    used = [shape for shape, found in enumerate(members) if found]
    self.shapes = [self.shapes[shape] for shape in used]
    self._members = [members[shape] for shape in used]
    self._kept: tuple[int, Canvas] = (-1, (0, 0))  # the batch that was asked for last
    self._of_shapes = _whole([sum(amounts[shape]) for shape in used])
    self._of_members = [_whole(amounts[shape]) for shape in used]

  def _split(self, length: int, sizes: Callable[[], np.ndarray | None]) -> list[np.ndarray | None]:
    """The records of a source by shape; None: all of them."""
    rest = [np.zeros(0, np.int32)] * (len(self.shapes) - 1)
    found = sizes() if rest else None
    if found is None:
      return [None, *rest]
    if found.shape != (length, 2):
      raise ValueError(f"sizes of shape {found.shape} for {length} records; a source gives height and width of each")
    best = best_shape(self.shapes, found)
    return [np.flatnonzero(best == shape).astype(np.int32) for shape in range(len(self.shapes))]

  def shape(self, n: int) -> tuple[int, int]:
    """Shape of global batch n, and how many batches of that shape come before it."""
    return interleave(n, self._of_shapes)

  def canvas(self, n: int) -> Canvas:
    """Canvas of global batch n: a function of the mixture and n alone, so that every host runs the same step."""
    kept = self._kept  # one assignment each way, as in Part
    if kept[0] != n:
      canvases = self.shapes[self.shape(n)[0]]
      self._kept = kept = (n, canvases[np.random.default_rng((self.seed, 0x63616E76, n)).integers(len(canvases))])
    return kept[1]

  def __call__(self, k: int, _: Any = None) -> Place:
    n, row = divmod(k, self.batch)
    shape, before = self.shape(n)
    which, position = interleave(before * self.batch + row, self._of_members[shape])
    number = self._members[shape][which]
    part = self.parts[number]
    return Place(self.canvas(n), number, part.source, part(position))


def _whole(amounts: Sequence[float]) -> list[int]:
  """Proportions as whole numbers, so that positions are computed without rounding however far the stream goes."""
  return [max(1, round(amount / sum(amounts) * 2**40)) for amount in amounts]


def stream(mixture: Mixture) -> grain.MapDataset:
  """The endless data set of Places."""
  return grain.MapDataset.range(1).repeat().map_with_index(mixture)


def local_batches(
  examples: grain.MapDataset,
  collate: Callable[[Sequence[Any]], Any],
  *,
  batch: int,
  host: int,
  hosts: int,
  start: int = 0,
) -> grain.MapDataset:
  """One host's part of the batches from global batch `start` on. Raises ValueError for a batch that cannot be split."""
  if batch % hosts:
    raise ValueError(f"the global batch of {batch} cannot be split over {hosts} hosts; use a multiple of {hosts}")
  if not 0 <= host < hosts:
    raise ValueError(f"host {host} of {hosts}: hosts are counted from 0")
  return examples.batch(batch // hosts, drop_remainder=True, batch_fn=collate)[start * hosts + host :: hosts]


def iterate(
  batches: grain.MapDataset,
  workers: int,
  take_apart: Callable[[Any], tuple[dict[str, np.ndarray], Any]],
  put_together: Callable[[tuple[dict[str, np.ndarray], Any]], Any],
  batch_bytes: int,
) -> grain.DatasetIterator:
  """Reads batches in order, ahead of the consumer: in `workers` processes, or in a thread when 0.

  Processes hand the arrays of a batch (what `take_apart` says) over in shared memory, unless /dev/shm (64 MB in many
  containers) is too small for the `batch_bytes` of all that are under way: then they are pickled, which is slower and
  gives the same.
  """
  dataset = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
  if not workers:
    return iter(dataset)
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # grain reads its flags when it starts processes, also in programs without flags
  under_way = workers * (2 * WORKER_BUFFER + 2) * batch_bytes  # buffers on both sides, one made, one used
  smallest = SHARED_FROM if _shared_memory() > 2 * under_way else sys.maxsize
  dataset = grain.experimental.WithOptionsIterDataset(
    dataset.map(take_apart), grain.experimental.DatasetOptions(min_shm_size=smallest)
  )
  options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=WORKER_BUFFER)
  return iter(dataset.mp_prefetch(options, worker_init_fn=_follow_parent).map(put_together))


def _shared_memory() -> float:
  """Free bytes for shared memory; endless where it is not a file system of its own."""
  try:
    found = os.statvfs("/dev/shm")
  except OSError:
    return math.inf
  return found.f_bavail * found.f_frsize


def _follow_parent(worker: int, workers: int) -> None:
  """Run in each worker: ends with the main process and not before it: a scheduler that signals the whole job must leave
  the main process its data while it saves."""
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  end_with_parent()

"""Which record stands where in the endless training stream, and who reads it.

The stream is a function of (sources, weights, seed) alone. Local batches are cut from it before any worker or host
comes in: global batch n of B examples is stream positions n B .. (n + 1) B - 1, and host h of H reads the h-th of its H
equal parts. So the batches of the hosts, concatenated in order, are the batches of a single host, workers change
nothing, and a run resumes at batch n by starting to read there.
"""

import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags


def stream(lengths: Sequence[int], weights: Sequence[float], seed: int) -> grain.MapDataset:
  """Endless (source index, record index), every source shuffled anew each time it is used up, mixed by weight."""
  endless = grain.MapDataset.range(1).repeat()
  parts = [endless.map_with_index(_Order(source, length, seed)) for source, length in enumerate(lengths)]
  return grain.MapDataset.mix(parts, weights=list(weights))


class _Order:
  """Position in a source's own stream -> (source, index): a new permutation for every epoch.

  Not grain's `shuffle`, whose cost grows as the set shrinks (11 ms per example for 3 images, 0.2 ms for 200), and which
  may change with its version. The permutation of the current epoch is kept: 8 bytes per record.
  """

  def __init__(self, source: int, length: int, seed: int):
    self.source, self.length, self.seed = source, length, seed
    self._kept: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

  def __call__(self, k: int, _: int) -> tuple[int, int]:
    epoch, place = divmod(k, self.length)
    kept = self._kept  # one assignment each way: threads may read while another one replaces it
    if kept[0] != epoch:
      rng = np.random.default_rng((self.seed, self.source, epoch))
      self._kept = kept = (epoch, rng.permutation(self.length))
    return self.source, int(kept[1][place])


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


def iterate(batches: grain.MapDataset, workers: int) -> grain.DatasetIterator:
  """Reads batches in order, ahead of the consumer: in `workers` processes, or in a thread when 0."""
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
  dataset = batches.to_iter_dataset(options)
  if workers:
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()  # grain reads its flags when it starts processes, also in programs without flags
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    dataset = dataset.mp_prefetch(options, worker_init_fn=_follow_parent)
  return iter(dataset)


def _follow_parent(worker: int, workers: int) -> None:
  """Run in each worker: ends with the main process, however that ends (kill -9 too), and not before it: a scheduler
  that signals the whole job must leave the main process its data while it saves."""
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)

  def watch() -> None:
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)

  threading.Thread(target=watch, daemon=True, name="follow_parent").start()

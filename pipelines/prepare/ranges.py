"""Long work over a source, range by range: in this process, in several or on Apache Beam.

A piece of work is a function of (source, range of indices) that returns something small. Each process opens the source
once for itself, and only as many results wait as there are processes: memory does not depend on the length.
"""

import collections
import dataclasses
import functools
import itertools
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

from pipelines.children import end_with_parent
from pipelines.records import Source
from pipelines.sources import open_source

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class SourceSpec:
  """A source as a configuration names it: small, hashable, and opened where it is used."""

  kind: str
  options: tuple[tuple[str, Any], ...] = ()

  def open(self) -> Source:
    """Raises ValueError (also for an option that the source does not have, or lacks) or OSError as the source does."""
    try:
      return open_source(self.kind, **dict(self.options))
    except TypeError as error:
      raise ValueError(f"source {self.kind!r}: {error}") from error


def split(length: int, size: int) -> list[range]:
  """0..length-1 in ranges of `size`, the last one shorter. Raises ValueError for a size below 1."""
  if size < 1:
    raise ValueError(f"{size} records in a part; a part needs at least one")
  return [range(begin, min(begin + size, length)) for begin in range(0, length, size)]


def over(
  spec: SourceSpec, work: Callable[[Source, range], T], parts: Sequence[range], processes: int = 0
) -> Iterator[T]:
  """work(source, part) for each part, in order. `processes` 0: here. Exceptions of the work come out here."""
  if not processes:
    source = opened(spec)
    yield from (work(source, part) for part in parts)
    return
  with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), end_with_parent) as pool:
    yield from _ordered(pool, functools.partial(_work, spec, work), iter(parts), 2 * processes)


def on_beam(
  spec: SourceSpec, work: Callable[[Source, range], Any], parts: Sequence[range], flags: Sequence[str] = ()
) -> None:
  """work(source, part) for each part, each one element of a Beam pipeline. What it returns is dropped: it writes files.

  Args:
    flags: Beam's pipeline options, such as --runner=FlinkRunner. Without --runner it is Beam's direct runner in Python
      (FnApiRunner); what Beam calls DirectRunner would first try to download a program.

  Raises ImportError that names the extra, ValueError for a runner that Beam does not know, and what the runner makes of
  exceptions of the work.
  """
  try:
    import apache_beam as beam  # slow to import and needed only here
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError as error:
    raise ImportError('--beam needs Apache Beam: pip install "glipv2_jax[beam]"') from error
  with beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner", *flags])) as pipeline:
    spread = pipeline | "parts" >> beam.Create(parts) | "spread" >> beam.Reshuffle()
    spread | "work" >> beam.Map(functools.partial(_work, spec, work))


def _ordered(pool: ProcessPoolExecutor, call: Callable[[range], T], parts: Iterable[range], ahead: int) -> Iterator[T]:
  waiting = collections.deque(pool.submit(call, part) for part in itertools.islice(parts, ahead))
  while waiting:
    yield waiting.popleft().result()
    waiting.extend(pool.submit(call, part) for part in itertools.islice(parts, 1))


@functools.lru_cache(maxsize=1)
def opened(spec: SourceSpec) -> Source:
  """The source, opened once in this process."""
  return spec.open()


def _work(spec: SourceSpec, work: Callable[[Source, range], T], part: range) -> T:
  return work(opened(spec), part)

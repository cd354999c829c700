"""Mutated annotation files: what may come of one, and how to tell that a change of structure was noticed."""

import contextlib
import json
import signal
from typing import Any

import numpy as np

from pipelines.records import BadRecord

SECONDS = 20


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
  """One mutation: bytes changed, cut out, doubled or cut off."""
  at, length = int(rng.integers(len(data))), int(rng.integers(1, 9))
  how = rng.integers(4)
  if how == 0:
    return data[:at] + rng.integers(0, 256, length, np.uint8).tobytes() + data[at + length :]
  if how == 1:
    return data[:at] + data[at + length :]
  if how == 2:
    return data[: at + length] + data[at:]
  return data[:at]


def misspelt(data: bytes, rng: np.random.Generator) -> bytes:
  """One letter inside a json key is another one: the smallest change of structure."""
  ends = [i for i in range(1, len(data)) if data[i : i + 2] == b'":']
  end = ends[rng.integers(len(ends))]
  begin = data.rindex(b'"', 0, end)
  at = int(rng.integers(begin + 1, end)) if end > begin + 1 else begin
  return data[:at] + bytes([97 + int(rng.integers(26))]) + data[at + 1 :]


@contextlib.contextmanager
def time_limit():
  def alarm(*_):
    raise AssertionError(f"a mutated file takes more than {SECONDS} seconds")

  before = signal.signal(signal.SIGALRM, alarm)
  signal.alarm(SECONDS)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def structure(value: Any) -> Any:
  """Keys, lengths and types of a json value, without its numbers and texts."""
  if isinstance(value, dict):
    return {key: structure(item) for key, item in value.items()}
  if isinstance(value, list):
    return [structure(item) for item in value]
  return "number" if type(value) in (int, float) else type(value).__name__


def other_structure(before: bytes, after: bytes) -> bool:
  """Whether a json file is none any more, or one with other keys, lengths or types."""
  try:
    return structure(json.loads(after)) != structure(json.loads(before))
  except (ValueError, RecursionError):
    return True


def any_bad(found: list) -> bool:
  return any(isinstance(x, BadRecord) for x in found)

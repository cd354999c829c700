"""Parts of a json record that is read when it is used: each checked, so that nothing of a wrong type goes on.

They raise ValueError saying what is wrong; inside `faults_as_bad_record` that becomes a BadRecord. (Index files that
are read as a whole at start-up have `index.Record` for this.)
"""

import contextlib
import json
import math
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from pipelines.records import BadRecord
from pipelines.sources.index import is_text

_LARGEST = 1 << 26  # bytes of a small json file


@contextlib.contextmanager
def faults_as_bad_record(record: str) -> Iterator[None]:
  """Turns whatever a malformed record makes Python raise into BadRecord('broken_annotation') naming `record`."""
  try:
    yield
  except KeyError as error:
    raise BadRecord("broken_annotation", record, f"it has no {error}") from error
  except (ValueError, TypeError, RecursionError) as error:  # json and Unicode errors are ValueErrors
    raise BadRecord("broken_annotation", record, f"{error}"[:300]) from error


def mapping(value: Any, what: str) -> dict:
  if not isinstance(value, dict):
    raise ValueError(f"{what} has to be an object, not {value!r:.80}")
  return value


def items(value: Any, what: str) -> list:
  if not isinstance(value, list):
    raise ValueError(f"{what} has to be a list, not {value!r:.80}")
  return value


def text(value: Any, what: str) -> str:
  """A string that can be written as UTF-8."""
  if not isinstance(value, str) or not is_text(value):
    raise ValueError(f"{what} has to be a text, not {value!r:.80}")
  return value


def side(value: Any, what: str) -> int:
  """A height or width in pixels, also as a string of digits."""
  number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10 else value
  if type(number) is not int or not 0 < number < 2**31:
    raise ValueError(f"{what} has to be a number of pixels, not {value!r:.40}")
  return number


def number(value: Any, what: str) -> float:
  """A number; null, which some tools write for NaN, becomes NaN, as do infinite ones."""
  if value is None:
    return math.nan
  if type(value) not in (int, float):
    raise ValueError(f"{what} has to be a number, not {value!r:.40}")
  return float(value) if -1e30 < value < 1e30 else math.nan


def box(value: Any, what: str = "a box") -> list[float]:
  """Four numbers."""
  if not isinstance(value, list) or len(value) != 4:
    raise ValueError(f"{what} has to be four numbers, not {value!r:.80}")
  return [number(x, what) for x in value]


def read_small_json(path: pathlib.Path, option: str, what: str) -> Any:
  """For start-up: raises FileNotFoundError or ValueError, saying that `option` should name `what`."""
  if not path.is_file():
    raise FileNotFoundError(f"{path} does not exist; set `{option}` to {what}")
  if path.stat().st_size > _LARGEST:
    raise ValueError(f"{path} has {path.stat().st_size} bytes, too many for {what}; check `{option}`")
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is not valid json ({error}); set `{option}` to {what}") from error


def check_names(path: pathlib.Path, names: Iterable[Any]) -> None:
  """For start-up: raises ValueError for a class without a name and a name that stands for several classes."""
  seen = set()
  for name in names:
    if not isinstance(name, str) or not is_text(name) or not name.strip():
      raise ValueError(f"{path}: a class has the name {name!r:.80}; give it one")
    if name in seen:
      raise ValueError(f"{path}: the name {name!r} stands for several classes; names must differ")
    seen.add(name)

"""What the sources share: big json files read record by record, and the compact arrays that keep what was read.

A source holds no Python object per record: ids and numbers are NumPy columns, texts are `Strings`, what belongs to one
picture is found through `group`. So its index pickles quickly into worker processes, and reading a file takes little
more memory than the index. Long parts that are seldom needed (polygons) stay in the file: a `Record` knows its bytes.
"""

import codecs
import json
import math
import os
import pathlib
import re
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

_CHUNK = 1 << 22  # bytes read at a time
_LONGEST = 1 << 28  # characters that one record may have: a broken file must not be read into memory as a whole
_SPACE = re.compile(r"[ \t\n\r]*")


class Record:
  """One entry of a json file, with accessors that say what is wrong with it (ValueError: file, entry, remedy).

  Attributes:
    list: the name of the list it stands in, '' where the file is a list.
    number: its position there.
    value: what json made of it.
    begin, end: its bytes in the file (`Places`).
  """

  __slots__ = ("path", "list", "number", "value", "begin", "end")

  def __init__(self, path: pathlib.Path, list_: str, number: int, value: Any, begin: int = 0, end: int = 0):
    self.path, self.list, self.number, self.value, self.begin, self.end = path, list_, number, value, begin, end

  def fault(self, message: str) -> ValueError:
    """To be raised: the message with the place in front and the entry behind."""
    return ValueError(
      f"{self.path}: {self.list or 'entry '}[{self.number}] {message}; the entry is {self.value!r:.200}"
    )

  def __getitem__(self, key: str) -> Any:
    try:
      return self.value[key]
    except (KeyError, TypeError, IndexError):
      raise self.fault(f"has no {key!r}; add it or remove the entry") from None

  def __contains__(self, key: str) -> bool:
    return isinstance(self.value, dict) and key in self.value

  def optional(self, key: str) -> Any:
    """The value, None where the key is absent."""
    return self.value[key] if key in self else None

  def whole(self, key: str) -> int:
    """An integer of at most 64 bits."""
    value = self[key]
    if type(value) is not int or not -(2**63) <= value < 2**63:
      raise self.fault(f"has the {key} {value!r:.40}; it needs a whole number")
    return value

  def text(self, key: str) -> str:
    """A string that can be written as UTF-8 (no half of a surrogate pair)."""
    value = self[key]
    if not isinstance(value, str) or not is_text(value):
      raise self.fault(f"has the {key} {value!r:.80}; it needs a text")
    return value

  def flag(self, key: str) -> bool:
    """0, 1, false or true."""
    value = self[key]
    if value not in (0, 1):
      raise self.fault(f"has the {key} {value!r:.40}; it needs 0 or 1")
    return bool(value)

  def items(self, key: str) -> list:
    """A list."""
    value = self[key]
    if not isinstance(value, list):
      raise self.fault(f"has the {key} {value!r:.80}; it needs a list")
    return value

  def wholes(self, key: str) -> list[int]:
    """A list of integers of at most 64 bits."""
    values = self.items(key)
    if not all(type(x) is int and -(2**63) <= x < 2**63 for x in values):
      raise self.fault(f"has the {key} {values!r:.80}; it needs whole numbers")
    return values

  def numbers(self, key: str, count: int) -> list[float]:
    """A list of `count` numbers. null, which some tools write for NaN, and infinite ones become NaN: a matter of this
    record alone."""
    value = self.items(key)
    if len(value) != count or not all(map(_is_number, value)):
      raise self.fault(f"has the {key} {value!r:.80}; it needs {count} numbers")
    return list(map(_number, value))

  def real(self, key: str) -> float:
    """A number, null as in `numbers`."""
    if not _is_number(value := self[key]):
      raise self.fault(f"has the {key} {value!r:.40}; it needs a number")
    return _number(value)


def _is_number(value: Any) -> bool:
  return type(value) in (float, int) or value is None


def _number(value: float | None) -> float:
  return value if value is not None and -1e30 < value < 1e30 else math.nan


def is_text(value: str) -> bool:
  """Whether a string can be written as UTF-8; json escapes can spell half of a surrogate pair."""
  if value.isascii():
    return True
  try:
    value.encode()
  except UnicodeEncodeError:
    return False
  return True


def read_json(path: pathlib.Path, lists: Collection[str], option: str, what: str) -> Iterator[Record]:
  """The entries of the named lists of a json object, or with lists=('',) those of a json list, in the file's order.

  The file passes by in pieces, so memory does not depend on its size. Everything else in it is read over.
  `option` and `what` say in messages which option names the file and what the file should be.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is not json, cut short, or lacks one of the lists.
  """
  if not path.is_file():
    raise FileNotFoundError(f"annotation file {path} does not exist; set `{option}` to {what}")
  with open(path, "rb") as file:
    stream, seen = _Stream(file), set()
    try:
      if stream.peek() == "[":
        if "" in lists:
          seen.add("")
        yield from stream.entries(path, "", wanted="" in lists)
      else:
        for key in stream.keys():
          if key in lists and key in seen:
            raise ValueError(f"{key!r} stands in it twice")
          if stream.peek() == "[":
            if key in lists:
              seen.add(key)
            yield from stream.entries(path, key, wanted=key in lists)
          else:
            stream.value()
      if stream.peek():
        raise ValueError(f"something follows the end: {stream.text[stream.at : stream.at + 20]!r}")
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
      raise ValueError(f"annotation file {path} is not valid json ({error}); is it truncated? copy it again") from error
  missing = [key for key in lists if key not in seen]
  if missing:
    parts = "is no list" if missing == [""] else f"has no list {', '.join(missing)}"
    raise ValueError(f"annotation file {path} {parts}; set `{option}` to {what}")


class _Stream:
  """The characters of a json file, piece by piece: text[at] is the next one."""

  def __init__(self, file: BinaryIO):
    self.file, self.decoder = file, codecs.getincrementaldecoder("utf-8")()
    self.text, self.at, self.ended = "", 0, False
    self._mark, self._byte = 0, 0  # text[_mark] is byte _byte of the file
    if file.read(3) == codecs.BOM_UTF8:
      self._byte = 3
    else:
      file.seek(0)

  def byte(self, at: int) -> int:
    """The place in the file of text[at]; asked with growing `at` only."""
    part = self.text[self._mark : at]
    self._byte += len(part) if part.isascii() else len(part.encode())
    self._mark = at
    return self._byte

  def more(self) -> None:
    self.byte(self.at)
    data = self.file.read(max(_CHUNK, len(self.text) - self.at))  # twice as much each time that a record wants more
    self.ended = not data
    self.text = self.text[self.at :] + self.decoder.decode(data, final=self.ended)
    self.at = self._mark = 0

  def peek(self) -> str:
    """The next character that is no white space, '' at the end of the file."""
    while True:
      self.at = _SPACE.match(self.text, self.at).end()
      if self.at < len(self.text):
        return self.text[self.at]
      if self.ended:
        return ""
      self.more()

  def take(self, known: str) -> str:
    """Steps over the next character, which must be one of `known`."""
    found = self.peek()
    if not found or found not in known:
      raise ValueError(f"found {found!r}, expected one of {known!r}" if found else "it ends too early")
    self.at += 1
    return found

  def value(self) -> Any:
    """One complete value."""
    self.peek()
    while True:
      try:
        value, end = _DECODER.raw_decode(self.text, self.at)
        if end + 3 <= len(self.text) or self.ended:  # otherwise a number may go on: 2 was the beginning of 2e-5
          self.at = end
          return value
      except json.JSONDecodeError:
        if self.ended or len(self.text) - self.at > _LONGEST:
          raise
      self.more()

  def keys(self) -> Iterator[str]:
    """The keys of an object; the caller takes the value before the next one."""
    self.take("{")
    if self.peek() == "}":
      self.take("}")
      return
    while True:
      if self.peek() != '"':
        raise ValueError(f"found {self.peek()!r}, expected a name in quotation marks")
      key = self.value()
      self.take(":")
      yield key
      if self.take(",}") == "}":
        return

  def entries(self, path: pathlib.Path, list_: str, wanted: bool) -> Iterator[Record]:
    """The entries of a list; with `wanted` off they are only read over."""
    self.take("[")
    if self.peek() == "]":
      self.take("]")
      return
    number = 0
    while True:
      self.peek()
      begin = self.byte(self.at)
      value = self.value()
      if wanted:
        yield Record(path, list_, number, value, begin, self.byte(self.at))
      number += 1
      if self.take(",]") == "]":
        return


_DECODER = json.JSONDecoder()


class Places:
  """Where n records stand in a file, to read them again when they are used: 12 bytes each."""

  def __init__(self, path: os.PathLike, begins: Sequence[int], ends: Sequence[int]):
    self.path = os.fspath(path)
    self._begins, self._lengths = np.array(begins, np.int64), np.subtract(ends, begins).astype(np.uint32)

  def __len__(self) -> int:
    return len(self._begins)

  def take(self, rows: np.ndarray) -> "Places":
    """The places of these rows, in this order."""
    return Places(self.path, self._begins[rows], self._begins[rows] + self._lengths[rows])

  def read(self, rows: Iterable[int]) -> list[Any]:
    """What stands there. Raises ValueError when the file was changed since, OSError when it is gone."""
    with open(self.path, "rb") as file:
      found = []
      for row in rows:
        file.seek(self._begins[row])
        found.append(json.loads(file.read(self._lengths[row])))
    return found


def all_or_none(path: pathlib.Path, list_: str, key: str, given: int, total: int) -> bool:
  """Whether an optional field is in use. Raises ValueError when only some entries have it: a lost field would pass for
  a default."""
  if 0 < given < total:
    raise ValueError(f"{path}: only {given} of {total} {list_} have {key!r}; give it to all of them or to none")
  return given > 0


class Strings(Sequence[str]):
  """n texts in one array of bytes: their UTF-8 length and 8 bytes each."""

  def __init__(self, texts: Iterable[str]):
    """Raises UnicodeEncodeError for a text that `is_text` refuses."""
    data, ends = bytearray(), array("q", [0])
    for text in texts:
      data += text.encode()
      ends.append(len(data))
    self._bytes, self._ends = np.frombuffer(bytes(data), np.uint8), np.frombuffer(ends, np.int64)

  def __len__(self) -> int:
    return len(self._ends) - 1

  def __getitem__(self, i: int) -> str:
    if not 0 <= i < len(self):
      raise IndexError(f"text {i} of {len(self)}")
    return self._bytes[self._ends[i] : self._ends[i + 1]].tobytes().decode()


def group(owner: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
  """Rows sorted by owner in 0..count-1, in the given order within each: (order n, ends count + 1); the rows of owner i
  are order[ends[i] : ends[i + 1]]."""
  order = np.argsort(owner, kind="stable")
  return order, np.searchsorted(owner[order], np.arange(count + 1))


def unique(path: pathlib.Path, ids: np.ndarray, what: str) -> None:
  """Raises ValueError naming an id that occurs twice."""
  values, counts = np.unique(ids, return_counts=True)
  if len(values) < len(ids):
    raise ValueError(f"{path}: {what} id {values[counts > 1][0]} occurs {counts.max()} times; ids must be unique")


def positions(path: pathlib.Path, wanted: np.ndarray, known: np.ndarray, what: str) -> np.ndarray:
  """Where each wanted id stands in `known` (unique). Raises ValueError naming the first that does not."""
  strangers = wanted[~np.isin(wanted, known)]
  if len(strangers):
    hint = f"known: {known.tolist()!s:.200}" if what == "category" else f"it is not in `{what}s`"
    raise ValueError(f"{path}: an annotation has the unknown {what}_id {strangers[0]}; {hint}; correct or remove it")
  order = np.argsort(known)
  return order[np.searchsorted(known, wanted, sorter=order)] if len(wanted) else np.zeros(0, np.int64)


def inclusive(xywh: np.ndarray) -> np.ndarray:
  """Boxes n 4 (left, top, width, height) -> n 4 float32 x1, y1, x2, y2 with x2 = x + max(w - 1, 0) (reference 6.4).

  A width or height of 0 or less becomes x2 < x1, so that the fault stays visible; so do NaN and infinite numbers."""
  x, y, w, h = np.asarray(xywh, np.float64).reshape(-1, 4).T
  with np.errstate(invalid="ignore", over="ignore"):
    right, bottom = (np.where(side > 0, np.maximum(side - 1, 0), side - 1) for side in (w, h))
    return np.stack([x, y, x + right, y + bottom], axis=-1).astype(np.float32)


def inclusive_corners(xyxy: np.ndarray) -> np.ndarray:
  """Boxes n 4 (left, top, right, bottom), the last two exclusive -> as `inclusive`."""
  corners = np.asarray(xyxy, np.float64).reshape(-1, 4)
  with np.errstate(invalid="ignore", over="ignore"):
    return inclusive(np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1))

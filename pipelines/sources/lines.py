"""Files of lines: random access by byte offset, 8 bytes of memory per line. json lines, GLIP's TSV, lists of captions.

Each process opens the file for itself, so a `Lines` pickles as its offsets. What the file says at an offset is checked
against it: an offset file (`lineidx`) that belongs to another version of the file is noticed, not read wrongly.
"""

import os
import pathlib

import numpy as np

_CHUNK = 1 << 24  # bytes searched at a time
LONGEST = 1 << 28  # bytes that one line may have


class Lines:
  """The lines of a file, without their ends. Empty lines at the end of the file do not count."""

  def __init__(self, path: str | os.PathLike, option: str, lineidx: str | os.PathLike | None = None):
    """Finds the lines, or reads where they begin from `lineidx` (one byte offset per line) where that file exists.

    `option` is the option of the source that names the file, for messages.
    Raises FileNotFoundError when the file is missing, ValueError when it is empty or does not fit its lineidx.
    """
    self.path, self._file = os.fspath(path), None
    if not os.path.isfile(self.path):
      raise FileNotFoundError(f"{self.path} does not exist; set `{option}` to an existing file")
    size = os.path.getsize(self.path)
    if lineidx is not None and os.path.isfile(lineidx):
      self._begins = _read_offsets(pathlib.Path(lineidx), self.path, size)
    else:
      self._begins = find_lines(self.path)
    if len(self._begins) < 2:
      raise ValueError(f"{self.path} is empty; set `{option}` to a file with one record per line")

  def __len__(self) -> int:
    return len(self._begins) - 1

  def __getitem__(self, i: int) -> bytes:
    """Raises ValueError when the file has been changed since its lines were found, OSError when it is gone."""
    if not 0 <= i < len(self):
      raise IndexError(f"line {i} of {len(self)} in {self.path}")
    begin, end = int(self._begins[i]), int(self._begins[i + 1])
    before = 1 if begin else 0
    if end - begin > LONGEST:
      raise ValueError(f"line {i + 1} of {self.path} has {end - begin} bytes, more than {LONGEST}")
    if self._file is None:
      self._file = open(self.path, "rb", buffering=0)
    data = os.pread(self._file.fileno(), before + end - begin, begin - before)
    line = data[before:].removesuffix(b"\n")
    ends = end == self._begins[-1] or data[-1:] == b"\n"
    if len(data) < before + end - begin or (before and data[:1] != b"\n") or b"\n" in line or not ends:
      raise ValueError(f"no line begins and ends at the bytes {begin} and {end} of {self.path}; the file was changed")
    return line.removesuffix(b"\r")

  def __getstate__(self) -> dict:
    return self.__dict__ | {"_file": None}

  def __del__(self) -> None:
    if self.__dict__.get("_file") is not None:
      self._file.close()


def find_lines(path: str) -> np.ndarray:
  """n + 1 int64: where each line begins, and where the last one ends."""
  parts, at, last = [np.zeros(1, np.int64)], 0, b"\n"
  with open(path, "rb") as file:
    while data := file.read(_CHUNK):
      parts.append(np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + (at + 1))
      at, last = at + len(data), data[-1:]
  begins = np.concatenate(parts if last == b"\n" else [*parts, np.array([at])])
  with open(path, "rb") as file:
    while len(begins) > 1:  # without the empty lines at the end
      file.seek(begins[-2])
      if file.read(min(2, int(begins[-1] - begins[-2]))).strip(b"\r\n"):
        break
      begins = begins[:-1]
  return begins


def _read_offsets(lineidx: pathlib.Path, path: str, size: int) -> np.ndarray:
  try:
    begins = np.loadtxt(lineidx, np.int64, ndmin=1) if lineidx.stat().st_size else np.zeros(0, np.int64)
  except ValueError as error:
    raise ValueError(f"{lineidx} needs one byte offset per line ({error}); remove it and it is not needed") from error
  if len(begins) == 0 or begins[0] != 0 or (np.diff(begins) <= 0).any() or begins[-1] >= size:
    raise ValueError(f"{lineidx} does not fit {path} ({size} bytes): it belongs to another file; remove or renew it")
  return np.append(begins, size)

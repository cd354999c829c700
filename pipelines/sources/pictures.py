"""The image files of a source: a folder, a name in it for each picture; and what start-up finds out about them."""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from pipelines.records import BadRecord
from pipelines.sources.index import Strings

_FIRST = 20  # so many pictures or records are looked at at start-up, to tell a wrong folder from a missing file
T = TypeVar("T")


def check_folder(folder: str | os.PathLike, option: str = "images") -> None:
  """For start-up: raises FileNotFoundError when the folder of the pictures is missing."""
  if not os.path.isdir(folder):
    raise FileNotFoundError(f"image folder {folder} does not exist; set `{option}` to the folder of the pictures")


def read_picture(path: str, record: str) -> bytes:
  """The encoded picture. Raises BadRecord('missing_image') naming `record`."""
  if not os.path.isfile(path):  # before it is opened: a pipe or a device would never end
    raise BadRecord("missing_image", record, f"{path}: no such file")
  try:
    with open(path, "rb") as stream:
      return stream.read()
  except OSError as error:
    raise BadRecord("missing_image", record, f"{path}: {error.strerror}") from error


def first_usable(count: int, read: Callable[[int], T]) -> T:
  """For start-up: what `read` gives for the first of `count` records that can be read. A few are tried, to tell a
  broken one from a wrong file.

  Raises the BadRecord of the very first where none of these can be read."""
  faults = []
  for index in range(min(count, _FIRST)):
    try:
      return read(index)
    except BadRecord as error:
      faults.append(error)
  raise faults[0]


class Pictures:
  """The image files of a source: one folder, a name in it for each picture."""

  def __init__(self, folder: str | os.PathLike, names: Iterable[str], option: str = "images"):
    """Raises FileNotFoundError when the folder is missing."""
    check_folder(folder, option)
    self.folder, self.names, self.option = os.fspath(folder), Strings(names), option

  def __len__(self) -> int:
    return len(self.names)

  def path(self, i: int) -> str:
    """The file of picture i."""
    return os.path.join(self.folder, self.names[i])

  @staticmethod
  def found(
    folder: str | os.PathLike, forms: Iterable[Sequence[str]], used: Sequence[int], option: str = "images"
  ) -> "Pictures":
    """For start-up: the pictures by the first form of their names by which one of the first in use exists.

    Raises FileNotFoundError when none of them does."""
    tried = []
    for names in forms:
      pictures = Pictures(folder, names, option)
      first = [pictures.path(i) for i in used[:_FIRST]]
      if any(map(os.path.isfile, first)):
        return pictures
      tried.append(first[0])
    raise FileNotFoundError(
      f"none of the first {len(used[:_FIRST])} pictures exists, for example {' or '.join(dict.fromkeys(tried))}; "
      f"check `{option}`"
    )

  def read(self, i: int, record: str) -> bytes:
    """The encoded picture. Raises BadRecord('missing_image') naming `record`."""
    return read_picture(self.path(i), record)

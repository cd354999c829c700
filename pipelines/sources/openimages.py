"""OpenImages: boxes in a csv file, as fractions of pictures whose sizes only the pictures themselves tell.

Only some classes were looked for in each picture (`image_labels`), groups are boxed as one (`IsGroupOf`), and a box has
its most special class alone: a boy is no second box of a person (`hierarchy`). So not every class without a box is a
negative. The index takes 20 bytes per box and 52 per picture: 0.4 GB for the 14.6 million boxes of the training set.
"""

import csv
import operator
import pathlib
import re
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pipelines import images as pixels
from pipelines.records import Example, record_name
from pipelines.sources.index import group, inclusive_corners
from pipelines.sources.parts import check_names, read_small_json
from pipelines.sources.pictures import Pictures, check_folder

_ID = re.compile(r"[0-9a-f]{16}")
_BOXES = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf")  # XMax comes before YMin
_LABELS = ("ImageID", "LabelName", "Confidence")
_NODE = {"LabelName", "Subcategory", "Part"}  # of the hierarchy
_FLAGS = {"0": 0, "1": 1, "-1": 0}  # -1: unknown


class OpenImages:
  """Random access to the pictures that have boxes, sorted by id.

  Groups are left out and their classes become `unsure`; pictures with nothing but groups are left out.

  Attributes:
    kind: 'detection'.
    classes: names in the order of the class description file.
    image_ids: (n,) uint64, the 16 hexadecimal digits of each ImageID as a number.
  """

  kind = "detection"

  def __init__(
    self,
    annotations: str,
    class_descriptions: str,
    images: str,
    *,
    name: str = "openimages",
    image_labels: str = "",
    hierarchy: str = "",
  ):
    """Reads the index.

    Args:
      annotations: SPLIT-annotations-bbox.csv.
      class_descriptions: class-descriptions-boxable.csv.
      images: the folder of {ImageID}.jpg.
      name: of this data set, for messages and counts.
      image_labels: SPLIT-annotations-human-imagelabels-boxable.csv; with it, prompts ask beside the classes of the
        boxes for those alone that people found absent. Without it, any other class may be asked for.
      hierarchy: bbox_labels_600_hierarchy.json; with it, prompts never ask for what a box is more generally.

    Raises:
      FileNotFoundError, ValueError: a file or the folder is missing or inconsistent; the line is named.
    """
    check_folder(images)
    self.name = name
    numbers, self.classes = _classes(pathlib.Path(class_descriptions))
    self._read_boxes(pathlib.Path(annotations), numbers)
    self._above = _ancestors(pathlib.Path(hierarchy), numbers) if hierarchy else {}
    self._absent, self._present = (None, None)
    if image_labels:
      self._read_labels(pathlib.Path(image_labels), numbers)
    self._pictures = Pictures.found(images, [[f"{i:016x}.jpg" for i in self.image_ids.tolist()]], range(len(self)))

  def _read_boxes(self, path: pathlib.Path, numbers: dict[str, int]) -> None:
    """Boxes sorted by picture: those of picture i are rows _ends[i] : _ends[i + 1]; groups likewise."""
    owners, labels, corners, groups = array("Q"), array("i"), array("d"), array("b")
    for row in _rows(path, _BOXES, "annotations"):
      image, label, x1, x2, y1, y2, flag = row.values
      owners.append(row.image(image))
      labels.append(row.known(numbers, label, "LabelName"))
      corners.extend((row.number(x1), row.number(y1), row.number(x2), row.number(y2)))
      groups.append(row.known(_FLAGS, flag, "IsGroupOf"))
    owners, labels, grouped = np.array(owners), np.array(labels, np.int32), np.array(groups, bool)
    self.image_ids = np.unique(owners[~grouped])
    if not len(self.image_ids):
      raise ValueError(f"{path} has no box to use; set `annotations` to a bbox csv of OpenImages")
    corners = np.array(corners).reshape(-1, 4)
    order, self._ends = self._sort(owners[~grouped])
    self._corners, self._labels = corners[~grouped][order].astype(np.float32), labels[~grouped][order]
    used = grouped & np.isin(owners, self.image_ids)
    order, ends = self._sort(owners[used])
    self._groups = labels[used][order], ends

  def _sort(self, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return group(np.searchsorted(self.image_ids, owners), len(self.image_ids))

  def _read_labels(self, path: pathlib.Path, numbers: dict[str, int]) -> None:
    owners, labels, present = array("Q"), array("i"), array("b")
    for row in _rows(path, _LABELS, "image_labels"):
      image, label, confidence = row.values
      owners.append(row.image(image))
      labels.append(row.known(numbers, label, "LabelName"))
      present.append(row.known({"0": 0, "1": 1, "0.0": 0, "1.0": 1}, confidence, "Confidence"))
    owners, labels, present = np.array(owners), np.array(labels, np.int32), np.array(present, bool)
    parts = []
    for chosen in (~present, present):
      chosen &= np.isin(owners, self.image_ids)
      order, ends = self._sort(owners[chosen])
      parts.append((labels[chosen][order], ends))
    self._absent, self._present = parts

  def __len__(self) -> int:
    return len(self.image_ids)

  def _of(self, column: tuple[np.ndarray, np.ndarray] | None, image: int) -> set[int]:
    return set() if column is None else set(column[0][column[1][image] : column[1][image + 1]].tolist())

  def __getitem__(self, index: int) -> Example:
    """Raises BadRecord('missing_image'), and 'undecodable_image' where the picture does not tell its size."""
    image_id = int(self.image_ids[index])
    record = record_name(self.name, image_id)
    data = self._pictures.read(index, record)
    height, width = pixels.size_of(data, record)
    rows = slice(self._ends[index], self._ends[index + 1])
    corners = self._corners[rows].astype(np.float64) * [width, height, width, height]
    labels = self._labels[rows].tolist()
    more_general = set().union(*(self._above[label] for label in labels if label in self._above))
    unsure = (self._of(self._groups, index) | self._of(self._present, index) | more_general) - set(labels)
    return Example(
      source=self.name,
      image_id=image_id,
      kind="detection",
      image=data,
      boxes_xyxy_px=inclusive_corners(corners),
      labels=tuple(self.classes[i] for i in labels),
      absent=None if self._absent is None else self._names(self._of(self._absent, index)),
      unsure=self._names(unsure),
    )

  def _names(self, labels: set[int]) -> tuple[str, ...]:
    return tuple(self.classes[i] for i in sorted(labels))


class _Row:
  """One line of a csv file: the wanted values, and what they mean."""

  __slots__ = ("path", "line", "values")

  def fault(self, message: str) -> ValueError:
    return ValueError(
      f"{self.path}, line {self.line}: {message}; the line has {self.values!r:.200}; repair or remove it"
    )

  def image(self, text: str) -> int:
    if not _ID.fullmatch(text):
      raise self.fault(f"ImageID {text!r:.40} is not of 16 hexadecimal digits")
    return int(text, 16)

  def number(self, text: str) -> float:
    try:
      return float(text)
    except ValueError:
      raise self.fault(f"{text!r:.40} is no number") from None

  def known(self, table: dict[str, int], text: str, what: str) -> int:
    if text not in table:
      raise self.fault(f"{what} {text!r:.40} is not known")
    return table[text]


def _rows(path: pathlib.Path, columns: Sequence[str], option: str) -> Iterator[_Row]:
  """The lines of a csv file with a header, each with the values of `columns`. The same object each time."""
  if not path.is_file():
    raise FileNotFoundError(f"{path} does not exist; set `{option}` to a csv file of OpenImages")
  row, row.path, row.line = (row := _Row()), path, 1
  try:
    with open(path, encoding="utf-8", newline="") as file:
      lines = csv.reader(file, strict=True)
      header = next(lines, [])
      missing = [column for column in columns if header.count(column) != 1]
      if missing:
        raise ValueError(f"{path}: the first line {header!r:.200} lacks {', '.join(missing)}; check `{option}`")
      pick = operator.itemgetter(*map(header.index, columns))
      for row.line, line in enumerate(lines, 2):
        if len(line) != len(header):
          raise ValueError(
            f"{path}, line {row.line} has {len(line)} values, the header {len(header)}; is it cut short?"
          )
        row.values = pick(line)
        yield row
  except (csv.Error, UnicodeDecodeError) as error:
    raise ValueError(f"{path} is no csv file after line {row.line} ({error}); copy it again") from error


def _classes(path: pathlib.Path) -> tuple[dict[str, int], tuple[str, ...]]:
  """LabelName -> position, and the names."""
  if not path.is_file():
    raise FileNotFoundError(f"{path} does not exist; set `class_descriptions` to class-descriptions-boxable.csv")
  try:
    lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines(), strict=True))
  except (csv.Error, UnicodeDecodeError) as error:
    raise ValueError(f"{path} is no csv file ({error}); copy it again") from error
  for number, line in enumerate(lines, 1):
    if len(line) != 2 or not line[0]:
      raise ValueError(f"{path}, line {number} is {line!r:.80}; it needs a LabelName and a name")
  check_names(path, (name for _, name in lines))
  numbers = {label: i for i, (label, _) in enumerate(lines)}
  if len(numbers) < len(lines):
    raise ValueError(f"{path}: {len(lines) - len(numbers)} LabelNames stand in it twice; copy it again")
  return numbers, tuple(name for _, name in lines)


def _ancestors(path: pathlib.Path, numbers: dict[str, int]) -> dict[int, frozenset[int]]:
  """Class -> the classes that it is a kind of."""
  found: dict[int, frozenset[int]] = {}

  def walk(node: Any, above: frozenset[int]) -> None:
    known = isinstance(node, dict) and "LabelName" in node and node.keys() <= _NODE
    if not known or not isinstance(node["LabelName"], str) or not isinstance(node.get("Subcategory", []), list):
      raise ValueError(f"{path}: {node!r:.80} is not made of {', '.join(sorted(_NODE))}; copy the hierarchy again")
    label = node["LabelName"]  # the root, an entity, is no class
    own = above | {numbers[label]} if label in numbers else above
    if label in numbers:
      found[numbers[label]] = found.get(numbers[label], frozenset()) | above
    for child in node["Subcategory"] if "Subcategory" in node else ():
      walk(child, own)

  walk(read_small_json(path, "hierarchy", "bbox_labels_600_hierarchy.json"), frozenset())
  return found

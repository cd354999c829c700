"""Detection data in COCO's json format: COCO, LVIS, Objects365, ODinW / Roboflow exports, or one's own folder.

Everything that is wrong with the file as a whole stops here, at start-up, with the name, the value and the remedy; what
is wrong with one picture or box is found when it is read (`pipelines/prepare_example.py`). The index takes 20 bytes per
box and 45 bytes and the name per picture: 0.6 GB for the 25 million boxes of Objects365.
"""

import pathlib
from array import array
from collections.abc import Sequence

import numpy as np

from pipelines import fewshot
from pipelines.records import Example
from pipelines.sources.index import Pictures, Record, group, inclusive, positions, read_json, unique

_WHAT = "a COCO-format json file"


def _categories(
  path: pathlib.Path, categories: list[Record], used: set[int], class_names: Sequence[str]
) -> tuple[np.ndarray, tuple[str, ...]]:
  """Ids (sorted) and names of the classes. A category that no box has and that is the `supercategory` of another one is
  a group and no class (Roboflow writes one with id 0)."""
  categories = sorted(categories, key=lambda c: c.whole("id"))
  groups = {
    str(c["supercategory"]) for c in categories if c.optional("supercategory") not in (None, c.optional("name"))
  }
  kept = [c for c in categories if c["id"] in used or str(c.optional("name")) not in groups]
  ids = np.array([c["id"] for c in kept], np.int64)
  unique(path, ids, "category")
  if class_names:
    if len(class_names) != len(ids):
      raise ValueError(f"class_names has {len(class_names)} names, {path} has {len(ids)} classes (ids {ids.tolist()})")
    return ids, tuple(class_names)
  names = tuple(c["name"] for c in kept)
  for i, name in zip(ids, names, strict=True):
    if not isinstance(name, str) or not name.strip():
      raise ValueError(f"{path}: category {i} has the name {name!r}; give it one there or set `class_names`")
    if names.count(name) > 1:
      raise ValueError(f"{path}: the name {name!r} stands for several categories; set `class_names` (in order of id)")
  return ids, names


class CocoJson:
  """Random access to the pictures of one COCO-format file.

  Crowd annotations are left out. Pictures without objects (no box, or only boxes of at most one pixel in width or
  height) are left out too, as the authors train (reference 6.4), unless `keep_empty`: evaluation must keep them.

  Attributes:
    classes: names in the order of the category ids; `category_ids` (c,) int64 holds the file's own ids, for results.
  """

  def __init__(
    self,
    annotations: str,
    images: str,
    *,
    name: str = "coco_json",
    keep_empty: bool = False,
    class_names: Sequence[str] = (),
    shots: int = 0,
    shots_seed: int = 0,
  ):
    """Reads the index.

    Args:
      annotations: the json file.
      images: the folder that its `file_name`s are relative to.
      name: of this data set, for messages and counts.
      keep_empty: keep pictures without objects.
      class_names: replaces the names of the classes, in order of their ids.
      shots: so many pictures of each class only (0: all), from the prepared few-shot file beside `annotations` or
        drawn by the same rule (pipelines/fewshot.py).
      shots_seed: of the draw; 0 takes the pictures in order of their ids.

    Raises:
      FileNotFoundError, ValueError: the file or folder is missing or the annotation is inconsistent.
    """
    path = pathlib.Path(annotations)
    prepared = fewshot.prepared_file(path, shots, shots_seed) if shots else None
    path = prepared or path
    self.name = name
    self._read(path, images, class_names)
    self._indices = np.arange(len(self.image_ids)) if keep_empty else self._with_objects()
    if shots and not prepared:
      self._draw(shots, shots_seed)
    if not len(self):
      raise ValueError(f"{path} has no picture to use ({len(self.image_ids)} listed, keep_empty={keep_empty})")
    self._pictures.check(self._indices)

  def _read(self, path: pathlib.Path, folder: str, class_names: Sequence[str]) -> None:
    """Boxes sorted by picture: those of picture i are rows _box_ends[i] : _box_ends[i + 1]."""
    image_ids, sizes, names, categories = array("q"), array("i"), [], []
    owners, labels, boxes, used = array("q"), array("q"), array("d"), set()
    for record in read_json(path, ("images", "annotations", "categories"), "annotations", _WHAT):
      if record.list == "images":
        image_ids.append(record.whole("id"))
        names.append(record.text("file_name"))
        sizes.extend(_size(record))
      elif record.list == "annotations":
        owner, label, box = record.whole("image_id"), record.whole("category_id"), record.numbers("bbox", 4)
        used.add(label)
        if "iscrowd" in record and record.flag("iscrowd"):
          continue
        owners.append(owner)
        labels.append(label)
        boxes.extend(box)
      else:
        categories.append(record)
    self.category_ids, self.classes = _categories(path, categories, used, class_names)
    self.image_ids = np.array(image_ids, np.int64)
    unique(path, self.image_ids, "image")
    self._pictures = Pictures(folder, names)
    # 0 0 where the file does not tell; otherwise the decoded picture must agree
    self._sizes = np.array(sizes, np.int32).reshape(-1, 2)
    order, self._box_ends = group(
      positions(path, np.array(owners, np.int64), self.image_ids, "image"), len(self.image_ids)
    )
    self._labels = positions(path, np.array(labels, np.int64), self.category_ids, "category")[order].astype(np.int32)
    self._boxes = inclusive(np.array(boxes, np.float64).reshape(-1, 4)[order])

  def _with_objects(self) -> np.ndarray:
    width, height = (self._boxes[:, 2:] - self._boxes[:, :2]).T
    tiny = (width >= 0) & (height >= 0) & ((width == 0) | (height == 0))  # a broken box is none of them
    return np.flatnonzero(np.diff(np.concatenate([[0], np.cumsum(~tiny)])[self._box_ends]))

  def _draw(self, shots: int, seed: int) -> None:
    order = self._indices[np.argsort(self.image_ids[self._indices])]
    classes = [self._labels[self._box_ends[i] : self._box_ends[i + 1]].tolist() for i in order]
    self._indices = order[fewshot.draw(classes, shots, seed)]

  def __len__(self) -> int:
    return len(self._indices)

  def sizes(self) -> np.ndarray:
    """n 2 int32: height and width of every picture, 0 0 where the file does not tell."""
    return self._sizes[self._indices]

  def __getitem__(self, index: int) -> Example:
    """Raises BadRecord('missing_image')."""
    image = self._indices[index]
    rows = slice(self._box_ends[image], self._box_ends[image + 1])
    height, width = self._sizes[image].tolist()
    image_id = int(self.image_ids[image])
    return Example(
      source=self.name,
      image_id=image_id,
      kind="detection",
      image=self._pictures.read(image, f"{self.name}/{image_id}"),
      boxes_xyxy_px=self._boxes[rows],
      labels=tuple(self.classes[i] for i in self._labels[rows]),
      image_size=(height, width) if height and width else None,
    )


def _size(image: Record) -> tuple[int, int]:
  """Height and width of a picture, 0 0 where the file does not tell."""
  if not (image.optional("height") and image.optional("width")):
    return 0, 0
  size = image.whole("height"), image.whole("width")
  if not all(0 < side < 2**31 for side in size):
    raise image.fault(f"has the height and width {size}; both must be positive")
  return size

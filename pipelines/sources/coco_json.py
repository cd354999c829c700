"""Detection data in COCO's json format: COCO, ODinW / Roboflow exports, Objects365, or one's own folder.

The whole index lives in a few NumPy arrays with offsets (25 million boxes take half a gigabyte), so that it pickles to
worker processes quickly. Everything that is wrong with the file as a whole stops here, at start-up, with the name, the
value and the remedy; what is wrong with one picture or box is found when it is read (`pipelines/prepare_example.py`).
"""

import json
import os
import pathlib

import numpy as np

from pipelines import fewshot
from pipelines.records import BadRecord, Example

_FIRST = 20  # so many pictures are looked for at start-up, to tell a wrong folder from a missing file


def _load(path: pathlib.Path) -> dict:
  if not path.is_file():
    raise FileNotFoundError(f"annotation file {path} does not exist; set `annotations` to a COCO-format json file")
  try:
    with open(path, encoding="utf-8") as file:
      content = json.load(file)
  except ValueError as error:  # JSONDecodeError, UnicodeDecodeError
    raise ValueError(f"annotation file {path} is not valid json ({error}); is it truncated? copy it again") from error
  lists = content if isinstance(content, dict) else {}
  missing = [key for key in ("images", "annotations", "categories") if not isinstance(lists.get(key), list)]
  if missing:
    raise ValueError(f"annotation file {path} has no list {', '.join(missing)}; a COCO detection json needs all three")
  return content


def _column(path: pathlib.Path, items: list[dict], what: str, key: str) -> list:
  try:
    return [item[key] for item in items]
  except (KeyError, TypeError):
    bad = next(i for i, item in enumerate(items) if not isinstance(item, dict) or key not in item)
    raise ValueError(f"{path}: {what}[{bad}] has no {key!r}: {items[bad]!r:.200}; add it or remove the entry") from None


def _unique(path: pathlib.Path, ids: np.ndarray, what: str) -> None:
  values, counts = np.unique(ids, return_counts=True)
  if len(values) < len(ids):
    raise ValueError(f"{path}: {what} id {values[counts > 1][0]} occurs {counts.max()} times; ids must be unique")


def _categories(path: pathlib.Path, content: dict, class_names: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
  """Ids (sorted) and names of the classes. A category that no box has and that is the `supercategory` of another one is
  a group and no class (Roboflow writes one with id 0)."""
  categories = sorted(content["categories"], key=lambda c: _column(path, [c], "categories", "id")[0])
  used = {a["category_id"] for a in content["annotations"] if "category_id" in a}
  groups = {c["supercategory"] for c in categories if c.get("supercategory") not in (None, c.get("name"))}
  categories = [c for c in categories if c["id"] in used or c.get("name") not in groups]
  ids = np.array([c["id"] for c in categories], np.int64)
  _unique(path, ids, "category")
  if class_names:
    if len(class_names) != len(ids):
      raise ValueError(f"class_names has {len(class_names)} names, {path} has {len(ids)} classes (ids {ids.tolist()})")
    return ids, tuple(class_names)
  names = tuple(_column(path, categories, "categories", "name"))
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
    kind: 'detection'.
    classes: names in the order of the category ids; `category_ids` (c,) int64 holds the file's own ids, for results.
  """

  kind = "detection"

  def __init__(
    self,
    annotations: str,
    images: str,
    *,
    name: str = "coco_json",
    keep_empty: bool = False,
    class_names: tuple[str, ...] = (),
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
    path, self.folder = pathlib.Path(annotations), os.fspath(images)
    if not os.path.isdir(self.folder):
      raise FileNotFoundError(f"image folder {self.folder} does not exist; set `images` to the folder of the pictures")
    prepared = fewshot.prepared_file(path, shots, shots_seed) if shots else None
    path = prepared or path
    content = _load(path)
    self.name = name
    self.category_ids, self.classes = _categories(path, content, class_names)
    self._read_images(path, content["images"])
    self._read_boxes(path, content["annotations"])
    if not keep_empty:
      self._leave_out_empty()
    if shots and not prepared:
      self._draw(shots, shots_seed)
    if not len(self):
      raise ValueError(f"{path} has no picture to use ({len(content['images'])} listed, keep_empty={keep_empty})")
    self._find_first()

  def _read_images(self, path: pathlib.Path, images: list[dict]) -> None:
    self.image_ids = np.array(_column(path, images, "images", "id"), np.int64)
    _unique(path, self.image_ids, "image")
    names = [str(x).encode() for x in _column(path, images, "images", "file_name")]
    self._names = np.frombuffer(b"".join(names), np.uint8)
    self._name_ends = np.cumsum([0, *map(len, names)])
    # 0 0 where the file does not tell; otherwise the decoded picture must agree
    self._sizes = np.array([[x.get("height") or 0, x.get("width") or 0] for x in images], np.int32).reshape(-1, 2)
    self._indices = np.arange(len(images))

  def _read_boxes(self, path: pathlib.Path, annotations: list[dict]) -> None:
    """Boxes sorted by picture: those of picture i are rows _box_ends[i] : _box_ends[i + 1]."""
    annotations = [a for a in annotations if not a.get("iscrowd")]
    category = np.array(_column(path, annotations, "annotations", "category_id"), np.int64)
    image = np.array(_column(path, annotations, "annotations", "image_id"), np.int64)
    boxes = _column(path, annotations, "annotations", "bbox")
    for bad in (i for i, box in enumerate(boxes) if not isinstance(box, list) or len(box) != 4):
      raise ValueError(f"{path}: annotations[{bad}] has the bbox {boxes[bad]!r}; it needs four numbers x, y, w, h")
    labels = _positions(path, category, self.category_ids, "category")
    owner = _positions(path, image, self.image_ids, "image")
    order = np.argsort(owner, kind="stable")
    x, y, w, h = np.array(boxes, np.float64).reshape(-1, 4)[order].T  # null becomes NaN, refused when it is read
    # x2 = x + max(w - 1, 0) (reference 6.4); a width of 0 or less must stay visible, so it becomes x2 < x
    right, bottom = (np.where(side > 0, np.maximum(side - 1, 0), -1) for side in (w, h))
    self._boxes = np.stack([x, y, x + right, y + bottom], axis=-1).astype(np.float32)
    self._labels = labels[order].astype(np.int32)
    self._box_ends = np.searchsorted(owner[order], np.arange(len(self.image_ids) + 1))
    self._tiny = ((w > 0) & (h > 0)) & ((w <= 1) | (h <= 1))

  def _leave_out_empty(self) -> None:
    counts = np.diff(np.concatenate([[0], np.cumsum(~self._tiny)])[self._box_ends])
    self._indices = np.flatnonzero(counts)

  def _draw(self, shots: int, seed: int) -> None:
    order = self._indices[np.argsort(self.image_ids[self._indices])]
    classes = [self._labels[self._box_ends[i] : self._box_ends[i + 1]].tolist() for i in order]
    self._indices = order[fewshot.draw(classes, shots, seed)]

  def _find_first(self) -> None:
    first = [self._file(i) for i in self._indices[:_FIRST]]
    if not any(os.path.isfile(file) for file in first):
      raise FileNotFoundError(f"none of the first {len(first)} pictures exists, for example {first[0]}; check `images`")

  def _file(self, image: int) -> str:
    name = self._names[self._name_ends[image] : self._name_ends[image + 1]].tobytes().decode()
    return os.path.join(self.folder, name)

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> Example:
    """Raises BadRecord('missing_image')."""
    image = self._indices[index]
    file = self._file(image)
    try:
      with open(file, "rb") as stream:
        data = stream.read()
    except OSError as error:
      raise BadRecord("missing_image", f"{self.name}/{self.image_ids[image]}", f"{file}: {error.strerror}") from error
    rows = slice(self._box_ends[image], self._box_ends[image + 1])
    height, width = self._sizes[image].tolist()
    return Example(
      source=self.name,
      image_id=int(self.image_ids[image]),
      kind="detection",
      image=data,
      boxes_xyxy_px=self._boxes[rows],
      labels=tuple(self.classes[i] for i in self._labels[rows]),
      image_size=(height, width) if height and width else None,
    )


def _positions(path: pathlib.Path, wanted: np.ndarray, known: np.ndarray, what: str) -> np.ndarray:
  """Where each wanted id stands in `known`. Raises ValueError naming the first that does not."""
  strangers = wanted[~np.isin(wanted, known)]
  if len(strangers):
    kind = f"known: {known.tolist()!s:.200}" if what == "category" else "it is not in `images`"
    raise ValueError(f"{path}: an annotation has the unknown {what}_id {strangers[0]}; {kind}; correct or remove it")
  order = np.argsort(known)
  return order[np.searchsorted(known, wanted, sorter=order)] if len(wanted) else np.zeros(0, np.int64)

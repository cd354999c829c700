"""Detection data in COCO's json format: COCO, LVIS, Objects365, ODinW / Roboflow exports, or one's own folder.

Everything that is wrong with the file as a whole stops here, at start-up, with the name, the value and the remedy; what
is wrong with one picture or box is found when it is read (`pipelines/prepare_example.py`). The index takes 20 bytes per
box (32 with masks, which stay in the file) and 48 bytes and the name per picture: 0.6 GB for the 25 million boxes of
Objects365.
"""

import collections
import dataclasses
import pathlib
from array import array
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pipelines import fewshot, images
from pipelines.masks import Mask, from_coco
from pipelines.records import BadRecord, Example, record_name
from pipelines.sources.index import Places, Record, all_or_none, group, inclusive, is_text, positions, read_json, unique
from pipelines.sources.pictures import Pictures, check_folder
from pipelines.synonyms import unambiguous

_WHAT = "a COCO-format json file"


def _categories(
  path: pathlib.Path,
  categories: list[Record],
  used: set[int],
  class_names: Sequence[str],
  rename: Mapping[str, str],
) -> tuple[np.ndarray, tuple[str, ...], dict[str, tuple[str, ...]]]:
  """Ids (sorted), names and synonyms of the classes. A category that no box has and that is the `supercategory` of
  another one is a group and no class (Roboflow writes one with id 0)."""
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
    return ids, tuple(class_names), _synonyms(kept, class_names)
  names = [str(rename[c["name"]]) if str(c["name"]) in rename else c["name"] for c in kept]
  for name in rename:
    if name not in [c["name"] for c in kept]:
      raise ValueError(f"rename: {path} has no class {name!r}; correct or remove that entry")
  for i, name in zip(ids, names, strict=True):
    if not isinstance(name, str) or not is_text(name) or not name.strip():
      raise ValueError(f"{path}: category {i} has the name {name!r}; give it one there or set `class_names`")
    if names.count(name) > 1:
      raise ValueError(f"{path}: the name {name!r} stands for several categories; set `class_names` (in order of id)")
  return ids, tuple(names), _synonyms(kept, names)


def _synonyms(categories: list[Record], names: Sequence[str]) -> dict[str, tuple[str, ...]]:
  listed = [category.items("synonyms") if "synonyms" in category else () for category in categories]
  for category, others in zip(categories, listed, strict=True):
    if not all(isinstance(other, str) and is_text(other) for other in others):
      raise category.fault("has synonyms that are no texts; correct or remove them")
  return unambiguous(names, listed)


class CocoJson:
  """Random access to the pictures of one COCO-format file.

  Crowd annotations are left out; their classes become `unsure`. Pictures without objects (no box, or only boxes of at
  most one pixel in width or height) are left out too, as the authors train (reference 6.4), unless `keep_empty`:
  evaluation must keep them. In a federated set (LVIS) the classes in `neg_category_ids` become `absent`.

  `file_name`s that are not found in `images` are looked for by their last two parts (Objects365 v2), then by those of
  `coco_url` (LVIS v1 has no `file_name`, v0.5 names of 2014 for pictures of 2017).

  Attributes:
    kind: 'detection'.
    classes: names in the order of the category ids; `category_ids` (c,) int64 holds the file's own ids, for results.
    synonyms: of the classes for which the file (LVIS) has others (pipelines/synonyms.py).
  """

  kind = "detection"

  def __init__(
    self,
    annotations: str,
    images: str,
    *,
    name: str = "coco_json",
    keep_empty: bool = False,
    class_names: Sequence[str] = (),
    rename: Sequence[tuple[str, str]] = (),
    negatives: str = "known",
    masks: bool = False,
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
      rename: (name in the file, better name) of single classes.
      negatives: 'known': prompts ask beside the classes of the boxes for those that are known to be absent (see above);
        'all': for any other, as the authors train.
      masks: read the segmentations too.
      shots: so many pictures of each class only (0: all), from the prepared few-shot file beside `annotations` or
        drawn by the same rule (pipelines/fewshot.py).
      shots_seed: of the draw; 0 takes the pictures in order of their ids.

    Raises:
      FileNotFoundError, ValueError: the file or folder is missing or the annotation is inconsistent.
    """
    if negatives not in ("known", "all"):
      raise ValueError(f"negatives={negatives!r} is not known; use 'known' or 'all'")
    check_folder(images)
    path = pathlib.Path(annotations)
    prepared = fewshot.prepared_file(path, shots, shots_seed) if shots else None
    path = prepared or path
    self.name, self._known_only = name, negatives == "known"
    content = _Content(path, masks)
    found = _categories(path, content.categories, content.used, class_names, dict(rename))
    self.category_ids, self.classes, self.synonyms = found
    self.image_ids = np.array(content.image_ids, np.int64)
    unique(path, self.image_ids, "image")
    # 0 0 where the file does not tell; otherwise the decoded picture must agree
    self._sizes = np.array(content.sizes, np.int32).reshape(-1, 2)
    self._read_boxes(path, content)
    self._indices = np.arange(len(self.image_ids)) if keep_empty else self._with_objects()
    if shots and not prepared:
      self._draw(shots, shots_seed)
    if not len(self):
      raise ValueError(f"{path} has no picture to use ({len(self.image_ids)} listed, keep_empty={keep_empty})")
    self._pictures = Pictures.found(images, content.file_names(), self._indices)

  def _read_boxes(self, path: pathlib.Path, content: "_Content") -> None:
    """Boxes sorted by picture: those of picture i are rows _box_ends[i] : _box_ends[i + 1]; crowds and absent classes
    likewise."""

    def sort(owners: Sequence[int], labels: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
      owners = positions(path, np.array(owners, np.int64), self.image_ids, "image")
      labels = positions(path, np.array(labels, np.int64), self.category_ids, "category").astype(np.int32)
      order, ends = group(owners, len(self.image_ids))
      return order, labels[order], ends

    order, self._labels, self._box_ends = sort(content.owners, content.labels)
    self._boxes = inclusive(np.array(content.boxes, np.float64).reshape(-1, 4)[order])
    self._places = Places(path, content.begins, content.ends).take(order) if content.masks else None
    self._crowds = sort(content.crowd_owners, content.crowd_labels)[1:]
    self._absent = sort(content.absent_owners, content.absent_labels)[1:] if content.federated else None

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

  def _names(self, rows: tuple[np.ndarray, np.ndarray], image: int) -> tuple[str, ...]:
    """Different classes of a picture in a (labels, ends) column."""
    labels, ends = rows
    if ends[image] == ends[image + 1]:
      return ()
    return tuple(self.classes[i] for i in np.unique(labels[ends[image] : ends[image + 1]]))

  def __getitem__(self, index: int) -> Example:
    """Raises BadRecord('missing_image'), and with masks BadRecord('broken_mask')."""
    image = self._indices[index]
    rows = slice(self._box_ends[image], self._box_ends[image + 1])
    height, width = self._sizes[image].tolist()
    image_id = int(self.image_ids[image])
    absent = self._names(self._absent, image) if self._known_only and self._absent is not None else None
    example = Example(
      source=self.name,
      image_id=image_id,
      kind="detection",
      image=self._pictures.read(image, record_name(self.name, image_id)),
      boxes_xyxy_px=self._boxes[rows],
      labels=tuple([self.classes[i] for i in self._labels[rows].tolist()]),
      absent=absent,
      unsure=self._names(self._crowds, image) if self._known_only else (),
      image_size=(height, width) if height else None,
    )
    if self._places is not None:
      example = dataclasses.replace(example, masks=self._masks(range(rows.start, rows.stop), example))
    return example

  def _masks(self, rows: range, example: Example) -> tuple[Mask | None, ...]:
    size = example.image_size or images.size_of(example.image, example.record)
    try:
      return tuple(from_coco(annotation["segmentation"], size) for annotation in self._places.read(rows))
    except (ValueError, TypeError, KeyError, RecursionError, OSError) as error:  # the file may have been changed
      raise BadRecord("broken_mask", example.record, f"{error}") from error


class _Content:
  """The columns of a COCO-format file, in its order."""

  def __init__(self, path: pathlib.Path, masks: bool):
    self.path, self.masks = path, masks
    self.image_ids, self.sizes, self.categories = array("q"), array("i"), []
    self._names, self._urls = [], []
    self.owners, self.labels, self.boxes, self.used = array("q"), array("q"), array("d"), set()
    self.begins, self.ends = array("q"), array("q")  # bytes of the annotations, with masks
    self.crowd_owners, self.crowd_labels = array("q"), array("q")
    self.absent_owners, self.absent_labels = array("q"), array("q")
    given = collections.Counter()
    for record in read_json(path, ("images", "annotations", "categories"), "annotations", _WHAT):
      if record.list == "images":
        self._add_image(record)
        given.update(key for key in ("height", "width", "neg_category_ids", "file_name", "coco_url") if key in record)
      elif record.list == "annotations":
        self._add_annotation(record)
        given.update(key for key in ("iscrowd", "segmentation") if key in record)
      else:
        self.categories.append(record)
    count, boxes = len(self.image_ids), len(self.owners) + len(self.crowd_owners)
    self.federated = all_or_none(path, "images", "neg_category_ids", given["neg_category_ids"], count)
    for key in ("height", "width"):
      all_or_none(path, "images", key, given[key], count)
    all_or_none(path, "annotations", "iscrowd", given["iscrowd"], boxes)
    if masks and given["segmentation"] < boxes:
      raise ValueError(f"{path}: {boxes - given['segmentation']} annotations have no 'segmentation'; set masks=False")
    self._named = all_or_none(path, "images", "file_name", given["file_name"], count)
    self._linked = given["coco_url"] == count

  def _add_image(self, record: Record) -> None:
    image_id = record.whole("id")
    self.image_ids.append(image_id)
    self.sizes.extend(_size(record))
    if "file_name" in record or "coco_url" not in record:
      self._names.append(record.text("file_name"))
    if "coco_url" in record:
      self._urls.append(_last_two(record.text("coco_url")))
    if "neg_category_ids" in record:
      absent = record.wholes("neg_category_ids")
      self.absent_labels.extend(absent)
      self.absent_owners.extend([image_id] * len(absent))

  def _add_annotation(self, record: Record) -> None:
    owner, label, box = record.whole("image_id"), record.whole("category_id"), record.numbers("bbox", 4)
    self.used.add(label)
    if "iscrowd" in record and record.flag("iscrowd"):
      self.crowd_owners.append(owner)
      self.crowd_labels.append(label)
      return
    self.owners.append(owner)
    self.labels.append(label)
    self.boxes.extend(box)
    if self.masks:
      self.begins.append(record.begin)
      self.ends.append(record.end)

  def file_names(self) -> Iterator[Sequence[str]]:
    """The names that the pictures may have below their folder, likeliest first."""
    if self._named:
      yield self._names
      yield [_last_two(name) for name in self._names]
    if self._linked:
      yield self._urls


def _last_two(path: str) -> str:
  return "/".join(path.split("/")[-2:])


def _size(image: Record) -> tuple[int, int]:
  """Height and width of a picture, 0 0 where the file does not tell."""
  if not (image.optional("height") and image.optional("width")):
    return 0, 0
  size = image.whole("height"), image.whole("width")
  if not all(0 < side < 2**31 for side in size):
    raise image.fault(f"has the height and width {size}; both must be positive")
  return size

"""Visual Genome: objects with free names (detection), and phrases of regions (grounding).

Names are lower-cased and stripped; the most frequent ones are the vocabulary, boxes with other names are left out. Half
of the pictures are COCO's: `without` leaves out those of an evaluation set. The index takes 24 bytes per object (3.8
million), or 36 and the phrase per region (5.4 million), and 40 and the name of the file per picture.
"""

import collections
import pathlib
from array import array
from collections.abc import Sequence

import numpy as np

from pipelines.records import Example, record_name
from pipelines.sources.index import Record, Strings, group, inclusive, positions, read_json, unique
from pipelines.sources.pictures import Pictures, check_folder

TASKS = ("detection", "grounding")
_KEYS = {"detection": ("objects", ("x", "y", "w", "h")), "grounding": ("regions", ("x", "y", "width", "height"))}


class VisualGenome:
  """Random access to pictures (objects) or to regions, one Example for each phrase.

  Attributes:
    kind: 'detection' | 'grounding'.
    classes: detection: the vocabulary, most frequent first.
  """

  def __init__(
    self,
    annotations: str,
    image_data: str,
    images: str,
    *,
    name: str = "visual_genome",
    task: str = "detection",
    vocabulary: int = 1600,
    without: Sequence[str] = (),
  ):
    """Reads the index.

    Args:
      annotations: objects.json for the task 'detection', region_descriptions.json for 'grounding'.
      image_data: image_data.json.
      images: the folder that holds VG_100K and VG_100K_2, or {image_id}.jpg (as GQA packs them).
      name: of this data set, for messages and counts.
      task: 'detection' | 'grounding'.
      vocabulary: so many of the most frequent names are classes.
      without: COCO-format json files; pictures whose coco_id is in one are left out.

    Raises:
      FileNotFoundError, ValueError: a file or the folder is missing or inconsistent.
    """
    if task not in TASKS:
      raise ValueError(f"task {task!r} is not known; known: {', '.join(TASKS)}")
    check_folder(images)
    self.name, self.kind, self.classes = name, task, ()
    excluded = {record.whole("id") for file in without for record in _entries(file, "images", "without")}
    image_ids, sizes, urls, coco = array("q"), array("i"), [], []
    for record in _entries(image_data, "", "image_data"):
      image_ids.append(record.whole("image_id"))
      sizes.extend((record.whole("height"), record.whole("width")))
      urls.append("/".join(record.text("url").split("/")[-2:]))
      coco.append(record["coco_id"] is not None and record.whole("coco_id") in excluded)
    self.image_ids, self._sizes = np.array(image_ids, np.int64), np.array(sizes, np.int32).reshape(-1, 2)
    unique(pathlib.Path(image_data), self.image_ids, "image")
    self._read(pathlib.Path(annotations), np.array(coco, bool), vocabulary)
    forms = [urls, [f"{i}.jpg" for i in self.image_ids.tolist()]]
    self._pictures = Pictures.found(images, forms, np.unique(self._image_of(np.arange(min(len(self), 20)))))

  def _read(self, path: pathlib.Path, excluded: np.ndarray, vocabulary: int) -> None:
    key, sides = _KEYS[self.kind]
    owners, xywh, texts, ids = array("q"), array("d"), [], array("q")
    numbers: dict[str, int] = {}
    labels = array("i")
    for picture in _entries(path, "", "annotations"):
      image_id = picture.whole("image_id" if self.kind == "detection" else "id")
      for i, thing in enumerate(picture.items(key)):
        record = Record(path, f"[{picture.number}].{key}", i, thing)
        owners.append(image_id)
        xywh.extend(record.real(side) for side in sides)
        if self.kind == "detection":
          names = record.items("names")
          label = names[0].strip().lower() if names and isinstance(names[0], str) else ""
          labels.append(numbers.setdefault(label, len(numbers)))
        else:
          texts.append(record.text("phrase").strip())
          ids.append(record.whole("region_id"))
    owners = positions(path, np.array(owners, np.int64), self.image_ids, "image")
    used = ~excluded[owners]
    if self.kind == "detection":
      used &= self._choose(path, list(numbers), np.array(labels, np.int32), used, vocabulary)
    kept = np.flatnonzero(used)
    if not len(kept):
      raise ValueError(f"{path} has no {key} to use; check `annotations` and `task`")
    order, ends = group(owners[kept], len(self.image_ids))
    rows = kept[order]
    self._boxes = inclusive(np.array(xywh, np.float64).reshape(-1, 4)[rows])
    self._owners = owners[rows].astype(np.int32)
    if self.kind == "detection":
      self._labels, self._ends = self._labels[rows], ends
      self._indices = np.flatnonzero(np.diff(ends))
    else:
      self._texts, self._region_ids = Strings(texts[i] for i in rows), np.array(ids, np.int64)[rows]

  def _choose(
    self, path: pathlib.Path, names: list[str], labels: np.ndarray, used: np.ndarray, vocabulary: int
  ) -> np.ndarray:
    """Sets the vocabulary; which objects have a name in it. Equal counts: in alphabetical order."""
    counts = collections.Counter(dict(enumerate(np.bincount(labels[used], minlength=len(names)).tolist())))
    order = sorted((i for i in counts if counts[i] and names[i]), key=lambda i: (-counts[i], names[i]))[:vocabulary]
    self.classes = tuple(names[i] for i in order)
    place = np.full(len(names) + 1, -1, np.int32)
    place[order] = np.arange(len(order))
    self._labels = place[labels]
    return self._labels >= 0

  def _image_of(self, index: np.ndarray) -> np.ndarray:
    return self._indices[index] if self.kind == "detection" else self._owners[index]

  def __len__(self) -> int:
    return len(self._indices) if self.kind == "detection" else len(self._texts)

  def sizes(self) -> np.ndarray:
    """n 2 int32: height and width of every record's picture."""
    return self._sizes[self._image_of(np.arange(len(self)))]

  def caption(self, index: int) -> str:
    """The phrase of a region."""
    return self._texts[index]

  def __getitem__(self, index: int) -> Example:
    """Raises BadRecord('missing_image')."""
    image = int(self._image_of(index))
    image_id, text_id = int(self.image_ids[image]), None
    height, width = self._sizes[image].tolist()
    if self.kind == "detection":
      rows = slice(self._ends[image], self._ends[image + 1])
      content = dict(labels=tuple(self.classes[i] for i in self._labels[rows]))
    else:
      rows, text_id, phrase = slice(index, index + 1), int(self._region_ids[index]), self._texts[index]
      content = dict(caption=phrase, spans=(((0, len(phrase)),),))
    return Example(
      source=self.name,
      image_id=image_id,
      text_id=text_id,
      kind=self.kind,
      image=self._pictures.read(image, record_name(self.name, image_id, text_id)),
      boxes_xyxy_px=self._boxes[rows],
      image_size=(height, width),
      **content,
    )


def _entries(path: str | pathlib.Path, list_: str, option: str):
  what = {"without": "a COCO-format json file", "image_data": "image_data.json"}
  default = "objects.json or region_descriptions.json of Visual Genome"
  return read_json(pathlib.Path(path), (list_,), option, what[option] if option in what else default)

"""Captions of COCO: the official json (`captions_*.json`) and Karpathy's split (`dataset_coco.json`), a record each.

They have no boxes (kind 'caption'): for training a captioner, for packing, and as input of `glipv2 pseudo-label`.
White space around captions and line breaks inside them (COCO has both) become single spaces.
"""

import pathlib
from array import array

import numpy as np

from pipelines.records import BadRecord, Example, record_name
from pipelines.sources.index import Record, Strings, positions, read_json, unique
from pipelines.sources.pictures import Pictures

_NO_BOXES = np.zeros((0, 4), np.float32)


class _Captions:
  """Columns of captions: `add` while reading, `close` afterwards; then a Source."""

  kind, classes = "caption", ()

  def __init__(self, name: str):
    self.name = name
    self._images, self._text_ids, self._texts = array("q"), array("q"), []

  def add(self, image: int, text_id: int, text: str) -> None:
    """`image`: the id of the picture."""
    self._images.append(image)
    self._text_ids.append(text_id)
    self._texts.append(" ".join(text.split()))

  def close(self, path: pathlib.Path, images: str, ids: array, files: list[str], sizes: list[tuple[int, int]]) -> None:
    """`ids`, `files` and `sizes` (0 0 where unknown) of the pictures."""
    self._image_ids, self._sizes = np.array(ids, np.int64), np.array(sizes, np.int32).reshape(-1, 2)
    unique(path, self._image_ids, "image")
    owner = positions(path, np.array(self._images, np.int64), self._image_ids, "image")
    self._images, self._text_ids = owner.astype(np.int32), np.array(self._text_ids, np.int64)
    self._texts = Strings(self._texts)
    if not len(self):
      raise ValueError(f"{path} has no caption to use")
    self._pictures = Pictures.found(images, (files,), self._images)

  def __len__(self) -> int:
    return len(self._texts)

  def caption(self, index: int) -> str:
    """The text of a record, without its picture. Raises BadRecord('empty_caption')."""
    if text := self._texts[index]:
      return text
    image_id = int(self._image_ids[self._images[index]])
    raise BadRecord("empty_caption", record_name(self.name, image_id, int(self._text_ids[index])))

  def __getitem__(self, index: int) -> Example:
    """Raises BadRecord('missing_image' or 'empty_caption')."""
    caption, image = self.caption(index), int(self._images[index])
    image_id, text_id = int(self._image_ids[image]), int(self._text_ids[index])
    height, width = self._sizes[image].tolist()
    return Example(
      source=self.name,
      image_id=image_id,
      text_id=text_id,
      kind="caption",
      image=self._pictures.read(image, record_name(self.name, image_id, text_id)),
      boxes_xyxy_px=_NO_BOXES,
      caption=caption,
      image_size=(height, width) if height and width else None,
    )


class CocoCaptions(_Captions):
  """The captions of one official file.

  Attributes:
    kind: 'caption'; classes: ().
  """

  def __init__(self, annotations: str, images: str, *, name: str = "coco_captions"):
    """Reads the index.

    Args:
      annotations: `captions_train2017.json` and its like.
      images: the folder that its `file_name`s are relative to.
      name: of this data set, for messages and counts.

    Raises:
      FileNotFoundError, ValueError: the file or folder is missing or not of this form.
    """
    super().__init__(name)
    path, ids, files, sizes = pathlib.Path(annotations), array("q"), [], []
    for entry in read_json(path, ("images", "annotations"), "annotations", "a COCO captions json"):
      if entry.list == "annotations":
        self.add(entry.whole("image_id"), entry.whole("id"), entry.text("caption"))
      else:
        ids.append(entry.whole("id"))
        files.append(entry.text("file_name"))
        sizes.append((_pixels(entry, "height"), _pixels(entry, "width")))
    self.close(path, images, ids, files, sizes)


class KarpathyCaptions(_Captions):
  """The captions of some splits of Karpathy's file.

  Attributes:
    kind: 'caption'; classes: ().
  """

  def __init__(
    self, annotations: str, images: str, *, splits: tuple[str, ...] = ("train", "restval"), name: str = "karpathy"
  ):
    """Reads the index.

    Args:
      annotations: `dataset_coco.json`.
      images: the folder with `train2014` and `val2014`.
      splits: 'train' and 'restval' are trained on together; 'val' and 'test' have 5,000 pictures each.
      name: of this data set, for messages and counts.

    Raises:
      FileNotFoundError, ValueError: the file or folder is missing or not of this form, or a split is empty.
    """
    super().__init__(name)
    path, ids, files, seen = pathlib.Path(annotations), array("q"), [], set()
    for entry in read_json(path, ("images",), "annotations", "Karpathy's dataset_coco.json"):
      if (split := entry.text("split")) not in splits:
        continue
      seen.add(split)
      ids.append(entry.whole("cocoid"))
      files.append(f"{entry.text('filepath')}/{entry.text('filename')}")
      for number, sentence in enumerate(entry.items("sentences")):
        part = Record(entry.path, f"images[{entry.number}].sentences", number, sentence)
        self.add(ids[-1], part.whole("sentid"), part.text("raw"))
    if absent := [split for split in splits if split not in seen]:
      raise ValueError(f"{path} has no picture of the split {absent[0]!r}; `splits` are train, restval, val and test")
    self.close(path, images, ids, files, [(0, 0)] * len(ids))


def _pixels(entry: Record, key: str) -> int:
  """A height or width, 0 where it is not told."""
  return entry.whole(key) if key in entry and entry[key] is not None else 0

"""Grounding data in MDETR's json form: GoldG (`final_flickr_*`, `final_mixed_*`), and RefCOCO/+/g so converted.

Like COCO's, but an entry of `images` is one text about a picture (`caption`), so several share a file, and an
annotation has the character ranges that name it (`tokens_positive`). Categories mean nothing and may be missing.
Height and width may be written as strings (Flickr30k).
"""

import pathlib
from array import array

import numpy as np

from pipelines.records import Example, record_name
from pipelines.sources.index import Record, Strings, group, inclusive, positions, read_json, unique
from pipelines.sources.pictures import Pictures
from pipelines.sources.spans import Spans, read_spans

_WHAT = "a json file in MDETR's form (images with captions, annotations with tokens_positive)"


class MdetrJson:
  """Random access to the texts of one file.

  Texts without any box are left out, unless `keep_empty`: trained on, they would teach that all their words name
  background. Evaluation must keep them.

  Attributes:
    kind: 'grounding'; classes: ().
  """

  kind, classes = "grounding", ()

  def __init__(
    self,
    annotations: str,
    images: str,
    *,
    coco_images: str = "",
    name: str = "mdetr_json",
    keep_empty: bool = False,
  ):
    """Reads the index.

    Args:
      annotations: the json file.
      images: the folder that its `file_name`s are relative to.
      coco_images: the folder of the entries whose `data_source` is 'coco' (final_mixed_train: COCO's train2014 beside
        the pictures of GQA); needed only when there are such entries.
      name: of this data set, for messages and counts.
      keep_empty: keep texts without boxes.

    Raises:
      FileNotFoundError, ValueError: a file or folder is missing, or an entry is not of this form.
    """
    path = pathlib.Path(annotations)
    self.name = name
    texts, boxes = _Texts(), _Boxes()
    for entry in read_json(path, ("images", "annotations"), "annotations", _WHAT):
      (texts if entry.list == "images" else boxes).add(entry)
    ids = np.array(texts.ids, np.int64)
    unique(path, ids, "image")
    self._ids = np.stack([np.array(texts.image_ids, np.int64), np.array(texts.text_ids, np.int64)], axis=1)
    self._sizes = np.array(texts.sizes, np.int32).reshape(-1, 2)
    self._captions = Strings(texts.captions)
    owner = positions(path, np.array(boxes.images, np.int64), ids, "image")
    self._order, self._ends = group(owner, len(ids))
    self._boxes, self._spans = inclusive(np.array(boxes.xywh, np.float64)), boxes.spans
    self._rows = np.arange(len(ids)) if keep_empty else np.flatnonzero(np.diff(self._ends))
    if not len(self):
      raise ValueError(f"{path} has no text to use ({len(ids)} listed, keep_empty={keep_empty})")
    self._open_folders(path, texts, images, coco_images)

  def _open_folders(self, path: pathlib.Path, texts: "_Texts", images: str, coco_images: str) -> None:
    """Picture i is number _place[i] of its folder, COCO's where _coco[i]."""
    self._coco = np.array(texts.coco, bool)
    if self._coco.any() and not coco_images:
      raise ValueError(
        f"{path}: {self._coco.sum()} of {len(self._coco)} texts are about pictures of COCO (`data_source`), such as "
        f"{texts.files[int(self._coco.argmax())]}; set `coco_images` to the folder train2014, or take the file without"
      )
    self._place = np.where(self._coco, np.cumsum(self._coco), np.cumsum(~self._coco)).astype(np.int32) - 1
    self._folders = []
    for coco, folder, option in ((False, images, "images"), (True, coco_images, "coco_images")):
      mine = self._coco == coco
      names = [texts.files[i] for i in np.flatnonzero(mine)]
      used = self._place[self._rows[mine[self._rows]]]
      self._folders.append(Pictures.found(folder, (names,), used, option) if len(used) else None)

  def __len__(self) -> int:
    return len(self._rows)

  def sizes(self) -> np.ndarray:
    """n 2 int32: height and width of every record's picture."""
    return self._sizes[self._rows]

  def caption(self, index: int) -> str:
    """The text of a record, without its picture."""
    return self._captions[self._rows[index]]

  def __getitem__(self, index: int) -> Example:
    """Raises BadRecord('missing_image')."""
    row = self._rows[index]
    image_id, text_id = self._ids[row].tolist()
    boxes = self._order[self._ends[row] : self._ends[row + 1]]
    height, width = self._sizes[row].tolist()
    place = record_name(self.name, image_id, text_id)
    return Example(
      source=self.name,
      image_id=image_id,
      text_id=text_id,
      kind="grounding",
      image=self._folders[int(self._coco[row])].read(self._place[row], place),
      boxes_xyxy_px=self._boxes[boxes],
      caption=self._captions[row],
      spans=tuple(self._spans[i] for i in boxes),
      image_size=(height, width) if height and width else None,
    )


class _Texts:
  """Columns of `images`."""

  def __init__(self):
    self.ids, self.image_ids, self.text_ids, self.sizes = array("q"), array("q"), array("q"), array("i")
    self.coco, self.files, self.captions = array("b"), [], []

  def add(self, entry: Record) -> None:
    self.ids.append(entry.whole("id"))
    self.files.append(entry.text("file_name"))
    self.captions.append(entry.text("caption"))
    self.sizes.extend((_side(entry, "height"), _side(entry, "width")))
    self.coco.append("data_source" in entry and entry["data_source"] == "coco")
    self.image_ids.append(_image_id(entry))
    self.text_ids.append(entry.whole("sentence_id" if "sentence_id" in entry else "id"))


class _Boxes:
  """Columns of `annotations`, crowds left out."""

  def __init__(self):
    self.images, self.xywh, self.spans = array("q"), array("d"), Spans()

  def add(self, entry: Record) -> None:
    if "iscrowd" in entry and entry.flag("iscrowd"):
      return
    self.images.append(entry.whole("image_id"))
    self.xywh.extend(entry.numbers("bbox", 4))
    try:
      self.spans.append(read_spans(entry["tokens_positive"]))
    except ValueError as error:
      if str(error).startswith("needs"):
        raise entry.fault(f"has tokens_positive that cannot be read: it {error}") from None
      raise


def _side(entry: Record, key: str) -> int:
  """Height or width: a number or, in the Flickr part, a string of digits; 0 where it is not told."""
  value = entry[key] if key in entry else 0
  if isinstance(value, str) and value.isascii() and value.isdigit():
    value = int(value)
  if value is None:
    return 0
  if type(value) is not int or not 0 <= value < 2**31:
    raise entry.fault(f"has the {key} {value!r:.40}; it needs a number of pixels")
  return value


def _image_id(entry: Record) -> int:
  """The id of the picture in its own data set; that of the entry where the picture has no number."""
  for key in ("original_img_id", "original_id"):
    value = entry[key] if key in entry else None
    if type(value) is int and 0 <= value < 2**63:
      return value
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
      return int(value)
  return entry.whole("id")

"""Local data sets of Hugging Face's `datasets`: saved folders, parquet, json-lines and arrow files, picture folders.

A column of objects with `bbox` and `category` makes a detection set, a column of text(s) one of captions. Nothing is
fetched: `data` is a path. Needs the extra `data`.
"""

import glob
import os
import pathlib
from typing import Any

import numpy as np

from pipelines.records import BadRecord, Example, record_name
from pipelines.sources.index import inclusive, inclusive_corners
from pipelines.sources.parts import box, faults_as_bad_record, items, mapping, text
from pipelines.sources.pictures import read_picture

BOX_FORMATS = ("xywh", "xyxy")
_READERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}
_NO_BOXES = np.zeros((0, 4), np.float32)


class HfDatasets:
  """Random access to one split; the rows stay in memory-mapped files. The id of a record is its row.

  Attributes:
    kind: 'detection' or 'caption'.
    classes: names of the categories, or ().
  """

  def __init__(
    self,
    data: str,
    *,
    split: str = "train",
    image: str = "image",
    objects: str = "objects",
    box_format: str = "xywh",
    class_names: tuple[str, ...] = (),
    caption: str = "",
    name: str = "hf_datasets",
  ):
    """Opens the split.

    Args:
      data: a folder written by `save_to_disk`, a folder of pictures with `metadata.jsonl`, or parquet, json-lines or
        arrow files (with * and ?), which `datasets` converts once into its cache.
      split: where the data set has several.
      image: the column of the picture.
      objects: the column of the objects, with `bbox` and `category`.
      box_format: 'xywh' (left, top, width, height) or 'xyxy' (corners, the right and lower edge exclusive), pixels.
      class_names: the categories in order of their numbers; () where the column itself knows them.
      caption: instead of objects: the column of the text; of several texts the first is used.
      name: of this data set, for messages and counts.

    Raises:
      ImportError: `datasets` is missing.
      FileNotFoundError, ValueError: the data is missing or not of this form.
    """
    try:
      import datasets  # slow to import and needed only here
    except ImportError as error:
      raise ImportError('the source hf_datasets needs `datasets`: pip install "glipv2_jax[data]"') from error
    if box_format not in BOX_FORMATS:
      raise ValueError(f"box_format {box_format!r} is not known; known: {', '.join(BOX_FORMATS)}")
    self.name, self.kind, self._corners = name, "caption" if caption else "detection", box_format == "xyxy"
    self._image, self._objects, self._caption = image, objects, caption
    rows = _open(datasets, data, split)
    wanted = [image, caption or objects]
    if absent := [column for column in wanted if column not in rows.column_names]:
      known = f"its columns are {rows.column_names}; set `image` and `objects` or `caption`"
      raise ValueError(f"{data} has no column {absent[0]!r}; {known}")
    if isinstance(rows.features[image], datasets.Image):
      rows = rows.cast_column(image, datasets.Image(decode=False))
    self._rows = rows.select_columns(wanted)
    self.classes = () if caption else tuple(class_names) or _classes(data, rows.features[objects])
    if not len(self):
      raise ValueError(f"{data} has no rows in the split {split!r}")

  def __len__(self) -> int:
    return len(self._rows)

  def caption(self, index: int) -> str:
    """The text of a record. Raises BadRecord('broken_annotation' or 'empty_caption')."""
    return self._text(self._rows.select_columns([self._caption])[int(index)], record_name(self.name, index))

  def _text(self, row: dict[str, Any], record: str) -> str:
    found = row[self._caption]
    with faults_as_bad_record(record):
      found = text((found or [""])[0] if isinstance(found, list) else found or "", self._caption)
    if not found.strip():
      raise BadRecord("empty_caption", record)
    return " ".join(found.split())

  def __getitem__(self, index: int) -> Example:
    """Raises BadRecord('missing_image', 'broken_annotation' or 'empty_caption')."""
    if not 0 <= index < len(self):
      raise IndexError(f"record {index} of {len(self)} in {self.name}")
    row, record = self._rows[int(index)], record_name(self.name, index)
    picture = _picture(row[self._image], record)
    if self.kind == "caption":
      return Example(self.name, index, "caption", picture, _NO_BOXES, caption=self._text(row, record))
    with faults_as_bad_record(record):
      boxes, categories = _columns(row[self._objects])
      convert = inclusive_corners if self._corners else inclusive
      placed = convert(np.array([box(one) for one in boxes], np.float64))
      labels = tuple(self._label(category) for category in categories)
      if len(labels) != len(boxes):
        raise ValueError(f"it has {len(boxes)} boxes and {len(labels)} categories")
    return Example(self.name, index, "detection", picture, placed, labels)

  def _label(self, category: Any) -> str:
    if isinstance(category, str) and category in self.classes:
      return category
    if type(category) is not int or not 0 <= category < len(self.classes):
      raise ValueError(f"category {category!r:.80} is none of the {len(self.classes)} classes")
    return self.classes[category]


def _open(datasets: Any, data: str, split: str) -> Any:
  folder = pathlib.Path(data)
  files = sorted(glob.glob(data)) if glob.has_magic(data) else [data]
  try:
    if any((folder / part).is_file() for part in ("state.json", "dataset_dict.json")):
      loaded = datasets.load_from_disk(data)
      return loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
    if folder.is_dir():
      return datasets.load_dataset("imagefolder", data_dir=data, split=split)
    if not files or not os.path.isfile(files[0]):
      raise FileNotFoundError(f"{data} does not exist; set `data` to a folder or files of a data set")
    suffix = pathlib.Path(files[0]).suffix
    if suffix not in _READERS:
      raise ValueError(f"{files[0]} is none of {', '.join(_READERS)}")
    return datasets.load_dataset(_READERS[suffix], data_files={split: files}, split=split)
  except FileNotFoundError:
    raise
  except Exception as error:  # each reader of `datasets` has its own (pyarrow's, DatasetGenerationError, KeyError)
    raise ValueError(f"{data} cannot be read as a data set with the split {split!r}: {error}") from error


def _picture(value: Any, record: str) -> bytes:
  """{"bytes", "path"} as `datasets` keeps pictures, bytes, or a path."""
  found = value if not isinstance(value, dict) else value.get("bytes") or value.get("path")
  if isinstance(found, bytes):
    return found
  if isinstance(found, str):
    return read_picture(found, record)
  raise BadRecord("missing_image", record, f"the row has {value!r:.80}")


def _columns(objects: Any) -> tuple[list, list]:
  """Boxes and categories, from columns or from a list of objects."""
  if isinstance(objects, list):
    parts = [mapping(entry, "an object") for entry in objects]
    return [part["bbox"] for part in parts], [part["category"] for part in parts]
  return items(mapping(objects, "objects")["bbox"], "bbox"), items(objects["category"], "category")


def _classes(data: str, objects: Any) -> tuple[str, ...]:
  """The names of the column `category`."""
  fields = getattr(objects, "feature", objects)
  category = fields.get("category") if isinstance(fields, dict) else None
  names = tuple(getattr(getattr(category, "feature", category), "names", None) or ())
  if not names:
    raise ValueError(f"{data}: the column of the objects has no named `category` ({objects}); set `class_names`")
  return names

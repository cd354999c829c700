"""Data sets prepared by TensorFlow Datasets as ArrayRecord files, read without TensorFlow (`as_data_source`).

A feature of objects with `bbox` (fractions: ymin, xmin, ymax, xmax), `label` and perhaps `is_crowd` makes a detection
set (`coco`, `voc`, `open_images_v4`, ...); with `caption` the texts of a feature make a set of the kind 'caption'.
What `glipv2 data prepare --tfds` wrote is read whole, whatever its kind. Needs the extra `data`.
"""

import dataclasses
import pathlib
from types import ModuleType
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from pipelines import images
from pipelines.example_bytes import from_bytes
from pipelines.records import BadRecord, Example, record_name
from pipelines.sources.index import inclusive_corners
from pipelines.sources.parts import faults_as_bad_record

WHOLE = "glipv2_example"  # the feature of pipelines/prepare/tfds_form.py that holds an Example without its picture
_NO_BOXES = np.zeros((0, 4), np.float32)


def import_tfds() -> ModuleType:
  """tensorflow_datasets, which is slow to import and needed here only. Raises ImportError that names the extra."""
  try:
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise ImportError('TFDS needs tensorflow_datasets: pip install "glipv2_jax[data]"') from error
  return tfds


class TfdsData:
  """Random access to one split. The id of a record is its position, or that of the prepared Example.

  Attributes:
    kind: 'detection' or 'caption', or that of the source that was prepared.
    classes: the names of the label feature, or ().
  """

  def __init__(
    self,
    data: str,
    *,
    split: str = "train",
    image: str = "image",
    objects: str = "objects",
    caption: str = "",
    name: str = "",
  ):
    """Opens the split.

    Args:
      data: the folder of one version of the prepared data set, such as `~/tensorflow_datasets/coco/2017/1.1.0`.
      split: a split or a part of one, such as 'train[:80%]'.
      image: the feature of the picture.
      objects: the feature of the objects.
      caption: instead of objects: the feature of the text, 'captions/text' for one inside another; of several texts the
        first is used.
      name: of this data set, for messages and counts; 'tfds_data', or that of the source that was prepared, if empty.

    Raises:
      ImportError: tensorflow_datasets is missing.
      FileNotFoundError, ValueError: the folder is missing or not of this form.
    """
    tfds = import_tfds()
    if not pathlib.Path(data).joinpath("dataset_info.json").is_file():
      raise FileNotFoundError(f"{data} has no dataset_info.json; set `data` to the folder of one version of a data set")
    self._image, self._objects, self._caption = image, objects, tuple(caption.split("/"))
    try:
      builder = tfds.builder_from_directory(data)
      self._data = builder.as_data_source(split, decoders={image: tfds.decode.SkipDecoding()})
    except (NotImplementedError, ValueError, KeyError) as error:
      raise ValueError(
        f"{data}, split {split!r}, image {image!r}: {error}; only ArrayRecord files can be read at random: prepare the "
        "data set with file_format='array_record', or convert it (`tfds convert_format`)"
      ) from error
    features = builder.info.features
    if image not in features:
      raise ValueError(f"{data} has no feature {image!r}; set `image` to one of {list(features)}")
    self._whole = WHOLE in features and not caption
    if self._whole:
      about = builder.info.metadata
      self.name, self.kind, self.classes = name or about["name"], about["kind"], tuple(about["classes"])
      return
    self.name, self.kind = name or "tfds_data", "caption" if caption else "detection"
    self.classes = () if caption else _classes(data, features, objects)
    if caption and _at(features, self._caption) is None:
      raise ValueError(f"{data} has no feature {caption!r}; set `caption` to one of {list(features)}")

  def __len__(self) -> int:
    return len(self._data)

  def caption(self, index: int) -> str:
    """The text of a record. Raises BadRecord as reading the record does."""
    example = self[index]
    if not example.caption.strip():
      raise BadRecord("empty_caption", example.record)
    return example.caption

  def __getitem__(self, index: int) -> Example:
    """Raises BadRecord('broken_record', 'broken_annotation', 'empty_caption', or of a broken picture whose size boxes
    need)."""
    if not 0 <= index < len(self):
      raise IndexError(f"record {index} of {len(self)} in {self.name}")
    record = record_name(self.name, index)
    try:
      content = self._data[int(index)]
      picture = bytes(content[self._image])
      if self._whole:
        return dataclasses.replace(from_bytes(content[WHOLE]), source=self.name, image=picture)
    except (ValueError, KeyError, RuntimeError, OSError, IndexError, DecodeError) as error:
      raise BadRecord("broken_record", record, f"{error}"[:300]) from error
    if self.kind == "caption":
      return Example(self.name, index, "caption", picture, _NO_BOXES, caption=self._text(content, record))
    objects = content[self._objects]
    boxes = np.array(objects["bbox"], np.float64).reshape(-1, 4)
    kept = ~np.array(objects["is_crowd"], bool) if "is_crowd" in objects else np.ones(len(boxes), bool)
    height, width = images.size_of(picture, record)
    with faults_as_bad_record(record):
      labels = tuple(self._label(i) for i in np.array(objects["label"], np.int64)[kept].tolist())
    corners = inclusive_corners(boxes[kept][:, [1, 0, 3, 2]] * [width, height, width, height])
    return Example(self.name, index, "detection", picture, corners, labels)

  def _label(self, number: int) -> str:
    if not 0 <= number < len(self.classes):  # -1: TFDS' unknown
      raise ValueError(f"label {number} is none of the {len(self.classes)} classes")
    return self.classes[number]

  def _text(self, content: dict[str, Any], record: str) -> str:
    found = content
    for part in self._caption:
      found = found[part]
    found = found if isinstance(found, str | bytes) else next(iter(found), b"")
    caption = " ".join((found.decode("utf-8", "replace") if isinstance(found, bytes) else found).split())
    if not caption:
      raise BadRecord("empty_caption", record)
    return caption


def _at(features: Any, path: tuple[str, ...]) -> Any:
  for part in path:
    features = getattr(features, "feature", features)  # what a sequence is of
    if part not in features:
      return None
    features = features[part]
  return features


def _classes(data: str, features: Any, objects: str) -> tuple[str, ...]:
  label = _at(features, (objects, "label"))
  names = tuple(getattr(label, "names", None) or ())
  if not names or _at(features, (objects, "bbox")) is None:
    raise ValueError(
      f"{data} has no feature {objects!r} with `bbox` and a `label` that has names; its features are {list(features)}; "
      "set `objects` or, for captions, `caption`"
    )
  return names

"""Reading and checking what others wrote: JSON annotations and predictions of any detector.

Everything that can be wrong with such a file ends in a ValueError that names the file, the record and the remedy.
Detections are read in batches into columns: millions of them as Python dictionaries would not fit into memory.
"""

import contextlib
import dataclasses
import gc
import json
import math
import numbers
import pathlib
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as rle

try:
  import orjson
except ImportError:
  orjson = None

Source = str | pathlib.Path | Sequence[Mapping[str, Any]]  # a file, or its records
SHAPES = {"bbox": "bbox", "segm": "segmentation"}  # IoU type -> the field that carries the shape
_CHUNK = 1 << 22  # characters read at a time
_BETWEEN = re.compile(r"\}\s*,\s*(?=\{)")  # two records of a list; run-length masks have no such characters


def loads(text: str) -> Any:
  """The value of a JSON text, by orjson where it is installed: it takes a third of the time.

  What that refuses (NaN, half of a surrogate pair) the standard library decides, so both read the same, but for whole
  numbers of more than 64 bits, which orjson makes floats. Raises json.JSONDecodeError.
  """
  if orjson is not None:
    with contextlib.suppress(orjson.JSONDecodeError):
      return orjson.loads(text)
  return json.loads(text)


def read_json(path: str | pathlib.Path, what: str = "file") -> Any:
  """The content of a JSON file. Raises FileNotFoundError, or ValueError where the file is broken or cut short."""
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"{what} {path} does not exist; give the path of a JSON file")
  try:
    return loads(path.read_text(encoding="utf-8"))
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise ValueError(f"{what} {path} is not JSON (cut short, or of another format): {error}") from error


def read_records(source: Source, what: str = "predictions") -> tuple[list[Mapping[str, Any]], str]:
  """The records of a JSON list (a file, or the records themselves), and the name to call them in errors."""
  name = _name(source, what)
  content = read_json(source, what) if isinstance(source, str | pathlib.Path) else source
  if isinstance(content, Mapping) or not isinstance(content, Sequence):
    raise ValueError(f"{name} holds a {type(content).__name__}; give a JSON list of records")
  return list(content), name


def fields(record: Any, i: int, name: str, *keys: str) -> list[Any]:
  """The named fields of record i. Raises ValueError naming the one that is missing."""
  if not isinstance(record, Mapping):
    raise ValueError(f"{name}: record {i} is a {type(record).__name__}; give objects with {', '.join(keys)}")
  missing = [key for key in keys if key not in record]
  if missing:
    raise ValueError(f"{name}: record {i} has no {missing[0]!r}; each record needs {', '.join(keys)}")
  return [record[key] for key in keys]


def by_key(records: Iterable[tuple[int, Any, Any]], known: Iterable[Any], name: str, what: str) -> dict[Any, Any]:
  """{key: value} of (record number, key, value); a key that is unknown or comes twice raises ValueError."""
  known, found = set(known), {}
  for i, key, value in records:
    if key not in known:
      raise ValueError(
        f"{name}: record {i} is for {what} {key!r}, which the annotations do not list; "
        "evaluate against the split that was predicted"
      )
    if key in found:
      raise ValueError(f"{name}: record {i} is a second one for {what} {key!r}; keep one record for each {what}")
    found[key] = value
  return found


def read_texts(source: Source, known: Iterable[Any], what: str, key: str, text: str) -> dict[Any, str]:
  """{record[key]: record[text]} of predicted texts, one for each of the known keys at most; ValueError otherwise."""
  records, name = read_records(source)
  rows = []
  for i, record in enumerate(records):
    rows.append((i, *fields(record, i, name, key, text)))
    if not isinstance(rows[-1][2], str):
      raise ValueError(f"{name}: record {i} has {text} {rows[-1][2]!r}; give a string")
  return by_key(rows, known, name, what)


def unique(ids: Sequence[Any], name: str, what: str) -> None:
  """Raises ValueError naming the first id that comes twice."""
  if len(set(ids)) < len(ids):
    first: dict[Any, int] = {}
    for i, item in enumerate(ids):
      if item in first:
        raise ValueError(f"{name}: {what} {first[item]} and {what} {i} have the same id {item!r}; ids must be unique")
      first[item] = i


# Detections.


@dataclasses.dataclass(frozen=True)
class Detections:
  """n predicted boxes or masks as columns; `name` is what errors call them."""

  name: str
  image_id: np.ndarray  # n int64
  category_id: np.ndarray  # n int64
  score: np.ndarray  # n float64
  bbox_xywh_px: np.ndarray  # n 4 float64; zeros where only masks are given
  segmentation: list[Mapping[str, Any]] | None = None  # n run-length masks {"size": [h, w], "counts": ...}

  def __len__(self) -> int:
    return len(self.score)

  def areas(self) -> np.ndarray:
    """n float64 square pixels, of the mask where there is one."""
    if self.segmentation is None:
      return self.bbox_xywh_px[:, 2] * self.bbox_xywh_px[:, 3]
    return np.array([rle.area(mask) for mask in self.segmentation], float)

  def take(self, index: np.ndarray) -> "Detections":
    """The detections of these positions, in this order."""
    columns = [column[index] for column in (self.image_id, self.category_id, self.score, self.bbox_xywh_px)]
    masks = None if self.segmentation is None else [self.segmentation[i] for i in index.tolist()]
    return Detections(self.name, *columns, masks)


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
  """No cyclic garbage collection: it would walk every record again and again, and a third of the time went there."""
  enabled = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    if enabled:
      gc.enable()


@collector_paused()
def read_detections(source: Source, iou_type: str = "bbox", *, categories: bool = True) -> Detections:
  """COCO results (a JSON file, or its records) as columns.

  Each record has image_id, category_id (unless `categories` is False), score and the shape of `iou_type`: 'bbox'
  [x, y, w, h] or 'segmentation' in run-length form. Raises ValueError naming the first record that does not.
  """
  if iou_type not in SHAPES:
    raise ValueError(f"iou_type {iou_type!r} is not known; known: {', '.join(SHAPES)}")
  name = _name(source, "predictions")
  if isinstance(source, str | pathlib.Path):
    batches = _batches(pathlib.Path(source), name)
  else:
    batches = iter([read_records(source)[0]])
  keys = ("image_id", "score", SHAPES[iou_type], *(("category_id",) if categories else ()))
  parts, count, masks = [], 0, []
  for batch in batches:
    try:
      columns = {key: [record[key] for record in batch] for key in keys}
      ids = [columns[key] if key in columns else [0] * len(batch) for key in ("image_id", "category_id")]
      boxes = columns["bbox"] if iou_type == "bbox" else [[0.0] * 4] * len(batch)
      part = [
        *(_numbers(column, "iu", (), np.int64) for column in ids),
        _numbers(columns["score"]),
        _numbers(boxes, shape=(4,)),
      ]
      if iou_type == "segm":
        masks += _masks(columns["segmentation"])
    except (KeyError, TypeError, ValueError) as error:
      for i, record in enumerate(batch, count):
        _check_record(record, i, name, keys)
      raise ValueError(f"{name}: records {count} to {count + len(batch) - 1} are not all alike: {error}") from error
    parts.append(part)
    count += len(batch)
  image_id, category_id, score, xywh = (np.concatenate(column) for column in zip(*parts, strict=True))
  return Detections(name, image_id, category_id, score, xywh, masks if iou_type == "segm" else None)


def _numbers(values: list[Any], kinds: str = "fiu", shape: tuple[int, ...] = (), dtype: Any = np.float64) -> np.ndarray:
  """n ... numbers of these NumPy kinds; ValueError where one is something else or has another shape."""
  array = np.array(values) if values else np.zeros((0, *shape), dtype)
  if array.shape[1:] != shape or values and array.dtype.kind not in kinds:
    raise ValueError("a value of another kind or shape")
  return array.astype(dtype)


def _check_record(record: Any, i: int, name: str, keys: Sequence[str]) -> None:
  """Raises ValueError saying what is wrong with a record; says nothing of a good one."""
  for key, value in zip(keys, fields(record, i, name, *keys), strict=True):
    if key.endswith("_id") and (isinstance(value, bool) or not isinstance(value, numbers.Integral)):
      raise ValueError(f"{name}: record {i} has {key} {value!r}; ids are whole numbers")
    if key == "score" and not isinstance(value, numbers.Real):
      raise ValueError(f"{name}: record {i} has score {value!r}; give a number")
    if key == "bbox" and not is_box(value):
      raise ValueError(f"{name}: record {i} has bbox {value!r}; give the four numbers x, y, width, height")
    if key == "segmentation":
      run_length(value, f"{name}: record {i}")


def is_box(value: Any) -> bool:
  """Whether a value is four numbers."""
  sized = isinstance(value, Sequence | np.ndarray) and len(value) == 4
  return sized and all(isinstance(number, numbers.Real) for number in value)


def run_length(mask: Any, what: str) -> Mapping[str, Any]:
  """A run-length mask with compressed counts; `what` carries it. Raises ValueError for anything else."""
  if not isinstance(mask, Mapping) or not {"size", "counts"} <= mask.keys() or np.shape(mask["size"]) != (2,):
    raise ValueError(
      f"{what} has a segmentation that is not a run-length mask; "
      'give {"size": [height, width], "counts": ...}, as pycocotools.mask.encode does'
    )
  if not isinstance(mask["counts"], list):
    return mask
  if sum(mask["counts"]) != mask["size"][0] * mask["size"][1]:
    raise ValueError(f"{what} has a mask of {list(mask['size'])} whose counts add up to {sum(mask['counts'])}")
  return rle.frPyObjects(dict(mask), *mask["size"])


def check_detections(
  detections: Detections, sizes: Mapping[int, tuple[float, float] | None], categories: Iterable[int] | None
) -> None:
  """Raises ValueError naming the first detection that cannot be scored; warns where boxes look like corners.

  `sizes`: image id -> (height, width), None where the annotations do not tell; `categories`: known ids, None: any.
  """
  name, ids = detections.name, np.fromiter(sizes, np.int64, len(sizes))
  if (i := _first(~np.isin(detections.image_id, ids))) is not None:
    raise ValueError(
      f"{name}: record {i} is on image id {detections.image_id[i]}, which the annotations do not list; "
      "evaluate against the split that was predicted"
    )
  known = np.fromiter(categories, np.int64) if categories is not None else detections.category_id
  if (i := _first(~np.isin(detections.category_id, known))) is not None:
    raise ValueError(
      f"{name}: record {i} has category id {detections.category_id[i]}; known ids: {sorted(known.tolist())[:20]}; "
      "map labels to the category ids of the annotation file"
    )
  if (i := _first(~np.isfinite(detections.score))) is not None:
    raise ValueError(f"{name}: record {i} has score {detections.score[i]}; scores must be finite numbers")
  boxes = detections.bbox_xywh_px
  if (i := _first(~(np.isfinite(boxes).all(1) & (boxes[:, 2:] >= 0).all(1)))) is not None:
    raise ValueError(
      f"{name}: record {i} has bbox {boxes[i].tolist()}; give finite x, y and width, height of at least 0"
    )
  for i, mask in enumerate(detections.segmentation or ()):
    size = sizes[int(detections.image_id[i])]
    if size is not None and tuple(mask["size"]) != size:
      raise ValueError(
        f"{name}: record {i} has a mask of {list(mask['size'])}, but image {detections.image_id[i]} is {list(size)} "
        "(height, width); predict masks at the size of the original picture"
      )
  if detections.segmentation is None:
    warn_of_corners(boxes, [sizes[i] for i in detections.image_id.tolist()], name)


def warn_of_corners(boxes: np.ndarray, sizes: Sequence[tuple[float, float] | None], name: str) -> None:
  """Warns when n 4 boxes that should be x, y, width, height read like x1, y1, x2, y2.

  They do when no box is wider or higher than its own far corner would allow (third >= first, fourth >= second, always
  so for corners, rarely for sizes) and one leaves its picture by more than two pixels when read as it should be.
  """
  if not len(boxes) or not (boxes[:, 2:] >= boxes[:, :2]).all():
    return
  limits = np.array([(size[1], size[0]) if size else (math.inf, math.inf) for size in sizes])
  if (i := _first((boxes[:, :2] + boxes[:, 2:] > limits + 2).any(1))) is not None:
    warnings.warn(
      f"{name}: boxes look like x1, y1, x2, y2 where x, y, width, height are expected (record {i}, "
      f"{boxes[i].tolist()}, leaves its picture); subtract the first two numbers from the last two",
      stacklevel=2,
    )


def _first(bad: np.ndarray) -> int | None:
  """The position of the first True."""
  return int(np.argmax(bad)) if bad.any() else None


def _masks(masks: list[Any]) -> list[Mapping[str, Any]]:
  """Run-length masks with compressed counts; KeyError, TypeError or ValueError where one is something else."""
  _numbers([mask["size"] for mask in masks], "iu", (2,))
  compressed = all(isinstance(mask["counts"], str | bytes) for mask in masks)
  return masks if compressed else [run_length(mask, "record") for mask in masks]


def _name(source: Source, what: str) -> str:
  return str(source) if isinstance(source, str | pathlib.Path) else what


def _batches(path: pathlib.Path, name: str) -> Iterator[list[Any]]:
  """The items of a JSON list, some ten thousand at a time."""
  if not path.is_file():
    raise FileNotFoundError(f"predictions file {name} does not exist; give the path of a JSON file")
  count = 0
  with path.open(encoding="utf-8", errors="replace") as file:  # a bad byte ends as a broken record
    text: str | None = file.read(_CHUNK).lstrip()
    if not text.startswith("["):
      raise ValueError(f"{name} does not start with '['; give a JSON list of records")
    text = text[1:]
    while text is not None:
      more = file.read(_CHUNK)
      cuts = list(_BETWEEN.finditer(text := text + more, max(0, len(text) - (1 << 16)))) if more else []
      if more and not cuts:
        continue
      block, text = (text[: cuts[-1].start() + 1], text[cuts[-1].end() :]) if more else (text.rstrip(), None)
      try:
        batch = loads(f"[{block}]" if more else f"[{block}")
      except json.JSONDecodeError as error:
        i = count + _readable(block)
        raise ValueError(f"{name}: record {i} breaks off or is not JSON; write or copy the whole file again") from error
      yield batch
      count += len(batch)


def _readable(text: str) -> int:
  """How many items stand whole at the beginning of a broken list."""
  decode, at, count = json.JSONDecoder().raw_decode, 0, 0
  try:
    while True:
      at = re.compile(r"[\s,]*").match(text, at).end()
      _, at = decode(text, at)
      count += 1
  except json.JSONDecodeError:
    return count

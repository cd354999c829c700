"""GLIP's TSV container: detection sets (Objects365, OpenImages, VG) and captions with pseudo boxes (Cap4M, CC, SBU).

A yaml file names `img` (key, base64 of the picture), `label` (key, json) and optionally `hw`, `linelist`, `labelmap` or
`jsondict`, `imageid2idx`; beside each x.tsv lies x.lineidx, the byte offset of each of its lines. With a label map the
set is one of detection (rows of {"class", "rect"}), without one its rows hold a caption. Row i of every file is about
the same picture; the keys must say so too.

The caption's boxes come in two forms: v1 has one entry per box, v2 one entry per phrase with the list of its boxes.
Rows without boxes ("inference rows") make a set of the kind 'caption', for `glipv2 pseudo-label`.
"""

import base64
import binascii
import contextlib
import functools
import glob
import itertools
import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import yaml

from glipv2_jax.boxes import iou
from pipelines.records import BadRecord, Example, Question, Span, record_name
from pipelines.sources.lines import Lines
from pipelines.sources.parts import (
  box,
  check_names,
  faults_as_bad_record,
  items,
  mapping,
  number,
  read_small_json,
  side,
  text,
)
from pipelines.sources.pictures import first_usable
from pipelines.sources.spans import read_spans

BACKGROUND = "__background__"  # entry 0 of some label maps
_KEYS = ("img", "label", "hw", "linelist", "labelmap", "jsondict", "imageid2idx")


class GlipTsv:
  """Random access to the rows of one or several sets, at byte offsets: memory is 16 to 24 bytes per row.

  The line list, if there is one, says which rows there are, how often and in which order. The id of a record is its
  position in that order. Rows are read when they are used, so a fault in one is a BadRecord. Only the
  first ones are looked at to start with.

  Attributes:
    kind: 'detection', 'grounding' or 'caption': of all rows; the first readable one decides.
    classes: the names of the label map in order of their numbers, without background; or ().
  """

  def __init__(
    self, data: str, *, name: str = "glip_tsv", confidence: float = 0.5, min_boxes: int = 1, nms: float = 0.0
  ):
    """Opens the sets.

    Args:
      data: the yaml file; with * and ? the files of a sharded set, in order of their names.
      name: of this data set, for messages and counts.
      confidence: of pseudo boxes, those that score above stay.
      min_boxes: rows with fewer pseudo boxes left are passed over as 'too_few_boxes'.
      nms: above 0, of two pseudo boxes that overlap more than this the better one stays, whatever they name (published:
        0.9 by default, off in the pre-training configurations).

    Raises:
      FileNotFoundError, ValueError: a file is missing or not of this form.
    """
    paths = sorted(glob.glob(data)) if glob.has_magic(data) else [data]
    if not paths:
      raise FileNotFoundError(f"no file matches {data}; set `data` to the yaml file of a GLIP TSV set")
    self.name, self._confidence, self._min_boxes, self._nms = name, confidence, min_boxes, nms
    self._sets = [_Set(pathlib.Path(path)) for path in paths]
    self._ends = np.cumsum([len(s) for s in self._sets])
    maps = {s.classes for s in self._sets}
    if len(maps) > 1:
      raise ValueError(f"{data}: the sets have different label maps; they are to be opened as sources of their own")
    (self.classes,) = maps
    self.kind = "detection" if self.classes else self._kind_of_first()
    try:
      first_usable(len(self), self.__getitem__)
    except BadRecord as error:
      if error.reason != "too_few_boxes":
        raise ValueError(f"{paths[0]}: its first row cannot be used: {error}") from error

  def _kind_of_first(self) -> str:
    def kind(index: int) -> str:
      part, at = self._place(index)
      record = record_name(self.name, index)
      with faults_as_bad_record(record):
        return "grounding" if "bboxes" in _caption_row(part.label(at, record)[1]) else "caption"

    try:
      return first_usable(len(self), kind)
    except BadRecord as error:
      raise ValueError(f"the first row cannot be used: {error}; a detection set needs a `labelmap`") from error

  def __len__(self) -> int:
    return int(self._ends[-1])

  def _place(self, index: int) -> tuple["_Set", int]:
    number = int(np.searchsorted(self._ends, index, side="right"))
    return self._sets[number], index - (int(self._ends[number - 1]) if number else 0)

  def caption(self, index: int) -> str:
    """The text of a record, without its picture and boxes. Raises BadRecord."""
    part, at = self._place(index)
    record = record_name(self.name, index)
    with faults_as_bad_record(record):
      return _text_of(_caption_row(part.label(at, record)[1]), record)

  def sizes(self) -> np.ndarray:
    """n 2 int32: height and width of every record's picture, 0 0 where no `hw` file tells it.

    Rows of captions have the size too, but all of them would have to be parsed for it."""
    return np.concatenate([part.sizes() for part in self._sets])

  def __getitem__(self, index: int) -> Example:
    """Raises BadRecord('broken_annotation', 'empty_caption' or 'too_few_boxes')."""
    if not 0 <= index < len(self):
      raise IndexError(f"record {index} of {len(self)} in {self.name}")
    part, at = self._place(index)
    record = record_name(self.name, index)
    key, content = part.label(at, record)
    with faults_as_bad_record(record):
      if self.kind == "detection":
        annotation = _detection(content, self.classes)
      else:
        annotation = self._caption(_caption_row(content), record)
      picture, size = part.picture(at, key), part.size(at, key)
    size = annotation.pop("image_size", None) or size
    return Example(source=self.name, image_id=index, kind=self.kind, image=picture, image_size=size, **annotation)

  def _caption(self, row: dict, record: str) -> dict[str, Any]:
    fields: dict[str, Any] = dict(caption=_text_of(row, record), boxes_xyxy_px=np.zeros((0, 4), np.float32))
    if "text" in row:
      question = text(row["text"], "text")
      fields["questions"] = (Question(question, (fields["caption"].removeprefix(question).strip(),)),)
    if self.kind == "caption":
      return fields
    boxes, scores, spans = _flat(row)
    kept = np.flatnonzero(scores > self._confidence)
    if self._nms > 0:
      kept = kept[_best(boxes[kept], scores[kept], self._nms)]
    if len(kept) < max(1, self._min_boxes):
      raise BadRecord("too_few_boxes", record, f"{len(kept)} of {len(boxes)} boxes score above {self._confidence}")
    fields |= dict(boxes_xyxy_px=boxes[kept], spans=tuple(spans[i] for i in kept))
    if "img_h" in row:
      fields["image_size"] = (side(row["img_h"], "img_h"), side(row["img_w"], "img_w"))
    return fields


class _Set:
  """The files of one yaml. `label`, `picture` and `size` take a position in the line list."""

  def __init__(self, path: pathlib.Path):
    files = _read_yaml(path)
    self._path, self._images, self._labels = path, _tsv(path, files, "img"), _tsv(path, files, "label")
    self._sizes = _tsv(path, files, "hw") if files.get("hw") else None
    self._rows = _line_list(path, files, len(self._labels))
    self._row_of_key = _key_map(path, files)
    self.classes = _classes(path, files)
    for lines in (self._images, self._sizes):
      if lines is not None and self._row_of_key is None and len(lines) < len(self._labels):
        raise ValueError(
          f"{lines.path} has {len(lines)} rows and {self._labels.path} {len(self._labels)}: give each picture one"
        )

  def __len__(self) -> int:
    return len(self._labels) if self._rows is None else len(self._rows)

  def _row(self, at: int) -> int:
    return at if self._rows is None else int(self._rows[at])

  def label(self, at: int, record: str) -> tuple[bytes, Any]:
    """Key and content of a label row. Raises BadRecord('broken_annotation')."""
    with faults_as_bad_record(record):
      key, _, content = self._labels[self._row(at)].partition(b"\t")
      return key, json.loads(content)

  def _of_key(self, lines: Lines, at: int, key: bytes) -> list[bytes]:
    row = self._row(at)
    if self._row_of_key is not None:
      row = self._row_of_key[key.decode()]
    columns = lines[row].split(b"\t")
    if columns[0] != key or len(columns) < 2:
      raise ValueError(f"row {row} is about {key!r} in the labels and about {columns[0]!r:.80} in {lines.path}")
    return columns

  def picture(self, at: int, key: bytes) -> bytes:
    """The encoded picture: base64 in the last column."""
    try:
      return base64.b64decode(self._of_key(self._images, at, key)[-1], validate=True)
    except binascii.Error as error:
      raise ValueError(f"the picture is no base64 ({error})") from error

  def size(self, at: int, key: bytes) -> tuple[int, int] | None:
    """Height and width, if the set tells them."""
    if self._sizes is None:
      return None
    return _size(self._of_key(self._sizes, at, key)[1])

  def sizes(self) -> np.ndarray:
    """n 2 int32, 0 0 where the set does not tell them by row, or the row is broken."""
    found = np.zeros((len(self._labels), 2), np.int32)
    if self._sizes is not None and self._row_of_key is None:
      with open(self._sizes.path, "rb") as file:
        for row, line in enumerate(itertools.islice(file, len(found))):
          with contextlib.suppress(ValueError, KeyError, TypeError, IndexError, RecursionError):
            found[row] = _size(line.rstrip(b"\r\n").split(b"\t")[1])
    return found if self._rows is None else found[self._rows]


@functools.lru_cache(maxsize=1 << 16)
def _size(content: bytes) -> tuple[int, int]:
  """Height and width: [{"height", "width"}], the same without list, or "height width"."""
  if content[:1] not in (b"[", b"{"):
    height, width = content.decode().split()
  else:
    value = json.loads(content)
    value = mapping(value[0] if isinstance(value, list) and value else value, "hw")
    height, width = value["height"], value["width"]
  return side(height, "height"), side(width, "width")


def _read_yaml(path: pathlib.Path) -> dict[str, str]:
  """The entries that name files. Raises FileNotFoundError or ValueError."""
  if not path.is_file():
    raise FileNotFoundError(f"{path} does not exist; set `data` to the yaml file of a GLIP TSV set")
  try:
    content = yaml.safe_load(path.read_bytes()[: 1 << 20])
  except (yaml.YAMLError, ValueError, RecursionError) as error:
    raise ValueError(f"{path} is not valid yaml ({error}); it has to name the files of a GLIP TSV set") from error
  files = {key: content[key] for key in _KEYS if key in content} if isinstance(content, dict) else {}
  missing = [key for key in ("img", "label") if not files.get(key)]
  if missing or not all(isinstance(value, str) or value is None for value in files.values()):
    raise ValueError(f"{path} has to name files as {', '.join(_KEYS[:3])}, ...; it lacks {missing}: {content!r:.200}")
  return files


def _tsv(path: pathlib.Path, files: dict[str, str], key: str) -> Lines:
  file = path.parent / files[key]
  return Lines(file, f"{key} in {path}", file.with_suffix(".lineidx"))


def _line_list(path: pathlib.Path, files: dict[str, str], rows: int) -> np.ndarray | None:
  if not files.get("linelist"):
    return None
  file = path.parent / files["linelist"]
  if not file.is_file():
    raise FileNotFoundError(f"{file} does not exist; correct `linelist` in {path}")
  try:
    chosen = np.loadtxt(file, np.int32, usecols=0, ndmin=1)
  except ValueError as error:
    raise ValueError(f"{file} needs one row number per line ({error})") from error
  if not len(chosen) or chosen.min() < 0 or chosen.max() >= rows:
    raise ValueError(
      f"{file} has to name rows 0..{rows - 1} of the labels; it has {len(chosen)} entries, from "
      f"{chosen.min(initial=0)} to {chosen.max(initial=0)}"
    )
  return chosen


def _key_map(path: pathlib.Path, files: dict[str, str]) -> dict[str, int] | None:
  """`imageid2idx`: the key of a label row -> the row of its picture."""
  if not files.get("imageid2idx"):
    return None
  content = read_small_json(path.parent / files["imageid2idx"], "imageid2idx", "a json object of row numbers")
  if not isinstance(content, dict) or not all(type(row) is int and row >= 0 for row in content.values()):
    raise ValueError(f"{path.parent / files['imageid2idx']} has to be an object of row numbers")
  return content


def _classes(path: pathlib.Path, files: dict[str, str]) -> tuple[str, ...]:
  """Names by number: {"label_to_idx": {name: 1..}}, {name: 1..}, or a tsv with one name per line."""
  name = files.get("labelmap") or files.get("jsondict")
  if not name:
    return ()
  file = path.parent / name
  if file.suffix == ".tsv":
    lines = Lines(file, f"labelmap in {path}")
    numbers = {lines[i].split(b"\t")[0].decode(): i + 1 for i in range(len(lines))}
  else:
    content = read_small_json(file, "labelmap", "a json file of class numbers")
    numbers = content.get("label_to_idx", content) if isinstance(content, dict) else None
    if not isinstance(numbers, dict) or not all(type(n) is int for n in numbers.values()):
      raise ValueError(f"{file} has to be an object of class numbers, {{name: number}}; found {content!r:.80}")
  if len(set(numbers.values())) < len(numbers):
    raise ValueError(f"{file}: a number stands for several classes")
  names = tuple(sorted((n for n in numbers if n != BACKGROUND), key=numbers.__getitem__))
  check_names(file, names)
  if not names:
    raise ValueError(f"{file} names no class")
  return names


def _detection(content: Any, classes: tuple[str, ...]) -> dict[str, Any]:
  """A list of objects, or an object with such a list. `rect` is x1, y1, x2, y2 and taken as it is, as published."""
  objects = items(content["objects"] if isinstance(content, dict) else content, "the objects")
  labels = tuple(text(mapping(entry, "an object")["class"], "class") for entry in objects)
  for label in labels:
    if label not in classes:
      raise ValueError(f"class {label!r:.80} is not in the label map")
  boxes = np.array([box(entry["rect"], "rect") for entry in objects], np.float32).reshape(-1, 4)
  return dict(boxes_xyxy_px=boxes, labels=labels)


def _caption_row(content: Any) -> dict:
  """The object of a row that may be a list of one."""
  return mapping(content[0] if isinstance(content, list) and content else content, "a caption row")


def _text_of(row: dict, record: str) -> str:
  """The caption; of several the first. Raises BadRecord('empty_caption')."""
  found = row["caption"] if "caption" in row else (items(row["captions"], "captions") or [""])[0]
  if not text(found, "caption").strip():
    raise BadRecord("empty_caption", record)
  return found


def _flat(row: dict) -> tuple[np.ndarray, np.ndarray, list[tuple[Span, ...]]]:
  """v1 and v2 -> boxes g 4 float32, scores g float32, spans of each box."""
  entries = [items(row[key], key) for key in ("bboxes", "scores", "tokens_positive")]
  if len({len(entry) for entry in entries}) > 1:
    raise ValueError(f"bboxes, scores and tokens_positive have {[len(entry) for entry in entries]} entries")
  flat = [one for boxes, scores, spans in zip(*entries, strict=True) for one in _of_entry(boxes, scores, spans)]
  boxes, scores = [b for b, _, _ in flat], [s for _, s, _ in flat]
  return np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), [spans for _, _, spans in flat]


def _of_entry(boxes: Any, scores: Any, spans: Any) -> Iterator[tuple[list[float], float, tuple[Span, ...]]]:
  """One box (v1), or the boxes of one phrase (v2)."""
  if not isinstance(scores, list):
    boxes, scores = [boxes], [scores]
  named = tuple(read_spans(spans))
  if len(items(boxes, "bboxes")) != len(scores):
    raise ValueError(f"a phrase has {len(boxes)} boxes and {len(scores)} scores")
  for one, score in zip(boxes, scores, strict=True):
    if math.isnan(score := number(score, "a score")):
      raise ValueError("a box has no score")
    yield box(one), score, named


def _best(boxes: np.ndarray, scores: np.ndarray, limit: float) -> np.ndarray:
  """Which boxes stay, in their order, when of two that overlap more than `limit` the better one does."""
  kept: list[int] = []
  for i in np.argsort(-scores, kind="stable"):
    if not (iou(boxes[i : i + 1], boxes[kept]) > limit).any():  # NaN, a broken box, overlaps nothing and is found later
      kept.append(int(i))
  return np.sort(np.array(kept, np.int64))

"""ODVG json lines (Open-GroundingDINO, MMDetection): one picture per line, a detection or a grounding set.

With a label map ({"0": "person", ...}) the set is one of detection, without one of grounding. In MMDetection's form of
grounding a region has the characters that name it (`tokens_positive`), and `bbox` may be several boxes. In the other
form it only has a `phrase`; that form's own reader leaves the caption alone and writes the phrases one after another,
and so does this one: where a phrase stands in the caption would be a guess.
"""

import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from pipelines.records import BadRecord, Example, Span, record_name
from pipelines.sources.index import inclusive_corners
from pipelines.sources.lines import Lines
from pipelines.sources.parts import (
  box,
  check_names,
  faults_as_bad_record,
  items,
  mapping,
  read_small_json,
  side,
  text,
)
from pipelines.sources.pictures import check_folder, first_usable, read_picture
from pipelines.sources.spans import read_spans

_SEPARATOR = " . "  # between phrases, as in that form's reader


class OdvgJsonl:
  """Random access to the lines of one file. The id of a record is the number of its line, from 0.

  Lines are read when they are used, so a fault in one is a BadRecord. Only the first ones are looked at to start with.

  Attributes:
    kind: 'detection' or 'grounding'.
    classes: the names of the label map in order of their numbers, or ().
  """

  def __init__(self, annotations: str, images: str, *, label_map: str = "", name: str = "odvg_jsonl"):
    """Reads the index.

    Args:
      annotations: the json-lines file.
      images: the folder that its `filename`s are relative to.
      label_map: the json file of class names; '' for a grounding set.
      name: of this data set, for messages and counts.

    Raises:
      FileNotFoundError, ValueError: a file or folder is missing, or the first lines are not of this form.
    """
    self.name, self.folder = name, os.fspath(images)
    self.kind = "detection" if label_map else "grounding"
    self.classes = _label_map(pathlib.Path(label_map)) if label_map else ()
    check_folder(self.folder, "images")
    self._lines = Lines(annotations, "annotations")
    try:
      first_usable(len(self), self.__getitem__)
    except BadRecord as error:
      if error.reason == "missing_image":
        raise FileNotFoundError(f"{annotations}: {error.detail}; check `images`") from error
      other = "; a grounding set is read without `label_map`, a detection set with it"
      raise ValueError(f"{annotations}: its first line cannot be used ({error.detail}){other}") from error

  def __len__(self) -> int:
    return len(self._lines)

  def caption(self, index: int) -> str:
    """The text of a grounding record. Raises BadRecord('broken_annotation')."""
    with faults_as_bad_record(record_name(self.name, index)):
      return _grounding(json.loads(self._lines[index])["grounding"])["caption"]

  def __getitem__(self, index: int) -> Example:
    """Raises BadRecord('missing_image' or 'broken_annotation')."""
    record = record_name(self.name, index)
    with faults_as_bad_record(record):
      content = mapping(json.loads(self._lines[index]), "the line")
      file = text(content["filename"], "filename")
      size = (side(content["height"], "height"), side(content["width"], "width"))
      if self.kind == "detection":
        annotation = _detection(content["detection"], self.classes)
      else:
        annotation = _grounding(content["grounding"])
    picture = read_picture(os.path.join(self.folder, file), record)
    return Example(source=self.name, image_id=index, kind=self.kind, image=picture, image_size=size, **annotation)


def _detection(content: Any, classes: tuple[str, ...]) -> dict[str, Any]:
  """Boxes and labels. A label is the number of its class; `category` repeats the name and must agree."""
  boxes, labels = [], []
  for instance in items(mapping(content, "detection")["instances"], "instances"):
    number = mapping(instance, "an instance")["label"]
    if type(number) is not int or not 0 <= number < len(classes):
      raise ValueError(f"label {number!r:.40} is none of the {len(classes)} numbers of the label map")
    if instance.get("category", classes[number]) != classes[number]:
      raise ValueError(f"label {number} is {classes[number]!r} in the label map, not {instance['category']!r:.80}")
    boxes.append(box(instance["bbox"]))
    labels.append(classes[number])
  return dict(boxes_xyxy_px=inclusive_corners(boxes), labels=tuple(labels))


def _grounding(content: Any) -> dict[str, Any]:
  """Caption, boxes and spans."""
  regions = items(mapping(content, "grounding")["regions"], "regions")
  phrases = [_phrases(mapping(region, "a region")["phrase"]) for region in regions]
  marked = ["tokens_positive" in region for region in regions]
  if all(marked):
    caption, spans = text(content["caption"], "caption"), [tuple(read_spans(r["tokens_positive"])) for r in regions]
  elif any(marked):
    raise ValueError("some regions have tokens_positive and some have not")
  else:
    caption, places = _joined(phrase for of_region in phrases for phrase in of_region)
    spans = [tuple(places[phrase] for phrase in of_region) for of_region in phrases]
  if not regions:
    raise ValueError("it has no regions, so all its words would name background")
  several = [_boxes(region["bbox"]) for region in regions]
  return dict(
    caption=caption,
    boxes_xyxy_px=inclusive_corners([one for boxes in several for one in boxes]),
    spans=tuple(named for boxes, named in zip(several, spans, strict=True) for _ in boxes),
  )


def _phrases(value: Any) -> list[str]:
  """One phrase, or several that are apart in the caption. An empty one names nothing."""
  found = [text(phrase, "phrase") for phrase in (value if isinstance(value, list) else [value])]
  if not all(phrase.strip() for phrase in found):
    raise ValueError(f"a region has the phrase {value!r:.80}, which names nothing")
  return found


def _boxes(value: Any) -> list[list[float]]:
  """One box, or a list of boxes."""
  return [box(one) for one in (value if isinstance(value, list) and value and isinstance(value[0], list) else [value])]


def _joined(phrases: Iterable[str]) -> tuple[str, dict[str, Span]]:
  """The distinct phrases in one text, and where each stands."""
  joined, places = "", {}
  for phrase in phrases:
    if phrase not in places:
      joined += _SEPARATOR if places else ""
      places[phrase] = (len(joined), len(joined) + len(phrase))
      joined += phrase
  return joined, places


def _label_map(path: pathlib.Path) -> tuple[str, ...]:
  """The names in order of their numbers, which count from 0 without a gap."""
  content = read_small_json(path, "label_map", 'a json file of class names, {"0": "person", ...}')
  try:
    numbers = {int(number): name for number, name in content.items()}
  except (AttributeError, ValueError) as error:
    raise ValueError(f'{path} needs numbers as keys, {{"0": "person", ...}}; found {content!r:.80}') from error
  if not numbers or sorted(numbers) != list(range(len(numbers))):
    raise ValueError(
      f"{path}: the class numbers have to be 0..{len(numbers) - 1} without a gap; found {sorted(numbers)}"
    )
  check_names(path, numbers.values())
  return tuple(numbers[i] for i in range(len(numbers)))

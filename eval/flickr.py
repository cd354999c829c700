"""Flickr30k Entities: Recall@1/5/10 and upper bound of phrase grounding from the official files (reference 8).

Two protocols: any-box (a phrase is found when a box overlaps any of its true boxes; the paper's) and merged-box (its
true boxes are replaced by the one that encloses them).
"""

import pathlib
import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np

from eval.files import Source, by_key, fields, is_box, read_records
from eval.grounding import RANKS, GroundedPhrase, recall

_PHRASE = re.compile(r"\[/EN#(?P<chain>\d+)/(?P<kinds>\S+) [^\]]*\]")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
Phrase = tuple[tuple[str, ...], np.ndarray]  # kinds, true boxes g 4


def load_sentences(split: str | pathlib.Path) -> dict[tuple[str, int], list[Phrase]]:
  """The phrases with boxes of every sentence, by image and number of the sentence, in the order of the text.

  `split`: the list of image ids (test.txt); the folders Annotations and Sentences lie beside it. Boxes are the numbers
  of the XML files as they stand, as in the authors' evaluator. Raises FileNotFoundError, ValueError.
  """
  split = pathlib.Path(split)
  if not split.is_file():
    raise FileNotFoundError(f"{split} does not exist; give the list of images (test.txt) of Flickr30k Entities")
  sentences = {}
  for image in split.read_text(encoding="utf-8").split():
    boxes = _boxes(split.parent / "Annotations" / f"{image}.xml")
    text = split.parent / "Sentences" / f"{image}.txt"
    if not text.is_file():
      raise FileNotFoundError(f"{text} does not exist; Annotations and Sentences must lie beside {split.name}")
    for number, line in enumerate(filter(None, text.read_text(encoding="utf-8").split("\n"))):
      marks = [mark for mark in _PHRASE.finditer(line) if mark["chain"] in boxes]
      sentences[image, number] = [(tuple(mark["kinds"].split("/")), boxes[mark["chain"]]) for mark in marks]
  return sentences


def evaluate(split: str | pathlib.Path, predictions: Source) -> dict[str, Any]:
  """R@1, R@5, R@10, R@upper_bound, the same as merged/..., and both per type of phrase; fractions.

  `predictions`: a file or its records {image_id, sentence_id, boxes}: for each phrase of the sentence that has true
  boxes, in the order of the text, its boxes x1, y1, x2, y2 in pixels, best first. A sentence without record counts as
  not found and in 'missing_sentences'. Raises ValueError naming the record that is wrong.
  """
  sentences = load_sentences(split)
  found = _found(predictions, sentences)
  phrases, merged = [], []
  for key, truth in sentences.items():
    given = found[key] if key in found else [[]] * len(truth)
    for (kinds, boxes), predicted in zip(truth, given, strict=True):
      predicted = np.array(predicted, float).reshape(-1, 4)
      phrases.append(GroundedPhrase(predicted, boxes, kinds))
      merged.append(GroundedPhrase(predicted, np.r_[boxes[:, :2].min(0), boxes[:, 2:].max(0)][None], kinds))
  missing = sum(bool(truth) and key not in found for key, truth in sentences.items())
  result: dict[str, Any] = {}
  per_type: dict[str, dict[str, float]] = {}
  for prefix, of_protocol in (("", phrases), ("merged/", merged)):
    report = recall(of_protocol)
    result |= named(report, prefix)
    for kind, numbers in report["per_kind"].items():
      per_type.setdefault(kind, {}).update(named(numbers, prefix))
  return {**result, "phrases": len(phrases), "missing_sentences": missing, "per_type": per_type}


def _found(predictions: Source, sentences: dict) -> dict[tuple[str, int], list]:
  records, name = read_records(predictions)
  rows = []
  for i, record in enumerate(records):
    image_id, sentence_id, boxes = fields(record, i, name, "image_id", "sentence_id", "boxes")
    key = (str(image_id), int(sentence_id))
    wanted = len(sentences[key]) if key in sentences else len(boxes)
    check_ranked(boxes, wanted, f"{name}: record {i}", f"sentence {key[1]} of image {key[0]}")
    rows.append((i, key, boxes))
  return by_key(rows, sentences, name, "image and sentence")


def check_ranked(boxes: list, phrases: int, record: str, text: str) -> None:
  """Raises ValueError unless there is one list of boxes x1, y1, x2, y2 for each phrase of the text."""
  if len(boxes) != phrases:
    raise ValueError(
      f"{record} has boxes for {len(boxes)} phrases, but {text} has {phrases} phrases with boxes; give one list of "
      "boxes for each"
    )
  for j, of_phrase in enumerate(boxes):
    if not all(is_box(box) and np.isfinite(box).all() for box in of_phrase):
      raise ValueError(f"{record}, phrase {j} has a box that is not four finite numbers x1, y1, x2, y2")


def named(report: dict[str, Any], prefix: str = "") -> dict[str, float | None]:
  """The recalls of `eval.grounding.recall` by their short names, R@1 ..."""
  names = {f"R@{k}": f"grounding_recall_at_{k}" for k in RANKS} | {"R@upper_bound": "grounding_recall_upper_bound"}
  return {prefix + short: report[long] for short, long in names.items()}


def _boxes(path: pathlib.Path) -> dict[str, np.ndarray]:
  """True boxes g 4 of each chain of coreferent phrases."""
  if not path.is_file():
    raise FileNotFoundError(f"{path} does not exist; the folder Annotations must lie beside the list of images")
  try:
    root = ElementTree.parse(path).getroot()
  except ElementTree.ParseError as error:
    raise ValueError(f"{path} is not XML (cut short?): {error}") from error
  boxes: dict[str, list] = {}
  for item in root.iter("object"):
    box = item.find("bndbox")
    for name in item.findall("name") if box is not None else ():
      boxes.setdefault(name.text, []).append([int(box.find(corner).text) for corner in _CORNERS])
  return {chain: np.array(of_chain, float) for chain, of_chain in boxes.items()}

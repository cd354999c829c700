"""Phrase grounding on captions in MDETR's form (GoldG, one's own data): Recall@1/5/10 of phrases, any-box rule.

A COCO-like file in which every 'image' is one caption: {id, file_name, height, width, caption}, and every annotation
has a bbox (x, y, width, height) and `tokens_positive`, the characters [begin, end) that name it. The phrases of a
caption are its `tokens_positive_eval` where the file has them (the Flickr30k part), otherwise the distinct spans of its
boxes in the order of the text; a box is true for a phrase when it has all of the phrase's spans.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from eval.files import Source, by_key, fields, is_box, read_json, read_records, unique
from eval.flickr import check_ranked, named
from eval.grounding import GroundedPhrase, recall

Spans = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Caption:
  """One caption: what is asked, and the true boxes of each phrase."""

  text: str
  phrases: tuple[Spans, ...]
  truth_xyxy_px: tuple[np.ndarray, ...]  # of each phrase g 4, inclusive corners: x2 = x + w - 1 (reference 6.5)
  image: Mapping[str, Any]  # the 'image' as it stands in the file


def load_captions(source: str | pathlib.Path | Mapping[str, Any]) -> dict[int, Caption]:
  """The captions of a file (or of its content) by image id. Raises FileNotFoundError, ValueError."""
  name = "annotations" if isinstance(source, Mapping) else str(source)
  content = source if isinstance(source, Mapping) else read_json(source, "annotation file")
  for key in ("images", "annotations"):
    if not isinstance(content, Mapping) or key not in content:
      raise ValueError(f"{name} has no {key!r}; give captions in MDETR's form")
  ids = [fields(image, i, f"images of {name}", "id", "caption")[0] for i, image in enumerate(content["images"])]
  unique(ids, name, "image")
  boxes: dict[int, list[tuple[np.ndarray, set]]] = {i: [] for i in ids}
  for i, annotation in enumerate(content["annotations"]):
    what = f"annotations of {name}"
    image_id, box, spans = fields(annotation, i, what, "image_id", "bbox", "tokens_positive")
    if image_id not in boxes:
      raise ValueError(f"annotation {i} of {name} is on image {image_id!r}, which 'images' does not list")
    if not is_box(box) or not np.isfinite(box).all():
      raise ValueError(f"annotation {i} of {name} has bbox {box!r}; give finite x, y, width, height in pixels")
    x, y, w, h = box
    boxes[image_id].append((np.array([x, y, x + max(w - 1, 0), y + max(h - 1, 0)]), set(map(tuple, spans))))
  captions = {}
  for image in content["images"]:
    of_image = boxes[image["id"]]
    if "tokens_positive_eval" in image:
      phrases = tuple(tuple(map(tuple, spans)) for spans in image["tokens_positive_eval"])
    else:
      phrases = tuple((span,) for span in sorted(set().union(*(spans for _, spans in of_image))))
    truth = tuple(np.array([box for box, s in of_image if s.issuperset(p)]).reshape(-1, 4) for p in phrases)
    captions[image["id"]] = Caption(image["caption"], phrases, truth, image)
  return captions


def evaluate(annotations: str | pathlib.Path | Mapping[str, Any], predictions: Source) -> dict[str, Any]:
  """R@1, R@5, R@10, R@upper_bound over all phrases that have a true box, as fractions; 'phrases', 'missing'.

  `predictions`: a file or its records {image_id, boxes}: for each phrase of the caption, in order, its boxes
  x1, y1, x2, y2 in pixels, best first. A caption without record counts as not found and in 'missing'. Raises ValueError
  naming the record that is wrong.
  """
  captions = load_captions(annotations)
  found = _found(predictions, captions)
  phrases = []
  for image_id, caption in captions.items():
    given = found[image_id] if image_id in found else [[]] * len(caption.phrases)
    for truth, boxes in zip(caption.truth_xyxy_px, given, strict=True):
      if len(truth):
        phrases.append(GroundedPhrase(np.array(boxes, float).reshape(-1, 4), truth))
  missing = sum(bool(caption.phrases) and i not in found for i, caption in captions.items())
  return {**named(recall(phrases)), "phrases": len(phrases), "missing": missing}


def _found(predictions: Source, captions: Mapping[int, Caption]) -> dict[int, list]:
  records, name = read_records(predictions)
  rows = []
  for i, record in enumerate(records):
    image_id, boxes = fields(record, i, name, "image_id", "boxes")
    wanted = len(captions[image_id].phrases) if image_id in captions else len(boxes)
    check_ranked(boxes, wanted, f"{name}: record {i}", f"the caption of image {image_id}")
    rows.append((i, image_id, boxes))
  return by_key(rows, captions, name, "image")

"""Between our predictions and the official formats: the records of every task, and the files they are scored against.

A task is one of `eval.tasks`; what it takes here is the same that `glipv2 evaluate --task` takes from a file.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from eval import mdetr
from eval.files import read_json
from glipv2_jax import infer
from launch.predicting import Prediction
from pipelines.build import SourceEntry
from pipelines.records import Source
from pipelines.sources.shapes import Shapes, coco_dataset, mdetr_dataset

DETECTION = ("coco", "lvis", "lvis_fixed", "odinw")  # tasks of sources with class names
GROUNDING = ("grounding", "flickr", "refexp", "phrasecut")  # of sources with captions
BOXES = ("refexp", "phrasecut")  # which could be scored by masks too; the network has no mask head yet
WHOLE = ("flickr", "phrasecut")  # their ground truth cannot be cut to the first images
NO_LIMIT = ("lvis", "lvis_fixed")  # detections per picture are limited in each prompt only (reference 7)
Records = Callable[[int, Prediction], list[dict[str, Any]]]  # index in the source, what was predicted for it


@dataclasses.dataclass(frozen=True)
class Evaluated:
  """One source of an evaluation, and what is scored on it."""

  name: str  # in the configuration; of the predictions file and in reports
  entry: SourceEntry
  evaluator: str = ""  # the task; '': coco for class names, grounding for captions
  truth: str = ""  # ground truth file of the task; '': the source's own annotations
  wordings: tuple[tuple[str, str, str], ...] = ()  # per class: text before, name, text after (reference 6.4)


def task_of(one: Evaluated, source: Source) -> str:
  """The task, checked against what the source has. Raises ValueError."""
  task = one.evaluator or ("coco" if source.classes else "grounding")
  if task not in DETECTION + GROUNDING:
    heads = "; there is no head for it yet" if task in ("vqa", "captions", "grounded_vqa", "grounded_captions") else ""
    raise ValueError(
      f"eval.sources.{one.name}: task {task!r} cannot be predicted{heads}; known: {', '.join(DETECTION + GROUNDING)}"
    )
  if (task in DETECTION) != bool(source.classes):
    has = "class names" if source.classes else "captions"
    raise ValueError(f"eval.sources.{one.name}: task {task} does not go with a source of {has} ({one.entry[0]})")
  if task in WHOLE and not one.truth:
    raise ValueError(f"eval.sources.{one.name}: task {task} needs `truth`, the path of its official annotations")
  return task


def ground_truth(one: Evaluated, task: str, source: Source, limit: int | None, out: pathlib.Path) -> pathlib.Path:
  """The file that the task is scored against; written into `out` where the source has none or `limit` cuts it."""
  if limit is not None and task in WHOLE:
    raise ValueError(f"eval.sources.{one.name}: task {task} is scored as a whole; set eval.limit to None")
  own = dict(one.entry[2])
  if one.truth:
    path = pathlib.Path(one.truth)
  elif isinstance(source, Shapes):
    count = min(len(source), limit or len(source))
    return _written(out, one.name, (coco_dataset if source.classes else mdetr_dataset)(source, count))
  elif "annotations" in own:
    path = pathlib.Path(own["annotations"])
  else:
    raise ValueError(
      f"eval.sources.{one.name}: a source of kind {one.entry[0]!r} has no annotation file; set `truth` to one"
    )
  if limit is None:
    return path
  content = read_json(path, "annotation file")
  images = content["images"][:limit]
  kept = {image["id"] for image in images}
  annotations = [a for a in content["annotations"] if a["image_id"] in kept]
  return _written(out, one.name, {**content, "images": images, "annotations": annotations})


def records_of(one: Evaluated, task: str, source: Source, region_threshold: float) -> Records:
  """Turns the prediction for one row of a source into the records of the task's predictions file."""
  if task in DETECTION:
    ids, inclusive = category_ids(source), task in ("coco", "odinw")
    return lambda _, p: _detections(p, ids, inclusive)
  if isinstance(source, Shapes):
    return lambda _, p: [{"image_id": p.info.image_id, "boxes": _ranked(p)}]
  own = dict(one.entry[2])
  if task == "flickr" and one.entry[0] == "flickr30k":  # the official files themselves
    return lambda _, p: [{"image_id": p.info.image_id, "sentence_id": p.info.text_id, "boxes": _ranked(p)}]
  if "annotations" not in own:
    raise ValueError(
      f"eval.sources.{one.name}: task {task} needs a source of captions in MDETR's form, not {one.entry[0]!r}"
    )
  captions = list(mdetr.load_captions(own["annotations"]).values())
  return lambda index, p: _of_caption(p, captions[index], task, region_threshold)


def category_ids(source: Source) -> np.ndarray:
  """The ids of `source.classes` in its ground truth."""
  return np.arange(1, len(source.classes) + 1) if isinstance(source, Shapes) else np.asarray(source.category_ids)


def _detections(p: Prediction, ids: np.ndarray, inclusive: bool) -> list[dict[str, Any]]:
  """COCO results of one picture."""
  boxes, scores = _xywh(p.found.boxes_xyxy_px, inclusive), _scores(p)
  categories = ids[p.found.labels].tolist()
  return [
    {"image_id": p.info.image_id, "category_id": category, "bbox": box, "score": score}
    for category, box, score in zip(categories, boxes, scores, strict=True)
  ]


def _scores(p: Prediction) -> list[float]:
  return np.round(p.found.scores.astype(float), 7).tolist()


def _xywh(boxes_xyxy_px: np.ndarray, inclusive: bool = True) -> list[list[float]]:
  """`inclusive`: w = x2 - x1 + 1; in the authors' LVIS evaluation there is no + 1 (reference 8)."""
  boxes = boxes_xyxy_px.astype(float)
  boxes[:, 2:] += float(inclusive) - boxes[:, :2]
  return np.round(boxes, 3).tolist()


def _ranked(p: Prediction) -> list[list[list[float]]]:
  """For each phrase of the row its boxes x1, y1, x2, y2, best first."""
  return [np.round(boxes.astype(float), 3).tolist() for boxes in infer.by_phrase(p.found, len(p.info.phrases))]


def _of_caption(p: Prediction, caption: mdetr.Caption, task: str, region_threshold: float) -> list[dict[str, Any]]:
  """The records of one caption in MDETR's form. Raises ValueError when the source read another one."""
  image = caption.image
  if p.info.text != caption.text:
    raise ValueError(
      f"{p.info.source}: text {image['id']} is {p.info.text!r} in the source, {caption.text!r} in its file"
    )
  if task == "phrasecut":
    return [{"task_id": image["task_id"], "boxes": _xywh(p.found.boxes_xyxy_px[p.found.scores > region_threshold])}]
  if task == "refexp":
    found = zip(_xywh(p.found.boxes_xyxy_px), _scores(p), strict=True)
    return [{"image_id": image["id"], "bbox": box, "score": score} for box, score in found]
  # What was asked is joined to what the file asks by its characters: a phrase of several spans has the boxes of all.
  asked = [phrase.span for phrase in p.info.phrases]
  boxes = []
  for spans in caption.phrases:
    labels = [asked.index(span) for span in spans if span in asked]
    own = np.isin(p.found.labels, labels)
    boxes.append(np.round(p.found.boxes_xyxy_px[own].astype(float), 3).tolist())
  if task == "grounding":
    return [{"image_id": image["id"], "boxes": boxes}]
  return [{"image_id": image["original_img_id"], "sentence_id": image["sentence_id"], "boxes": boxes}]


def _written(out: pathlib.Path, name: str, content: Mapping[str, Any]) -> pathlib.Path:
  path = out / f"{name}.truth.json"
  path.write_text(json.dumps(content), encoding="utf-8")
  return path

"""Every evaluation task by name: files in, the numbers that its official tool reports out.

Any detector's files will do; `glipv2 evaluate --task` is the command over this module.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from eval import captions, coco, flickr, lvis, mdetr, odinw, phrasecut, refexp, vqa
from eval.files import SHAPES

Paths = Sequence[str | pathlib.Path]


@dataclasses.dataclass(frozen=True)
class Task:
  """How a task is scored and which files it takes."""

  score: Callable[[Paths, Paths, str], dict[str, Any]]  # annotation files, prediction files, IoU type
  annotations: tuple[str, ...]  # what each annotation file is; a last one in brackets may be left out
  predictions: tuple[str, ...]
  iou_types: tuple[str, ...] = ()  # between which the caller chooses, the usual one first


def _grounded(evaluate: Callable) -> Callable[[Paths, Paths, str], dict[str, Any]]:
  """The numbers of the understanding half and those of grounding, which have no name in common."""
  return lambda a, p, _: {**evaluate(a[0], p[0]), **flickr.evaluate(a[1], p[1])}


_COCO, _RESULTS, _BOTH = ("COCO annotations",), ("COCO results",), tuple(SHAPES)
_FLICKR = ("test.txt of Flickr30k Entities",)
_PHRASES = ("records {image_id, sentence_id, boxes}",)
_MDETR = ("captions in MDETR's form",)
_CAPTIONS = ("COCO captions or dataset_coco.json",)
_ANSWERS = ("v2_mscoco_*_annotations.json",)
TASKS = {
  "coco": Task(lambda a, p, shape: coco.evaluate_boxes(a[0], p[0], shape), _COCO, _RESULTS, _BOTH),
  "lvis": Task(lambda a, p, shape: lvis.evaluate(a[0], p[0], shape), ("LVIS annotations",), _RESULTS, _BOTH),
  "lvis_fixed": Task(
    lambda a, p, shape: lvis.evaluate(a[0], p[0], shape, fixed=True), ("LVIS annotations",), _RESULTS, _BOTH
  ),
  "odinw": Task(
    lambda a, p, _: odinw.evaluate_files(a[0], p[0]),
    ("JSON object {set: COCO annotations}",),
    ("folder of SET.json, or of runs SHOT_seedN/SET.json",),
  ),
  "flickr": Task(lambda a, p, _: flickr.evaluate(a[0], p[0]), _FLICKR, _PHRASES),
  "grounding": Task(lambda a, p, _: mdetr.evaluate(a[0], p[0]), _MDETR, ("records {image_id, boxes}",)),
  "phrasecut": Task(
    lambda a, p, shape: phrasecut.evaluate(a[0], p[0], shape),
    ("refer_SPLIT.json",),
    ("folder of TASK_ID.png, or records {task_id, segmentation}; for boxes records {task_id, boxes}",),
    ("segm", "bbox"),
  ),
  "refexp": Task(
    lambda a, p, shape: refexp.evaluate(a[0], p[0], shape, instances=a[1] if len(a) > 1 else None),
    ("finetune_refcoco_SPLIT.json", "[instances.json]"),
    _RESULTS,
    _BOTH,
  ),
  "vqa": Task(lambda a, p, _: vqa.evaluate(a[0], p[0]), _ANSWERS, ("records {question_id, answer}",)),
  "captions": Task(lambda a, p, _: captions.evaluate(a[0], p[0]), _CAPTIONS, ("records {image_id, caption}",)),
  # Table 6: one model's captions (or answers) and its grounding of Flickr30k's phrases.
  "grounded_captions": Task(
    _grounded(captions.evaluate), _CAPTIONS + _FLICKR, ("records {image_id, caption}", *_PHRASES)
  ),
  "grounded_vqa": Task(_grounded(vqa.evaluate), _ANSWERS + _FLICKR, ("records {question_id, answer}", *_PHRASES)),
}


def score(task: str, annotations: Paths, predictions: Paths, iou_type: str | None = None) -> dict[str, Any]:
  """The metrics of `task`, headline numbers as flat keys, breakdowns in mappings named per_...; None: nothing to score.

  `iou_type`: bbox or segm; None takes the usual one (bbox, for phrasecut segm). Raises ValueError, FileNotFoundError
  and ImportError with the remedy.
  """
  if task not in TASKS:
    raise ValueError(f"task {task!r} is not known; known: {', '.join(TASKS)}")
  known = TASKS[task]
  if iou_type is not None and iou_type not in known.iou_types:
    raise ValueError(f"task {task} has no IoU type {iou_type!r}; it has {', '.join(known.iou_types) or 'none'}")
  for what, given, expected in (
    ("--annotations", annotations, known.annotations),
    ("--predictions", predictions, known.predictions),
  ):
    needed = sum(not name.startswith("[") for name in expected)
    if not needed <= len(given) <= len(expected):
      raise ValueError(f"task {task} takes {what} {' '.join(f'<{name}>' for name in expected)}; {len(given)} given")
  return known.score(annotations, predictions, iou_type or (*known.iou_types, "bbox")[0])


def usage() -> str:
  """The tasks with the files they take, for people."""
  lines = []
  for name, task in TASKS.items():
    lines.append(f"  {name}" + (f" (--iou-type {' or '.join(task.iou_types)})" if task.iou_types else ""))
    lines.append(f"      --annotations {', '.join(task.annotations)}")
    lines.append(f"      --predictions {', '.join(task.predictions)}")
  return "\n".join(lines)

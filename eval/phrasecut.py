"""PhraseCut: mean and cumulative IoU and Pr@ of referred regions (or of boxes around them), in all and by subset.

The paper's number is the mean IoU over phrases. The subsets (by category rank, number of instances, structure of the
phrase, size, kind of attribute ...) are those of the data set's own evaluator.
"""

import collections
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as rle

from eval import phrasecut_words
from eval.files import by_key, fields, is_box, read_json, read_records, run_length

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
_TASK = ("task_id", "image_id", "Polygons", "instance_boxes", "phrase_structure")


def evaluate(
  refer: str | pathlib.Path, predictions: str | pathlib.Path | Iterable[Mapping[str, Any]], iou_type: str = "segm"
) -> dict[str, Any]:
  """mIoU, cIoU and Pr@0.5 ... Pr@0.9 (strictly above), and the same by subset; fractions.

  `refer`: refer_SPLIT.json, with image_data_split.json and name_att_rel_count.json beside it; `predictions`: the
  folder of TASK_ID.png masks (not black = region) that the official tool takes, or records (or a JSON file of them)
  {task_id, segmentation} with one run-length mask of the whole region. `iou_type` 'bbox' scores the region that boxes
  cover: records {task_id, boxes} with any number of boxes x, y, width, height in pixels. A phrase without prediction
  counts as an empty one and in 'missing'. Raises ValueError naming the file or record that is wrong.
  """
  tasks, images, counts = _load(pathlib.Path(refer))
  given = _boxes(predictions, tasks) if iou_type == "bbox" else _predictions(predictions, tasks)
  rows: dict[str, list[tuple[int, int]]] = collections.defaultdict(list)
  for task_id, task in tasks.items():
    image = images[task["image_id"]]
    truth = region(task["Polygons"], image["height"], image["width"])
    share = truth.mean()
    if iou_type == "bbox":
      truth = covered(task["instance_boxes"], truth.shape)
      predicted = covered(given[task_id] if task_id in given else [], truth.shape)
    else:
      predicted = _mask(given[task_id], truth.shape, task_id) if task_id in given else np.zeros_like(truth)
    areas = (int((truth & predicted).sum()), int((truth | predicted).sum()))
    for subset in subsets(task, image, counts, share):
      rows[subset].append(areas)
  per_subset = {name: _summary(np.array(areas, float)) for name, areas in sorted(rows.items())}
  overall = per_subset.pop("all") if tasks else _summary(np.zeros((0, 2)))
  return {**overall, "phrases": len(tasks), "missing": len(tasks) - len(given), "per_subset": per_subset}


def region(polygons: list, height: int, width: int) -> np.ndarray:
  """h w bool: the union of all polygons of all instances, drawn as the official tool does (corners cut to integers)."""
  canvas = Image.new("1", (width, height))
  for polygon in (p for instance in polygons for p in instance if len(p) > 1):
    ImageDraw.Draw(canvas).polygon([(int(x), int(y)) for x, y in polygon], outline=1, fill=1)
  return np.array(canvas)


def covered(boxes_xywh: Iterable[Iterable[float]], shape: tuple[int, int]) -> np.ndarray:
  """h w bool: what boxes x, y, width, height cover, as the official tool draws them: corners cut to integers, the last
  row and column left out."""
  canvas = np.zeros(shape, bool)
  for x, y, width, height in boxes_xywh:
    corners = np.array([x, y, x + width - 1, y + height - 1]).clip(min=0).astype(int)
    canvas[corners[1] : corners[3], corners[0] : corners[2]] = True
  return canvas


def subsets(
  task: Mapping[str, Any], image: Mapping[str, Any], counts: Mapping[str, list], share: float
) -> Iterator[str]:
  """The names of the subsets that a phrase belongs to; `share`: area of its region in that of the picture."""
  if "subsets" in task:  # the official tool trusts them, too
    yield from task["subsets"]
    return
  structure = task["phrase_structure"]
  name, attributes, relations = (structure[key] for key in ("name", "attributes", "relation_descriptions"))
  yield "all"
  yield "d_cocotv" if "coco_id" in image and image["coco_id"] else "d_notcocotv"
  if name in phrasecut_words.COCO:
    yield "c_coco"
  yield from _ranks("c", (20, 100, 500), [name], counts["cat"])
  yield from _ranks("a", (20, 100, 200), attributes, counts["att"])
  yield from ("p_att",) * bool(attributes) + ("p_attm",) * (len(attributes) > 1)
  yield from ("p_rel",) * bool(relations) + ("p_relm",) * (len(relations) > 1)
  yield from ("p_att_rel",) * bool(attributes and relations)
  kinds = {"name": "p_name", "attribute": "p_att+", "relation": "p_rel+", "verbose": "p_verbose"}
  if structure["type"] in kinds:
    yield kinds[structure["type"]]
  instances = len(task["instance_boxes"])
  if instances:
    yield "i_single" if instances == 1 else "i_multi" if instances < 5 else "i_many"
  yield "s_small" if share < 0.02 else "s_large" if share > 0.2 else "s_mid"
  yield "t_stuff" if any(word in name for word in phrasecut_words.STUFF) else "t_obj"
  for kind, words in phrasecut_words.ATTRIBUTES.items():
    if words & set(attributes):
      yield f"a_{kind}"


def _ranks(letter: str, limits: tuple[int, int, int], names: list[str], frequent: list) -> Iterator[str]:
  """c20, c21-100 ...: by the place of the most frequent of the names in the data set's list."""
  order = [name for name, _ in frequent]
  rank = min((order.index(name) for name in names if name in order), default=limits[-1])
  below = [limit for limit in limits if rank < limit]
  yield from (f"{letter}{limit}" for limit in below)
  if not below:
    yield f"{letter}{limits[-1]}+"
  elif below[0] != limits[0]:
    yield f"{letter}{limits[limits.index(below[0]) - 1] + 1}-{below[0]}"


def _summary(areas: np.ndarray) -> dict[str, float | None]:
  names = ("mIoU", "cIoU", *(f"Pr@{t}" for t in THRESHOLDS))
  if not len(areas):
    return dict.fromkeys(names)
  ious = areas[:, 0] / np.maximum(areas[:, 1], 1)
  precisions = [float(np.mean(ious > t)) for t in THRESHOLDS]
  return dict(zip(names, (float(ious.mean()), float(areas[:, 0].sum() / max(areas[:, 1].sum(), 1)), *precisions)))


def _load(refer: pathlib.Path) -> tuple[dict[str, Any], dict[int, Any], dict[str, list]]:
  records, name = read_records(refer, "PhraseCut tasks")
  tasks = by_key(
    ((i, fields(record, i, name, *_TASK)[0], record) for i, record in enumerate(records)),
    [record["task_id"] for record in records if "task_id" in record],
    name,
    "task",
  )
  images = {image["image_id"]: image for image in read_json(refer.parent / "image_data_split.json", "PhraseCut images")}
  for task_id, task in tasks.items():
    if task["image_id"] not in images:
      raise ValueError(f"{name}: task {task_id} is on image {task['image_id']}, which image_data_split.json lacks")
  return tasks, images, read_json(refer.parent / "name_att_rel_count.json", "PhraseCut counts")


def _predictions(predictions: Any, tasks: Mapping[str, Any]) -> dict[str, Any]:
  """Task id -> path of a picture, or run-length mask."""
  if isinstance(predictions, str | pathlib.Path) and pathlib.Path(predictions).is_dir():
    paths = sorted(pathlib.Path(predictions).glob("*.png"))
    return by_key(((i, path.stem, path) for i, path in enumerate(paths)), tasks, str(predictions), "task")
  records, name = read_records(predictions)
  rows = [(i, *fields(record, i, name, "task_id", "segmentation")) for i, record in enumerate(records)]
  return by_key(((i, k, run_length(mask, f"{name}: record {i}")) for i, k, mask in rows), tasks, name, "task")


def _boxes(predictions: Any, tasks: Mapping[str, Any]) -> dict[str, list]:
  """Task id -> its boxes."""
  records, name = read_records(predictions)
  rows = [(i, *fields(record, i, name, "task_id", "boxes")) for i, record in enumerate(records)]
  for i, _, boxes in rows:
    if not all(is_box(box) and np.isfinite(box).all() for box in boxes):
      raise ValueError(f"{name}: record {i} has a box that is not four finite numbers x, y, width, height")
  return by_key(rows, tasks, name, "task")


def _mask(given: pathlib.Path | Mapping[str, Any], shape: tuple[int, int], task_id: str) -> np.ndarray:
  if isinstance(given, pathlib.Path):
    mask = np.array(Image.open(given).convert("L")) > 0
  else:
    mask = rle.decode(given).astype(bool)
  if mask.shape != shape:
    raise ValueError(
      f"the mask of task {task_id} is {mask.shape}, but its picture is {shape} (height, width); "
      "predict masks at the size of the original picture"
    )
  return mask

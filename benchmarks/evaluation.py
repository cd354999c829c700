"""Seconds and peak memory of detection metrics, pycocotools and eval/ in one run, as JSON.

  python -m benchmarks.evaluation [--images 5000] [--detections 100] [--categories 80] [--iou-type bbox segm]
  python -m benchmarks.evaluation --lvis --images 20000 --detections 300 --categories 1203

Both read the same files of synthetic annotations and predictions (half of these are true boxes, shaken) and end with
the same numbers, which is checked. pycocotools runs as its users run it: COCO, loadRes, COCOeval. LVIS has no
reference here (lvis-api stops on NumPy 2); `limit_gib` is what its peak memory is held against. Every measurement
runs in a process of its own, so that peak memory is its own.
"""

import argparse
import contextlib
import io
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from eval import coco, lvis

HEIGHT, WIDTH = 480, 640
TRUE_BOXES = 7  # per image, as in COCO
LIMIT_GIB = 4.0


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--images", type=int, default=5000)
  parser.add_argument("--detections", type=int, default=100, help="per image")
  parser.add_argument("--categories", type=int, default=80)
  parser.add_argument("--iou-type", nargs="+", default=["bbox", "segm"], choices=("bbox", "segm"))
  parser.add_argument("--lvis", action="store_true", help="federated rules, fixed AP, boxes")
  parser.add_argument("--out", type=pathlib.Path)
  parser.add_argument("--measure", nargs=2, metavar=("WHO", "FOLDER"), help=argparse.SUPPRESS)
  options = parser.parse_args(argv)
  if options.measure:
    report = measure(options.measure[0], pathlib.Path(options.measure[1]), options.iou_type[0])
  else:
    kinds = ["bbox"] if options.lvis else options.iou_type
    size = {key: getattr(options, key) for key in ("images", "detections", "categories")}
    report = {**size, **{kind: compare(size, kind, options.lvis) for kind in kinds}}
  text = json.dumps(report, indent=None if options.measure else 2)
  print(text)
  if options.out:
    options.out.write_text(text + "\n", encoding="utf-8")
  return 0


def compare(size: dict[str, int], iou_type: str, federated: bool) -> dict:
  """Both sides on the same files; raises SystemExit when their numbers differ."""
  with tempfile.TemporaryDirectory() as folder:
    write_files(pathlib.Path(folder), iou_type, **size)
    if federated:
      ours = _in_own_process("lvis_fixed", folder, iou_type)
      return {"eval": ours, "limit_gib": LIMIT_GIB, "within_limit": ours["peak_gib"] < LIMIT_GIB}
    ours, reference = (_in_own_process(who, folder, iou_type) for who in ("eval", "pycocotools"))
    difference = max(abs(ours["numbers"][key] - reference["numbers"][key]) for key in coco.STATS)
    if difference > 1e-9:
      raise SystemExit(f"the numbers differ by {difference}: {ours['numbers']} and {reference['numbers']}")
    speed = round(reference["seconds"] / ours["seconds"], 1)
    return {"eval": ours, "pycocotools": reference, "times_faster": speed, "largest_difference": difference}


def measure(who: str, folder: pathlib.Path, iou_type: str) -> dict:
  """Seconds from the files to the numbers, peak memory of this process, and the numbers."""
  annotations, predictions = folder / "annotations.json", folder / "predictions.json"
  began = time.perf_counter()
  if who == "pycocotools":
    numbers = _reference(annotations, predictions, iou_type)
  else:
    evaluate = coco.evaluate_boxes if who == "eval" else lambda *files: lvis.evaluate(*files, fixed=True)
    numbers = evaluate(annotations, predictions, iou_type)
  seconds = time.perf_counter() - began
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  flat = {key: value for key, value in numbers.items() if isinstance(value, float)}
  return {"seconds": round(seconds, 2), "peak_gib": round(peak, 3), "numbers": flat}


def _reference(annotations: pathlib.Path, predictions: pathlib.Path, iou_type: str) -> dict:
  with contextlib.redirect_stdout(io.StringIO()):
    truth = COCO(annotations)
    evaluation = COCOeval(truth, truth.loadRes(str(predictions)), iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
  return dict(zip(coco.STATS, map(float, evaluation.stats), strict=True))


def _in_own_process(who: str, folder: str, iou_type: str) -> dict:
  command = [sys.executable, "-m", "benchmarks.evaluation", "--iou-type", iou_type, "--measure", who, folder]
  return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


# Synthetic files.


def write_files(folder: pathlib.Path, iou_type: str, images: int, detections: int, categories: int) -> None:
  """annotations.json (COCO with LVIS's fields, ids from 1) and predictions.json, the same for the same sizes."""
  rng = np.random.default_rng(0)
  frequency = "rcf"
  content: dict = {
    "images": [],
    "annotations": [],
    "categories": [{"id": k + 1, "name": f"c{k}", "frequency": frequency[k % 3]} for k in range(categories)],
  }
  with (folder / "predictions.json").open("w", encoding="utf-8") as file:
    for image_id in range(1, images + 1):
      truth, found = (_boxes(rng, n) for n in (TRUE_BOXES, detections))
      labels, guesses = (rng.integers(1, categories + 1, n) for n in (TRUE_BOXES, detections))
      close = rng.integers(0, TRUE_BOXES, detections // 2)
      found[: len(close)] = np.maximum(truth[close] * rng.normal(1, 0.08, (len(close), 4)), 1)
      guesses[: len(close)] = labels[close]
      empty, partly = rng.integers(1, categories + 1, (2, 3)).tolist()
      content["images"].append(
        {
          "id": image_id,
          "height": HEIGHT,
          "width": WIDTH,
          "neg_category_ids": empty,
          "not_exhaustive_category_ids": partly,
        }
      )
      for box, label, crowd in zip(truth, labels, rng.random(TRUE_BOXES) < 0.02):
        number = len(content["annotations"]) + 1
        shape = {"segmentation": [_octagon(box)]} if iou_type == "segm" else {}
        record = {"id": number, "image_id": image_id, "category_id": int(label), "bbox": box.tolist(), **shape}
        content["annotations"].append({**record, "area": float(box[2] * box[3]), "iscrowd": int(crowd and not shape)})
      scores = rng.random(detections)
      for k, (box, label, score) in enumerate(zip(found.round(2), guesses.tolist(), scores.tolist())):
        shape = {"bbox": box.tolist()} if iou_type == "bbox" else {"segmentation": _mask(box)}
        record = {"image_id": image_id, "category_id": label, **shape, "score": score}
        file.write(("[" if image_id == 1 and k == 0 else ",\n") + json.dumps(record))
    file.write("]")
  (folder / "annotations.json").write_text(json.dumps(content), encoding="utf-8")


def _boxes(rng: np.random.Generator, n: int) -> np.ndarray:
  """n boxes x, y, width, height of all sizes inside the picture."""
  sides = np.exp(rng.uniform(np.log(6), np.log(HEIGHT - 1), (n, 2)))
  corners = rng.random((n, 2)) * (np.array([WIDTH, HEIGHT]) - sides)
  return np.concatenate([corners, sides], axis=1).round(2)


def _octagon(box: np.ndarray) -> list[float]:
  x, y, w, h = box.tolist()
  steps = ((0.3, 0), (0.7, 0), (1, 0.3), (1, 0.7), (0.7, 1), (0.3, 1), (0, 0.7), (0, 0.3))
  return [round(value, 2) for u, v in steps for value in (x + u * w, y + v * h)]


def _mask(box: np.ndarray) -> dict:
  [mask] = rle.frPyObjects([_octagon(box)], HEIGHT, WIDTH)
  return {"size": [HEIGHT, WIDTH], "counts": mask["counts"].decode()}


if __name__ == "__main__":
  sys.exit(main())

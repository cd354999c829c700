"""`make demo`: pre-trains configs/demo.py on the embedded data, scores it on held-out scenes and shows what it sees.

Writes into the run folder: metrics.json (AP, AP50, grounding_recall_at_1, steps, seconds, images_per_second, ...),
loss.png and sheet.png. Interrupted and started again it goes on where it was.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import time

import jax
import numpy as np
from absl import flags
from PIL import Image

from configs import demo
from glipv2_jax.boxes import iou, xywh_to_xyxy
from glipv2_jax.parallel.mesh import make_mesh
from launch import asking, drawing, experiment, plots, predict, predicting, train
from pipelines.prompts import Prompt
from pipelines.records import Example
from pipelines.sources.shapes import Shapes, phrase_boxes
from pipelines.words import Words, load_words

PICTURES = 8  # of each task on the sheet
THRESHOLD = 0.4  # of the boxes that are drawn
SAME_PLACE = 0.5  # overlap from which two boxes show one thing


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(prog="python -m launch.demo", description=__doc__)
  parser.add_argument("--workdir", default="runs/demo", type=pathlib.Path)
  parser.add_argument("--debug", action="store_true", help="two steps, to see that everything runs")
  options = parser.parse_args(argv)
  workdir = options.workdir
  flags.FLAGS.mark_as_parsed()  # grain reads absl's global flags
  jax.config.update("jax_num_cpu_devices", 2)  # one device per core

  began = time.monotonic()
  run = experiment.from_tree(demo.get_config("debug" if options.debug else None).to_dict())
  result = train.run(run, workdir)
  if result.status != "finished":
    print(f"stopped at step {result.step}; `make demo` goes on from there")
    return 0
  metrics = json.loads((workdir / train.METRICS).read_text())
  summary = {
    **metrics,
    "grounding_recall_at_1": metrics["R@1"],
    "steps": result.step,
    "seconds": round(result.seconds, 1),  # training and evaluation, earlier starts included
    "images_per_second": round(result.step * run.data.batch / training_seconds(workdir), 2),
  }
  train.write_json(workdir / train.METRICS, summary)
  curve = plots.loss_curve(workdir, workdir / "loss.png")
  pictures = workdir / "sheet.png"
  sheet(run, workdir).save(pictures)

  shown = ("AP", "AP50", "grounding_recall_at_1", "steps", "seconds", "images_per_second")
  print("\n" + "\n".join(f"{name:<22} {summary[name]:.3f}" for name in shown))
  print(f"this start took {time.monotonic() - began:.0f} s")
  print(f"numbers: {workdir / train.METRICS}\nlosses:  {curve}\npictures: {pictures}")
  return 0


def training_seconds(workdir: pathlib.Path) -> float:
  """Time of the training steps, compilation included and evaluation not."""
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return max(line["seconds"] for line in lines if "loss" in line)


def sheet(run: experiment.Experiment, workdir: pathlib.Path) -> Image.Image:
  """Held-out scenes with what the network finds: the kinds in the upper half, captions in the lower."""
  words = load_words(run.data.tokenizer, run.data.max_tokens)
  mesh = make_mesh(devices=jax.devices()[:1])
  predictor = predicting.Predictor(run.model, run.infer, mesh)
  params = predicting.restore(workdir, run.model, mesh, ema=run.train.evaluate_ema)
  prepare = dataclasses.replace(run.evaluation.prepare(), batch=4)
  pictures = []
  for task in ("detection", "grounding"):
    source = Shapes(split="val", task=task, names="kind", size=run.evaluation.canvases[0])
    scenes = (example for example in (source[i] for i in range(len(source))) if len(example.boxes_xyxy_px) > 2)
    for example, _ in zip(scenes, range(PICTURES)):
      question = question_of(example, source, words)
      (answer,) = asking.answer(predictor, params, [(example.record, example.image)], question, words, prepare)
      found = best_of_each_place(predict.as_record(example.record, answer, question, THRESHOLD)["detections"])
      title = ", ".join(source.classes) if task == "detection" else example.caption
      pictures.append(predict.draw(answer, found, dataclasses.replace(question, text=title)))
  return drawing.sheet(pictures, columns=4)


def best_of_each_place(detections: list[dict]) -> list[dict]:
  """Without what overlaps a better detection, whatever its phrase: a picture has room for one label per place."""
  kept = []
  for candidate in sorted(detections, key=lambda d: -d["score"]):
    boxes = xywh_to_xyxy(np.array([d["bbox"] for d in (candidate, *kept)], np.float32))
    if not (iou(boxes[:1], boxes[1:]) >= SAME_PLACE).any():
      kept.append(candidate)
  return kept


def question_of(example: Example, source: Shapes, words: Words) -> asking.Question:
  """Detection: every class of the source. Grounding: the caption with its phrases."""
  if source.classes:
    return asking.ask_classes(source.classes, words)
  spans = tuple((name, span) for name, span, _ in phrase_boxes(example))
  return asking.Question(example.caption, (Prompt(example.caption, spans),))


if __name__ == "__main__":
  sys.exit(main())

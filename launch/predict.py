"""`glipv2 predict`: detect classes, or ground the phrases of a caption, in pictures of your own.

  glipv2 predict --checkpoint runs/demo --image a.jpg b.png --classes "person,traffic light" --out answers
  glipv2 predict --checkpoint runs/demo --image a.jpg --caption "[a small red circle] above two squares" --out answers

Fields of the checkpoint's configuration can be changed: --config.infer.mirror=True looks at every picture mirrored too.
In a caption, square brackets mark what to ground; without brackets a small chunker finds the noun phrases. Writes
predictions.json and one PNG per picture into the folder of --out.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence

import jax

from glipv2_jax.parallel.mesh import make_mesh
from glipv2_jax.train.checkpoint import CheckpointMismatch, read_meta
from launch import asking, drawing, experiment, predicting, settings
from pipelines.records import BadRecord
from pipelines.words import load_words


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; mistakes of the user end with one line and status 1."""
  options, config = _parser().parse_known_args(argv)
  try:
    run(options, config)
  except (OSError, ValueError, BadRecord, CheckpointMismatch) as error:
    print(f"glipv2 predict: {error}", file=sys.stderr)
    return 1
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="glipv2 predict", allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--checkpoint", required=True, metavar="DIR", help="run folder")
  parser.add_argument("--image", required=True, nargs="+", metavar="FILE", help="pictures")
  asked = parser.add_mutually_exclusive_group(required=True)
  asked.add_argument("--classes", help="names separated by commas")
  asked.add_argument("--caption", help="a sentence; [brackets] mark what to ground")
  parser.add_argument("--out", required=True, metavar="DIR", help="folder for predictions.json and the pictures")
  parser.add_argument("--threshold", type=float, default=0.3, help="least score of a box (default 0.3)")
  parser.add_argument(
    "--ema",
    action=argparse.BooleanOptionalAction,
    help="running average of the parameters (default: as the run evaluates)",
  )
  return parser


def run(options: argparse.Namespace, config: Sequence[str] = ()) -> None:
  """Reads, asks, writes; `config`: options of the configuration. Raises what `main` reports."""
  if not 0 <= options.threshold < 1:
    raise ValueError(f"--threshold {options.threshold} must lie in 0..1 (1 excluded)")
  files = [(name, pathlib.Path(name).read_bytes()) for name in options.image]
  trained = experiment.from_tree(settings.changed(read_meta(options.checkpoint).config, config))
  words = load_words(trained.data.tokenizer, trained.data.max_tokens)
  if options.classes is not None:
    question = asking.ask_classes(options.classes.split(","), words, trained.evaluation.prompt.separator)
  else:
    question = asking.ask_caption(options.caption, words)
  mesh = make_mesh(devices=jax.local_devices()[:1])
  ema = trained.train.evaluate_ema if options.ema is None else options.ema
  params = predicting.restore(options.checkpoint, trained.model, mesh, ema=ema)
  # A final score above t needs a phrase score above t squared (centerness is at most 1), so nothing asked for is lost.
  least = min(trained.infer.threshold, options.threshold**2)
  predictor = predicting.Predictor(trained.model, dataclasses.replace(trained.infer, threshold=least), mesh)
  rows = min(trained.evaluation.batch, len(files))
  prepare = dataclasses.replace(trained.evaluation.prepare(), batch=rows)
  answers = asking.answer(predictor, params, files, question, words, prepare)
  write(pathlib.Path(options.out), options.image, answers, question, options.threshold)


def write(
  out: pathlib.Path, names: Sequence[str], answers: Sequence[asking.Answer], question: asking.Question, threshold: float
) -> None:
  """predictions.json and one annotated PNG per picture; prints a line for each."""
  out.mkdir(parents=True, exist_ok=True)
  records, taken = [], set()
  for name, answer in zip(names, answers, strict=True):
    record = as_record(name, answer, question, threshold)
    record["drawn"] = _free_name(pathlib.Path(name).stem, taken)
    draw(answer, record["detections"], question).save(out / record["drawn"])
    records.append(record)
    found = ", ".join(f"{d['phrase']} {d['score']:.2f}" for d in record["detections"]) or "nothing found"
    print(f"{name}: {found} -> {out / record['drawn']}")
  content = {"question": question.text, "phrases": question.phrases, "threshold": threshold, "images": records}
  (out / "predictions.json").write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
  print(f"all of it as numbers: {out / 'predictions.json'}")


def as_record(name: str, answer: asking.Answer, question: asking.Question, threshold: float) -> dict:
  """One picture of predictions.json; boxes as x, y, width, height in its pixels, COCO's form."""
  height, width = answer.image.shape[:2]
  found = answer.found
  detections = [
    {
      "phrase": question.phrases[label],
      "label": int(label),
      "score": round(float(score), 4),
      "bbox": [round(float(v), 2) for v in (x1, y1, x2 - x1 + 1, y2 - y1 + 1)],
    }
    for (x1, y1, x2, y2), score, label in zip(found.boxes_xyxy_px, found.scores, found.labels, strict=True)
    if score >= threshold
  ]
  return {"image": name, "height": height, "width": width, "detections": detections}


def draw(answer: asking.Answer, detections: Sequence[dict], question: asking.Question):
  """The picture with its detections, the best on top, and the question below."""
  marks = []
  for d in detections:
    x, y, w, h = d["bbox"]
    marks.append(drawing.Mark((x, y, x + w - 1, y + h - 1), f"{d['phrase']} {d['score']:.2f}", d["label"]))
  return drawing.annotate(answer.image, marks, question.text)


def _free_name(stem: str, taken: set[str]) -> str:
  """A file name that no earlier picture has."""
  name, n = f"{stem}.png", 2
  while name in taken:
    name, n = f"{stem}_{n}.png", n + 1
  taken.add(name)
  return name


if __name__ == "__main__":
  sys.exit(main())

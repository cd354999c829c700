"""`glipv2 report`: runs beside the paper's tables, and what is wrong with their detections, as one HTML page.

  glipv2 report runs/demo runs/mine --out report.html
  glipv2 report metrics.json --images val2017 --out report.html
  glipv2 report yolo.json detr.json --annotations instances_val2017.json --images val2017 --out report.html

A RUN is the folder of a run, a metrics file (of `glipv2 evaluate`, or of any tool that names its numbers alike), or,
with --annotations, a file of COCO results of any detector. Predictions are taken apart where the metrics file names
them and their annotations. The page needs nothing else and loads nothing.
"""

import argparse
import dataclasses
import pathlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from eval import coco, lvis, report, report_page
from eval.compare import Result, Run, task_of
from eval.files import SHAPES, read_json
from eval.paper import SETTINGS
from glipv2_jax import __version__
from launch import history, report_pictures

METRICS, CONFIG, PREDICTIONS = "metrics.json", "config.json", "predictions"  # in a run folder
CURVES = ("AP", "AP50", "AP75", "R@1", "mIoU", "Pr@0.5")  # drawn over the steps


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; mistakes of the user end with one line and status 1."""
  options = _parser().parse_args(argv)
  try:
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter("always", UserWarning)
      content = make(options)
    for warning in caught:
      print(f"glipv2 report: warning: {warning.message}", file=sys.stderr)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(content, encoding="utf-8")
  except (OSError, ValueError, TypeError, ImportError) as error:
    print(f"glipv2 report: {error}", file=sys.stderr)
    return 1
  print(f"{options.out}: {len(content.encode()) / 1e6:.1f} MB")
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="glipv2 report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("runs", nargs="+", type=pathlib.Path, metavar="RUN", help="run folder, metrics or results file")
  parser.add_argument("--out", type=pathlib.Path, default="report.html", metavar="FILE")
  parser.add_argument("--annotations", type=pathlib.Path, metavar="FILE", help="ground truth of results files")
  parser.add_argument("--task", choices=report.TASKS, default="coco", help="how results files are scored")
  parser.add_argument("--iou-type", choices=SHAPES, default="bbox", help="boxes or masks of results files")
  parser.add_argument("--images", nargs="+", default=[], type=pathlib.Path, metavar="DIR", help="where pictures lie")
  parser.add_argument("--setting", choices=SETTINGS, help="how the runs were evaluated; chooses the paper's columns")
  parser.add_argument("--worst", type=int, default=8, metavar="N", help="pictures to draw of each run and data set")
  return parser


def make(options: argparse.Namespace) -> str:
  """The page. Raises FileNotFoundError and ValueError naming the file and the remedy."""
  names = names_of(options.runs)
  runs, parts, trainings = [], [], []
  for path, name in zip(options.runs, names, strict=True):
    folder = path if path.is_dir() else None
    config = read_json(folder / CONFIG) if folder and (folder / CONFIG).is_file() else None
    run = Run(name, tuple(_results(path, options, config)), *_about(config))
    runs.append(run)
    for result in run.results:
      task = "coco" if result.task == "odinw" else result.task  # one set of it is scored as COCO
      if task in report.TASKS and all(file and file.is_file() for file in (result.predictions, result.annotations)):
        analysis = report.analyse(result.annotations, result.predictions, task, result.shape)
        drawn, lack = report_pictures.worst(analysis, _finder(result, config, options.images), options.worst)
        parts.append(report_page.Part(name, result, analysis, drawn, lack))
    if folder and (folder / history.JSON_LINES).is_file():
      trainings.append(_training(name, history.read(folder)))
  return report_page.page(runs, parts, trainings, setting=options.setting, version=__version__)


def names_of(paths: Sequence[pathlib.Path]) -> list[str]:
  """A name for each run: the end of its path, as long as needed to tell it from the others."""
  whole = [(p if p.name != METRICS else p.parent).resolve().with_suffix("").parts for p in paths]
  names = []
  for i, parts in enumerate(whole):
    others = [other for j, other in enumerate(whole) if j != i]
    length = next((n for n in range(1, len(parts)) if all(o[-n:] != parts[-n:] for o in others)), len(parts))
    names.append("/".join(parts[-length:]))
  doubled = [name for i, name in enumerate(names) if name in names[:i]]
  if doubled:
    raise ValueError(f"run {doubled[0]} is given twice")
  return names


def _results(path: pathlib.Path, options: argparse.Namespace, config: Mapping[str, Any] | None) -> list[Result]:
  """What a RUN has measured; `config`: of a run folder."""
  folder = path
  if path.is_dir():
    if not (path / METRICS).is_file():
      if not (path / history.JSON_LINES).is_file():
        raise FileNotFoundError(f"{path} has neither {METRICS} nor {history.JSON_LINES}; give the folder of a run")
      return []
    path = path / METRICS
  content = read_json(path, "metrics or results file")
  if isinstance(content, list):
    if options.annotations is None:
      raise ValueError(f"{path} is a list of predictions; tell with --annotations what they are scored against")
    return [_scored(path, options)]
  if not isinstance(content, Mapping):
    raise ValueError(f"{path} holds a {type(content).__name__}; give the JSON object of metrics, or a list of results")
  if "sources" not in content:
    return [_result(_short(_path(path, content, "annotations")) or path.stem, content, path)]
  results = [
    dataclasses.replace(_result(name, numbers, path), **_kept(folder, name, config))
    for name, numbers in content["sources"].items()
  ]
  if "odinw" in content:
    results.append(Result("ODinW", "odinw", "bbox", content["odinw"]))
  return results


def _kept(folder: pathlib.Path, name: str, config: Mapping[str, Any] | None) -> dict[str, pathlib.Path]:
  """The predictions of an evaluation source that a run folder keeps, and what they were scored against."""
  predictions = folder / PREDICTIONS / f"{name}.json"
  if not predictions.is_file():
    return {}
  truth = predictions.with_suffix(".truth.json")  # there where the source has no file of its own
  if not truth.is_file():
    options = config["eval"]["sources"][name] if config is not None and name in config["eval"]["sources"] else {}
    named = [options[key] for key in ("truth", "annotations") if key in options and options[key]]
    if not named:
      return {}
    truth = pathlib.Path(_with_root(named[0], config))
  return {"annotations": truth, "predictions": predictions}


def _with_root(path: str, config: Mapping[str, Any]) -> str:
  return path.replace("{root}", config["data"]["root"].rstrip("/") or ".")


def _result(data: str, numbers: Mapping[str, Any], path: pathlib.Path) -> Result:
  try:
    task = task_of(numbers)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error
  shape = numbers["iou_type"] if "iou_type" in numbers else "bbox"
  files = (_path(path, numbers, key) for key in ("annotations", "predictions"))
  return Result(data, task, shape, numbers, *files)


def _scored(path: pathlib.Path, options: argparse.Namespace) -> Result:
  """A results file, scored here."""
  files = options.annotations, path
  if options.task == "coco":
    numbers = coco.evaluate_boxes(*files, options.iou_type)
  else:
    numbers = lvis.evaluate(*files, options.iou_type, fixed=options.task == "lvis_fixed")
  return Result(_short(options.annotations), options.task, options.iou_type, numbers, *files)


def _path(metrics: pathlib.Path, numbers: Mapping[str, Any], key: str) -> pathlib.Path | None:
  """The file that a metrics file names (the first one), beside it or from here; None with a warning where it is not."""
  if key not in numbers:
    return None
  named = numbers[key] if isinstance(numbers[key], str) else numbers[key][0]
  for candidate in (metrics.parent / named, pathlib.Path(named)):
    if candidate.exists():
      return candidate
  warnings.warn(f"{metrics} names the {key} {named}, which do not exist; the page goes without them", stacklevel=2)
  return None


def _short(path: pathlib.Path | None) -> str:
  """The end of a path, enough for people to know the file."""
  return "" if path is None else "/".join(path.resolve().parts[-3:])


def _about(config: Mapping[str, Any] | None) -> tuple[str | None, Mapping[str, float] | None]:
  """The network and the loss weights of a run."""
  return (None, None) if config is None else (config["model"]["variant"], config["loss"]["weights"])


def _finder(
  result: Result, config: Mapping[str, Any] | None, folders: Sequence[pathlib.Path]
) -> report_pictures.Finder:
  """Pictures from --images, else from the evaluation source of the run's configuration that has the result's name."""
  sources = config["eval"]["sources"] if config is not None else {}
  if folders or result.data not in sources:
    return report_pictures.in_folders(folders)
  options = sources[result.data]
  if options["kind"] != "shapes":
    images = options["images"] if "images" in options else "{root}"
    return report_pictures.in_folders([pathlib.Path(_with_root(images, config))])
  from PIL import Image

  from pipelines.sources.shapes import Shapes  # JAX comes with it, so only where scenes are drawn anew

  fields = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
  scenes = Shapes(**{key: fields[key] for key in ("split", "task", "names", "size")})
  return lambda image: Image.fromarray(scenes[image["id"]].image)


def _training(name: str, run: history.History) -> report_page.Training:
  losses = [(term, *numbers) for term, numbers in run.losses().items()]
  evaluations = [(metric, *run.metric(metric)) for metric in CURVES]
  return report_page.Training(name, losses, [line for line in evaluations if line[1]])


if __name__ == "__main__":
  sys.exit(main())

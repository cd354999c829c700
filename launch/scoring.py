"""Scores a network on data sets: all processes predict into files of the official formats, process 0 scores those.

Called by training and by `glipv2 evaluate`. The numbers are those that `glipv2 evaluate --task` gives for the same
files, because they come from the same function (`eval.tasks.score`).
"""

import contextlib
import dataclasses
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from eval import odinw, tasks
from launch import official
from launch.official import Evaluated
from launch.predicting import Predictor, looks, predict_batches
from launch.shards import Shards
from pipelines.build import DataConfig, SourceEntry, evaluation_batches, evaluation_plan
from pipelines.prompts import Prompt, all_classes_prompts
from pipelines.records import Source
from pipelines.sources import open_source
from pipelines.words import Words, load_words

SHOWN = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "AR100", "unseen_AP", "unseen_AP50")
SHOWN += ("R@1", "R@5", "R@10", "R@upper_bound", "merged/R@1", "Pr@0.5", "P@1", "mIoU")
KEEP_EMPTY = ("coco_json", "flickr30k", "mdetr_json")  # kinds that else leave out records without boxes
UNSEEN = ("AP", "AP50")  # of classes that training never shows also their own mean, 'unseen_AP' ...


@dataclasses.dataclass(frozen=True)
class ScoringConfig:
  """What is evaluated, on top of the canvases, batch and tokenizer of a `DataConfig`."""

  sources: tuple[Evaluated, ...] = ()
  limit: int | None = None  # only the first so many images of each source
  per_prompt: int | None = None  # at most so many classes in a prompt; None: as many as fit
  region_threshold: float = 0.5  # PhraseCut: boxes above this score make up the region


def evaluate(
  predictor: Predictor,
  params: Any,
  data: DataConfig,
  cfg: ScoringConfig,
  *,
  words: Words | None = None,
  out: pathlib.Path | None = None,
  about: Mapping[str, Any] | None = None,
  resume: bool = False,
  quiet: bool = False,
) -> dict[str, Any]:
  """The metrics of every source of `cfg` (of `data` the batch is the global one; its sources play no part).

  `out` receives NAME.json for each source, and NAME.truth.json where the ground truth is no file of the data set (None:
  they are thrown away; several processes need a folder that all of them see). With `resume` an evaluation that was
  killed goes on where it was, if `about` (what else the predictions depend on: checkpoint, step) is the same.

  On process 0: {"sources": {NAME: task, metrics, images, skipped, seconds and, with `out`, the names of both files},
  "odinw": means over the sets of that task} and at the top every number of these by its name, the first source that has
  it winning; on the others {}. `numbers` flattens it. Raises ValueError for what does not fit together, before anything
  is predicted.
  """
  words = words or load_words(data.tokenizer, data.max_tokens)
  opened = [(one, source, official.task_of(one, source)) for one in cfg.sources for source in [_open(one.entry)]]
  report: dict[str, Any] = {}
  truths: dict[str, pathlib.Path] = {}
  with _folder(out) as folder:
    first = jax.process_index() == 0
    if first:  # what is wrong with it shows before the long part
      truths = {one.name: official.ground_truth(one, task, source, cfg.limit, folder) for one, source, task in opened}
    for one, source, task in opened:
      began = time.monotonic()
      described = _describe(predictor, data, cfg, one, task, about or {})
      shards = Shards(folder, one.name, described, resume)
      _predict(predictor, params, one, source, task, words, data, cfg, shards, quiet)
      done = shards.finish()
      if first:
        metrics = score(task, truths[one.name], shards.target, source)
        seconds = round(time.monotonic() - began, 3)
        files = {} if out is None else {"annotations": str(truths[one.name]), "predictions": str(shards.target)}
        report[one.name] = {"task": task, **metrics, **done, "seconds": seconds, **files}
  return _whole(report) if first else {}


def numbers(report: Mapping[str, Any]) -> dict[str, float]:
  """The plain numbers of a report by name, those of single sources as 'NAME/METRIC' (for logs)."""
  flat = _metrics(report)
  for source, metrics in report["sources"].items() if report else ():
    flat |= {f"{source}/{name}": value for name, value in _metrics(metrics).items()}
  return flat


def table(report: Mapping[str, Any]) -> str:
  """A report for people: two lines per source."""
  lines = []
  for name, metrics in report["sources"].items():
    lines.append(f"{name} ({metrics['task']}): {metrics['images']} images, {metrics['seconds']:.1f} s")
    lines.append("  " + _shown(metrics))
  if "odinw" in report:
    lines += [f"mean of {report['odinw']['sets']} ODinW sets", "  " + _shown(report["odinw"])]
  return "\n".join(lines)


def _shown(metrics: Mapping[str, Any]) -> str:
  return "  ".join(f"{key} {metrics[key]:.3f}" for key in SHOWN if key in metrics and metrics[key] is not None)


def score(task: str, truth: pathlib.Path, predictions: pathlib.Path, source: Source) -> dict[str, Any]:
  """The metrics of a predictions file by `eval.tasks`, boxes where the task knows masks too.

  For a source with classes that training never shows also their own mean, 'unseen_AP' and so on.
  """
  shape = "bbox" if task in official.BOXES else None
  metrics = tasks.score("coco" if task == "odinw" else task, [truth], [predictions], shape)
  unseen = [metrics["per_category"][name] for name in getattr(source, "unseen_classes", ())]
  means = {f"unseen_{key}": float(np.mean([m[key] for m in unseen if m])) for key in UNSEEN} if any(unseen) else {}
  return {**metrics, **means}


def prompts_of(source: Source, one: Evaluated, words: Words, data: DataConfig, cfg: ScoringConfig) -> list[Prompt]:
  """What every picture of a source is asked; [] where every row brings its own text."""
  if not source.classes:
    return []
  wordings = one.wordings or data.prompt.wordings
  return all_classes_prompts(source.classes, words, data.prompt.separator, cfg.per_prompt, wordings)


def _open(entry: SourceEntry) -> Source:
  """The source of an entry, with pictures that hold no object: they can show false detections."""
  kind, _, options = entry
  return open_source(kind, **{**dict(options), **({"keep_empty": True} if kind in KEEP_EMPTY else {})})


def _predict(predictor, params, one, source, task, words, data, cfg, shards: Shards, quiet: bool) -> None:
  """What is missing of the predictions of a source, all processes together."""
  prepare = data.prepare()
  plan = evaluation_plan(source, prepare, cfg.limit)
  missing = shards.missing(len(plan))
  if not len(missing):
    return
  host, hosts = jax.process_index(), jax.process_count()
  prompts = prompts_of(source, one, words, data, cfg)
  records = official.records_of(one, task, source, cfg.region_threshold)
  limit = None if task in official.NO_LIMIT else predictor.cfg.max_detections
  place = dict(looks=looks(predictor.cfg, prompts), host=host, hosts=hosts, workers=data.workers)
  rows = data.batch // hosts
  pace = 0.5 if sys.stderr.isatty() else 30.0  # seconds between updates: a log file gets few lines
  with evaluation_batches(source, words, prepare, plan[missing], **place) as batches:
    found = predict_batches(predictor, params, batches, prompts, words, limit)
    silent = quiet or host > 0
    shown = tqdm(found, total=len(missing), desc=one.name, unit="batch", disable=silent, mininterval=pace)
    for number, (batch, predictions) in zip(missing.tolist(), shown, strict=True):
      first = host * rows
      answers = [
        (number * data.batch + first + b, records(int(plan[number, first + b, 0]), p))
        for b, p in enumerate(predictions)
        if p is not None
      ]
      shards.add(number, answers, batch.skipped)


def _describe(predictor, data: DataConfig, cfg: ScoringConfig, one: Evaluated, task: str, about) -> dict[str, Any]:
  """Everything that decides what the predictions file of a source holds."""
  texts = {"tokenizer": data.tokenizer, "max_tokens": data.max_tokens, "separator": data.prompt.separator}
  pictures = {"canvases": data.canvases, "max_pixels": data.max_pixels, "swap_sides": data.swap_sides}
  chosen = {key: value for key, value in dataclasses.asdict(cfg).items() if key != "sources"}
  plan = {"source": one.entry, "wordings": one.wordings or data.prompt.wordings, "batch": data.batch}
  infer = dataclasses.asdict(predictor.cfg)
  return {**about, "task": task, **plan, **texts, **pictures, **chosen, "infer": infer}


@contextlib.contextmanager
def _folder(out: pathlib.Path | None) -> Iterator[pathlib.Path]:
  if out is not None:
    out.mkdir(parents=True, exist_ok=True)
    yield out
  elif jax.process_count() > 1:
    raise ValueError("several processes need a folder for predictions that all of them see; give --predictions-out")
  else:
    with tempfile.TemporaryDirectory() as folder:
      yield pathlib.Path(folder)


def _whole(sources: dict[str, dict[str, Any]]) -> dict[str, Any]:
  sets = {name: metrics for name, metrics in sources.items() if metrics["task"] == "odinw"}
  groups = {"odinw": odinw.means(sets)} if sets else {}
  top: dict[str, float] = {}
  for metrics in (*groups.values(), *sources.values()):
    top = _metrics(metrics) | top
  return {"sources": sources, **groups, **top}


def _metrics(report: Mapping[str, Any]) -> dict[str, float]:
  return {name: value for name, value in report.items() if isinstance(value, float) and name != "seconds"}

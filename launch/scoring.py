"""Scores a network on data sets: all processes predict, process 0 scores. Called by training and by `evaluate`."""

import collections
import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from eval import coco, grounding
from glipv2_jax import infer
from launch.predicting import Prediction, Predictor, gather, predict_batches
from pipelines.build import DataConfig, SourceEntry, evaluation_batches
from pipelines.records import Source
from pipelines.sources import open_source
from pipelines.sources.coco_json import CocoJson
from pipelines.sources.shapes import Shapes, coco_dataset
from pipelines.words import Words, load_words

DETECTION = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100")
GROUNDING = tuple(f"grounding_recall_{name}" for name in ("at_1", "at_5", "at_10", "upper_bound"))


@dataclasses.dataclass(frozen=True)
class ScoringConfig:
  """What is evaluated besides the sources themselves (which stand in `DataConfig.sources`)."""

  limit: int | None = None  # only the first so many images of each source
  per_prompt: int | None = None  # at most so many classes in a prompt; None: as many as fit
  limit_merged: bool = True  # max_detections per image over all its prompts; False: per prompt, as the authors


def evaluate(
  predictor: Predictor,
  params: Any,
  data: DataConfig,
  cfg: ScoringConfig = ScoringConfig(),
  *,
  words: Words | None = None,
  quiet: bool = False,
) -> dict[str, Any]:
  """The metrics of every source of `data` (its batch is the global batch; its weights play no part).

  On process 0: {"sources": {"NAME/detection" or "NAME/grounding": metrics}, "AP", "AP50", ... of the first detection
  source, "grounding_recall_at_1", ... of the first grounding source}; on the others {}. `numbers` flattens it.
  """
  words = words or load_words(data.tokenizer, data.max_tokens)
  report: dict[str, Any] = {}
  for entry in data.sources:
    source = open_for_evaluation(entry)
    task = "detection" if source.classes else "grounding"
    began = time.monotonic()
    predictions, skipped = _predict(predictor, params, source, words, data, cfg, quiet)
    if jax.process_index() == 0:
      if source.classes:
        merged = predictor.cfg.max_detections if cfg.limit_merged else None
        metrics = score_detection(predictions, source, *ground_truth(source, entry, cfg.limit), merged)
      else:
        metrics = score_grounding(predictions)
      images = len({p.info.image_id for p in predictions})
      speed = {"images": images, "skipped": skipped, "seconds": round(time.monotonic() - began, 3)}
      report[f"{source.name}/{task}"] = {**metrics, **speed}
  return {"sources": report, **_headline(report)} if jax.process_index() == 0 else {}


def numbers(report: Mapping[str, Any]) -> dict[str, float]:
  """The plain numbers of a report by name, those of single sources as 'NAME/TASK/METRIC' (for logs)."""
  flat = {name: value for name, value in report.items() if isinstance(value, float)}
  for source, metrics in report.get("sources", {}).items():
    flat |= {f"{source}/{name}": metrics[name] for name in (*DETECTION, *GROUNDING) if metrics.get(name) is not None}
  return flat


def table(report: Mapping[str, Any]) -> str:
  """A report for people: one line per source."""
  lines = []
  for source, metrics in report["sources"].items():
    shown = [n for n in (*DETECTION, *GROUNDING, "unseen_AP", "unseen_AP50") if metrics.get(n) is not None]
    values = "  ".join(f"{name.removeprefix('grounding_')} {metrics[name]:.3f}" for name in shown)
    lines.append(f"{source}: {metrics['images']} images, {metrics['seconds']:.1f} s\n  {values}")
  return "\n".join(lines)


def open_for_evaluation(entry: SourceEntry) -> Source:
  """The source of an entry, with pictures that hold no object: they can show false detections."""
  kind, _, options = entry
  return open_source(kind, **{**dict(options), **({"keep_empty": True} if kind == "coco_json" else {})})


def _predict(predictor, params, source, words, data: DataConfig, cfg, quiet) -> tuple[list[Prediction], dict[str, int]]:
  """All predictions of a source on every process, and how many rows were unusable by reason."""
  skipped: collections.Counter = collections.Counter()
  silent = quiet or jax.process_index() > 0
  pace = 0.5 if sys.stderr.isatty() else 30.0  # seconds between updates: a log file gets few lines

  def counted(batches):
    for host in tqdm(batches, total=batches.length, desc=source.name, unit="batch", disable=silent, mininterval=pace):
      skipped.update(reason for reason, _ in host.skipped)
      yield host

  place = dict(host=jax.process_index(), hosts=jax.process_count())
  options = dict(workers=data.workers, limit=cfg.limit, per_prompt=cfg.per_prompt)
  with evaluation_batches(source, words, data.prepare(), **place, **options) as batches:
    predictions = list(predict_batches(predictor, params, counted(batches)))
  total = sum((collections.Counter(part) for part in gather([dict(skipped)])), collections.Counter())
  return gather(predictions), dict(total)


def _headline(report: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
  numbers = {}
  for task, names in (("detection", DETECTION), ("grounding", GROUNDING)):
    first = next((metrics for key, metrics in report.items() if key.endswith(f"/{task}")), {})
    numbers |= {name: first[name] for name in names if first.get(name) is not None}
  return numbers


# Detection.


def ground_truth(source: Source, entry: SourceEntry, limit: int | None) -> tuple[dict[str, Any], dict[str, int]]:
  """COCO annotations of the first `limit` images of a detection source, and the category id of each class name."""
  if isinstance(source, CocoJson):
    annotations = coco.load_annotations(dict(entry[2])["annotations"])
    ids = dict(zip(source.classes, source.category_ids.tolist(), strict=True))
  elif isinstance(source, Shapes):
    annotations = coco.load_annotations(coco_dataset(source, min(len(source), limit or len(source))))
    ids = {name: i for i, name in enumerate(source.classes, 1)}
  else:
    raise TypeError(
      f"source {source.name!r} ({type(source).__name__}) has no COCO ground truth; add it to ground_truth"
    )
  if limit is not None:
    kept = {image["id"] for image in annotations["images"][:limit]}
    annotations["images"] = [image for image in annotations["images"] if image["id"] in kept]
    annotations["annotations"] = [a for a in annotations["annotations"] if a["image_id"] in kept]
  return annotations, ids


def coco_results(
  predictions: Sequence[Prediction], ids: Mapping[str, int], max_detections: int | None
) -> list[dict[str, Any]]:
  """COCO results of all images; the prompts of one image are merged (reference 7)."""
  number = {name: i for i, name in enumerate(ids)}
  parts = collections.defaultdict(list)
  for prediction in predictions:
    names = np.array([number[phrase.name] for phrase in prediction.info.phrases], np.int32)
    found = prediction.found
    parts[prediction.info.image_id].append(dataclasses.replace(found, labels=names[found.labels]))
  categories = np.array(list(ids.values()))
  results = []
  for image_id, of_image in parts.items():
    found = infer.merge(of_image, max_detections)
    results += coco.result_boxes(image_id, found.boxes_xyxy_px, found.scores, categories[found.labels])
  return results


def score_detection(
  predictions: Sequence[Prediction],
  source: Source,
  annotations: Mapping[str, Any],
  ids: Mapping[str, int],
  max_detections: int | None,
) -> dict[str, Any]:
  """COCO metrics; for a source with classes that training never shows also their own mean, 'unseen_AP' and so on."""
  metrics = coco.evaluate_boxes(annotations, coco_results(predictions, ids, max_detections))
  per_category = metrics["per_category"]
  unseen = [per_category[name] for name in getattr(source, "unseen_classes", ()) if per_category.get(name)]
  means = {f"unseen_{name}": float(np.mean([m[name] for m in unseen])) for name in ("AP", "AP50")} if unseen else {}
  return {**metrics, **means}


# Grounding.


def grounded_phrases(prediction: Prediction) -> tuple[list[grounding.GroundedPhrase], int]:
  """The phrases of one caption with their ranked boxes and their true ones, and how many the text limit cut off.

  A box is true for a phrase when all tokens of the phrase name it, also when it is named elsewhere too.
  """
  phrases, cut_off = [], 0
  ranked = infer.by_phrase(prediction.found, len(prediction.info.phrases))
  for phrase, boxes in zip(prediction.info.phrases, ranked, strict=True):
    true = prediction.positive_map[:, list(phrase.tokens)].all(axis=1)
    if not phrase.tokens:
      cut_off += 1
    elif true.any():
      phrases.append(grounding.GroundedPhrase(boxes, prediction.truth_xyxy_px[true]))
  return phrases, cut_off


def score_grounding(predictions: Sequence[Prediction]) -> dict[str, Any]:
  """Recall of all phrases of all captions (eval/grounding.py)."""
  parts = [grounded_phrases(prediction) for prediction in predictions]
  return grounding.recall([p for phrases, _ in parts for p in phrases], cut_off=sum(count for _, count in parts))

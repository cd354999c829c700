"""`glipv2 pseudo-label`: a trained teacher puts boxes on the noun phrases of captions, for a student to train on.

  glipv2 pseudo-label --checkpoint runs/teacher --source webdataset_tars shards='/data/cc3m/*.tar' --out cap3m
  glipv2 train --config=... with a source of kind glip_tsv: data='cap3m/*.train.yaml'

Any source with captions can be named, as for `glipv2 data` (pipelines/sources). Written are shards in GLIP's caption
dialect (TSV, version 2) with the pictures inside, and manifest.json with what was kept and dropped. Started again it
goes on with the shards that are missing. Several hosts: the same command on each with --hosts=N --host=I; they share
nothing but the folder, and each splits its batches over its own devices.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from glipv2_jax.infer import InferConfig
from glipv2_jax.parallel.mesh import make_mesh
from glipv2_jax.train import checkpoint
from glipv2_jax.train.checkpoint import CheckpointMismatch
from launch import experiment, predicting
from launch.source_option import add_source, parse_source
from pipelines import pseudo_labels
from pipelines.collate import collate
from pipelines.prepare_example import PrepareConfig, blank
from pipelines.pseudo_labels import Asked, Rules
from pipelines.records import BadRecord, HostBatch, Source
from pipelines.taggers import NAMES, Finder, phrase_finder
from pipelines.words import Words, load_words

AHEAD = 4  # batches that are read while the device works


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; mistakes of the user end with one line and status 1."""
  options = _parser().parse_args(argv)
  try:
    run(options)
  except (OSError, ValueError, ImportError, BadRecord, CheckpointMismatch) as error:
    print(f"glipv2 pseudo-label: {error}", file=sys.stderr)
    return 1
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="glipv2 pseudo-label", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--checkpoint", required=True, metavar="DIR", help="run folder of the teacher")
  add_source(parser, "the captions")
  parser.add_argument("--out", required=True, metavar="DIR", help="folder of the shards")
  parser.add_argument("--threshold", type=float, default=0.5, help="boxes have to score above (default 0.5)")
  parser.add_argument("--nms", type=float, default=0.6, help="boxes of a phrase overlap at most this (default 0.6)")
  parser.add_argument("--per-phrase", type=int, default=20, metavar="N", help="most boxes of a phrase (default 20)")
  parser.add_argument("--tagger", default="auto", choices=NAMES, help="finds the noun phrases (default auto)")
  parser.add_argument("--batch", type=int, help="pictures at once on this host (default: as the run evaluates)")
  parser.add_argument("--shard-size", type=int, default=1000, metavar="N", help="captions of a shard (default 1000)")
  parser.add_argument("--limit", type=int, metavar="N", help="only the first so many captions")
  parser.add_argument("--workers", type=int, default=4, metavar="N", help="threads that read (default 4)")
  parser.add_argument("--hosts", type=int, default=1, metavar="N", help="programs that share the work")
  parser.add_argument("--host", type=int, default=0, metavar="I", help="which of them this is, from 0")
  return parser


@dataclasses.dataclass(frozen=True)
class Labeller:
  """Everything that makes shards."""

  source: Source
  find: Finder
  words: Words
  predictor: predicting.Predictor
  params: Any
  prepare: PrepareConfig  # canvases, batch
  rules: Rules
  workers: int

  def shard(
    self, indices: range, progress: Callable[[int], Any]
  ) -> tuple[list[tuple[int, Asked, dict]], dict[str, int]]:
    """Labels the captions `indices` of the source: rows in their order, and counts by reason.

    `progress` is told how many captions are done.
    """
    counts: collections.Counter = collections.Counter(captions=len(indices))
    waiting: dict[int, Asked] = {}
    rows = []
    batches = _batches(self._asked(indices, counts, progress), waiting, self.words, self.prepare)
    predicted = predicting.predict_batches(self.predictor, self.params, batches)
    for prediction in (row for _, rows_of_batch in predicted for row in rows_of_batch if row is not None):
      index, found = prediction.info.image_id, prediction.found
      asked = waiting.pop(index)
      counts["phrases_beyond_tokens"] += asked.beyond
      chosen = pseudo_labels.choose(
        found.boxes_xyxy_px, found.scores, found.labels, len(asked.spans), self.rules, counts
      )
      if self.source.kind == "grounding":
        pseudo_labels.compare(asked, chosen, counts)
      if any(chosen):
        rows.append((index, asked, pseudo_labels.row(asked, chosen)))
      else:
        counts["dropped_no_box"] += 1
    counts["kept"] = len(rows)
    return sorted(rows, key=lambda one: one[0]), dict(counts)

  def _asked(self, indices: range, counts: dict[str, int], progress: Callable[[int], Any]) -> Iterator[Asked]:
    def one(index: int) -> Asked | BadRecord:
      try:
        return pseudo_labels.ask(self.source, index, self.find, self.words, self.prepare)
      except BadRecord as error:
        return error

    with concurrent.futures.ThreadPoolExecutor(self.workers) as pool:
      for asked in _in_order(pool, one, indices, AHEAD * self.prepare.batch):
        progress(1)
        if isinstance(asked, BadRecord):
          counts[f"dropped_{asked.reason}"] += 1
        else:
          yield asked


def _in_order(pool: concurrent.futures.Executor, function: Callable, items: Iterable, ahead: int) -> Iterator:
  """`map` that works at most `ahead` items ahead, so that memory does not grow with the shard."""
  running: collections.deque = collections.deque()
  for item in items:
    running.append(pool.submit(function, item))
    if len(running) > ahead:
      yield running.popleft().result()
  while running:
    yield running.popleft().result()


def _nothing(out: np.ndarray) -> None:
  raise ValueError("this picture was given away")


def _batches(
  asked: Iterable[Asked], waiting: dict[int, Asked], words: Words, cfg: PrepareConfig
) -> Iterator[HostBatch]:
  """Batches of one canvas each, the last of every canvas filled up; `waiting` receives what was asked, by index."""
  groups: dict[tuple[int, int], list] = collections.defaultdict(list)
  for one in asked:
    canvas = one.prepared.canvas
    # the pixels are not needed once the batch is made
    waiting[one.prepared.image_id] = dataclasses.replace(one, prepared=dataclasses.replace(one.prepared, draw=_nothing))
    groups[canvas].append(one.prepared)
    if len(groups[canvas]) == cfg.batch:
      yield collate(groups.pop(canvas), max_boxes=1)
  for canvas, rows in groups.items():
    yield collate([*rows, *[blank(words, canvas)] * (cfg.batch - len(rows))], max_boxes=1)


def run(options: argparse.Namespace) -> None:
  """Opens everything, labels the missing shards of this host, writes the manifest when all are there."""
  _check(options)
  spec = parse_source(options.source)
  source = spec.open()
  if source.kind not in ("caption", "grounding"):
    raise ValueError(f"source {spec.kind!r} has no captions (kind {source.kind!r}); name one that has")
  trained = experiment.from_checkpoint(options.checkpoint)
  words = load_words(trained.data.tokenizer, trained.data.max_tokens)
  tagger, find = phrase_finder(options.tagger)
  captions = len(source) if options.limit is None else min(options.limit, len(source))
  shards = -(-captions // options.shard_size)
  out = pathlib.Path(options.out)
  settings = {
    "teacher": str(options.checkpoint),
    "step": checkpoint.read_meta(options.checkpoint).step,
    "source": spec.kind,
    "options": dict(spec.options),
    "captions": captions,
    "shard_size": options.shard_size,
    "tagger": tagger,
    "threshold": options.threshold,
    "nms": options.nms,
    "per_phrase": options.per_phrase,
  }
  pseudo_labels.claim(out, settings)
  missing = pseudo_labels.unfinished(out, shards, options.host, options.hosts)
  print(f"{captions} captions in {shards} shards; {len(missing)} are left for this host; noun phrases by {tagger}")
  if missing:
    labeller = _labeller(options, trained, source, find, words)
    _label(labeller, out, missing, shards, options.shard_size, captions)
  whole = pseudo_labels.manifest(out, shards, settings)
  if whole is None:
    print(f"other shards of {out} are not finished yet; start again, or wait for the other hosts")
    return
  for name, number in (whole["counts"] | whole.get("against_truth", {})).items():
    print(f"{name:<28} {number}")
  print(f"{whole['pictures_per_second']} pictures per second and host; all of it: {out / 'manifest.json'}")
  print(f"to train on it: a source of kind glip_tsv, data='{out}/*.train.yaml', confidence={options.threshold}")


def _label(labeller: Labeller, out: pathlib.Path, missing: list[int], shards: int, size: int, captions: int) -> None:
  ranges = {number: range(number * size, min(captions, (number + 1) * size)) for number in missing}
  with tqdm(total=sum(map(len, ranges.values())), unit=" captions", disable=None) as bar:
    for number, indices in ranges.items():
      began = time.monotonic()
      rows, counts = labeller.shard(indices, bar.update)
      about = {"counts": counts, "seconds": round(time.monotonic() - began, 3)}
      pseudo_labels.write_shard(out, pseudo_labels.shard_name(number, shards), rows, about)


def _labeller(
  options: argparse.Namespace, trained: experiment.Experiment, source: Source, find: Finder, words: Words
) -> Labeller:
  mesh = make_mesh(devices=jax.local_devices())
  devices = len(jax.local_devices())
  batch = options.batch or -(-trained.evaluation.batch // devices) * devices
  if batch % devices:
    raise ValueError(f"--batch {batch} cannot be split over {devices} devices; use a multiple")
  params = predicting.restore(options.checkpoint, trained.model, mesh, ema=trained.train.evaluate_ema)
  # A final score above t needs a phrase score above t squared (centerness is at most 1), so nothing is lost.
  least = min(trained.infer.threshold, options.threshold**2)
  once = dict(scales=(), mirror=False)  # every picture is looked at once
  infer: InferConfig = dataclasses.replace(trained.infer, threshold=least, nms_iou=options.nms, **once)
  return Labeller(
    source=source,
    find=find,
    words=words,
    predictor=predicting.Predictor(trained.model, infer, mesh),
    params=params,
    prepare=dataclasses.replace(trained.evaluation.prepare(), batch=batch),
    rules=Rules(options.threshold, options.per_phrase),
    workers=options.workers,
  )


def _check(options: argparse.Namespace) -> None:
  for name in ("per_phrase", "shard_size", "workers", "hosts"):
    if getattr(options, name) < 1:
      raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)} must be at least 1")
  if not 0 < options.threshold < 1 or not 0 < options.nms <= 1:
    raise ValueError(f"--threshold {options.threshold} and --nms {options.nms} must lie between 0 and 1")
  if not 0 <= options.host < options.hosts:
    raise ValueError(f"--host {options.host} of --hosts {options.hosts}: hosts are counted from 0")


if __name__ == "__main__":
  sys.exit(main())

"""`glipv2 evaluate`: scores a checkpoint on the evaluation sources of a configuration, or files of any detector.

  glipv2 evaluate --checkpoint runs/demo --out metrics.json
  glipv2 evaluate --checkpoint runs/mine --config=configs/evaluation.py:lvis --predictions-out found
  glipv2 evaluate --task coco --annotations instances.json --predictions results.json --iou-type segm --out metrics.json

Without --config the sources are those of the checkpoint's own configuration; any field of it can be changed, for
example --config.infer.mirror=True. --predictions-out keeps the predictions, one file per source in the format of its
task: `--task` scores them again, and the same command goes on with them where it was killed. Several hosts (options as
of `glipv2 train`), with a --predictions-out that all of them see: all predict, process 0 scores and writes.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags

from eval import tasks
from glipv2_jax.parallel.mesh import make_mesh
from glipv2_jax.train import checkpoint
from launch import experiment, hosts, predicting, scoring, settings


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; mistakes of the user end with one line and status 1."""
  parser = _parser()
  options, config = parser.parse_known_args(argv)
  if (options.task is None) == (options.checkpoint is None):
    parser.error("give --checkpoint DIR, or --task NAME with --annotations and --predictions")
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # grain's worker processes read absl's global flags

  def program() -> int:
    try:
      report = run(options, config) if options.task is None else score_files(options)
    except (OSError, ValueError, TypeError, ImportError, checkpoint.CheckpointMismatch) as error:
      return _stop(error)
    if report:
      print(scoring.table(report) if options.task is None else headline(report))
      if options.out is not None:
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0

  try:
    place = hosts.Hosts(**{name: getattr(options, name) for name in hosts.OPTIONS})
    if options.task is not None and config:
      raise ValueError(f"{config[0]!r} does not go with --task, which needs no configuration")
    if options.cpu_devices is not None:
      jax.config.update("jax_num_cpu_devices", options.cpu_devices)
    return hosts.run(place, program)
  except ValueError as error:
    return _stop(error)


def _stop(error: Exception) -> int:
  print(f"glipv2 evaluate: {error}", file=sys.stderr)
  return 1


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="glipv2 evaluate",
    allow_abbrev=False,
    description=__doc__,
    epilog=f"tasks:\n{tasks.usage()}",
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--checkpoint", metavar="DIR", help="run folder")
  parser.add_argument("--task", choices=tasks.TASKS, metavar="NAME", help="score files instead; see below")
  parser.add_argument("--annotations", nargs="+", default=[], metavar="FILE", help="ground truth of the task")
  parser.add_argument("--predictions", nargs="+", default=[], metavar="FILE", help="what a detector predicted")
  parser.add_argument("--iou-type", choices=("bbox", "segm"), help="boxes (default) or masks")
  parser.add_argument("--out", type=pathlib.Path, metavar="FILE", help="write the metrics as JSON")
  parser.add_argument(
    "--predictions-out",
    type=pathlib.Path,
    metavar="DIR",
    help="keep the predictions; what an earlier start left counts",
  )
  parser.add_argument(
    "--ema",
    action=argparse.BooleanOptionalAction,
    help="running average of the parameters (default: as the run evaluates)",
  )
  parser.add_argument("--limit", type=int, help="only the first so many images of each source")
  parser.add_argument("--batch", type=int, help="rows of the global batch (default: eval.batch of the configuration)")
  parser.add_argument("--root", help="where the data lies (default: data.root of the configuration)")
  parser.add_argument("--fsdp", type=int, default=1, help="devices that the parameters are split over")
  parser.add_argument("--cpu_devices", type=int, help="split the CPU into so many devices")
  for name, (default, kind, text) in hosts.OPTIONS.items():
    parser.add_argument(f"--{name}", default=default, type=kind, help=text)
  return parser


def run(options: argparse.Namespace, config: Sequence[str] = ()) -> dict:
  """The report of `scoring.evaluate`, with the step of the checkpoint; {} on processes other than the first.

  `config`: options of the configuration, --config=FILE and --config.x.y=value (launch/settings.py).
  """
  meta = checkpoint.read_meta(options.checkpoint)
  record = settings.changed(meta.config, config)
  if options.root is not None:
    record["data"] = {**record["data"], "root": options.root}
  trained = experiment.from_tree(record)
  data, cfg = trained.evaluation, trained.scoring
  if not cfg.sources:
    raise ValueError("the configuration has no eval.sources, so there is nothing to evaluate on; give another --config")
  if options.batch is not None:
    data = dataclasses.replace(data, batch=options.batch)
  if options.limit is not None:
    cfg = dataclasses.replace(cfg, limit=options.limit)
  mesh = make_mesh(fsdp=options.fsdp)
  ema = trained.train.evaluate_ema if options.ema is None else options.ema
  params = predicting.restore(options.checkpoint, trained.model, mesh, ema=ema)
  predictor = predicting.Predictor(trained.model, trained.infer, mesh)
  about = {"checkpoint": str(pathlib.Path(options.checkpoint).resolve()), "step": meta.step, "ema": ema}
  kept = dict(out=options.predictions_out, about=about, resume=True)
  report = scoring.evaluate(predictor, params, data, cfg, **kept, quiet=jax.process_index() > 0)
  return {"step": meta.step, "ema": ema, **report} if report else {}


def score_files(options: argparse.Namespace) -> dict[str, Any]:
  """The metrics of `--task` (eval/tasks.py), and for `glipv2 report` the files they came from, seen from that of --out.

  What is odd about the files goes to standard error.
  """
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", UserWarning)
    report = tasks.score(options.task, options.annotations, options.predictions, options.iou_type)
  for warning in caught:
    print(f"glipv2 evaluate: warning: {warning.message}", file=sys.stderr)
  shapes = tasks.TASKS[options.task].iou_types
  shape = {"iou_type": options.iou_type or shapes[0]} if shapes else {}
  place = options.out.parent if options.out is not None else "."
  files = {key: [os.path.relpath(path, place) for path in vars(options)[key]] for key in ("annotations", "predictions")}
  return {"task": options.task, **shape, **report, **files}


def headline(report: Mapping[str, Any]) -> str:
  """The flat numbers of a report, one a line."""
  flat = {key: value for key, value in report.items() if not isinstance(value, Mapping | list)}
  width = max(map(len, flat))
  shown = {
    key: f"{value:.4f}" if isinstance(value, float) else "-" if value is None else value for key, value in flat.items()
  }
  return "\n".join(f"{key:<{width}}  {value}" for key, value in shown.items())


if __name__ == "__main__":
  sys.exit(main())

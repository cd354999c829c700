"""`glipv2 evaluate`: scores a checkpoint on the evaluation sources of its configuration.

  glipv2 evaluate --checkpoint runs/demo --out metrics.json

Detection sources give COCO's AP, grounding sources Recall@1, 5, 10. Several hosts: --coordinator=HOST:PORT
--process_count=N --process_id=I on each; all predict, process 0 scores and writes.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence

import jax
from absl import flags

from glipv2_jax.parallel.mesh import make_mesh
from glipv2_jax.train import checkpoint
from launch import experiment, predicting, scoring


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; mistakes of the user end with one line and status 1."""
  options = _parser().parse_args(argv)
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # grain's worker processes read absl's global flags
  try:
    if options.coordinator is not None:
      jax.distributed.initialize(options.coordinator, options.process_count, options.process_id)
    report = run(options)
  except (OSError, ValueError, TypeError, checkpoint.CheckpointMismatch) as error:
    print(f"glipv2 evaluate: {error}", file=sys.stderr)
    return 1
  if report:
    print(scoring.table(report))
    if options.out is not None:
      options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="glipv2 evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--checkpoint", required=True, metavar="DIR", help="run folder")
  parser.add_argument("--out", type=pathlib.Path, metavar="FILE", help="write the metrics as JSON")
  parser.add_argument(
    "--ema",
    action=argparse.BooleanOptionalAction,
    help="running average of the parameters (default: as the run evaluates)",
  )
  parser.add_argument("--limit", type=int, help="only the first so many images of each source")
  parser.add_argument("--batch", type=int, help="rows of the global batch (default: eval.batch of the configuration)")
  parser.add_argument("--root", help="where the data lies (default: data.root of the configuration)")
  parser.add_argument("--fsdp", type=int, default=1, help="devices that the parameters are split over")
  parser.add_argument("--coordinator", metavar="HOST:PORT", help="process 0, for several hosts")
  parser.add_argument("--process_count", type=int)
  parser.add_argument("--process_id", type=int)
  return parser


def run(options: argparse.Namespace) -> dict:
  """The report of `scoring.evaluate`, with the step of the checkpoint; {} on processes other than the first."""
  meta = checkpoint.read_meta(options.checkpoint)
  config = dict(meta.config)
  if options.root is not None:
    config["data"] = {**config["data"], "root": options.root}
  trained = experiment.from_tree(config)
  data, cfg = trained.evaluation, trained.scoring
  if not data.sources:
    raise ValueError(
      f"the configuration in {options.checkpoint} has no eval.sources, so there is nothing to evaluate on"
    )
  if options.batch is not None:
    data = dataclasses.replace(data, batch=options.batch)
  if options.limit is not None:
    cfg = dataclasses.replace(cfg, limit=options.limit)
  mesh = make_mesh(fsdp=options.fsdp)
  ema = trained.train.evaluate_ema if options.ema is None else options.ema
  params = predicting.restore(options.checkpoint, trained.model, mesh, ema=ema)
  predictor = predicting.Predictor(trained.model, trained.infer, mesh)
  report = scoring.evaluate(predictor, params, data, cfg, quiet=jax.process_index() > 0)
  return {"step": meta.step, "ema": ema, **report} if report else {}


if __name__ == "__main__":
  sys.exit(main())

"""`glipv2 export-torch`: the parameters of a checkpoint as weights for PyTorch.

  glipv2 export-torch --checkpoint runs/mine --out mine.safetensors
  glipv2 export-torch --checkpoint runs/mine --out mine.pth --format glip

glip: what the authors' code loads, every entry present. mmdet: the names of MMDetection's GLIP. safetensors: the names
of glip, with the configuration in the metadata; needs no PyTorch. Without --format the ending of --out decides.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from glipv2_jax.convert import to_torch
from glipv2_jax.models import glipv2
from glipv2_jax.train import checkpoint
from launch import experiment


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; mistakes of the user end with one line and status 1."""
  options = _parser().parse_args(argv)
  try:
    run(options)
  except (OSError, ValueError) as error:
    print(f"glipv2 export-torch: {error}", file=sys.stderr)
    return 1
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="glipv2 export-torch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--checkpoint", required=True, metavar="DIR", help="run folder")
  parser.add_argument("--out", required=True, type=pathlib.Path, metavar="FILE")
  parser.add_argument("--format", choices=to_torch.FORMATS, help="default: safetensors for such a name, else glip")
  parser.add_argument("--ema", action="store_true", help="the running average of the parameters")
  return parser


def run(options: argparse.Namespace) -> None:
  """Restores and writes. Raises what `main` reports."""
  form = options.format or ("safetensors" if options.out.suffix == ".safetensors" else "glip")
  trained = experiment.from_checkpoint(options.checkpoint)
  params = checkpoint.restore_params(options.checkpoint, glipv2.abstract_params(trained.model), ema=options.ema)
  count = to_torch.write(options.out, params, trained.model, form, variant=trained.variant, config=trained.record)
  print(f"{trained.variant}, {count} entries, {options.out.stat().st_size / 1e6:,.0f} MB -> {options.out}")


if __name__ == "__main__":
  sys.exit(main())

"""`glipv2 export-stablehlo`: the network of a checkpoint as StableHLO, for programs that import only JAX and NumPy.

  glipv2 export-stablehlo --checkpoint runs/mine --out mine.npz --canvas 480 640

One .npz file: "program" (of jax.export), "about" (JSON: variant, config, tokenizer) and every weight. The program is a
function of (weights, image, image_size, tokens, tokens_valid), as README.md shows.
"""

import argparse
import sys
from collections.abc import Sequence

from glipv2_jax.convert import run_elsewhere
from launch import exporting


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; mistakes of the user end with one line and status 1."""
  options = _parser().parse_args(argv)
  try:
    run(options)
  except (OSError, ValueError) as error:
    print(f"glipv2 export-stablehlo: {error}", file=sys.stderr)
    return 1
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="glipv2 export-stablehlo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  exporting.add_options(parser)
  parser.add_argument("--batch", type=int, metavar="N", help="pictures per call (default: any number)")
  parser.add_argument(
    "--platforms",
    nargs="+",
    choices=run_elsewhere.PLATFORMS,
    default=run_elsewhere.PLATFORMS,
    help="what the program can run on (default: all of them)",
  )
  return parser


def run(options: argparse.Namespace) -> None:
  """Restores, lowers, writes. Raises what `main` reports."""
  source = exporting.read(options)
  files = run_elsewhere.write_stablehlo(
    options.out, source.model, source.params, source.canvas, options.batch, options.platforms, source.about
  )
  print(exporting.summary(source, files))


if __name__ == "__main__":
  sys.exit(main())

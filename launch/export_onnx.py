"""`glipv2 export-onnx`: the network of a checkpoint as an ONNX file, for any program with an ONNX runtime.

  glipv2 export-onnx --checkpoint runs/mine --out mine.onnx --canvas 480 640

In: image (RGB, uint8, on the canvas), image_size, tokens, tokens_valid. Out, for every location: boxes_xyxy_px, scores
of the tokens, centerness. The tokenizer travels in the metadata; README.md shows the whole detector. Computes in
float32. Weights that do not fit into the 2 GiB of an ONNX file go to FILE.data beside it.
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
    print(f"glipv2 export-onnx: {error}", file=sys.stderr)
    return 1
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="glipv2 export-onnx", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  exporting.add_options(parser)
  parser.add_argument("--batch", type=int, default=1, metavar="N", help="pictures per call (default 1)")
  return parser


def run(options: argparse.Namespace) -> None:
  """Restores, converts, writes. Raises what `main` reports."""
  source = exporting.read(options)
  files = run_elsewhere.write_onnx(options.out, source.model, source.params, source.canvas, options.batch, source.about)
  print(exporting.summary(source, files))


if __name__ == "__main__":
  sys.exit(main())

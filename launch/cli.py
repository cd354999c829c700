"""`glipv2 COMMAND ...`: one console command, one program per sub-command.

Every program also runs as `python -m launch.COMMAND`; only the chosen one is imported, so `glipv2 --help` is instant.
"""

import importlib
import sys

COMMANDS = {
  "train": ("launch.train", "train or continue a run: --config=configs/pretrain.py:t --workdir=DIR"),
  "evaluate": ("launch.evaluate", "score a checkpoint on its configuration's evaluation sources"),
  "report": ("launch.report", "runs beside the paper's tables, and their errors, as one HTML page"),
  "predict": ("launch.predict", "detect classes or ground a caption in pictures of your own"),
  "data": ("launch.data", "check, count or draw a data set, or put it into shards"),
  "pseudo-label": ("launch.pseudo_label", "put a teacher's boxes on captions, as data to train a student on"),
  "import-torch": ("launch.import_torch", "make a run folder out of GLIP weights, or of published encoders"),
  "export-torch": ("launch.export_torch", "write a checkpoint as weights for PyTorch"),
  "export-onnx": ("launch.export_onnx", "write a checkpoint as an ONNX file: no JAX where it runs"),
  "export-stablehlo": ("launch.export_stablehlo", "write a checkpoint as StableHLO: only JAX where it runs"),
  "compile-tpu": ("launch.compile_tpu", "what the training step needs and costs on a TPU slice, without a TPU"),
}


def usage() -> str:
  lines = [f"  {name:<16} {text}" for name, (_, text) in COMMANDS.items()]
  return "usage: glipv2 COMMAND ...\n\n" + "\n".join(lines) + "\n\n`glipv2 COMMAND --help` tells the options."


def main(argv: list[str] | None = None) -> int:
  """Runs the program named by the first argument and returns its exit status."""
  argv = sys.argv[1:] if argv is None else argv
  if not argv or argv[0] in ("-h", "--help"):
    print(usage())
    return 0
  if argv[0] not in COMMANDS:
    print(f"glipv2: {argv[0]!r} is not a command\n\n{usage()}", file=sys.stderr)
    return 2
  module, _ = COMMANDS[argv[0]]
  return importlib.import_module(module).main(argv[1:]) or 0


if __name__ == "__main__":
  sys.exit(main())

"""A weight file of full size on its way in: `glipv2 import-torch`, then `glipv2 predict` on a photo, as JSON.

  python -m benchmarks.weights --tokenizer bert-base-uncased [--variant glip_t] [--form glip] [--image photo.jpg]
                               [--workdir DIR] [--out weights.json]

The file holds random numbers under the names and shapes that the authors' network loads strictly; `--form safetensors`
needs no PyTorch. Each command is a process of its own: its seconds, from its start to its end, everything compiled on
the way, and its peak memory, of the import also as a multiple of the file's size. Without `--image` the picture is
480x640 noise. The files, which are large, are removed unless `--workdir` keeps them.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

FILES = {"glip": "weights.pth", "safetensors": "weights.safetensors"}
NOISE = "noise.png"
CLASSES = "person,bicycle,car,dog,traffic light"


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--tokenizer", required=True, help="vocab.txt or name of a tokenizer")
  parser.add_argument("--variant", default="glip_t")
  parser.add_argument("--form", default="glip", choices=("glip", "safetensors"))
  parser.add_argument("--image", type=pathlib.Path)
  parser.add_argument("--workdir", type=pathlib.Path)
  parser.add_argument("--out", type=pathlib.Path)
  parser.add_argument("--make", type=pathlib.Path, help=argparse.SUPPRESS)
  options = parser.parse_args(argv)
  if options.make:
    make(options.make, options.variant, options.form)
    return 0
  with tempfile.TemporaryDirectory() as temporary:
    report = measure(options, options.workdir or pathlib.Path(temporary))
  text = json.dumps(report, indent=2)
  print(text)
  if options.out:
    options.out.write_text(text + "\n")
  return 0


def measure(options: argparse.Namespace, folder: pathlib.Path) -> dict:
  folder.mkdir(parents=True, exist_ok=True)
  weights, image, run = folder / FILES[options.form], options.image or folder / NOISE, folder / "run"
  kind = ("--variant", options.variant)
  _run("benchmarks.weights", "--tokenizer=", *kind, "--form", options.form, "--make", folder)
  size, words = weights.stat().st_size, ("--tokenizer", options.tokenizer)
  imported = _run("launch.cli", "import-torch", "--weights", weights, *kind, *words, "--out", run)
  asked = ("--image", image, "--classes", CLASSES, "--out", folder / "found")
  predicted = _run("launch.cli", "predict", "--checkpoint", run, *asked)
  return {
    "variant": options.variant,
    "file": {"form": options.form, "gb": round(size / 1e9, 3)},
    "import": {**imported, "peak_times_file": round(imported["peak_gb"] * 1e9 / size, 2)},
    "predict": predicted,
    "seconds": round(imported["seconds"] + predicted["seconds"], 1),
  }


def make(folder: pathlib.Path, variant: str, form: str) -> None:
  """The weight file and the picture."""
  import jax
  import numpy as np
  from PIL import Image

  from glipv2_jax.convert import to_torch
  from glipv2_jax.models import glipv2, variants

  cfg, rng = variants.get(variant), np.random.default_rng(0)
  params = jax.tree.map(lambda x: 0.02 * rng.standard_normal(x.shape, np.float32), glipv2.abstract_params(cfg))
  count = to_torch.write(folder / FILES[form], params, cfg, form, variant=variant, config={})
  print(f"{count} entries", file=sys.stderr)
  Image.fromarray(rng.integers(0, 256, (480, 640, 3), np.uint8)).save(folder / NOISE)


def _run(module: str, *arguments) -> dict:
  """Seconds and peak memory of one process. Raises CalledProcessError where it fails."""
  command = [sys.executable, "-m", module, *map(str, arguments)]
  began = time.monotonic()
  process = subprocess.Popen(command, stdout=sys.stderr)
  _, status, usage = os.wait4(process.pid, 0)
  if status:
    raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
  return {"seconds": round(time.monotonic() - began, 1), "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2)}


if __name__ == "__main__":
  sys.exit(main())

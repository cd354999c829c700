"""The demo program from start to end in two steps, and once more: it has nothing left to train."""

import json
import os
import pathlib
import subprocess
import sys

from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]
FAST = "--xla_llvm_disable_expensive_passes=true"  # two steps are not worth good code


def demo(workdir, cache):
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache), "XLA_FLAGS": FAST}
  command = [sys.executable, "-m", "launch.demo", "--debug", "--workdir", str(workdir)]
  done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_the_demo_writes_numbers_curve_and_sheet(tmp_path):
  run = tmp_path / "run"
  shown = demo(run, tmp_path / "cache")
  metrics = json.loads((run / "metrics.json").read_text())
  for name in ("AP", "AP50", "grounding_recall_at_1"):
    assert 0 <= metrics[name] <= 1
  assert metrics["steps"] == 2 and metrics["seconds"] > 0 and metrics["images_per_second"] > 0
  for file in ("metrics.json", "loss.png", "sheet.png"):
    assert str(run / file) in shown
  assert min(Image.open(run / "sheet.png").size) > 200 and min(Image.open(run / "loss.png").size) > 200

  trained = (run / "metrics.jsonl").read_text()
  demo(run, tmp_path / "cache")
  assert (run / "metrics.jsonl").read_text() == trained
  again = json.loads((run / "metrics.json").read_text())
  assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in metrics.items() if k != "seconds"}

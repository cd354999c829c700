"""launch/plots.py: a picture comes out, and missing input is named."""

import json

import pytest
from PIL import Image

from launch import plots


def test_curve_of_a_run(tmp_path):
  lines = [
    {"step": s, "loss": 2.0 / s, "intra": 1.0 / s, "lr": 1e-3, "seconds": 1.0, "canvas": [8, 8]} for s in (1, 2, 3)
  ]
  lines.append({"step": 3, "eval": {"AP50": 0.4, "R@1": 0.5}})
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  out = plots.loss_curve(tmp_path, tmp_path / "loss.png")
  assert Image.open(out).size[0] > 800 and len(Image.open(out).convert("RGB").getcolors(2**20)) > 20


def test_missing_numbers(tmp_path):
  with pytest.raises(FileNotFoundError, match="metrics.jsonl does not exist"):
    plots.loss_curve(tmp_path, tmp_path / "loss.png")
  (tmp_path / "metrics.jsonl").write_text('{"step": 1, "eval": {}}\n')
  with pytest.raises(ValueError, match="no training line"):
    plots.loss_curve(tmp_path, tmp_path / "loss.png")

"""benchmarks/ablation.py: what the finished runs of a table are made into."""

import json
import statistics
import types

import pytest

from benchmarks import ablation

AP = {("3", 0): 0.10, ("3", 1): 0.20, ("5", 0): 0.15, ("5", 1): 0.21, ("6", 0): 0.30}


@pytest.fixture
def runs(tmp_path, monkeypatch):
  """Row 6 has one finished seed, one that is not finished, and one that was never begun."""
  meta = types.SimpleNamespace(git="abc", config={"data": {"batch": 16}, "optim": {"lr": 1e-3}})
  monkeypatch.setattr(ablation.checkpoint, "read_meta", lambda folder: meta)
  for (row, seed), value in {**AP, ("6", 1): 0.9}.items():
    sources = {}
    for source, key in ablation.VALUES.values():
      sources.setdefault(source, {})[key] = value
    folder = ablation.folder(tmp_path, row, seed)
    folder.mkdir()
    step = 100 if (row, seed) == ("6", 1) else 400
    (folder / ablation.METRICS).write_text(json.dumps({"step": step, "sources": sources}))
  return tmp_path


def test_mean_spread_and_differences_of_the_same_seed(runs):
  report = ablation.collect(runs, ["3", "5", "6"], [0, 1], 400)
  rows = report["rows"]
  assert rows["3"]["unseen_AP"] == {"mean": 0.15, "spread": pytest.approx(0.0707, abs=1e-4), "values": [0.1, 0.2]}
  assert rows["5"]["terms"] == ("box", "centerness", "intra", "inter") and "minus_row_3" not in rows["3"]
  difference = rows["5"]["minus_row_3"]["AP"]
  assert difference["values"] == pytest.approx([0.05, 0.01])
  assert difference["spread"] == round(statistics.stdev([0.05, 0.01]), 4)
  assert rows["6"]["AP"] == {"mean": 0.3, "spread": None, "values": [0.3]} and rows["6"]["seeds"] == [0]
  assert report["missing"] == ["row6_seed1"] and report["runs"]["batch"] == 16


def test_nothing_finished_is_said(runs):
  report = ablation.collect(runs, ["3"], [7], 400)
  assert report["rows"]["3"]["AP"] is None and report["missing"] == ["row3_seed7"] and report["runs"] == {}

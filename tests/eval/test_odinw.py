"""eval/odinw.py: averages over sets and seeds, recomputed here."""

import json
import statistics

import pytest

from eval import coco, odinw

SETS = {"Raccoon": "raccoon", "BCCD": "bccd"}


@pytest.fixture
def files(shared):
  truth = {name: shared / f"data/{folder}/annotations/val.json" for name, folder in SETS.items()}
  found = {name: shared / f"golden/metrics/{folder}_val_bbox_results.json" for name, folder in SETS.items()}
  return truth, found


def test_mean_over_sets(files):
  truth, found = files
  report = odinw.evaluate(truth, found)
  single = {name: coco.evaluate_boxes(truth[name], found[name]) for name in SETS}
  assert report["per_set"] == single and report["sets"] == 2
  assert report["AP"] == statistics.fmean(numbers["AP"] for numbers in single.values())
  assert single["Raccoon"]["APs"] is None and report["APs"] == single["BCCD"]["APs"]


def test_folders_of_runs_are_averaged_over_seeds(files, tmp_path):
  truth, found = files
  manifest = tmp_path / "sets.json"
  manifest.write_text(json.dumps({name: str(path) for name, path in truth.items()}))
  kept = {"zero": 1, "shot1_seed3": 2, "shot1_seed30": 4}  # every so manyth prediction
  for run, step in kept.items():
    (tmp_path / "runs" / run).mkdir(parents=True)
    for name, path in found.items():
      (tmp_path / "runs" / run / f"{name}.json").write_text(json.dumps(json.loads(path.read_text())[::step]))
  report = odinw.evaluate_files(manifest, tmp_path / "runs")
  values = {
    run: statistics.fmean(
      coco.evaluate_boxes(truth[name], json.loads(found[name].read_text())[::step])["AP"] for name in SETS
    )
    for run, step in kept.items()
  }
  assert report["zero/AP"] == pytest.approx(values["zero"]) and report["zero/seeds"] == 1
  seeds = [values["shot1_seed3"], values["shot1_seed30"]]
  assert report["shot1/AP"] == pytest.approx(statistics.fmean(seeds)) and report["shot1/seeds"] == 2
  assert report["shot1/AP_std"] == pytest.approx(statistics.stdev(seeds)) and "zero/AP_std" not in report
  single = odinw.evaluate_files(manifest, tmp_path / "runs/zero")
  assert single == report["runs"]["zero"] and single["AP"] == pytest.approx(values["zero"])


def test_truth_as_predictions_with_annotation_id_zero(shared):
  path = shared / "data/odinw_sample/Raccoon/Raccoon.v2-raw.coco/valid/annotations_without_background.json"
  keys = ("image_id", "category_id", "bbox")
  truth = [{**{k: a[k] for k in keys}, "score": 1} for a in json.loads(path.read_text())["annotations"]]
  assert odinw.evaluate({"Raccoon": path}, {"Raccoon": truth})["AP"] == pytest.approx(1.0)


def test_sets_that_lack_a_side(files, tmp_path):
  truth, found = files
  with pytest.raises(ValueError, match="ODinW set 'BCCD' has no predictions"):
    odinw.evaluate(truth, {"Raccoon": found["Raccoon"]})
  with pytest.raises(ValueError, match="ODinW set 'pothole' has no annotations"):
    odinw.evaluate(truth, {**found, "pothole": []})
  (tmp_path / "sets.json").write_text("[]")
  with pytest.raises(ValueError, match="sets.json is no JSON object"):
    odinw.evaluate_files(tmp_path / "sets.json", tmp_path)
  (tmp_path / "sets.json").write_text("{}")
  with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
    odinw.evaluate_files(tmp_path / "sets.json", tmp_path / "nowhere")

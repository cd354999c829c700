"""eval/phrasecut.py against the data set's own evaluator and the truth itself."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from eval import phrasecut


@pytest.fixture
def refer(shared):
  return shared / "data/phrasecut_sample/refer_val.json"


def true_masks(refer):
  sizes = {
    i["image_id"]: (i["height"], i["width"]) for i in json.loads((refer.parent / "image_data_split.json").read_text())
  }
  return {t["task_id"]: phrasecut.region(t["Polygons"], *sizes[t["image_id"]]) for t in json.loads(refer.read_text())}


def as_record(task_id, mask):
  return {"task_id": task_id, "segmentation": rle.encode(np.asfortranarray(mask.astype(np.uint8)))}


def test_numbers_of_the_official_evaluator_in_every_subset(shared, refer):
  expected = json.loads((shared / "golden/metrics/expected.json").read_text())["phrasecut_val"]["metrics"]
  report = phrasecut.evaluate(refer, shared / "golden/metrics/phrasecut_val_pred")
  assert set(report["per_subset"]) == set(expected) - {"all"}
  for subset, values in expected.items():
    numbers = report if subset == "all" else report["per_subset"][subset]
    assert numbers["mIoU"] == pytest.approx(values["mean_mask_iou"], abs=1e-6), subset
    assert numbers["cIoU"] == pytest.approx(values["cum_mask_iou"], abs=1e-6), subset
    for threshold, value in values["pred_mask_acc"].items():
      assert numbers[f"Pr@{threshold}"] == pytest.approx(value, abs=1e-6), subset


def test_truth_and_nothing(refer):
  masks = true_masks(refer)
  report = phrasecut.evaluate(refer, [as_record(*item) for item in masks.items()])
  for numbers in (report, *report["per_subset"].values()):
    assert [numbers[key] for key in ("mIoU", "cIoU", "Pr@0.5", "Pr@0.9")] == [1.0] * 4
  nothing = phrasecut.evaluate(refer, [])
  assert nothing["mIoU"] == nothing["cIoU"] == nothing["Pr@0.5"] == 0.0 and nothing["missing"] == len(masks)


def test_ranks_of_names():
  frequent = [[f"n{k}", 1000 - k] for k in range(600)]
  for name, expected in (
    ("n0", {"c20", "c100", "c500"}),
    ("n20", {"c100", "c500", "c21-100"}),
    ("n499", {"c500", "c101-500"}),
    ("n500", {"c500+"}),
    ("unknown", {"c500+"}),
  ):
    assert set(phrasecut._ranks("c", (20, 100, 500), [name], frequent)) == expected


def test_wrong_predictions(refer, tmp_path):
  [(task_id, mask), *_] = true_masks(refer).items()
  with pytest.raises(ValueError, match=f"the mask of task {task_id} is .* at the size of the original"):
    phrasecut.evaluate(refer, [as_record(task_id, mask[:-1])])
  with pytest.raises(ValueError, match="record 0 is for task 'x', which the annotations do not list"):
    phrasecut.evaluate(refer, [as_record("x", mask)])
  Image.fromarray(mask).save(tmp_path / "x.png")
  with pytest.raises(ValueError, match="task 'x'"):
    phrasecut.evaluate(refer, tmp_path)
  shutil.copy(refer, tmp_path)
  with pytest.raises(FileNotFoundError, match="image_data_split.json does not exist"):
    phrasecut.evaluate(tmp_path / refer.name, [])

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


def test_boxes_cover_regions_as_the_official_tool_draws_them(refer):
  """The last row and column of a box are left out, as there; the truth as prediction is perfect all the same."""
  shape = (20, 30)
  np.testing.assert_array_equal(np.argwhere(phrasecut.covered([[2.7, 3, 4, 3.9]], shape)), [
    [y, x] for y in (3, 4) for x in (2, 3, 4)
  ])  # fmt: skip
  tasks = json.loads(refer.read_text())
  truth = [{"task_id": t["task_id"], "boxes": t["instance_boxes"]} for t in tasks]
  report = phrasecut.evaluate(refer, truth, "bbox")
  assert report["mIoU"] == report["Pr@0.9"] == 1.0 and report["missing"] == 0
  assert set(report["per_subset"]) == set(phrasecut.evaluate(refer, [])["per_subset"])
  half = [{**t, "boxes": [[x, y, (w + 1) / 2, h] for x, y, w, h in t["boxes"]]} for t in truth]
  single = [t["task_id"] for t in tasks if len(t["instance_boxes"]) == 1]
  report = phrasecut.evaluate(refer, [t for t in half if t["task_id"] in single], "bbox")
  assert report["per_subset"]["i_single"]["mIoU"] == pytest.approx(0.5, abs=0.02)
  with pytest.raises(ValueError, match="record 0 has a box that is not four finite numbers"):
    phrasecut.evaluate(refer, [{"task_id": single[0], "boxes": [[1, 2, 3]]}], "bbox")

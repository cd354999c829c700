"""eval/coco.py against the numbers of the official tool, and against ground truth fed back as predictions."""

import json
import random

import pytest
from pycocotools.coco import COCO

from eval import coco

SETS = {
  "bccd": "bccd/annotations/val.json",
  "raccoon": "raccoon/annotations/val.json",
  "coco_sample": "coco_sample/annotations/instances_val2017.json",
  "odinw": "odinw_sample/Raccoon/Raccoon.v2-raw.coco/valid/annotations_without_background.json",
}
GOLDEN = ("bccd_val_bbox", "raccoon_val_bbox", "coco_sample_val2017_bbox", "coco_sample_val2017_segm")
ENGINES = ("hotcoco", "pycocotools")


def small_truth():
  """Two images, three categories of which 'ghost' never occurs; annotation id 0 on purpose."""
  return {
    "images": [{"id": 7, "width": 100, "height": 80}, {"id": 9, "width": 50, "height": 50}],
    "categories": [{"id": 1, "name": "cat"}, {"id": 5, "name": "dog"}, {"id": 6, "name": "ghost"}],
    "annotations": [
      {"id": 0, "image_id": 7, "category_id": 1, "bbox": [10, 10, 30, 20]},
      {"id": 1, "image_id": 7, "category_id": 5, "bbox": [50, 5, 40, 60]},
      {"id": 2, "image_id": 9, "category_id": 5, "bbox": [0, 0, 25, 25]},
    ],
  }


def as_predictions(truth):
  return [
    {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9}
    for a in truth["annotations"]
    if not a["iscrowd"]
  ]


@pytest.mark.parametrize("name", SETS)
def test_truth_as_predictions_scores_one_in_every_category(shared, name):
  truth = coco.load_annotations(shared / "data" / SETS[name])
  result = coco.evaluate_boxes(truth, as_predictions(truth))
  assert result["AP"] == pytest.approx(1.0) and result["AP50"] == pytest.approx(1.0)
  occurring = {a["category_id"] for a in truth["annotations"] if not a["iscrowd"]}
  for category in truth["categories"]:
    expected = {"AP": pytest.approx(1.0), "AP50": pytest.approx(1.0)} if category["id"] in occurring else None
    assert result["per_category"][category["name"]] == expected


def test_true_masks_as_predictions_score_one(shared):
  truth = coco.load_annotations(shared / "data" / SETS["coco_sample"], "segm")
  index = COCO()
  index.dataset = truth
  index.createIndex()
  masks = [
    {"image_id": a["image_id"], "category_id": a["category_id"], "segmentation": index.annToRLE(a), "score": 0.5}
    for a in truth["annotations"]
    if not a["iscrowd"]
  ]
  result = coco.evaluate_boxes(truth, masks, "segm")
  assert [result[key] for key in ("AP", "AP50", "AR100", "APs", "APm", "APl")] == [pytest.approx(1.0)] * 6
  assert all(numbers is None or numbers["AP"] == pytest.approx(1.0) for numbers in result["per_category"].values())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", GOLDEN)
def test_numbers_of_the_official_tool(shared, name, engine):
  pytest.importorskip(engine)
  expected = json.loads((shared / "golden/metrics/expected.json").read_text())[name]
  predictions = json.loads((shared / "golden/metrics" / expected["results"]).read_text())
  truth = json.loads((shared / "data" / expected["gt"]).read_text())
  random.Random(0).shuffle(predictions)
  random.Random(1).shuffle(truth["images"])
  result = coco.evaluate_boxes(truth, predictions, name[-4:], engine=engine)
  for key, value in expected["metrics"].items():
    assert result[key] == (None if value == -1.0 else pytest.approx(value, abs=1e-6)), key


def test_annotation_ids_are_renumbered_without_touching_the_input():
  truth = small_truth()
  assert [a["id"] for a in coco.load_annotations(truth)["annotations"]] == [1, 2, 3]
  assert [a["id"] for a in truth["annotations"]] == [0, 1, 2]


def test_absent_category_is_listed_and_not_averaged(capsys):
  truth = coco.load_annotations(small_truth())
  extra = {"image_id": 9, "category_id": 6, "bbox": [0, 0, 10, 10], "score": 0.99}
  result = coco.evaluate_boxes(truth, [*as_predictions(truth), extra])
  assert result["per_category"]["ghost"] is None and set(result["per_category"]) == {"cat", "dog", "ghost"}
  assert result["AP"] == pytest.approx(1.0)
  assert capsys.readouterr().out == ""


def test_no_predictions_score_zero():
  result = coco.evaluate_boxes(small_truth(), [])
  assert result["AP"] == result["AP50"] == result["AR100"] == 0.0
  assert result["per_category"]["cat"] == {"AP": 0.0, "AP50": 0.0}


def test_swapped_category_scores_zero_there_only():
  truth = coco.load_annotations(small_truth())
  predictions = as_predictions(truth)
  predictions[0]["category_id"] = 5
  predictions[0]["score"] = 0.1
  result = coco.evaluate_boxes(truth, predictions)
  assert result["per_category"]["cat"]["AP"] == 0.0
  assert result["per_category"]["dog"]["AP"] == pytest.approx(1.0)  # the false positive ranks last


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"image_id": 8}, r"record 1 is on image id 8.*split"),
    ({"category_id": 2}, r"record 1 has category id 2.*map labels"),
    ({"bbox": [1, 2, 3]}, r"record 1 has bbox \[1, 2, 3\]; give the four numbers"),
    ({"bbox": [1, 2, 3, float("nan")]}, r"record 1 has bbox .*finite"),
    ({"bbox": [1, 2, -3, 4]}, r"record 1 has bbox .*at least 0"),
    ({"score": float("nan")}, r"record 1 has score nan"),
    ({"score": "high"}, r"record 1 has score 'high'"),
    ({"image_id": "7"}, r"record 1 has image_id '7'; ids are whole numbers"),
  ],
)
def test_wrong_predictions_are_named(change, message):
  truth = coco.load_annotations(small_truth())
  predictions = as_predictions(truth)
  predictions[1].update(change)
  with pytest.raises(ValueError, match=message):
    coco.evaluate_boxes(truth, predictions)


def test_missing_score_and_wrong_annotations(tmp_path):
  with pytest.raises(ValueError, match="record 0 has no 'score'"):
    coco.evaluate_boxes(small_truth(), [{"image_id": 7, "category_id": 1, "bbox": [0, 0, 1, 1]}])
  with pytest.raises(FileNotFoundError, match="nowhere.json does not exist"):
    coco.load_annotations(tmp_path / "nowhere.json")
  (tmp_path / "broken.json").write_text("{")
  with pytest.raises(ValueError, match="broken.json is not JSON"):
    coco.load_annotations(tmp_path / "broken.json")
  with pytest.raises(ValueError, match="has no 'categories'"):
    coco.load_annotations({"images": [], "annotations": []})
  wrong = small_truth()
  wrong["annotations"][2]["category_id"] = 77
  with pytest.raises(ValueError, match="annotation 2 .* category 77"):
    coco.load_annotations(wrong)
  for part, key, message in (
    ("images", "id", "images of annotations: record 0 has no 'id'"),
    ("categories", "name", "categories of annotations: record 0 has no 'name'"),
  ):
    lacking = small_truth()
    del lacking[part][0][key]
    with pytest.raises(ValueError, match=message):
      coco.load_annotations(lacking)
  lacking["categories"][0] = {"id": "1", "name": "cat"}
  with pytest.raises(ValueError, match="category 0 has id '1'; ids are whole numbers"):
    coco.load_annotations(lacking)
  for part, what in (("images", "image"), ("annotations", "annotation"), ("categories", "category")):
    twice = small_truth()
    twice[part][1]["id"] = twice[part][0]["id"]
    with pytest.raises(ValueError, match=f"{what} 0 and {what} 1 have the same id"):
      coco.load_annotations(twice)


def test_result_boxes_are_the_inverse_of_the_inclusive_reading():
  [result] = coco.result_boxes(3, [[10, 20, 39, 59]], [0.5], [4])
  assert result == {"image_id": 3, "category_id": 4, "bbox": [10.0, 20.0, 30.0, 40.0], "score": 0.5}


def test_masks_need_masks_and_sizes():
  with pytest.raises(ValueError, match="annotation 0 .* has no 'segmentation'"):
    coco.load_annotations(small_truth(), "segm")
  wrong = small_truth()
  wrong["annotations"][0]["segmentation"] = {"size": [100, 80], "counts": [8000]}
  with pytest.raises(ValueError, match=r"mask of \[100, 80\], but image 7 is \[80, 100\]"):
    coco.load_annotations(wrong, "segm")

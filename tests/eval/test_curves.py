"""eval/curves.py: hotcoco against pycocotools entry by entry, and order that does not depend on the file's."""

import random

import numpy as np
import pytest

from benchmarks import evaluation
from eval import coco, curves, files


@pytest.mark.parametrize("images", [300, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_both_engines_agree_on_every_number(tmp_path, iou_type, images):
  pytest.importorskip("hotcoco")
  evaluation.write_files(tmp_path, iou_type, images=images, detections=6, categories=3)
  truth = coco.load_annotations(tmp_path / "annotations.json", iou_type)
  detections = files.read_detections(tmp_path / "predictions.json", iou_type)
  ours, reference = (curves.curves(truth, detections, iou_type, coco.LIMITS, engine=e) for e in curves.ENGINES)
  assert ours.average_precision() > 0 and reference.category_ids == ours.category_ids == [1, 2, 3]
  np.testing.assert_allclose(ours.precision, reference.precision, rtol=0, atol=1e-12)
  np.testing.assert_allclose(ours.recall, reference.recall, rtol=0, atol=1e-12)


@pytest.mark.parametrize("engine", curves.ENGINES)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_equal_scores_in_any_order(tmp_path, engine, iou_type):
  pytest.importorskip(engine)
  evaluation.write_files(tmp_path, iou_type, images=40, detections=12, categories=2)
  truth = coco.load_annotations(tmp_path / "annotations.json", iou_type)
  records = files.read_json(tmp_path / "predictions.json")
  for record in records:
    record["score"] = round(record["score"], 1)
  numbers = []
  for seed in range(3):
    random.Random(seed).shuffle(records)
    random.Random(seed).shuffle(truth["images"])
    numbers.append(coco.evaluate_boxes(truth, records, iou_type, engine=engine))
  assert numbers[0] == numbers[1] == numbers[2]


def test_unknown_engine_and_empty_truth():
  truth = {"images": [{"id": 1}], "annotations": [], "categories": [{"id": 2, "name": "a"}]}
  nothing = files.read_detections([])
  assert curves.curves(truth, nothing, "bbox", (100,)).per_category() == {2: None}
  with pytest.raises(ValueError, match="engine 'fast' is not known"):
    curves.curves(truth, nothing, "bbox", (100,), engine="fast")

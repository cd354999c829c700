"""eval/lvis.py: numbers of lvis-api, the federated rules on a case counted by hand, fixed AP's limit."""

import json
import random

import pytest

from eval import lvis
from eval.files import read_detections

GOLDEN = ("lvis_v05_val_100_bbox", "lvis_v1_style_derived_bbox")


@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize("name", GOLDEN)
def test_numbers_of_lvis_api(shared, name, engine):
  pytest.importorskip(engine)
  expected = json.loads((shared / "golden/metrics/expected.json").read_text())[name]
  predictions = json.loads((shared / "golden/metrics" / expected["results"]).read_text())
  random.Random(0).shuffle(predictions)
  result = lvis.evaluate(shared / "data" / expected["gt"], predictions, engine=engine)
  for key, value in expected["metrics"].items():
    assert result[key] == (None if value == -1.0 else pytest.approx(value, abs=1e-6)), key


@pytest.mark.parametrize("fixed", [False, True])
def test_truth_as_predictions_scores_one(shared, fixed):
  path = shared / "data/lvis_sample/annotations/lvis_v0.5_val_100.json"
  truth = json.loads(path.read_text())
  keys = ("image_id", "category_id", "bbox")
  result = lvis.evaluate(path, [{**{k: a[k] for k in keys}, "score": 0.5} for a in truth["annotations"]], fixed=fixed)
  for key in ("AP", "AP50", "AP75", "APr", "APc", "APf", "AR" if fixed else "AR@300"):
    assert result[key] == pytest.approx(1.0), key
  assert all(numbers is None or numbers["AP"] == pytest.approx(1.0) for numbers in result["per_category"].values())


def truth():
  """Category 1: annotated in image 1, surely absent from 2, not looked for in 3 and 4, partly annotated in 5."""
  images = [
    {
      "id": k,
      "height": 50,
      "width": 50,
      "neg_category_ids": [1] * (k == 2),
      "not_exhaustive_category_ids": [1] * (k == 5),
    }
    for k in range(1, 6)
  ]
  boxes = [{"id": k, "image_id": k, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400} for k in (1, 5)]
  names = [{"id": 1, "name": "cat", "frequency": "r"}, {"id": 2, "name": "dog", "frequency": "c"}]
  return {"images": images, "annotations": boxes, "categories": names}


def found(image_id, score, bbox=(5, 5, 20, 20)):
  return {"image_id": image_id, "category_id": 1, "bbox": list(bbox), "score": score}


@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
def test_only_images_that_were_looked_at_count(engine):
  pytest.importorskip(engine)
  right = [found(1, 0.5), found(5, 0.4)]
  harmless = [found(3, 0.9), found(4, 0.9), found(5, 0.95, (30, 30, 10, 10)), found(2, 0.9, (0, 0, 0, 9))]
  result = lvis.evaluate(truth(), [*right, *harmless], engine=engine)
  assert result["AP"] == result["APr"] == pytest.approx(1.0) and result["APc"] is None
  assert result["per_category"]["dog"] is None
  wrong = lvis.evaluate(truth(), [*right, found(2, 0.9)], engine=engine)  # first of three, and false
  assert wrong["AP"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
def test_fixed_ap_has_no_limit_per_image(engine):
  pytest.importorskip(engine)
  crowd = [found(1, 0.9, (0, 0, 9, 9)) | {"category_id": 2} for _ in range(400)]
  predictions = [*crowd, found(1, 0.5), found(5, 0.4)]
  assert lvis.evaluate(truth(), predictions, engine=engine)["AP"] == pytest.approx(51 / 101)
  assert lvis.evaluate(truth(), predictions, fixed=True, engine=engine)["AP"] == pytest.approx(1.0)


def test_best_keeps_the_best_of_each_group():
  rng = random.Random(0)
  records = [found(rng.randint(1, 3), rng.random()) | {"category_id": rng.randint(1, 2)} for _ in range(60)]
  for key, options in (("image_id", {"per_image": 5}), ("category_id", {"per_category": 7})):
    kept = lvis.best(read_detections(records), **options)
    limit = next(iter(options.values()))
    groups = {r[key] for r in records}
    expected = [s for g in groups for s in sorted((r["score"] for r in records if r[key] == g), reverse=True)[:limit]]
    assert sorted(kept.score.tolist()) == sorted(expected)
  assert len(lvis.best(read_detections([]), per_image=5)) == 0


def test_files_that_are_not_lvis():
  plain = truth()
  del plain["images"][1]["neg_category_ids"]
  with pytest.raises(ValueError, match="image 1 has no neg_category_ids .*task coco"):
    lvis.evaluate(plain, [])
  plain = truth()
  del plain["categories"][0]["frequency"]
  with pytest.raises(ValueError, match="category 0 has no 'frequency'"):
    lvis.evaluate(plain, [])
  assert lvis.evaluate(truth(), [])["AP"] == 0.0

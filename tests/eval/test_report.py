"""eval/report.py: the parts agree with the metrics, the threshold with a search over all, pictures with counts."""

import numpy as np
import pytest

from eval import coco, errors, report
from eval.lvis import evaluate as evaluate_lvis
from tests.noisy import noisy


@pytest.fixture(scope="module")
def analysed():
  truth, records = noisy(3, images=40)
  return truth, records, report.analyse(truth, records)


def test_curves_sizes_and_categories_average_to_the_metrics(analysed):
  truth, records, analysis = analysed
  metrics = coco.evaluate_boxes(truth, records)
  assert analysis.precision["mean"].mean() == pytest.approx(metrics["AP"], abs=1e-12)
  assert analysis.precision["0.50"].mean() == pytest.approx(metrics["AP50"], abs=1e-12)
  assert analysis.precision["0.75"].mean() == pytest.approx(metrics["AP75"], abs=1e-12)
  assert [size["AP"] for size in analysis.sizes] == [metrics[k] for k in ("AP", "APs", "APm", "APl")]
  assert [size["AR"] for size in analysis.sizes] == [metrics[k] for k in ("AR100", "ARs", "ARm", "ARl")]
  real = [a for a in truth["annotations"] if not a["iscrowd"]]
  assert [size["objects"] for size in analysis.sizes] == [
    len(real),
    sum(a["area"] < 32**2 for a in real),
    sum(32**2 <= a["area"] < 96**2 for a in real),
    sum(a["area"] >= 96**2 for a in real),
  ]
  for of in analysis.categories:
    assert {"AP": of["AP"], "AP50": of["AP50"]} == metrics["per_category"][of["category"]]
    own = [a for a in real if str(a["category_id"]) == of["category"]]
    assert of["objects"] == len(own) and of["images"] == len({a["image_id"] for a in own})
    assert of["detections"] == sum(str(r["category_id"]) == of["category"] for r in records)
  assert sum(of["found"] for of in analysis.categories) == analysis.errors.is_a(errors.CORRECT).sum()
  assert {k: sum(of[k] for of in analysis.categories) for k in errors.TYPES} == analysis.errors.counts()


def test_threshold_of_the_highest_f1(analysed):
  found = analysed[2].errors
  judged, objects = ~found.is_a(errors.IGNORED), (~found.objects(errors.CROWD)).sum()
  best = (0, 0)
  for score in found.detections.score:
    left = judged & (found.detections.score >= score)
    hits = (left & found.is_a(errors.CORRECT)).sum()
    best = max(best, (2 * hits / (left.sum() + objects), score))
  operating = analysed[2].operating
  assert (operating.f1, operating.score) == pytest.approx(best)


@pytest.mark.parametrize("score", [0.0, 0.4, 2.0])
def test_pictures_count_what_is_wrong_above_the_score(analysed, score):
  truth, _, analysis = analysed
  found = analysis.errors
  pictures = report.pictures(analysis, score)
  assert sorted(p.image["id"] for p in pictures) == [image["id"] for image in truth["images"]]
  totals = [len(p.wrong) + len(p.missing) for p in pictures]
  assert totals == sorted(totals, reverse=True)
  left = found.detections.score >= score
  correct = left & found.is_a(errors.CORRECT)
  assert sum(len(p.correct) for p in pictures) == sum(len(p.found) for p in pictures) == correct.sum()
  assert sum(len(p.wrong) for p in pictures) == (left & ~found.is_a(errors.CORRECT) & ~found.is_a(errors.IGNORED)).sum()
  assert sum(len(p.missing) for p in pictures) == (~found.objects(errors.CROWD)).sum() - correct.sum()
  for picture in pictures:
    assert (found.detections.image_id[picture.wrong] == picture.image["id"]).all()
    assert set(found.target[picture.correct]) == set(picture.found)


def test_lvis_and_unknown_tasks(shared):
  files = (
    shared / "data/lvis_sample/annotations/lvis_v0.5_val_100.json",
    shared / "golden/metrics/lvis_v05_val_100_bbox_results.json",
  )
  analysis = report.analyse(*files, "lvis")
  metrics = evaluate_lvis(*files)
  assert analysis.precision["mean"].mean() == pytest.approx(metrics["AP"], abs=1e-12)
  assert analysis.sizes[0]["AR"] == metrics["AR@300"]
  with pytest.raises(ValueError, match="'flickr' cannot be taken apart; of coco, lvis, lvis_fixed they can"):
    report.analyse(*files, "flickr")


def test_nothing_right():
  truth, _ = noisy(3, images=5)
  analysis = report.analyse(truth, [])
  assert analysis.operating is None and analysis.precision["mean"].tolist() == [0.0] * 101
  assert sum(len(p.missing) for p in report.pictures(analysis, 0.0)) == analysis.sizes[0]["objects"]
  empty = report.analyse({**truth, "annotations": []}, [])
  assert not len(empty.precision["mean"]) and empty.sizes[0] == {
    "size": "all",
    "objects": 0,
    "AP": None,
    "AP50": None,
    "AR": None,
  }
  assert np.isfinite([empty.errors.counts()[k] for k in errors.TYPES]).all()

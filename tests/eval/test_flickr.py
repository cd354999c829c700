"""eval/flickr.py against the authors' evaluator and the truth itself."""

import json
import random

import pytest

from eval import flickr

RANKS = {"1": "R@1", "5": "R@5", "10": "R@10", "-1": "R@upper_bound"}


@pytest.fixture
def split(shared):
  return shared / "data/flickr30k_entities_sample/test.txt"


@pytest.fixture
def results(shared):
  return json.loads((shared / "golden/metrics/flickr_test_results.json").read_text())


@pytest.mark.parametrize(("protocol", "prefix"), [("anybox", ""), ("merged", "merged/")])
def test_numbers_of_the_official_evaluator(shared, split, results, protocol, prefix):
  expected = json.loads((shared / "golden/metrics/expected.json").read_text())[f"flickr_test_{protocol}"]["metrics"]
  random.Random(0).shuffle(results)
  report = flickr.evaluate(split, results)
  for rank, name in RANKS.items():
    for kind, value in expected[rank].items():
      numbers = report if kind == "all" else report["per_type"][kind]
      assert numbers[prefix + name] == pytest.approx(value, abs=1e-6), (rank, kind)
  assert set(report["per_type"]) == set(expected["1"]) - {"all"} and report["missing_sentences"] == 0


def test_truth_as_predictions_is_always_found(split):
  sentences = flickr.load_sentences(split)
  predictions = [
    {"image_id": image, "sentence_id": number, "boxes": [boxes[:1].tolist() for _, boxes in phrases]}
    for (image, number), phrases in sentences.items()
  ]
  report = flickr.evaluate(split, predictions)
  for numbers in (report, *report["per_type"].values()):
    assert all(numbers[name] == 1.0 for name in RANKS.values())


def test_nothing_predicted_is_never_found(split):
  report = flickr.evaluate(split, [])
  assert report["R@upper_bound"] == report["merged/R@1"] == 0.0 and report["missing_sentences"] == 20
  nothing = [
    {"image_id": image, "sentence_id": number, "boxes": [[] for _ in phrases]}
    for (image, number), phrases in flickr.load_sentences(split).items()
  ]
  assert flickr.evaluate(split, nothing)["R@10"] == 0.0


def test_wrong_records(split, results, tmp_path):
  first = results[0]
  for change, message in (
    ({"image_id": 1}, r"record 0 is for image and sentence \('1', 0\), which the annotations do not list"),
    ({"boxes": first["boxes"][:1]}, "record 0 has boxes for 1 phrases, but sentence 0 .* has [2-9] phrases"),
    ({"boxes": [[[1, 2, 3]]] * len(first["boxes"])}, "record 0, phrase 0 has a box that is not four finite numbers"),
    ({"boxes": [[[1, 2, 3, float("nan")]]] * len(first["boxes"])}, "record 0, phrase 0 has a box"),
  ):
    with pytest.raises(ValueError, match=message):
      flickr.evaluate(split, [{**first, **change}])
  with pytest.raises(ValueError, match="record 1 is a second one"):
    flickr.evaluate(split, [first, first])
  with pytest.raises(ValueError, match="record 0 has no 'sentence_id'"):
    flickr.evaluate(split, [{"image_id": 1}])
  (tmp_path / "test.txt").write_text("12\n")
  with pytest.raises(FileNotFoundError, match="12.xml does not exist"):
    flickr.evaluate(tmp_path / "test.txt", [])

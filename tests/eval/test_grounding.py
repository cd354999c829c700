"""eval/grounding.py against cases counted by hand and the official Flickr30k numbers."""

import json

import numpy as np
import pytest

from eval import grounding
from eval.grounding import GroundedPhrase

NONE = np.zeros((0, 4))
TRUE = np.array([[0.0, 0, 10, 10]])
MISS = [50.0, 50, 60, 60]
HIT = [0.0, 0, 10, 9]


def phrase(*predicted, truth=TRUE, kinds=()):
  return GroundedPhrase(np.array(predicted, float).reshape(-1, 4), truth, kinds)


def test_recall_counts_ranks():
  phrases = [
    phrase(HIT),  # found at 1
    phrase(MISS, MISS, HIT),  # at 5
    phrase(*[MISS] * 7, HIT),  # at 10
    phrase(*[MISS] * 30, HIT),  # only at the upper bound
    phrase(),  # never
  ]
  result = grounding.recall(phrases)
  assert result["grounding_recall_at_1"] == pytest.approx(0.2)
  assert result["grounding_recall_at_5"] == pytest.approx(0.4)
  assert result["grounding_recall_at_10"] == pytest.approx(0.6)
  assert result["grounding_recall_upper_bound"] == pytest.approx(0.8)
  assert result["phrases"] == 5


def test_any_of_the_true_boxes_counts_and_half_overlap_is_enough():
  two = np.array([[0.0, 0, 10, 10], [20, 20, 30, 30]])
  assert grounding.rank_of_hit(phrase([20, 20, 30, 25], truth=two)) == 1  # IoU exactly 0.5
  assert grounding.rank_of_hit(phrase([20, 20, 30, 24.9], truth=two)) is None


def test_no_plus_one_and_empty_boxes():
  assert grounding.iou(np.array([[0.0, 0, 10, 10]]), np.array([[10.0, 0, 20, 10]]))[0, 0] == 0.0
  assert grounding.iou(np.array([[5.0, 5, 5, 5]]), np.array([[5.0, 5, 5, 5]]))[0, 0] == 0.0


def test_per_kind():
  result = grounding.recall([phrase(HIT, kinds=("people",)), phrase(MISS, kinds=("people", "other"))])
  assert result["per_kind"]["people"]["grounding_recall_at_1"] == 0.5
  assert result["per_kind"]["other"]["grounding_recall_at_1"] == 0.0


def test_no_phrases_and_errors():
  assert grounding.recall([])["grounding_recall_at_1"] is None
  with pytest.raises(ValueError, match="phrase 1 has no true box"):
    grounding.recall([phrase(HIT), phrase(HIT, truth=NONE)])
  with pytest.raises(ValueError, match="phrase 0: predicted_xyxy_px has shape"):
    grounding.recall([GroundedPhrase(np.zeros(4), TRUE)])
  with pytest.raises(ValueError, match="phrase 0: predicted_xyxy_px holds"):
    grounding.recall([phrase([0, 0, np.nan, 1])])


def test_official_flickr_numbers(shared):
  """The sample's own sentences and boxes, read here by a few lines, scored by us and by the official evaluator."""
  import re
  import xml.etree.ElementTree as ElementTree

  root = shared / "data/flickr30k_entities_sample"
  expected = json.loads((shared / "golden/metrics/expected.json").read_text())["flickr_test_anybox"]["metrics"]
  results = json.loads((shared / "golden/metrics/flickr_test_results.json").read_text())
  found = {(str(r["image_id"]), int(r["sentence_id"])): r["boxes"] for r in results}
  phrases = []
  for image in (root / "test.txt").read_text().split():
    boxes = {}
    for item in ElementTree.parse(next(root.rglob(f"{image}.xml"))).getroot().iter("object"):
      if item.find("bndbox") is None:
        continue
      corners = [int(item.find("bndbox").find(key).text) - 1 for key in ("xmin", "ymin", "xmax", "ymax")]
      for name in item.findall("name"):
        boxes.setdefault(name.text, []).append(corners)
    for s, sentence in enumerate(next(root.rglob(f"{image}.txt")).read_text(encoding="utf-8").splitlines()):
      marked = [m for m in re.findall(r"\[/EN#(\d+)/(\S+)", sentence) if m[0] in boxes]
      if not marked:
        continue
      ranked = found[image, s]
      assert len(ranked) == len(marked)
      for (chain, kinds), predicted in zip(marked, ranked, strict=True):
        phrases.append(phrase(*predicted, truth=np.array(boxes[chain], float), kinds=tuple(kinds.split("/"))))
  result = grounding.recall(phrases)
  for key, name in (("1", "at_1"), ("5", "at_5"), ("10", "at_10"), ("-1", "upper_bound")):
    assert result[f"grounding_recall_{name}"] == pytest.approx(expected[key]["all"], abs=1e-6)
    for kind, value in expected[key].items():
      if kind != "all":
        assert result["per_kind"][kind][f"grounding_recall_{name}"] == pytest.approx(value, abs=1e-6)

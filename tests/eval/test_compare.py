"""eval/compare.py: which numbers are the paper's, and how far a run is from them."""

import pytest

from eval import compare, paper, phrasecut_words
from eval.compare import Result, Run

COCO80 = dict.fromkeys(phrasecut_words.COCO, {"AP": 0.5})
KEPT = {"AP": 0.48, "AP50": 0.6, "images": 5000}


def cells(table, *results, setting=None, **about):
  row, found = compare.beside(table, Run("mine", results, **about), setting)
  return row, {c.title: (f.number, f.difference) for c, f in zip(table.columns, found) if f.number is not None}


def test_coco_is_known_by_its_categories_or_by_name():
  result = Result("val2017", "coco", "bbox", {**KEPT, "per_category": COCO80})
  row, found = cells(paper.TABLE_1, result)
  assert row == "GLIPv2-T"
  assert found == {
    "COCO-Det test-dev": (pytest.approx(48.0), pytest.approx(48.0 - 55.5)),
    "COCO-Mask test-dev bbox": (pytest.approx(48.0), pytest.approx(48.0 - 53.5)),
  }
  assert cells(paper.TABLE_5, Result("x", "coco", "bbox", {**KEPT, "benchmark": "coco"}))[1] != {}
  for numbers in (KEPT, {**KEPT, "per_category": {"cell": {"AP": 0.5}}}, {**KEPT, "benchmark": "cells"}):
    assert all(cells(table, Result("cells", "coco", "bbox", numbers))[1] == {} for table in paper.TABLES)


def test_every_task_has_its_columns():
  results = (
    Result("coco", "coco", "segm", {"AP": 0.4, "per_category": COCO80}),
    Result("minival", "lvis", "bbox", {"AP": 0.1}),
    Result("minival", "lvis_fixed", "bbox", {"AP": 0.3, "APr": None}),  # the paper's kind, so it is taken
    Result("test", "flickr", "bbox", {"R@1": 0.85, "R@5": 0.9, "R@10": 0.95}),
    Result("test", "phrasecut", "segm", {"mIoU": 0.6}),
    Result("val", "vqa", "bbox", {"accuracy": 70.5, "questions": 3}),
    Result("karpathy", "captions", "bbox", {"CIDEr": 1.2, "BLEU-4": 0.36}),
    Result("both", "grounded_captions", "bbox", {"CIDEr": 1.19, "BLEU-4": 0.36, "SPICE": None, "R@1": 0.8}),
  )
  _, first = cells(paper.TABLE_1, *results)
  assert {title: number for title, (number, _) in first.items()} == pytest.approx(
    {
      "LVIS minival bbox": 30.0,
      "COCO-Mask test-dev segm": 40.0,
      "Flickr30K test R@1": 85.0,
      "PhraseCut test mIoU": 60.0,
      "VQA test-dev": 70.5,
      "Captioning Karpathy-test CIDEr": 120.0,
    }
  )
  _, sixth = cells(paper.TABLE_6, *results)
  assert sixth == {
    "COCO caption B4": (pytest.approx(36.0), pytest.approx(36.0 - 36.5)),
    "COCO caption CIDEr": (pytest.approx(119.0), pytest.approx(119.0 - 119.8)),
    "Flickr30K R@1": (pytest.approx(80.0), pytest.approx(80.0 - 80.8)),
  }
  known = set(compare.measured(results))
  wanted = {measure for table in paper.TABLES for column in table.columns for measure in column.measures}
  assert known & wanted and all(measure.split("/")[0] in compare.TASKS for measure in wanted)


def test_odinw_needs_the_thirteen_sets():
  runs = {"zero": {"AP": 0.485, "sets": 13}, "shot1_seed3": {"AP": 0.5, "sets": 13}}
  shots = {"zero/AP": 0.485, "shot1/AP": 0.5, "shot1/AP_std": 0.01, "shot1/seeds": 3, "full/AP": 0.6, "runs": runs}
  weights = {"intra": 1.0, "inter": 0.0, "mlm": 0.0}
  row, found = cells(paper.TABLE_3, Result("odinw", "odinw", "bbox", shots), weights=weights)
  assert row == "L_loc + L_intra (GLIP-T)"
  assert found == {
    "0 shots": (pytest.approx(48.5), pytest.approx(48.5 - 46.5)),
    "1 shot": (pytest.approx(50.0), pytest.approx(50.0 - 49.9)),
    "all": (pytest.approx(60.0), pytest.approx(60.0 - 62.4)),
  }
  assert cells(paper.TABLE_1, Result("odinw", "odinw", "bbox", {"AP": 0.6, "sets": 13}))[1] == {
    "ODinW test": (pytest.approx(60.0), pytest.approx(60.0 - 66.5))
  }
  assert cells(paper.TABLE_1, Result("odinw", "odinw", "bbox", {"AP": 0.6, "sets": 35}))[1] == {}
  runs["full"] = {"AP": 0.6, "sets": 35}
  assert cells(paper.TABLE_3, Result("odinw", "odinw", "bbox", shots))[1] == {}


def test_setting_chooses_the_columns():
  result = Result("val2017", "coco", "bbox", {**KEPT, "per_category": COCO80})
  assert set(cells(paper.TABLE_4, result)[1]) == {"COCO zero-shot", "COCO fine-tuned"}
  assert set(cells(paper.TABLE_4, result, setting="zero-shot")[1]) == {"COCO zero-shot"}
  assert cells(paper.TABLE_1, result, setting="zero-shot")[1] == {}


def test_task_of_a_foreign_metrics_file():
  files = ({"AP": 1, "APr": 1}, {"R@1": 1}, {"task": "mine"}, {"BLEU-4": 1, "CIDEr": 2})
  assert [compare.task_of(numbers) for numbers in files] == ["lvis", "flickr", "mine", "captions"]
  with pytest.raises(ValueError, match="none of the known metrics .* is among loss"):
    compare.task_of({"loss": 1.0})

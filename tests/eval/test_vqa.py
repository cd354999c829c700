"""eval/vqa.py against the official tool's recorded numbers and its rules one by one."""

import json
import random

import pytest

from eval import vqa


@pytest.fixture
def annotations(shared):
  return shared / "data/vqa_sample/v2_mscoco_train2014_annotations.json"


def test_numbers_of_the_official_tool(shared, annotations):
  expected = json.loads((shared / "golden/metrics/expected.json").read_text())["vqa_results"]
  predictions = json.loads((shared / "golden/metrics" / expected["results"]).read_text())
  random.Random(0).shuffle(predictions)
  report, scores = vqa.evaluate(annotations, predictions), vqa.accuracies(annotations, predictions)
  assert round(report["accuracy"], 4) == expected["metrics"]["overall"]
  assert {k: round(v, 4) for k, v in report["per_answer_type"].items()} == expected["metrics"]["perAnswerType"]
  assert {str(k): round(v, 4) for k, v in scores.items()} == expected["metrics"]["perQuestion"]


def test_most_common_answer_and_nothing(shared, annotations):
  expected = json.loads((shared / "golden/metrics/expected.json").read_text())["vqa_most_common_answer"]["metrics"]
  truth = json.loads(annotations.read_text())["annotations"]
  common = [{"question_id": a["question_id"], "answer": a["multiple_choice_answer"]} for a in truth]
  assert round(vqa.evaluate(annotations, common)["accuracy"], 4) == expected["overall"]
  nothing = vqa.evaluate(annotations, [])
  assert nothing["accuracy"] == 0.0 and nothing["missing"] == len(truth)


@pytest.mark.parametrize(
  ("answer", "expected"),
  [
    ("The Cat", "cat"),
    ("two dogs", "2 dogs"),
    ("none", "0"),
    ("dont know", "don't know"),
    ("Youd've", "you'd've"),
    ("somebody'd", "somebodyd"),
    ("lets", "lets"),
    ("black/white", "black white"),
    ("black / white", "black  white".replace("  ", " ")),
    ("1,000", "1000"),
    ("u.s.", "us"),
    ("3.5", "3.5"),
    ("yes!", "yes"),
    ("ice-cream", "ice cream"),
    ("mid - air", "mid air"),
  ],
)
def test_normalisation(answer, expected):
  assert vqa.normalise(answer) == expected


def test_ten_annotators():
  answers = ["red"] * 3 + ["blue"] * 7
  # Without one of the three that said red two matches are left, without one of the others three.
  assert vqa.accuracy("Red", answers) == pytest.approx((3 * 2 / 3 + 7 * 1) / 10)
  assert vqa.accuracy("blue", answers) == 1.0
  assert vqa.accuracy("green", answers) == 0.0
  assert vqa.accuracy("Two", ["two"] * 10) == 0.0  # all agree: nothing is normalised, not even the case
  assert vqa.accuracy(" two\n", ["two"] * 10) == 1.0


def test_wrong_files(annotations):
  known = json.loads(annotations.read_text())["annotations"][0]["question_id"]
  for record, message in (
    ({"question_id": 1, "answer": "a"}, "record 0 is for question 1, which the annotations do not list"),
    ({"question_id": known, "answer": 3}, "record 0 has answer 3; give a string"),
    ({"question_id": known}, "record 0 has no 'answer'"),
  ):
    with pytest.raises(ValueError, match=message):
      vqa.evaluate(annotations, [record])
  with pytest.raises(ValueError, match="record 1 is a second one for question"):
    vqa.evaluate(annotations, [{"question_id": known, "answer": "a"}] * 2)
  with pytest.raises(ValueError, match="not the questions"):
    vqa.evaluate({"questions": []}, [])

"""eval/captions.py and eval/ptb.py against the recorded numbers of pycocoevalcap, with Java and without."""

import json
import random
import shutil
import warnings

import pytest

from eval import captions, ptb

NAMES = {**{f"BLEU-{k}": f"Bleu_{k}" for k in range(1, 5)}, "METEOR": "METEOR", "ROUGE-L": "ROUGE_L", "CIDEr": "CIDEr"}
NEED_JAVA = {"METEOR", "SPICE"}
NO_JAVA = pytest.mark.skipif(shutil.which("java") is None, reason="needs a Java runtime, which is not installed")


@pytest.fixture(autouse=True)
def quiet():
  pytest.importorskip("pycocoevalcap")
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "(METEOR|SPICE) is not computed", UserWarning)
    yield


@pytest.fixture
def references(shared):
  return shared / "data/coco_sample/annotations/captions_val2017.json"


@pytest.mark.parametrize(
  ("name", "with_java"),
  [
    ("captions_val2017", False),
    ("captions_val2017_first_reference", False),
    pytest.param("captions_val2017", True, marks=NO_JAVA),
    pytest.param("captions_val2017_first_reference", True, marks=[NO_JAVA, pytest.mark.slow]),
  ],
)
def test_recorded_numbers(shared, references, name, with_java):
  expected = json.loads((shared / "golden/metrics/expected.json").read_text())[name]
  path = shared / ("data" if "/" in expected["results"] else "golden/metrics") / expected["results"]
  predictions = json.loads(path.read_text())
  random.Random(0).shuffle(predictions)
  report = captions.evaluate(references, predictions, java=with_java)
  for ours, theirs in NAMES.items():
    if ours in NEED_JAVA and not with_java:
      assert report[ours] is None and "Java" in report["absent"][ours]
    else:
      assert report[ours] == pytest.approx(expected["metrics"][theirs], abs=1e-6), ours
  assert report["missing"] == 0 and report["images"] == 40


def test_cider_of_every_image_and_tokens(shared, references):
  expected = json.loads((shared / "golden/metrics/expected.json").read_text())["captions_val2017"]
  records = json.loads((shared / "golden/metrics" / expected["results"]).read_text())
  given = {int(r["image_id"]): [r["caption"]] for r in records}
  texts = captions.tokenised(captions.load_references(references), False)
  found = captions.tokenised({i: given[i] for i in texts}, False)
  for image, tokens in expected["ptb_tokenised_examples"].items():
    assert texts[int(image)] == tokens["refs"] and found[int(image)] == tokens["res"]
  numbers, _ = captions.score(texts, found, False)
  for image, value in zip(texts, numbers["CIDEr"][1], strict=True):
    assert value == pytest.approx(expected["CIDEr_per_image"][str(image)], abs=1e-6)


@pytest.mark.parametrize(
  ("caption", "tokens"),
  [
    ("A man's dog isn't here.", "a man 's dog is n't here"),
    ("The dogs' bowls can't be seen; cannot find it.", "the dogs bowls ca n't be seen can not find it"),
    ("Two men (one old) at 3:00 p.m. in St. Louis.", "two men -lrb- one old -rrb- at 3:00 p.m. in st. louis"),
    ("a grey-haired man, 1,000 people & 50% off!", "a grey-haired man 1,000 people & 50 % off"),
    ("well... maybe -- no - yes", "well maybe no yes"),
    ("people’s boats “moored” – calm", "people 's boats moored calm"),
    ("$5.00 at no. 5, hello!!", "$ 5.00 at no. 5 hello !!"),
    ("gonna couldn't've 'em o'clock", "gon na could n't 've 'em o'clock"),
    ("½ of a pizza:two dogs,a cat/dog", "1/2 of a pizza two dogs a cat/dog"),
  ],
)
def test_tokens_without_java(caption, tokens):
  assert " ".join(ptb.tokenize(caption)) == tokens


@NO_JAVA
def test_tokens_are_those_of_the_java_tool(shared, references):
  texts = captions.load_references(references)
  texts |= captions.load_references(shared / "data/coco_sample/annotations/captions_train2017.json")
  assert captions.tokenised(texts, False) == captions.tokenised(texts, True)


@pytest.mark.parametrize("with_java", [False, pytest.param(True, marks=[NO_JAVA, pytest.mark.slow])])
def test_nothing_said_scores_zero(references, with_java):
  report = captions.evaluate(references, [], java=with_java)
  assert all(not report[name] for name in captions.METRICS) and report["missing"] == 40
  assert report["BLEU-4"] == report["CIDEr"] == 0.0


def test_a_java_program_that_dies_leaves_the_others(references, monkeypatch):
  class Dies:
    def compute_score(self, *_):
      raise BrokenPipeError("no more")

  monkeypatch.setattr(captions, "_java_scorer", lambda metric: Dies())
  texts = captions.tokenised(captions.load_references(references), False)
  numbers, absent = captions.score(texts, {i: of_image[:1] for i, of_image in texts.items()}, True)
  assert "BrokenPipeError" in absent["METEOR"] and numbers["BLEU-4"][0] == pytest.approx(1.0)


def test_karpathys_test_split(shared):
  path = shared / "data/captions_sample/dataset_coco.json"
  images = [i for i in json.loads(path.read_text())["images"] if i["split"] == "test"]
  said = [{"image_id": i["cocoid"], "caption": i["sentences"][0]["raw"]} for i in images]
  report = captions.evaluate(path, said, java=False)
  assert report["images"] == len(images) > 0 and report["BLEU-4"] == pytest.approx(1.0, abs=1e-6)


def test_absent_java_is_said_and_wrong_records(references):
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    with pytest.raises(UserWarning, match="METEOR is not computed: .*install a Java runtime"):
      captions.evaluate(references, [], java=False)
  [image, *_] = captions.load_references(references)
  for record, message in (
    ({"image_id": -1, "caption": "a"}, "record 0 is for image -1, which the annotations do not list"),
    ({"image_id": image, "caption": None}, "record 0 has caption None; give a string"),
    ({"image_id": image}, "record 0 has no 'caption'"),
  ):
    with pytest.raises(ValueError, match=message):
      captions.evaluate(references, [record], java=False)
  with pytest.raises(ValueError, match="record 1 is a second one for image"):
    captions.evaluate(references, [{"image_id": image, "caption": "a"}] * 2, java=False)

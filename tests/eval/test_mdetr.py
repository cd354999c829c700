"""eval/mdetr.py: recall of phrases on captions in MDETR's form, against Flickr30k's own files and by hand."""

import json

import numpy as np
import pytest

from eval import flickr, mdetr

CAPTION = {"id": 4, "caption": "a red cup on a table", "height": 50, "width": 60}
BOXES = [
  {"image_id": 4, "bbox": [10, 10, 21, 11], "tokens_positive": [[0, 9]]},
  {"image_id": 4, "bbox": [0, 0, 5, 5], "tokens_positive": [[0, 9]]},
  {"image_id": 4, "bbox": [0, 20, 60, 30], "tokens_positive": [[13, 20], [0, 9]]},
]
FILE = {"images": [CAPTION], "annotations": BOXES}


def test_phrases_are_the_spans_in_order_with_the_boxes_that_have_them():
  caption = mdetr.load_captions(FILE)[4]
  assert caption.phrases == (((0, 9),), ((13, 20),))
  assert [len(boxes) for boxes in caption.truth_xyxy_px] == [3, 1]
  np.testing.assert_array_equal(caption.truth_xyxy_px[0][0], [10, 10, 30, 20])
  asked = {**CAPTION, "tokens_positive_eval": [[[13, 20]], [[2, 5]]]}
  caption = mdetr.load_captions({**FILE, "images": [asked]})[4]
  assert [len(boxes) for boxes in caption.truth_xyxy_px] == [1, 0]


def test_recall_by_hand():
  hit, miss = [10, 10, 30, 20], [40, 0, 50, 9]
  found = mdetr.evaluate(FILE, [{"image_id": 4, "boxes": [[miss, hit], [miss]]}])
  assert (found["R@1"], found["R@5"], found["R@upper_bound"]) == (0.0, 0.5, 0.5)
  assert found["phrases"] == 2 and found["missing"] == 0
  nothing = mdetr.evaluate(FILE, [])
  assert nothing["R@upper_bound"] == 0.0 and nothing["missing"] == 1


def test_the_same_as_the_official_files(shared):
  """The same boxes of the sample, once as records of sentences and once as records of MDETR's entries.

  The truth of the official files is x1 .. x2 as it stands there, MDETR's x2 = x1 + width - 1 one pixel less.
  """
  path = shared / "data/goldg_sample/mdetr_annotations/final_flickr_separateGT_test.json"
  sentences = json.loads((shared / "golden/metrics/flickr_test_results.json").read_text())
  ids = {(i["original_img_id"], i["sentence_id"]): i["id"] for i in json.loads(path.read_text())["images"]}
  entries = [
    {"image_id": ids[int(s["image_id"]), int(s["sentence_id"])], "boxes": s["boxes"]} for s in sentences if s["boxes"]
  ]
  ours = mdetr.evaluate(path, entries)
  official = flickr.evaluate(shared / "data/flickr30k_entities_sample/test.txt", sentences)
  assert ours["phrases"] == official["phrases"] and ours["missing"] == 0
  for key in ("R@1", "R@5", "R@10", "R@upper_bound"):
    assert ours[key] == pytest.approx(official[key], abs=0.03), key


@pytest.mark.parametrize(
  ("records", "message"),
  [
    ([{"image_id": 5, "boxes": []}], "record 0 is for image 5, which the annotations do not list"),
    ([{"image_id": 4, "boxes": [[]]}], "record 0 has boxes for 1 phrases, but the caption of image 4 has 2 phrases"),
    ([{"image_id": 4, "boxes": [[], [[1, 2, 3]]]}], "record 0, phrase 1 has a box that is not four finite numbers"),
    ([{"image_id": 4, "boxes": [[], []]}] * 2, "record 1 is a second one for image 4"),
    ([{"boxes": []}], "record 0 has no 'image_id'"),
  ],
)
def test_wrong_predictions(records, message):
  with pytest.raises(ValueError, match=message):
    mdetr.evaluate(FILE, records)


def test_wrong_annotations():
  for content, message in (
    ({"images": []}, "has no 'annotations'"),
    ({"images": [{"id": 1}], "annotations": []}, "record 0 has no 'caption'"),
    ({**FILE, "annotations": [{**BOXES[0], "image_id": 9}]}, "annotation 0 of annotations is on image 9"),
    ({**FILE, "annotations": [{**BOXES[0], "bbox": [0, 0, float("nan"), 1]}]}, "annotation 0 .* finite x, y"),
    ({**FILE, "images": [CAPTION, CAPTION]}, "image 0 and image 1 have the same id 4"),
  ):
    with pytest.raises(ValueError, match=message):
      mdetr.load_captions(content)

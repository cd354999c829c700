"""MDETR's json form and Flickr30k Entities: two ways to write the same sentences and boxes."""

import json

import pytest

from pipelines.prompts import grounding_prompt
from pipelines.records import BadRecord
from pipelines.sources.flickr30k import Flickr30k
from pipelines.sources.mdetr_json import MdetrJson
from tests.pipelines.dialects import BOXES, SENTENCES, grey, write_flickr, write_mdetr, write_pictures


def test_mdetr_texts_and_boxes(tmp_path):
  """Sizes as strings, ids beyond 32 bits and ids that are no numbers, categories empty, spans of several words."""
  source = MdetrJson(**write_mdetr(tmp_path))
  assert (source.kind, source.classes, len(source)) == ("grounding", (), 2)  # the third text has a crowd only
  first, second = source[0], source[1]
  assert (first.image_id, first.text_id, first.record) == (6959556104, 3, "mdetr_json/6959556104#3")
  assert first.image_size == (20, 30) and first.caption == "a dog, a dog and a cat"
  assert first.boxes_xyxy_px.tolist() == [[0, 0, 29, 19]] and first.spans == (((0, 5), (7, 12)),)
  assert (second.image_id, second.text_id, grey(second)) == (17, 1, 1)
  assert second.boxes_xyxy_px.tolist() == [[3, 4, 12, 8], [1, 2, 3, 5]]
  assert second.spans == (((17, 22),), ((0, 1), (2, 5)))
  every = MdetrJson(**write_mdetr(tmp_path), keep_empty=True)
  assert len(every) == 3 and every[2].spans == () and every[2].image_id == 2


def test_mdetr_pictures_of_coco_have_their_own_folder(tmp_path):
  options = write_mdetr(tmp_path)
  content = json.loads((tmp_path / "a.json").read_text())
  content["images"][0]["data_source"] = "coco"
  (tmp_path / "a.json").write_text(json.dumps(content))
  with pytest.raises(ValueError, match=r"1 of 3 texts .* such as 0\.png; set `coco_images`"):
    MdetrJson(**options)
  write_pictures(tmp_path / "coco", 1)
  (tmp_path / "0.png").unlink()
  source = MdetrJson(**options, coco_images=str(tmp_path / "coco"))
  assert [grey(source[i]) for i in range(2)] == [0, 1]
  (tmp_path / "1.png").unlink()
  with pytest.raises(BadRecord, match=r"mdetr_json/17#1: missing_image"):
    source[1]


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(images=[{"id": 0}]), r"images\[0\] has no 'file_name'"),
    (dict(images=[{"id": 0, "file_name": "0.png", "caption": "a", "height": "x"}]), "needs a number of pixels"),
    (dict(annotations=[{"image_id": 9, "bbox": [0, 0, 1, 1], "tokens_positive": []}]), "unknown image_id 9"),
    (dict(annotations=[{"image_id": 0, "bbox": [0, 0, 1, 1]}]), "has no 'tokens_positive'"),  # a plain COCO file
    (dict(annotations=[{"image_id": 0, "bbox": [0, 0, 1], "tokens_positive": []}]), "it needs 4 numbers"),
    (dict(annotations=[{"image_id": 0, "bbox": [0, 0, 1, 1], "tokens_positive": [[0, "1"]]}]), r"not \[0, '1'\]"),
    (dict(annotations=[{"image_id": 0, "bbox": [0, 0, 1, 1], "tokens_positive": [0, 3]}]), "character ranges"),
    (dict(annotations=[]), "no text to use"),
  ],
)
def test_mdetr_files_of_another_form_stop_at_start(tmp_path, change, message):
  with pytest.raises(ValueError, match=message):
    MdetrJson(**write_mdetr(tmp_path, **change))


def test_goldg_sample(shared):
  root = shared / "data/goldg_sample"
  folders = dict(images=str(root / "gqa/images"), coco_images=str(root / "coco/train2014"))
  source = MdetrJson(str(root / "mdetr_annotations/final_mixed_train.json"), **folders)
  assert len(source) == 16 and sum(len(source[i].spans) for i in range(16)) == 97
  assert source[0].caption[2:20] == "big, white seagull" and source[0].spans[0] == ((0, 1), (2, 5), (7, 12), (13, 20))
  no_coco = MdetrJson(str(root / "mdetr_annotations/final_mixed_train_no_coco.json"), str(root / "gqa/images"))
  assert len(no_coco) == 8
  everywhere = {s: source[i].spans for i in range(16) for s in [source[i].text_id]}
  assert all(everywhere[no_coco[i].text_id] == no_coco[i].spans for i in range(8))


def test_flickr_sentences_and_boxes(tmp_path):
  source = Flickr30k(**write_flickr(tmp_path))
  assert len(source) == 2  # a scene has no box, so its sentence names nothing
  first, second = source[0], source[1]
  assert first.caption == "A man with a hat waves at him ." and first.record == "flickr30k/8000000001#0"
  # 1-based -> 0-based; the second box belongs to both chains
  assert first.boxes_xyxy_px.tolist() == [[0, 0, 9, 19], [10, 2, 19, 8]]
  assert first.spans == (((0, 5),), ((0, 5), (11, 16)))
  assert second.caption == "Two dogs # 8 and the dogs" and second.image_id == 12  # both phrases of the chain, each box
  assert second.spans == (((0, 12), (17, 25)),) * 2
  every = Flickr30k(**write_flickr(tmp_path), keep_empty=True)
  assert [every.caption(i) for i in range(3)] == [first.caption, "# 8 a park", second.caption]
  merged = Flickr30k(**write_flickr(tmp_path), merged=True)
  assert merged[1].boxes_xyxy_px.tolist() == [[0, 0, 29, 19]]


def test_flickr_boxes_that_are_one(tmp_path):
  """Two chains with nearly the same box: one box that both phrases name, as MDETR prepares the set."""
  source = Flickr30k(
    **write_flickr(
      tmp_path,
      {5: "[/EN#1/people a man] , [/EN#2/people the boss]"},
      {5: [(("1",), (1, 1, 30, 20)), (("2",), (1, 1, 29, 20))]},
    )
  )
  assert source[0].boxes_xyxy_px.tolist() == [[0, 0, 29, 19]] and source[0].spans == (((0, 5), (8, 16)),)


@pytest.mark.parametrize(
  "broken",
  [
    dict(sentences=SENTENCES | {12: "[/EN#4/people Two dogs and more"}),
    dict(sentences=SENTENCES | {12: "[/EN#4/people Two [/EN#4/people dogs] x]"}),
    dict(boxes={8000000001: BOXES[8000000001]}),
    dict(boxes=BOXES | {12: [(("4",), ("", 1, 5, 5))]}),
  ],
)
def test_flickr_broken_files_are_bad_records(tmp_path, broken):
  source = Flickr30k(**write_flickr(tmp_path, **broken))
  assert len(source) == 2 and source[0].image_id == 8000000001
  with pytest.raises(BadRecord, match=r"flickr30k/12#0: broken_annotation"):
    source[1]


def test_flickr_folders_that_are_not_there(tmp_path):
  options = write_flickr(tmp_path)
  with pytest.raises(FileNotFoundError, match=r"val\.txt does not exist; set `root`"):
    Flickr30k(**options | dict(split="val"))
  with pytest.raises(FileNotFoundError, match="none of the first 2 pictures exists"):
    Flickr30k(**options | dict(images=str(tmp_path)))
  (tmp_path / "train.txt").write_text("12.jpg\n")
  with pytest.raises(ValueError, match=r"one picture id per line, not '12\.jpg'"):
    Flickr30k(**options)
  with pytest.raises(ValueError, match="no annotation of .* can be read; the first: "):
    Flickr30k(**write_flickr(tmp_path, boxes={}) | dict(root=_without_boxes(tmp_path)))


def _without_boxes(folder):
  for path in (folder / "Annotations").iterdir():
    path.unlink()
  return str(folder)


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("merged", [False, True], ids=["separate", "merged"])
def test_flickr_equals_mdetrs_own_conversion(shared, split, merged):
  """Sentences, spans and boxes (MDETR leaves them 1-based: 1 pixel in x1 and y1) for all three splits, and the phrases
  that the evaluator asks for (`tokens_positive_eval`)."""
  root, form = shared / "data/flickr30k_entities_sample", "merged" if merged else "separate"
  pictures = str(root / "flickr30k_images")
  path = shared / f"data/goldg_sample/mdetr_annotations/final_flickr_{form}GT_{split}.json"
  theirs, ours = MdetrJson(str(path), pictures, keep_empty=True), None
  ours = Flickr30k(str(root), pictures, split, merged=merged, keep_empty=True)
  assert len(ours) == len(theirs)
  wanted = {(e.image_id, e.text_id): e for e in map(theirs.__getitem__, range(len(theirs)))}
  asked = {(x["original_img_id"], x["sentence_id"]): x for x in json.loads(path.read_text())["images"]}
  for example in map(ours.__getitem__, range(len(ours))):
    key = example.image_id, example.text_id
    other = wanted[key]
    rows = sorted(zip((example.boxes_xyxy_px + [1, 1, 0, 0]).tolist(), example.spans, strict=True))
    assert rows == sorted(zip(other.boxes_xyxy_px.tolist(), other.spans, strict=True))
    assert example.caption == other.caption
    phrases = [[list(span)] for _, span in grounding_prompt(example.caption, example.spans).spans]
    assert phrases == asked[key]["tokens_positive_eval"]

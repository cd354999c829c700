"""ODVG json lines: detection, grounding with and without spans."""

import numpy as np
import pytest

from pipelines.records import BadRecord
from pipelines.sources.coco_json import CocoJson
from pipelines.sources.odvg_jsonl import OdvgJsonl
from tests.pipelines.dialects import write_odvg, write_odvg_detection, write_pictures


def test_grounding_with_and_without_spans(tmp_path):
  source = OdvgJsonl(**write_odvg(tmp_path))
  first, second = source[0], source[1]
  assert (source.kind, source.classes, len(source), first.image_size) == ("grounding", (), 2, (20, 30))
  # without spans the phrases become the text, each once; x2 = left + width is the pixel after the last
  assert first.caption == "a dog . a sofa" and first.spans == (((0, 5),), ((8, 14),), ((0, 5),))
  assert first.boxes_xyxy_px.tolist() == [[1, 2, 10, 11], [0, 0, 29, 19], [1, 2, 10, 11]]
  # with spans the caption stays; a region may have several boxes and a phrase of parts
  assert second.caption == "a dog on a sofa" and second.spans == (((0, 1), (2, 5)),) * 2
  assert second.boxes_xyxy_px.tolist() == [[1, 2, 2, 3], [5, 6, 6, 7]]


def test_detection(tmp_path):
  source = OdvgJsonl(**write_odvg_detection(tmp_path))
  assert (source.kind, source.classes, len(source)) == ("detection", ("cat", "dog"), 1)
  assert source[0].labels == ("dog", "cat") and source[0].boxes_xyxy_px.tolist() == [[1, 2, 10, 11], [0, 0, 29, 19]]


REGION = {"bbox": [1, 2, 3, 4], "phrase": "a dog"}


@pytest.mark.parametrize(
  "line, message",
  [
    ({"caption": "a dog", "regions": []}, "it has no regions"),
    ({"caption": "a dog", "regions": [REGION, REGION | {"tokens_positive": [[0, 5]]}]}, "some regions have"),
    ({"caption": "a dog", "regions": [{"bbox": [1, 2, 3, 4]}]}, "it has no 'phrase'"),
    ({"caption": "a dog", "regions": [REGION | {"bbox": [1, 2]}]}, "four numbers"),
    ({"caption": 3, "regions": [REGION | {"tokens_positive": [[0, 5]]}]}, "caption has to be a text"),
    ({"regions": [REGION | {"tokens_positive": [[0, 5]]}]}, "it has no 'caption'"),
  ],
)
def test_broken_lines(tmp_path, line, message):
  source = OdvgJsonl(**write_odvg(tmp_path, [{"caption": "a dog", "regions": [REGION]}, line]))
  with pytest.raises(BadRecord, match=message) as caught:
    source[1]
  assert caught.value.reason == "broken_annotation" and caught.value.record == "odvg_jsonl/1"


@pytest.mark.parametrize(
  "instance, message",
  [({"label": 2}, "none of the 2 numbers"), ({"label": 0, "category": "dog"}, "is 'cat' in the label map, not 'dog'")],
)
def test_labels_that_contradict_the_map(tmp_path, instance, message):
  with pytest.raises(ValueError, match=message):
    OdvgJsonl(**write_odvg_detection(tmp_path, [{"bbox": [1, 2, 3, 4]} | instance]))


def test_wrong_files_stop_at_start(tmp_path):
  options = write_odvg(tmp_path)
  detection = write_odvg_detection(tmp_path)
  with pytest.raises(ValueError, match="it has no 'detection'.; a grounding set is read without `label_map`"):
    OdvgJsonl(**options, label_map=detection["label_map"])
  with pytest.raises(ValueError, match="it has no 'grounding'"):
    OdvgJsonl(**detection | dict(label_map=""))
  for text, message in (
    ('{"1": "a", "2": "b"}', "without a gap"),
    ("[1]", "numbers as keys"),
    ('{"0": " "}', "name ' '"),
  ):
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(ValueError, match=message):
      OdvgJsonl(**detection)
  for i in range(2):
    (tmp_path / f"{i}.png").unlink()
  with pytest.raises(FileNotFoundError, match=r"0\.png: no such file; check `images`"):
    OdvgJsonl(**options)
  write_pictures(tmp_path, 1)
  with pytest.raises(BadRecord, match="missing_image"):
    OdvgJsonl(**options)[1]


def test_samples(shared):
  root = shared / "data"
  label_map = str(root / "odvg_sample/coco_label_map.json")
  pictures = root / "coco_sample/train2017"
  ours = OdvgJsonl(str(root / "odvg_sample/coco_od_train.jsonl"), str(pictures), label_map=label_map)
  coco = CocoJson(str(root / "coco_sample/annotations/instances_train2017.json"), str(pictures), keep_empty=True)
  wanted = {coco[i].image: coco[i] for i in range(len(coco))}
  assert len(ours) == 39
  for i in range(39):
    other = wanted[ours[i].image]
    assert ours[i].labels == other.labels and ours[i].image_size == other.image_size
    np.testing.assert_allclose(ours[i].boxes_xyxy_px, other.boxes_xyxy_px, atol=0.02)  # written with two decimals
  photos = str(root / "flickr30k_entities_sample/flickr30k_images")
  plain = OdvgJsonl(str(root / "odvg_sample/grounding_vg.jsonl"), photos)
  marked = OdvgJsonl(str(root / "odvg_sample/grounding_vg_mmdet.jsonl"), photos)
  assert len(plain) == len(marked) == 110
  for i in range(110):
    a, b = plain[i], marked[i]
    assert a.boxes_xyxy_px.tolist() == b.boxes_xyxy_px.tolist()
    # the same words, here joined and there inside the caption
    words = [" ".join(x.caption[begin:end] for begin, end in spans) for x in (a, b) for spans in x.spans]
    assert words[: len(a.spans)] == words[len(a.spans) :]

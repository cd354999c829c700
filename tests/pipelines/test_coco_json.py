"""COCO-format folders: what is read, and what is refused at start-up."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from pipelines import images
from pipelines.records import BadRecord
from pipelines.sources import open_source
from pipelines.sources.coco_json import CocoJson


@pytest.fixture
def folder(tmp_path):
  """Writes a small data set; the keywords replace parts of it. Returns the options of the source."""

  def write(**parts) -> dict:
    content = {
      "images": [{"id": 2**40 + i, "file_name": f"{i}.png", "height": 20, "width": 30} for i in range(3)],
      "categories": [{"id": 90, "name": "dog"}, {"id": 7, "name": "cat"}],
      "annotations": [
        {"id": 0, "image_id": 2**40 + 1, "category_id": 90, "bbox": [3, 4, 10, 5]},
        {"id": 1, "image_id": 2**40, "category_id": 7, "bbox": [0, 0, 30, 20]},
        {"id": 2, "image_id": 2**40 + 1, "category_id": 7, "bbox": [1.5, 2, 0.5, 8], "iscrowd": 0},
        {"id": 3, "image_id": 2**40 + 1, "category_id": 7, "bbox": [0, 0, 30, 20], "iscrowd": 1},
        {"id": 4, "image_id": 2**40 + 2, "category_id": 7, "bbox": [0, 0, 30, 20], "iscrowd": 1},
      ],
    } | parts
    for i in range(3):
      Image.fromarray(np.full((20, 30, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "a.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return dict(annotations=str(tmp_path / "a.json"), images=str(tmp_path))

  return write


def box(category=7, bbox=(0, 0, 5, 5), image=2**40, **more):
  return {"id": 1, "image_id": image, "category_id": category, "bbox": bbox, **more}


def test_reads_boxes_by_name_without_crowds(folder):
  source = CocoJson(**folder(), name="mine")
  assert source.classes == ("cat", "dog") and source.category_ids.tolist() == [7, 90]
  assert len(source) == 2  # the third picture has a crowd only
  first, second = source[0], source[1]
  assert (first.image_id, first.source, first.kind, first.labels) == (2**40, "mine", "detection", ("cat",))
  assert first.boxes_xyxy_px.tolist() == [[0, 0, 29, 19]]
  assert second.labels == ("dog", "cat")
  assert second.boxes_xyxy_px.tolist() == [[3, 4, 12, 8], [1.5, 2, 1.5, 9]]
  assert images.decode(second.image)[0, 0].tolist() == [1, 1, 1]


def test_pictures_without_objects_are_kept_on_request(folder):
  source = CocoJson(**folder(), keep_empty=True)
  assert [source[i].image_id - 2**40 for i in range(len(source))] == [0, 1, 2]
  assert source[2].boxes_xyxy_px.shape == (0, 4) and source[2].labels == ()
  tiny = folder(annotations=[box(bbox=[1, 1, 1, 9]), box(image=2**40 + 1)])  # width 1: no object (reference 6.4)
  assert [CocoJson(**tiny)[0].image_id - 2**40] == [1]


def test_broken_boxes_stay_visible(folder):
  """A picture whose only box is broken is not taken for one without objects."""
  source = CocoJson(**folder(annotations=[box(bbox=[3, 3, 0, 5]), box(bbox=[None, 3, 4, 5], image=2**40 + 2)]))
  x1, _, x2, _ = source[0].boxes_xyxy_px[0]
  assert len(source) == 2 and x2 < x1
  assert np.isnan(source[1].boxes_xyxy_px).any()


def test_pickles_and_shares_nothing_with_the_json(folder):
  source = CocoJson(**folder())
  copy = pickle.loads(pickle.dumps(source))
  assert copy[1].labels == source[1].labels and copy[1].image == source[1].image


def test_names_can_be_replaced(folder):
  assert CocoJson(**folder(), class_names=("feline", "canine"))[0].labels == ("feline",)
  with pytest.raises(ValueError, match=r"class_names has 1 names.*2 classes"):
    CocoJson(**folder(), class_names=("feline",))


def test_one_missing_picture_is_a_bad_record(folder, tmp_path):
  source = CocoJson(**folder())
  (tmp_path / "1.png").unlink()
  assert source[0].image
  with pytest.raises(BadRecord, match=r"1\.png") as caught:
    source[1]
  assert caught.value.reason == "missing_image"
  assert pickle.loads(pickle.dumps(caught.value)).reason == "missing_image"


@pytest.mark.parametrize(
  "parts, message",
  [
    (dict(annotations=[box(category=5)]), r"unknown category_id 5; known: \[7, 90\]"),
    (dict(annotations=[box(image=12)]), "unknown image_id 12; it is not in `images`"),
    (dict(annotations=[box(bbox=[1, 2, 3])]), r"annotations\[0\] has the bbox \[1, 2, 3\]; it needs 4 numbers"),
    (dict(annotations=[{"image_id": 2**40, "category_id": 7}]), r"annotations\[0\] has no 'bbox'"),
    (dict(annotations=None), "no list annotations"),
    (dict(categories={}), "no list categories"),
    (dict(categories=[{"id": 7, "name": "cat"}, {"id": 90}]), r"categories\[1\] has no 'name'"),
    (dict(categories=[{"id": 7, "name": " "}, {"id": 90, "name": "x"}]), "category 7 has the name ' '"),
    (dict(categories=[{"id": 7, "name": "x"}, {"id": 90, "name": "x"}]), "'x' stands for several"),
    (dict(categories=[{"id": 7, "name": "x"}, {"id": 7, "name": "y"}]), "category id 7 occurs 2 times"),
    (dict(images=[{"id": 1, "file_name": "0.png"}] * 2, annotations=[]), "image id 1 occurs 2 times"),
    (dict(images=[{"id": 1}], annotations=[]), r"images\[0\] has no 'file_name'"),
    (dict(annotations=[]), "no picture to use"),
    (dict(images=[], annotations=[]), "no picture to use"),
  ],
)
def test_inconsistent_files_stop_at_start(folder, parts, message):
  with pytest.raises(ValueError, match=message):
    CocoJson(**folder(**parts))


def test_missing_and_truncated_files_stop_at_start(folder, tmp_path):
  options = folder()
  with pytest.raises(FileNotFoundError, match=r"nowhere\.json does not exist; set `annotations`"):
    CocoJson(**options | dict(annotations=str(tmp_path / "nowhere.json")))
  with pytest.raises(FileNotFoundError, match="image folder .*nowhere does not exist; set `images`"):
    CocoJson(**options | dict(images=str(tmp_path / "nowhere")))
  (tmp_path / "empty").mkdir()
  with pytest.raises(FileNotFoundError, match="none of the first 2 pictures exists.*check `images`"):
    CocoJson(**options | dict(images=str(tmp_path / "empty")))
  text = (tmp_path / "a.json").read_text()
  for broken in (text[:-30], "", "[1, 2]"):
    (tmp_path / "a.json").write_text(broken)
    with pytest.raises(ValueError, match=r"a\.json (is not valid json|has no list)"):
      CocoJson(**options)


def test_unknown_source_and_option_are_named(folder):
  with pytest.raises(ValueError, match="'coco' is not known; known: coco_json, shapes"):
    open_source("coco")
  with pytest.raises(TypeError, match="keep_emtpy"):
    open_source("coco_json", **folder(), keep_emtpy=True)


def test_roboflow_group_is_no_class(shared):
  root = shared / "data/odinw_sample/Raccoon/Raccoon.v2-raw.coco/train"
  source = CocoJson(str(root / "_annotations.coco.json"), str(root), keep_empty=True)
  assert source.classes == ("raccoon",) and source.category_ids.tolist() == [1]
  assert len(source) == 24 and sum(len(source[i].labels) for i in range(24)) == 26
  assert source[0].image_id == 0


def test_coco_sample_has_no_crowds(shared):
  root = shared / "data/coco_sample"
  path = root / "annotations/instances_train2017.json"
  source = CocoJson(str(path), str(root / "train2017"), keep_empty=True)
  wanted = json.loads(path.read_text())
  assert len(source.classes) == 80 and source.category_ids[-1] == 90 and source.classes[-1] == "toothbrush"
  assert len(source) == len(wanted["images"])
  assert sum(len(source[i].labels) for i in range(len(source))) == sum(not a["iscrowd"] for a in wanted["annotations"])
  names = {c["id"]: c["name"] for c in wanted["categories"]}
  for i in range(0, len(source), 7):
    example = source[i]
    theirs = [a for a in wanted["annotations"] if a["image_id"] == example.image_id and not a["iscrowd"]]
    assert example.labels == tuple(names[a["category_id"]] for a in theirs)
    x, y, w, h = np.array([a["bbox"] for a in theirs]).T
    np.testing.assert_allclose(example.boxes_xyxy_px, np.stack([x, y, x + w - 1, y + h - 1], 1), atol=1e-3)
    assert images.size_of(example.image) == example.image_size


def test_grey_photographs_of_the_raccoon_set(shared):
  root = shared / "data/raccoon"
  sources = [CocoJson(str(root / f"annotations/{s}.json"), str(root / "images")) for s in ("train", "val")]
  grey = [x for s in sources for x in (s[i] for i in range(len(s))) if x.image_id in (150, 152, 161)]
  assert len(grey) == 3
  for example in grey:
    pixels = images.decode(example.image)
    assert pixels.shape == (*example.image_size, 3) and (pixels[..., 0] == pixels[..., 2]).all()

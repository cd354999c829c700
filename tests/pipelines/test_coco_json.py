"""COCO-format folders: what is read, and what is refused at start-up."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from pipelines import images
from pipelines.masks import from_coco
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
        {"id": 0, "image_id": 2**40 + 1, "category_id": 90, "bbox": [3, 4, 10, 5], "iscrowd": 0},
        {"id": 1, "image_id": 2**40, "category_id": 7, "bbox": [0, 0, 30, 20], "iscrowd": 0},
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
  with pytest.raises(ValueError, match="'coco' is not known; known: .*coco_json, .*shapes"):
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


# Masks, crowds, absent classes, names of files and classes.

ONE = [dict(id=0, file_name="0.png")]


def test_masks_come_from_the_file_when_they_are_asked_for(folder):
  square = [[2, 3, 6, 3, 6, 8, 2, 8]]
  annotations = [
    box(image=2**40 + 1, segmentation=square),
    box(image=2**40, segmentation={"size": [20, 30], "counts": [20, 40, 540]}),
    box(image=2**40 + 1, segmentation=[]),
    box(image=2**40 + 2, segmentation=[[1, 1, 2, 2]]),
  ]
  options = folder(annotations=annotations)
  assert CocoJson(**options)[0].masks is None
  source = pickle.loads(pickle.dumps(CocoJson(**options, masks=True)))
  (runs,) = source[0].masks
  polygon, nothing = source[1].masks
  assert np.argwhere(runs.pixels()).max(0).tolist() == [19, 2] and runs.pixels().sum() == 40
  assert polygon.pixels()[3:8, 2:6].all() and polygon.pixels().sum() == 20 and nothing is None
  with pytest.raises(BadRecord, match="broken_mask.*at least six coordinates"):
    source[2]
  with open(options["annotations"], "r+b") as file:
    file.write(b" " * 2000)
  with pytest.raises(BadRecord, match="broken_mask"):
    source[0]


def test_masks_that_the_file_lacks_stop_at_start(folder):
  with pytest.raises(ValueError, match="5 annotations have no 'segmentation'; set masks=False"):
    CocoJson(**folder(), masks=True)


def test_classes_of_crowds_are_never_negatives(folder):
  source = CocoJson(**folder(), keep_empty=True)
  assert [source[i].unsure for i in range(3)] == [(), ("cat",), ("cat",)]
  assert all(source[i].absent is None for i in range(3))
  assert CocoJson(**folder(), keep_empty=True, negatives="all")[1].unsure == ()
  with pytest.raises(ValueError, match="negatives='none' is not known; use 'known' or 'all'"):
    CocoJson(**folder(), negatives="none")


def test_federated_sets_know_what_is_absent(folder):
  pictures = [dict(id=i, file_name=f"{i}.png", neg_category_ids=n) for i, n in enumerate(([90], [], [7, 90]))]
  options = folder(images=pictures, annotations=[box(image=0)])
  source = CocoJson(**options, keep_empty=True)
  assert [source[i].absent for i in range(3)] == [("dog",), (), ("cat", "dog")]
  assert CocoJson(**options, negatives="all")[0].absent is None
  with pytest.raises(ValueError, match="unknown category_id 8"):
    CocoJson(**folder(images=[dict(id=0, file_name="0.png", neg_category_ids=[8])], annotations=[box(image=0)]))


@pytest.mark.parametrize(
  "images, annotations, message",
  [
    ([dict(id=0, file_name="0.png"), dict(id=1, file_name="1.png", height=3)], [], "only 1 of 2 images have 'height'"),
    ([dict(id=0, file_name="0.png"), dict(id=1, coco_url="1.png")], [], "only 1 of 2 images have 'file_name'"),
    (
      [dict(id=0, file_name="0.png")],
      [box(image=0), box(image=0, iscrowd=0)],
      "only 1 of 2 annotations have 'iscrowd'",
    ),
    (
      [dict(id=0, file_name="0.png")],
      [box(image=0, iscrowd=2)],
      r"annotations\[0\] has the iscrowd 2; it needs 0 or 1",
    ),
    ([dict(id=0, file_name="0.png", height=-1, width=2)], [box(image=0)], r"height and width \(-1, 2\)"),
    ([dict(id=0, file_name=["0.png"])], [], "has the file_name .* it needs a text"),
    ([dict(id=2**63, file_name="a")], [], "needs a whole number"),
    ([dict(id="0", file_name="a")], [], "has the id '0'; it needs a whole number"),
  ],
)
def test_fields_that_got_lost_stop_at_start(folder, images, annotations, message):
  """A key with one wrong letter would otherwise pass for a default."""
  with pytest.raises(ValueError, match=message):
    CocoJson(**folder(images=images, annotations=annotations))


def test_file_names_in_other_forms(folder, tmp_path):
  (tmp_path / "patch8").mkdir()
  options = folder()
  (tmp_path / "0.png").rename(tmp_path / "patch8/0.png")
  long = [dict(id=1, file_name="images/v2/patch8/0.png")]
  assert CocoJson(**folder(images=long, annotations=[box(image=1)]))[0].image  # Objects365 v2
  url = [dict(id=1, coco_url="http://images.cocodataset.org/patch8/0.png")]
  assert CocoJson(**folder(images=url, annotations=[box(image=1)]))[0].image  # LVIS v1
  both = [dict(id=1, file_name="COCO_0.png", coco_url="http://images.cocodataset.org/patch8/0.png")]
  assert CocoJson(**folder(images=both, annotations=[box(image=1)]))[0].image  # LVIS v0.5
  nowhere = [dict(id=1, file_name="a/b/9.png", coco_url="http://x/patch8/8.png")]
  with pytest.raises(FileNotFoundError, match=r"none of the first 1.*a/b/9\.png or .*b/9\.png or .*patch8/8\.png"):
    CocoJson(**options | folder(images=nowhere, annotations=[box(image=1)]))


def test_single_classes_can_be_renamed(folder):
  source = CocoJson(**folder(), rename=[("dog", "good dog")])
  assert source.classes == ("cat", "good dog") and source[1].labels == ("good dog", "cat")
  with pytest.raises(ValueError, match="rename: .* has no class 'dgo'"):
    CocoJson(**folder(), rename=[("dgo", "dog")])


def test_lvis_sample(shared):
  """v1 has no file_name, v0.5 a wrong one; both mark what is absent; every mask is a polygon."""
  root = shared / "data/lvis_sample"
  for file, count in (("lvis_v1_style_val_derived", 1203), ("lvis_v0.5_val_577932", 1230)):
    path = root / f"annotations/{file}.json"
    source, wanted = CocoJson(str(path), str(root), masks=True), json.loads(path.read_text())
    assert len(source) == len(wanted["images"]) and len(source.classes) == count
    names = {c["id"]: c["name"] for c in wanted["categories"]}
    for i, image in enumerate(wanted["images"]):
      example = source[i]
      assert images.size_of(example.image) == (image["height"], image["width"]) == example.image_size
      assert sorted(example.absent) == sorted(names[c] for c in image["neg_category_ids"])
      assert not set(example.absent) & set(example.labels)
      for annotation, mask in zip((a for a in wanted["annotations"] if a["image_id"] == image["id"]), example.masks):
        assert mask.pixels().sum() == pytest.approx(annotation["area"], rel=0.05, abs=60)
  assert "bow_(weapon)" in source.classes
  plain = CocoJson(str(root / "annotations/lvis_v1_style_minival_inserted_image_name_derived.json"), str(root))
  assert plain[3].image and plain[3].labels


def test_coco_masks_are_pycocotools(shared):
  pycoco = pytest.importorskip("pycocotools.coco")
  root = shared / "data/coco_sample"
  path = str(root / "annotations/instances_val2017.json")
  source, truth = CocoJson(path, str(root / "val2017"), masks=True), pycoco.COCO(path)
  crowds = 0
  for i in range(len(source)):
    example = source[i]
    mine = [a for a in truth.imgToAnns[example.image_id] if not a["iscrowd"]]
    for annotation, mask in zip(mine, example.masks, strict=True):
      np.testing.assert_array_equal(mask.pixels(), truth.annToMask(annotation))
    crowd = {a["category_id"] for a in truth.imgToAnns[example.image_id] if a["iscrowd"]}
    assert {source.category_ids[source.classes.index(name)] for name in example.unsure} == crowd
    crowds += len(crowd)
  assert crowds > 0
  for annotation in (a for a in truth.anns.values() if a["iscrowd"]):
    size = tuple(annotation["segmentation"]["size"])
    np.testing.assert_array_equal(from_coco(annotation["segmentation"], size).pixels(), truth.annToMask(annotation))

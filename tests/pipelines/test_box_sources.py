"""OpenImages, Visual Genome, VOC and ImageNetBoxes, PhraseCut, RefCOCO: what is read and refused."""

import json
import pickle

import numpy as np
import pytest

from pipelines import images
from pipelines.prepare_example import PrepareConfig, train_example
from pipelines.records import BadRecord
from pipelines.sources import open_source
from pipelines.sources.refcoco import read_plain_pickle
from tests.pipelines import box_dialects as dialects
from tests.pipelines.dialects import grey, write_json


def opened(kind, folder, writer, /, *args, options=None, **parts):
  return open_source(kind, **writer(folder, *args, **parts) | (options or {}))


# OpenImages.


def test_openimages_scales_by_the_picture(tmp_path):
  source = opened("openimages", tmp_path, dialects.write_openimages)
  assert source.classes == ("Person", "Boy", "Dog", "Traffic light")
  assert len(source) == 2  # the third picture has a group only
  first, second = source[0], source[1]
  assert (first.image_id, second.image_id) == (1, 0xFF01EEAF4AED83F9) and (grey(first), grey(second)) == (0, 2)
  assert first.boxes_xyxy_px.tolist() == [[0, 0, 29, 19]] and first.labels == ("Boy",)
  assert second.boxes_xyxy_px.tolist() == [[15, 5, 29, 9]] and second.labels == ("Dog",)
  assert second.unsure == ("Traffic light",) and first.absent is None and first.unsure == ()


def test_openimages_knows_what_was_looked_for_and_what_is_more_general(tmp_path):
  source = opened("openimages", tmp_path, dialects.write_openimages_known)
  boy, dog = source[0], source[1]
  assert boy.absent == ("Dog",) and set(boy.unsure) == {"Person", "Traffic light"}
  assert boy.vocabulary(source.classes) == ("Boy", "Dog")
  assert dog.absent == () and dog.vocabulary(source.classes) == ("Dog",)


@pytest.mark.parametrize(
  "parts, message",
  [
    (dict(boxes="0001,x,/m/3,1,0,1,0,1,0,0,0,0,0\n"), r"boxes\.csv, line 2: ImageID '0001' is not of 16 hexadecimal"),
    (dict(boxes=dialects.BOXES.replace("/m/3", "/m/9")), r"line 2: LabelName '/m/9' is not known"),
    (dict(boxes=dialects.BOXES.replace("0.25,0.5", "0.25,x")), r"line 2: 'x' is no number"),
    (dict(boxes=dialects.BOXES.replace("1,0,0\n", "2,0,0\n")), r"line 4: IsGroupOf '2' is not known"),
    (dict(boxes=dialects.BOXES[:-20]), r"line 5 has 6 values, the header 13; is it cut short"),
    (dict(boxes=""), "has no box to use"),
    (dict(boxes=dialects.BOXES + '"'), r"is no csv file after line"),
    (dict(header=dialects.HEADER.replace("XMax", "xmax")), r"the first line .* lacks XMax; check `annotations`"),
    (dict(classes="/m/3\n"), r"classes\.csv, line 1 is .*it needs a LabelName and a name"),
    (dict(classes="/m/3,Dog\n/m/2,Dog\n"), "'Dog' stands for several classes"),
    (dict(classes="/m/3,Dog\n/m/3,Cat\n"), "LabelNames stand in it twice"),
  ],
)
def test_openimages_refuses_inconsistent_files(tmp_path, parts, message):
  with pytest.raises(ValueError, match=message):
    opened("openimages", tmp_path, dialects.write_openimages, **parts)


def test_openimages_names_missing_files(tmp_path):
  options = dialects.write_openimages_known(tmp_path)
  for key in ("annotations", "class_descriptions", "images", "image_labels", "hierarchy"):
    with pytest.raises(FileNotFoundError, match=f"nowhere.*`{key}`"):
      open_source("openimages", **options | {key: str(tmp_path / "nowhere")})


# Visual Genome.


def test_genome_objects_take_the_frequent_names(tmp_path):
  source = opened("visual_genome", tmp_path, dialects.write_genome)
  assert source.classes == ("dog", "leg") and len(source) == 3  # equal counts: by the alphabet
  assert [source[i].image_id for i in range(3)] == [1, 2, 3] and [grey(source[i]) for i in range(3)] == [1, 2, 3]
  assert [source[i].labels for i in range(3)] == [("dog",), ("leg",), ("dog", "leg")]
  assert source[0].boxes_xyxy_px.tolist() == [[0, 2, 9, 6]] and source[0].image_size == (20, 30)
  few = opened("visual_genome", tmp_path, dialects.write_genome, options=dict(vocabulary=1))
  assert few.classes == ("dog",) and [few[i].image_id for i in range(len(few))] == [1, 3]


def test_genome_leaves_out_the_pictures_of_an_evaluation_set(tmp_path):
  val = write_json(tmp_path / "val.json", {"images": [{"id": 139}, {"id": 1}]})
  for writer, kept in ((dialects.write_genome, [1, 3]), (dialects.write_genome_regions, [1, 1])):
    source = opened("visual_genome", tmp_path, writer, options=dict(without=[val]))
    assert [source[i].image_id for i in range(len(source))] == kept
    assert source.classes == (("dog", "leg") if kept[1] == 3 else ())


def test_genome_regions_ground_their_phrase(tmp_path):
  source = opened("visual_genome", tmp_path, dialects.write_genome_regions)
  assert source.kind == "grounding" and source.classes == () and len(source) == 3
  found = [source[i] for i in range(3)]
  assert [(x.image_id, x.text_id, x.caption) for x in found] == [
    (1, 7, "grass"),
    (1, 8, "the grüne"),
    (2, 2**33, "a dog"),
  ]
  assert [source.caption(i) for i in range(3)] == [x.caption for x in found]
  assert found[2].spans == (((0, 5),),) and found[2].boxes_xyxy_px.tolist() == [[0, 0, 29, 19]]


def test_genome_pictures_as_gqa_packs_them(tmp_path):
  options = dialects.write_genome(tmp_path)
  (tmp_path / "VG_100K/1.jpg").rename(tmp_path / "1.jpg")
  (tmp_path / "VG_100K_2/2.jpg").rename(tmp_path / "2.jpg")
  (tmp_path / "VG_100K/3.jpg").unlink()
  source = open_source("visual_genome", **options)
  assert grey(source[1]) == 2
  with pytest.raises(BadRecord, match="missing_image"):
    source[2]


@pytest.mark.parametrize(
  "parts, message",
  [
    (dict(objects=[{"image_id": 9, "objects": [dict(x=1, y=1, w=1, h=1, names=["a"])]}]), "unknown image_id 9"),
    (dict(objects=[{"image_id": 1, "objects": [dict(x=1, y=1, w=1, names=["a"])]}]), r"\[0\].objects\[0\] has no 'h'"),
    (dict(objects=[{"image_id": 1, "objects": [dict(x=1, y=1, w=1, h="1", names=["a"])]}]), "needs a number"),
    (dict(objects=[{"image_id": 1, "objects": {}}]), "has the objects {}; it needs a list"),
    (dict(objects=[{"image_id": 1, "objects": []}]), "has no objects to use; check `annotations` and `task`"),
    (dict(objects={}), "is no list; set `annotations` to objects.json"),
    (dict(data=[]), "unknown image_id 3"),
  ],
)
def test_genome_refuses_inconsistent_files(tmp_path, parts, message):
  with pytest.raises(ValueError, match=message):
    opened("visual_genome", tmp_path, dialects.write_genome, **parts)


# Pascal VOC and ImageNetBoxes.


def test_voc_counts_from_one_and_leaves_difficult_things_out(tmp_path):
  source = opened("voc_xml", tmp_path, dialects.write_voc)
  assert source.classes == ("cat", "dog", "person")  # parts of things are none
  cat, dog = source[0], source[1]
  assert cat.labels == ("cat",) and cat.boxes_xyxy_px.tolist() == [[10, 2, 19, 8]] and grey(cat) == 1
  assert dog.labels == ("dog",) and dog.boxes_xyxy_px.tolist() == [[0, 0, 29, 19]] and dog.unsure == ("person",)
  assert dog.image_size == (20, 30) and dog.vocabulary(source.classes) == ("cat", "dog")


def test_voc_split_and_names(tmp_path):
  (tmp_path / "train.txt").write_text("2008_000002  1\n2008_000001 -1\n")
  options = dict(split=str(tmp_path / "train.txt"), class_names=["dog", "cat", "person"])
  source = opened("voc_xml", tmp_path, dialects.write_voc, options=options)
  assert len(source) == 1 and source[0].labels == ("dog",) and source.classes == ("dog", "cat", "person")
  with pytest.raises(BadRecord, match="broken_annotation.*'dog' is not in the vocabulary"):
    opened("voc_xml", tmp_path, dialects.write_voc, options=dict(class_names=["cat"]))[1]


@pytest.mark.parametrize(
  "text, message",
  [
    ("<annotation><object>", "not valid xml"),
    ("", "not valid xml"),
    ("<a/>", "root is 'a'"),
    ('<!DOCTYPE a [<!ENTITY x "y">]><annotation/>', "document type or an entity"),
    (dialects.xml([]).replace("<width>30", "<width>3x"), "the width of its size is '3x', no number"),
    (dialects.xml([("", 0, 1, 1, 2, 2)]), "the name of its object is empty"),
    (dialects.xml([("cat", 0, 1, 1, 2, "")]), "the ymax of its bndbox is empty"),
    (dialects.xml([("cat", 0, 1, 1, 2, 2)]).replace("xmin", "xmjn"), "its bndbox has 0 xmin, not one"),
    (dialects.xml([("cat", 0, 1, 1, 2, 2)]).replace("<object>", "<object><name>a</name>"), "its object has 2 name"),
    ("<annotation>" + "<a>" * 100_000, "not valid xml"),
  ],
)
def test_voc_broken_files_are_bad_records(tmp_path, text, message):
  source = opened("voc_xml", tmp_path, dialects.write_voc, a=text)
  assert source[0].labels == ("cat",)
  with pytest.raises(BadRecord, match=f"broken_annotation.*a.xml.*{message}"):
    source[2]


def test_voc_names_missing_files(tmp_path):
  options = dialects.write_voc(tmp_path)
  (tmp_path / "none").mkdir()
  for key in ("annotations", "images", "split"):
    with pytest.raises(FileNotFoundError, match=f"nowhere.*`{key}`"):
      open_source("voc_xml", **options | {key: str(tmp_path / "nowhere")})
  with pytest.raises(ValueError, match="has no xml file; set `annotations`"):
    open_source("voc_xml", **options | {"annotations": str(tmp_path / "none")})
  with pytest.raises(FileNotFoundError, match="none of the first 2 pictures exists.*check `images`"):
    open_source("voc_xml", **options | {"images": str(tmp_path / "none")})


def test_imagenet_calls_a_synset_by_its_first_name(tmp_path):
  source = opened("imagenet_boxes", tmp_path, dialects.write_imagenet)
  assert source.classes == ("tench", "crane", "raccoon") and len(source) == 2
  assert source[0].labels == ("raccoon",) * 2 and source[1].labels == ("crane",) * 2
  assert source[0].image_id == 250802100010040 and grey(source[1]) == 1
  assert source[0].boxes_xyxy_px.tolist() == [[0, 0, 14, 19], [15, 0, 29, 19]]


def test_imagenet_refuses_other_files(tmp_path):
  options = dialects.write_imagenet(tmp_path)
  (tmp_path / "Annotations/n02508021/other.xml").write_text("")
  with pytest.raises(ValueError, match="other.xml is not named like n01440764_10040"):
    open_source("imagenet_boxes", **options)
  (tmp_path / "LOC_synset_mapping.txt").write_text("tench\n")
  with pytest.raises(ValueError, match="line 1 is 'tench'; it needs a new WordNet id"):
    open_source("imagenet_boxes", **options)


# PhraseCut.


def test_phrasecut_gives_every_polygon_of_every_thing(tmp_path):
  source = opened("phrasecut", tmp_path, dialects.write_phrasecut)
  many, one = source[0], source[1]
  assert (many.caption, many.image_id, grey(many)) == ("two grüne dogs", 2, 2) and source.caption(
    1
  ) == one.caption == "dog"
  assert many.boxes_xyxy_px.tolist() == [[2, 3, 15, 7], [0.5, 0, 2.5, 1]] and many.spans == (((0, 14),),) * 2
  assert [mask.pixels().sum() for mask in many.masks] == [40, 20]  # not the last polygon alone
  assert many.masks[0].pixels()[3:8, 12:16].all()


@pytest.mark.parametrize(
  "parts, message",
  [
    (dict(instance_boxes=[[1, 2, 3, 4]]), "1 instance_boxes, but Polygons for 2"),
    (dict(instance_boxes=[[1, 2, 3, "4"]] * 2), "has to be a number"),
    (dict(Polygons=[[[[1, 2], [3, 4]]]] * 2), "at least three points"),
    (dict(Polygons=[[[[1, 2], [3, 4], [5, 1e9]]]] * 2), "far outside"),
    (dict(phrase=7), "phrase has to be a text"),
  ],
)
def test_phrasecut_broken_tasks_are_bad_records(tmp_path, parts, message):
  source = opened("phrasecut", tmp_path, dialects.write_phrasecut, **parts)
  assert source[1].caption == "dog"
  with pytest.raises(BadRecord, match=f"broken_annotation.*{message}"):
    source[0]


def test_phrasecut_sample(shared):
  root = shared / "data/phrasecut_sample"
  total = several = 0
  for split in ("train", "val", "test", "miniv"):
    tasks = json.loads((root / f"refer_{split}.json").read_text())
    source = open_source(
      "phrasecut", annotations=str(root / f"refer_{split}.json"), images=str(root / "images"), masks=True
    )
    assert [source.caption(i) for i in range(len(source))] == [task["phrase"] for task in tasks]
    for i, task in enumerate(tasks):
      example = source[i]
      assert len(example.boxes_xyxy_px) == len(example.masks) == len(task["Polygons"])
      several += sum(len(mask.polygons) > 1 for mask in example.masks)
      for box, mask in zip(example.boxes_xyxy_px, example.masks, strict=True):
        y, x = np.nonzero(mask.pixels())
        np.testing.assert_allclose(box, [x.min(), y.min(), x.max(), y.max()], atol=2.5)
    total += len(tasks) if split != "miniv" else 0
  assert total >= 50 and several >= 11


# RefCOCO.


@pytest.mark.parametrize("writer", [dialects.write_refcoco, dialects.write_refcoco_json])
def test_refcoco_expressions_name_one_object(tmp_path, writer):
  source = opened("refcoco", tmp_path, writer)
  assert [source.caption(i) for i in range(len(source))] == ["cat on the left", "big cat", "cat"]
  left, big = source[0], source[1]
  assert (left.image_id, left.text_id, big.text_id) == (2**40 + 2, 2**33, 4) and (grey(left), grey(big)) == (2, 0)
  assert left.boxes_xyxy_px.tolist() == [[1.5, 2, 8.5, 9]] and left.spans == (((0, 15),),)
  assert left.masks[0].pixels().sum() == 20 and left.image_size == (20, 30)
  assert [source.caption(i) for i in range(3)] == [source[i].caption for i in range(3)]


def test_refcoco_refuses_what_does_not_belong_together(tmp_path):
  options = dialects.write_refcoco_json(tmp_path)
  with pytest.raises(ValueError, match="no expression of the split 'testA'; it has train, val"):
    open_source("refcoco", **options | {"split": "testA"})
  for change, message in (
    ({"ann_id": 5}, "lacks the annotation 5"),
    ({"image_id": 2**40}, "has annotation 2 on image"),
  ):
    refs = dialects.refs()
    refs[0] |= change
    write_json(tmp_path / "refs.json", refs)
    with pytest.raises(ValueError, match=message):
      open_source("refcoco", **options)


class Evil:
  def __reduce__(self):
    return print, ("executed",)


@pytest.mark.parametrize(
  "data",
  [
    pickle.dumps([Evil()]),
    pickle.dumps(np.zeros(3)),
    pickle.dumps([1]) + b"x",
    pickle.dumps([1])[:-1],
    b"",
    b"\x80\x02]r\xff\xff\xff\x7f.",  # the unpickler in C asks for 16 GB
    b"\x80\x04\x96" + b"\xff" * 7 + b"\x7f.",
    b"cos\nsystem\n(S'echo'\ntR.",
  ],
)
def test_pickles_with_more_than_values_are_refused(data, capsys):
  if data.startswith(b"\x80\x02]r"):
    assert read_plain_pickle(data, "refs.p") == []  # a memo entry alone harms nobody here
    return
  with pytest.raises(ValueError, match=r"refs\.p is no(t a)? pickle of plain values"):
    read_plain_pickle(data, "refs.p")
  assert capsys.readouterr().out == ""


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_are_read(protocol):
  assert read_plain_pickle(pickle.dumps(dialects.refs(), protocol), "refs.p") == dialects.refs()
  python2 = b"(lp0\n(dp1\nS'sent'\np2\nS'gr\\xc3\\xbcn'\np3\nsa."
  assert read_plain_pickle(python2, "refs.p") == [{"sent": "grün"}]


def test_refcoco_sample(shared):
  root = shared / "data/refcoco_sample"
  content = pickle.loads((root / "refcoco/refs(unc).p").read_bytes())
  truth = {a["id"]: a for a in json.loads((root / "refcoco/instances.json").read_text())["annotations"]}
  seen = 0
  for split in ("train", "val", "testA"):
    options = dict(refs=str(root / "refcoco/refs(unc).p"), instances=str(root / "refcoco/instances.json"), split=split)
    source = open_source("refcoco", **options, images=str(root / "train2014"), masks=True)
    wanted = [(ref, sentence) for ref in content if ref["split"] == split for sentence in ref["sentences"]]
    assert len(source) == len(wanted)
    for i, (ref, sentence) in enumerate(wanted):
      example, annotation = source[i], truth[ref["ann_id"]]
      assert (example.caption, example.image_id, example.text_id) == (
        sentence["sent"],
        ref["image_id"],
        sentence["sent_id"],
      )
      x, y, w, h = annotation["bbox"]
      np.testing.assert_allclose(example.boxes_xyxy_px, [[x, y, x + w - 1, y + h - 1]], atol=1e-3)
      assert example.masks[0].pixels().sum() == pytest.approx(annotation["area"], rel=0.05, abs=30)
      assert images.size_of(example.image) == example.image_size
      seen += 1
  assert seen == 22


# All of them, as training uses them.


@pytest.mark.parametrize("name", dialects.BOX_WRITERS)
def test_every_record_becomes_a_training_example(tmp_path, name, shapes):
  """Boxes inside the picture, each named by tokens, each with its mask at the same place on the canvas."""
  kind, write, _ = dialects.BOX_WRITERS[name]
  source = open_source(kind, **write(tmp_path))
  cfg = PrepareConfig(canvases=((40, 60),), batch=1, flip=1.0, swap_sides=False)
  for i in range(len(source)):
    rng = np.random.default_rng(i)
    prepared = train_example(source[i], source.classes, shapes, cfg, (40, 60), rng)
    boxes = prepared.boxes_xyxy_px
    assert len(boxes) == len(source[i].boxes_xyxy_px) and prepared.reduced == () and prepared.positive_map.any(1).all()
    assert {phrase.name for phrase in prepared.phrases} <= set(source[i].vocabulary(source.classes)) | {
      source[i].caption
    }
    if prepared.masks is None:
      continue
    for mask, own in zip(prepared.masks, source[i].masks, strict=True):
      wanted = own.pixels()[:, ::-1].repeat(2, 0).repeat(2, 1)
      np.testing.assert_array_equal(mask.pixels(), wanted)

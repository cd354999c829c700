"""`glipv2 data prepare --tfds`: TFDS itself opens the folder, and the source tfds_data gives back what was prepared."""

import json

import numpy as np
import pytest

from launch import data
from pipelines import images
from pipelines.prepare import shards, tfds_form
from pipelines.records import BadRecord, Example
from pipelines.sources import open_source
from tests.pipelines.box_dialects import BOX_WRITERS
from tests.pipelines.dialects import HEIGHT, WIDTH, WRITERS, copied, picture, read_all, same

tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra `data`")

EVERY = WRITERS | BOX_WRITERS
SHAPES = ["shapes", "split=val", "size=(64, 80)", "length=7"]


def prepare(source, out, *more):
  return data.main(["prepare", "--source", *source, "--out", str(out), "--per-shard", "2", *more])


def source_of(words):
  return data.parse_source(words).open()


@pytest.mark.parametrize("name", EVERY)
def test_every_dialect_comes_back_through_tfds(tmp_path, name):
  """Whole, and in the features that others read."""
  kind, write, _ = EVERY[name]
  folder, out = tmp_path / "source", str(tmp_path / "out")
  folder.mkdir()
  words = [kind, *(f"{key}={value!r}" for key, value in write(folder).items())]
  assert prepare(words, out, "--tfds", "val") == 0
  source, found = source_of(words), open_source("tfds_data", data=out, split="val")
  assert (found.name, found.kind, found.classes) == (source.name, source.kind, source.classes)
  originals = read_all(source)
  assert len(found) == len(originals) > 0 and {e.source for e in read_all(found)} == {source.name}
  assert all(map(same, originals, read_all(found))) and all(map(same, originals, read_all(copied(found))))
  builder = tfds.builder_from_directory(out)
  assert builder.info.splits["val"].num_examples == len(originals)
  for example, content in zip(originals, builder.as_data_source("val"), strict=True):
    check_content(example, content, builder.info.features)


def check_content(example, content, features):
  """What TFDS decodes, compared with the Example."""
  pixels = images.decode(example.image)
  np.testing.assert_array_equal(content["image"], pixels)
  assert content["image_id"].decode() == str(example.image_id)
  if example.kind in ("detection", "grounding"):
    assert len(content["objects"]["bbox"]) == len(example.boxes_xyxy_px)
    height, width = pixels.shape[:2]
    for (top, left, bottom, right), box in zip(content["objects"]["bbox"], example.boxes_xyxy_px):
      found = [left * width, top * height, right * width - 1, bottom * height - 1]
      np.testing.assert_allclose(found, np.clip(box, [0, 0, -1, -1], [width, height, width - 1, height - 1]), atol=1e-4)
  if example.kind == "detection":
    label = features["objects"].feature["label"]
    assert tuple(map(label.int2str, content["objects"]["label"])) == example.labels
  elif example.kind == "grounding":
    words = [b" ".join(example.caption[a:b].encode() for a, b in spans) for spans in example.spans]
    assert list(content["objects"]["phrase"]) == words
  if example.kind in ("grounding", "caption"):
    assert content["caption"].decode() == example.caption
  if example.kind == "vqa":
    assert content["question"].decode() == example.questions[0].text
    assert tuple(answer.decode() for answer in content["answers"]) == example.questions[0].answers


def test_boxes_that_are_none_are_kept_as_they_are(tmp_path):
  """TFDS takes boxes inside the picture only; what is wrong is counted when it is read."""
  boxes = np.array([[np.nan, 3, np.inf, 4], [9, 5, 2, 8], [-50, -50, -40, -40], [5, 6, 7, 8]], np.float32)
  example = Example("mine", 3, "detection", picture(9), boxes, ("b", "a", "a", "b"))

  class One:
    name, kind, classes = "mine", "detection", ("a", "b")

    def __len__(self):
      return 1

    def __getitem__(self, index):
      return example

  job = shards.start(data.ranges.SourceSpec("mine"), One(), str(tmp_path), 1, tfds="train")
  shards.write_shard(One(), range(1), job)
  shards.finish(job, 0.0)
  assert same(open_source("tfds_data", data=str(tmp_path))[0], example)
  (content,) = tfds.builder_from_directory(str(tmp_path)).as_data_source("train")
  empty, found = np.array(content["objects"]["bbox"][:3]), content["objects"]["bbox"][3]
  assert ((empty[:, 2] - empty[:, 0]) * (empty[:, 3] - empty[:, 1]) == 0).all()
  np.testing.assert_allclose(found, [6 / HEIGHT, 5 / WIDTH, 9 / HEIGHT, 8 / WIDTH], atol=1e-6)


def test_work_goes_on_with_the_same_bytes_in_another_process(tmp_path):
  """Though the order of a protocol buffer's map is another one in each process."""
  assert prepare(SHAPES, tmp_path / "here", "--tfds", "train") == 0
  assert prepare(SHAPES, tmp_path / "there", "--tfds", "train", "--processes", "1") == 0
  manifests = [(tmp_path / name / "manifest.json").read_text() for name in ("here", "there")]
  assert manifests[0] == manifests[1] and [s["records"] for s in json.loads(manifests[0])["shards"]] == [2, 2, 2, 1]
  source = source_of(SHAPES)
  found = open_source("tfds_data", data=str(tmp_path / "here"), split="train[2:]", name="mine")
  assert found.name == found[0].source == "mine" and len(found) == 5
  assert [e.labels for e in read_all(found)] == [source[i].labels for i in range(2, 7)]


def test_captions_are_read_without_pictures(tmp_path):
  assert prepare(["shapes", "task=grounding", "split=val", "length=3"], tmp_path, "--tfds", "train") == 0
  found, source = open_source("tfds_data", data=str(tmp_path)), open_source("shapes", task="grounding", split="val")
  assert [found.caption(i) for i in range(3)] == [source.caption(i) for i in range(3)]
  only = open_source("tfds_data", data=str(tmp_path), caption="caption")  # as of any other set of TFDS
  assert only.kind == "caption" and only[1].caption == source.caption(1)


def test_damage_is_a_bad_record(tmp_path):
  assert prepare(SHAPES, tmp_path, "--tfds", "train") == 0
  path = next(tmp_path.glob("*.array_record"))
  original, rng, seen = path.read_bytes(), np.random.default_rng(0), 0
  clean, filled = read_all(open_source("tfds_data", data=str(tmp_path))), np.flatnonzero(list(original))
  for _ in range(20):
    damaged = bytearray(original)
    damaged[rng.choice(filled)] ^= 1 << rng.integers(8)
    path.write_bytes(damaged)
    found = read_all(open_source("tfds_data", data=str(tmp_path)))
    assert all(isinstance(e, BadRecord) or same(e, c) for e, c in zip(found, clean, strict=True))
    seen += any(isinstance(e, BadRecord) for e in found)
  assert seen > 10


@pytest.mark.parametrize("split", ["all", "a b", "train[:5]", "1"])
def test_names_that_no_split_has(tmp_path, capsys, split):
  assert prepare(SHAPES, tmp_path, "--tfds", split) == 1
  assert f"{split!r} cannot be the name of a split" in capsys.readouterr().err


def test_class_names_that_tfds_would_change():
  class Odd:
    name, kind, classes = "odd", "detection", ("cat", "dog ")

  with pytest.raises(ValueError, match="class names one a line: odd has one"):
    tfds_form.check(Odd(), "train")


def test_forms_are_not_mixed(tmp_path, capsys):
  assert prepare(SHAPES, tmp_path, "--tfds", "train") == 0
  with pytest.raises(ValueError, match="records are of TFDS; read its split 'train' with the source tfds_data"):
    open_source("array_record", data=str(tmp_path))
  assert prepare(SHAPES, tmp_path) == 1
  assert "tfds 'train' -> None" in capsys.readouterr().err

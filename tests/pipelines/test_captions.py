"""Sources of captions and questions (COCO, Karpathy, VQA v2, tars, lists), and that they are not pre-trained on."""

import hashlib
import io
import os
import tarfile
import zlib

import pytest

from pipelines.build import DataConfig, train_batches
from pipelines.records import BadRecord, Question
from pipelines.sources.caption_list import CaptionList
from pipelines.sources.coco_captions import CocoCaptions, KarpathyCaptions
from pipelines.sources.vqa_v2 import VqaV2
from pipelines.sources.webdataset_tars import WebdatasetTars
from tests.pipelines.dialects import (
  grey,
  picture,
  write_coco_captions,
  write_karpathy,
  write_list,
  write_tar,
  write_tars,
  write_vqa,
)


def test_coco_captions_lose_their_white_space(tmp_path):
  source = CocoCaptions(**write_coco_captions(tmp_path))
  assert [source[i].caption for i in range(3)] == ["a dog on a sofa", "a cat", "a dog"]
  first = source[0]
  assert (first.image_id, first.text_id, first.image_size, grey(first)) == (2**33 + 1, 900100005001, (20, 30), 1)
  empty = write_coco_captions(
    tmp_path, annotations=[{"image_id": 2**33, "id": i, "caption": x} for i, x in enumerate("a ")]
  )
  with pytest.raises(BadRecord, match=r"coco_captions/8589934592#1: empty_caption"):
    CocoCaptions(**empty)[1]
  (tmp_path / "1.png").unlink()
  with pytest.raises(BadRecord, match="missing_image"):
    CocoCaptions(**write_coco_captions(tmp_path) | _unlink(tmp_path / "1.png"))[0]


def _unlink(path):
  path.unlink()
  return {}


@pytest.mark.parametrize(
  "parts, message",
  [
    (dict(annotations=[{"image_id": 3, "id": 1, "caption": "a"}]), "unknown image_id 3"),
    (dict(annotations=[{"image_id": 2**33, "id": 1}]), r"annotations\[0\] has no 'caption'"),
    (dict(annotations=[{"image_id": 2**33, "id": 1, "caption": ["a"]}]), "it needs a text"),
    (dict(annotations=[]), "has no caption to use"),
    (dict(images={}), "has no list images"),
  ],
)
def test_coco_caption_files_of_another_form(tmp_path, parts, message):
  with pytest.raises(ValueError, match=message):
    CocoCaptions(**write_coco_captions(tmp_path, **parts))


def test_karpathy_splits(tmp_path):
  options = write_karpathy(tmp_path)
  source = KarpathyCaptions(**options)
  assert [(x.image_id, x.text_id, x.caption, grey(x)) for x in (source[0], source[1])] == [
    (100, 50, "A train", 0),
    (102, 52, "A restval", 2),
  ]
  assert len(KarpathyCaptions(**options, splits=("test",))) == 1
  with pytest.raises(ValueError, match="no picture of the split 'val'"):
    KarpathyCaptions(**options, splits=("val",))


def test_vqa_answers_find_their_questions(tmp_path):
  """Questions and answers in different orders; ten answers each; ids as they are."""
  source = VqaV2(**write_vqa(tmp_path))
  questions = [source[i].questions[0] for i in range(3)]
  assert questions == [
    Question("Is it?", ("yes",) * 7 + ("no",), 1002),
    Question("How many?", ("yes",) * 9 + ("no",), 2),
    Question("What?", ("yes",) * 8 + ("no",), 1001),
  ]
  assert [(source[i].image_id, grey(source[i])) for i in range(3)] == [(1, 1), (0, 0), (1, 1)]
  hidden = VqaV2(**write_vqa(tmp_path) | dict(annotations=""))
  assert hidden[0].questions == (Question("Is it?", (), 1002),)


@pytest.mark.parametrize(
  "parts, message",
  [
    (dict(annotations=[{"question_id": 2, "answers": [{"answer": "a"}]}]), "no answers for 2 of 3 questions, .* 1001"),
    (dict(annotations=[{"question_id": 7, "answers": []}]), "unknown question_id 7"),
    (dict(annotations=[{"question_id": 2, "answers": [{}]}]), r"annotations\[0\]\.answers\[0\] has no 'answer'"),
    (dict(questions=[]), "has no question"),
    (dict(questions=[{"question_id": 1, "image_id": 1, "question": "a"}] * 2), "question id 1 occurs 2 times"),
  ],
)
def test_vqa_files_that_do_not_belong_together(tmp_path, parts, message):
  with pytest.raises(ValueError, match=message):
    VqaV2(**write_vqa(tmp_path, **parts))


def test_vqa_picture_names(tmp_path):
  options = write_vqa(tmp_path)
  with pytest.raises(FileNotFoundError, match="none of the first 3 pictures exists.*val2014"):
    VqaV2(**options, file_name="COCO_val2014_{image_id:012d}.jpg")
  with pytest.raises(ValueError, match="is no pattern of image_id"):
    VqaV2(**options, file_name="{id}.jpg")


def test_samples_of_coco_captions_and_vqa(shared, tmp_path):
  root = shared / "data"
  source = CocoCaptions(str(root / "coco_sample/annotations/captions_val2017.json"), str(root / "coco_sample/val2017"))
  assert len(source) == 200 and all(source[i].caption == " ".join(source[i].caption.split()) for i in range(200))
  (tmp_path / "val2014").mkdir()
  for path in (root / "coco_sample/val2017").iterdir():
    os.symlink(path, tmp_path / "val2014" / f"COCO_val2014_{path.name}")
  karpathy = KarpathyCaptions(
    str(root / "captions_sample/dataset_coco.json"), str(tmp_path), splits=("restval", "val", "test")
  )
  assert len(karpathy) == 200
  assert {(x.image_id, x.text_id) for x in map(karpathy.__getitem__, range(200))} == {
    (x.image_id, x.text_id) for x in map(source.__getitem__, range(200))
  }
  vqa = root / "vqa_sample"
  questions = VqaV2(
    str(vqa / "v2_OpenEnded_mscoco_train2014_questions.json"),
    str(vqa / "train2014"),
    annotations=str(vqa / "v2_mscoco_train2014_annotations.json"),
  )
  assert len(questions) == 35 and all(len(questions[i].questions[0].answers) == 10 for i in range(35))
  assert questions[0].questions[0].text.startswith("Is this train headed") and questions[0].questions[0].id == 71002


def test_pairs_stay_in_their_tars(tmp_path, monkeypatch):
  options = write_tars(tmp_path)
  source = WebdatasetTars(**options)
  assert [(x.caption, grey(x), x.image_id) for x in map(source.__getitem__, range(6))] == [
    (f"text {i}", i, n) for n, i in enumerate((0, 1, 2, 10, 11, 12))
  ]
  assert source.left_out == 0 and WebdatasetTars(**options, caption_key="text").caption(4) == "of json"
  assert sorted(p.name for p in tmp_path.iterdir()) == [".index", "00000.tar", "00001.tar"]  # nothing unpacked
  monkeypatch.setattr(tarfile, "open", None)  # the second time the headers are not read
  assert WebdatasetTars(**options)[3].caption == "text 10"


def test_a_tar_that_changed_is_read_anew(tmp_path):
  options = write_tars(tmp_path)
  source = WebdatasetTars(**options)
  write_tar(tmp_path / "00001.tar", [("y.jpg", picture(5)), ("y.txt", b"new")])
  assert [WebdatasetTars(**options).caption(i) for i in (2, 3)] == ["text 2", "new"]
  with pytest.raises(BadRecord, match="changed since it was indexed"):
    source[5]


def test_members_that_are_no_pairs_are_left_out_and_counted(tmp_path, caplog):
  link, folder = tarfile.TarInfo("b.jpg"), tarfile.TarInfo("c.jpg")
  link.type, link.linkname, folder.type = tarfile.SYMTYPE, "/etc/passwd", tarfile.DIRTYPE
  members = [("a.jpg", picture(1)), ("a.txt", b"one"), ("alone.jpg", picture(2)), link, ("b.txt", b"x"), folder]
  write_tar(tmp_path / "x.tar", [*members, ("../../up.jpg", picture(3)), ("../../up.txt", b"up"), ("a.json", b"{}")])
  source = WebdatasetTars(str(tmp_path / "x.tar"))
  assert [source.caption(i) for i in range(len(source))] == ["one", "up"] and source.left_out == 3
  assert "3 members of the shards have no partner" in caplog.text
  assert not (tmp_path.parent.parent / "up.jpg").exists()


def test_tars_that_cannot_be_used_stop_at_start(tmp_path):
  options = write_tars(tmp_path)
  data = (tmp_path / "00001.tar").read_bytes()
  for broken, message in ((data[:1700], "cut short inside|no complete tar"), (b"x" * 2000, "no complete tar")):
    (tmp_path / "00001.tar").write_bytes(broken)
    with pytest.raises(ValueError, match=rf"00001\.tar.*({message})"):
      WebdatasetTars(**options)
  write_tar(tmp_path / "00001.tar", [("a.jpg", picture(1)), ("a.png", picture(1)), ("a.txt", b"x")])
  with pytest.raises(ValueError, match=r"'a\.png' is the second member of its pair"):
    WebdatasetTars(**options)
  write_tar(tmp_path / "00001.tar", [("a.jpg", picture(1))])
  with pytest.raises(ValueError, match="no pair of a picture and a .txt"):
    WebdatasetTars(str(tmp_path / "00001.tar"))
  with pytest.raises(FileNotFoundError, match="no file matches"):
    WebdatasetTars(str(tmp_path / "none*.tar"))


def test_broken_members_are_bad_records(tmp_path):
  members = [("a.jpg", b"no picture"), ("a.txt", b"\xff\xfe"), ("b.jpg", picture(1)), ("b.txt", b" \n")]
  write_tar(tmp_path / "x.tar", [*members, ("a.json", b'{"text": 3}'), ("b.json", b"{")])
  for key, reasons in (("", ["broken_annotation", "empty_caption"]), ("text", ["broken_annotation"] * 2)):
    source = WebdatasetTars(str(tmp_path / "x.tar"), caption_key=key)
    for i, reason in enumerate(reasons):
      with pytest.raises(BadRecord, match=f"webdataset_tars/{i}: {reason}"):
        source[i]


def test_lists_over_a_folder(tmp_path, caplog):
  source = CaptionList(**write_list(tmp_path))
  assert [(x.image_id, x.caption, grey(x)) for x in (source[0], source[1])] == [(0, "a dog", 0), (2, "a bird", 2)]
  assert source.absent == 1 and "1 of 3 rows have no picture" in caplog.text


def test_lists_of_other_programs(tmp_path):
  """CC12M's order of columns, names made of the address, a column with the file."""
  options = write_list(tmp_path)
  (tmp_path / "cc.tsv").write_text("http://a\ta dog\n")
  (tmp_path / "pictures/x").mkdir()
  swapped = dict(columns=("url", "caption"))
  for pattern, name in (
    ("x/{md5}.jpg", f"x/{hashlib.md5(b'http://a').hexdigest()}.jpg"),
    ("{row}_{crc32}", f"0_{zlib.crc32(b'http://a')}"),
  ):
    (tmp_path / "pictures" / name).write_bytes(picture(9))
    source = CaptionList(**options, **swapped, file_name=pattern)
    assert (source.caption(0), grey(source[0])) == ("a dog", 9)
  (tmp_path / "cc.tsv").write_text("x/y.png\ta dog\n../outside.png\ta cat\n")
  (tmp_path / "pictures/x/y.png").write_bytes(picture(4))
  (tmp_path / "outside.png").write_bytes(picture(5))
  source = CaptionList(**options, columns=("file", "caption"), file_name="{file}")
  assert len(source) == source.absent == 1 and grey(source[0]) == 4


def test_lists_that_do_not_fit_their_options(tmp_path):
  options = write_list(tmp_path)
  for wrong, error, message in (
    (dict(columns=("a", "b")), ValueError, "need the name 'caption' once"),
    (dict(columns=("caption",)), ValueError, r"line 1 has 2 columns instead of \('caption',\); set `columns`"),
    (dict(file_name="{file}"), ValueError, "asks for 'file'; known: row, md5, crc32"),
    (dict(file_name="{row}.gif"), FileNotFoundError, r"none of the 3 pictures .* for example 0\.gif; check `images`"),
  ):
    with pytest.raises(error, match=message):
      CaptionList(**options | wrong)


def test_captions_without_boxes_are_not_pre_trained_on(tmp_path):
  """Their losses would teach that every word names background."""
  options = write_coco_captions(tmp_path)
  cfg = DataConfig(
    sources=(("coco_captions", 1.0, tuple(options.items())),),
    tokenizer="shapes",
    max_tokens=16,
    canvases=((32, 32),),
    batch=1,
  )
  with pytest.raises(ValueError, match=r"'coco_captions' has no boxes \(kind 'caption'\).*`glipv2 pseudo-label`"):
    train_batches(cfg)


def test_pictures_in_tars_are_read_as_they_are(tmp_path):
  data = picture(3, "JPEG")
  write_tar(
    tmp_path / "x.tar",
    [("a/b.c.jpg", data), ("a/b.txt", b"no partner: its name is b"), ("k.jpg", data), ("k.txt", b"t")],
  )
  source = WebdatasetTars(str(tmp_path / "x.tar"))
  assert len(source) == 1 and source[0].image == data and io.BytesIO(source[0].image).read(2) == b"\xff\xd8"

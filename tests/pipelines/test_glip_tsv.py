"""GLIP's TSV container: detection and captions, version 1 and 2, and what does not fit together."""

import json

import numpy as np
import pytest

from pipelines.records import BadRecord, KnowsSizes, Question
from pipelines.sources.glip_tsv import GlipTsv
from pipelines.sources.lines import Lines
from tests.pipelines.dialects import (
  CAPTIONS_V1,
  CAPTIONS_V2,
  OBJECTS,
  grey,
  same,
  write_caption_tsv,
  write_detection_tsv,
  write_tsv,
  write_tsv_file,
)


def rows(source):
  return [source[i] for i in range(len(source))]


def test_detection_rows(tmp_path):
  """Both forms of objects, classes in order of their numbers without background, sizes in three forms."""
  source = GlipTsv(**write_detection_tsv(tmp_path))
  assert (source.kind, source.classes, len(source)) == ("detection", ("Cat", "dog"), 3)
  first, second, third = rows(source)
  assert first.labels == ("dog", "Cat") and first.boxes_xyxy_px.tolist() == [[1.5, 2, 10, 12], [0, 0, 29, 19]]
  assert second.labels == ("dog",) and third.labels == () and third.boxes_xyxy_px.shape == (0, 4)
  assert [x.image_size for x in rows(source)] == [(20, 30)] * 3 and [grey(x) for x in rows(source)] == [0, 1, 2]


@pytest.mark.parametrize("label_map", ['{"dog": 5, "Cat": 1}', "Cat\t1\ndog\t2\n"])
def test_other_label_maps(tmp_path, label_map):
  name = "map.json" if label_map[0] == "{" else "map.tsv"
  (tmp_path / name).write_text(label_map)
  assert GlipTsv(**write_tsv(tmp_path, OBJECTS, jsondict=name)).classes == ("Cat", "dog")


def test_line_list_says_which_rows_and_how_often(tmp_path):
  (tmp_path / "map.json").write_text('{"dog": 1, "Cat": 2}')
  (tmp_path / "list.tsv").write_text("2\n0\n0\n1\n")
  options = write_tsv(tmp_path, OBJECTS, labelmap="map.json", linelist="list.tsv")
  source = GlipTsv(**options)
  assert [grey(x) for x in rows(source)] == [2, 0, 0, 1] and [x.image_id for x in rows(source)] == [0, 1, 2, 3]
  (tmp_path / "list.tsv").write_text("0\n3\n")
  with pytest.raises(ValueError, match=r"list\.tsv has to name rows 0\.\.2 of the labels"):
    GlipTsv(**options)


def test_sizes_are_known_before_a_picture_is_read(tmp_path):
  """In every form, in the order of the line list; a broken row is unknown here and a bad record when it is read."""
  (tmp_path / "map.json").write_text('{"dog": 1, "Cat": 2}')
  (tmp_path / "list.tsv").write_text("2\n0\n0\n1\n")
  options = write_tsv(tmp_path, OBJECTS, labelmap="map.json", linelist="list.tsv")
  forms = '[{"height": 21, "width": 30}]', '{"width": 31, "height": 22}', "23 32"
  (tmp_path / "a.hw.lineidx").unlink()
  (tmp_path / "a.hw.tsv").write_text("".join(f"k{i}\t{form}\r\n" for i, form in enumerate(forms)))
  sizes = GlipTsv(**options).sizes()
  assert sizes.dtype == np.int32 and sizes.tolist() == [[23, 32], [21, 30], [21, 30], [22, 31]]
  for broken in ("k1\n", "k1\t{}\n", "k1\t[]\n", 'k1\t{"height": 20, "width": -1}\n', "k1\t20\n", "\n"):
    (tmp_path / "a.hw.tsv").write_text(f"k0\t{forms[0]}\n{broken}k2\t{forms[2]}\n")
    source = GlipTsv(**options)
    assert source.sizes().tolist() == [[23, 32], [21, 30], [21, 30], [0, 0]]
    with pytest.raises(BadRecord, match="glip_tsv/3: broken_annotation"):
      source[3]
  bare = GlipTsv(**write_tsv(tmp_path, OBJECTS, name="b", hw=False, labelmap="map.json"))
  assert bare.sizes().tolist() == [[0, 0]] * 3 and isinstance(bare, KnowsSizes)


def test_boxes_that_are_no_numbers_suppress_nothing(tmp_path):
  """A broken box is no reason to drop its neighbours, and is not dropped itself: its record is left out as a whole."""
  row = CAPTIONS_V1[0] | {"bboxes": [[float("nan"), 1, 9, 9], [1, 1, 9, 10], [20, 1, 28, 9]], "scores": [0.9, 0.8, 0.7]}
  assert len(GlipTsv(**write_caption_tsv(tmp_path, [row]), nms=0.5)[0].boxes_xyxy_px) == 3
  for score in (float("nan"), float("inf"), None):
    source = GlipTsv(**write_caption_tsv(tmp_path, [*CAPTIONS_V1, row | {"scores": [score, 0.8, 0.7]}]))
    with pytest.raises(BadRecord, match="broken_annotation.*has no score"):
      source[2]


def test_a_broken_first_row_does_not_stop_the_start(tmp_path):
  source = GlipTsv(**write_caption_tsv(tmp_path, [[], *CAPTIONS_V2]))
  assert source.kind == "grounding" and source[1].caption == "two dogs"
  with pytest.raises(BadRecord, match="broken_annotation"):
    source[0]


def test_version_1_and_2_say_the_same(tmp_path):
  one, two = (GlipTsv(**write_caption_tsv(tmp_path / _made(tmp_path, n), x)) for n, x in _forms())
  assert one.kind == two.kind == "grounding" and one.classes == ()
  assert same(one[0], two[0]) and one.caption(1) == two.caption(1) == "two dogs"
  assert two[0].boxes_xyxy_px.tolist() == [[1, 1, 9, 9], [1, 1, 9, 10]]  # the third scores 0.3
  assert two[0].spans == (((0, 3), (4, 8)),) * 2 and two[0].image_size == (20, 30)


def _forms():
  return ("v1", CAPTIONS_V1), ("v2", CAPTIONS_V2)


def _made(folder, name):
  (folder / name).mkdir()
  return name


def test_weak_boxes_are_left_out(tmp_path):
  options = write_caption_tsv(tmp_path)
  counts = {c: len(GlipTsv(**options, confidence=c)[0].spans) for c in (0.0, 0.3, 0.31, 0.85)}
  assert counts == {0.0: 3, 0.3: 2, 0.31: 2, 0.85: 1}
  best = GlipTsv(**options, nms=0.8)[0]  # the two dogs overlap by 0.9
  assert best.boxes_xyxy_px.tolist() == [[1, 1, 9, 9]]
  for few in (dict(confidence=0.95), dict(min_boxes=3)):
    with pytest.raises(BadRecord, match="of 3 boxes score above") as caught:
      GlipTsv(**options, **few)[1]
    assert caught.value.reason == "too_few_boxes"


def test_rows_without_boxes_are_captions(tmp_path):
  source = GlipTsv(**write_tsv(tmp_path, [[{"caption": "a"}], {"captions": ["b", "c"]}, {"caption": "d"}]))
  assert source.kind == "caption" and [x.caption for x in rows(source)] == ["a", "b", "d"]


def test_question_and_answer(tmp_path):
  row = CAPTIONS_V2[0] | {"text": "what are they?", "caption": "what are they? two dogs"}
  assert GlipTsv(**write_tsv(tmp_path, [row]))[0].questions == (Question("what are they?", ("two dogs",)),)


def test_several_files_are_one_set(tmp_path):
  for name in ("b", "a"):
    write_tsv(tmp_path, [{"caption": f"{name}{i}"} for i in range(2 + (name == "a"))], name=name)
  source = GlipTsv(str(tmp_path / "*.train.yaml"))
  assert [x.caption for x in rows(source)] == ["a0", "a1", "a2", "b0", "b1"]
  with pytest.raises(FileNotFoundError, match="no file matches .*none"):
    GlipTsv(str(tmp_path / "none*.yaml"))


def test_without_lineidx_and_with_three_columns(tmp_path):
  """Older sets: the picture is in the last column; where lines begin is found by reading."""
  source = GlipTsv(**write_tsv(tmp_path, [{"caption": "a"}, {"caption": "b"}], columns=3, lineidx=False, hw=False))
  assert [(grey(x), x.caption, x.image_size) for x in rows(source)] == [(0, "a", None), (1, "b", None)]


def test_rows_found_by_key(tmp_path):
  (tmp_path / "where.json").write_text(json.dumps({"k0": 1, "k1": 0}))
  options = write_tsv(tmp_path, [{"caption": "a"}, {"caption": "b"}], hw=False, imageid2idx="where.json")
  lines = Lines(tmp_path / "a.images.tsv", "img")
  write_tsv_file(tmp_path / "a.images.tsv", [(lines[1],), (lines[0],)])
  assert [grey(x) for x in rows(GlipTsv(**options))] == [0, 1]


def test_a_row_of_another_picture_is_noticed(tmp_path):
  options = write_caption_tsv(tmp_path)
  rows_ = [Lines(tmp_path / "a.images.tsv", "img")[i] for i in range(2)]
  write_tsv_file(tmp_path / "a.images.tsv", [(rows_[0],), (rows_[1].replace(b"k1", b"k7", 1),)])
  with pytest.raises(BadRecord, match=r"about b'k1' in the labels and about b'k7' in .*images\.tsv"):
    GlipTsv(**options)[1]
  write_tsv_file(tmp_path / "a.images.tsv", [(rows_[0],), (rows_[1] + b"*",)])
  with pytest.raises(BadRecord, match="the picture is no base64"):
    GlipTsv(**options)[1]


def test_a_lineidx_of_another_file_is_noticed(tmp_path):
  options = write_caption_tsv(tmp_path)
  index = tmp_path / "a.label.lineidx"
  second = int(index.read_text().split()[1])
  index.write_text(f"0\n{second - 3}\n")
  source_error = pytest.raises(ValueError, match="no line begins and ends at the bytes 0 and")
  with source_error:
    GlipTsv(**options)
  for wrong in (f"0\n{10**9}\n", "0\n0\n", "0\nx\n", "5\n9\n"):
    index.write_text(wrong)
    with pytest.raises(ValueError, match="does not fit|one byte offset per line"):
      GlipTsv(**options)


@pytest.mark.parametrize(
  "row, message",
  [
    (
      {"caption": "a", "bboxes": [[0, 0, 1, 1]], "scores": [1, 2], "tokens_positive": [[]]},
      r"have \[1, 2, 1\] entries",
    ),
    ({"caption": "a", "bboxes": [[[0, 0, 1, 1]]], "scores": [[1, 2]], "tokens_positive": [[]]}, "1 boxes and 2 scores"),
    ({"caption": "a", "bboxes": [[0, 0, 1]], "scores": [1], "tokens_positive": [[]]}, "four numbers"),
    ({"caption": "a", "bboxes": [[0, 0, 1, 1]], "scores": [None], "tokens_positive": [[]]}, "no score"),
    ({"caption": "a", "bboxes": [[0, 0, 1, 1]], "scores": [1]}, "it has no 'tokens_positive'"),
    ({"caption": 7, "bboxes": [], "scores": [], "tokens_positive": []}, "caption has to be a text"),
    ([], "a caption row has to be an object"),
    (None, "a caption row has to be an object"),
  ],
)
def test_broken_rows(tmp_path, row, message):
  source = GlipTsv(**write_tsv(tmp_path, [CAPTIONS_V2[0], row]))
  with pytest.raises(BadRecord, match=message) as caught:
    source[1]
  assert caught.value.reason == "broken_annotation"
  with pytest.raises(ValueError, match="first row cannot be used"):
    (tmp_path / "first").mkdir()
    GlipTsv(**write_tsv(tmp_path / "first", [row]))


def test_a_class_outside_the_label_map(tmp_path):
  (tmp_path / "map.json").write_text('{"dog": 1}')
  source = GlipTsv(**write_tsv(tmp_path, [OBJECTS[1], OBJECTS[0]], labelmap="map.json"))
  with pytest.raises(BadRecord, match="class 'Cat' is not in the label map"):
    source[1]


@pytest.mark.parametrize(
  "text, message",
  [
    ("label: a.label.tsv\n", r"it lacks \['img'\]"),
    ("img: [a]\nlabel: b\n", "has to name files"),
    ("- a\n", "has to name files"),
    ("a: {\n", "is not valid yaml"),
    ("img: nowhere.tsv\nlabel: a.label.tsv\n", r"nowhere\.tsv does not exist; set `img in .*yaml`"),
    ("img: a.images.tsv\nlabel: a.label.tsv\nlinelist: gone.tsv\n", "correct `linelist`"),
    ("img: a.images.tsv\nlabel: a.label.tsv\nlabelmap: empty.json\n", "names no class"),
    ("img: a.images.tsv\nlabel: a.label.tsv\nlabelmap: twice.json\n", "stands for several classes"),
    ("img: a.images.tsv\nlabel: short.tsv\nhw: a.hw.tsv\n", "2 rows and .* 3: give each picture one"),
  ],
)
def test_wrong_files_stop_at_start(tmp_path, text, message):
  options = write_caption_tsv(tmp_path)
  (tmp_path / "empty.json").write_text('{"__background__": 0}')
  (tmp_path / "twice.json").write_text('{"a": 1, "b": 1}')
  (tmp_path / "short.tsv").write_bytes((tmp_path / "a.label.tsv").read_bytes() + b"k2\t{}\n")
  (tmp_path / "a.train.yaml").write_text(text)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    GlipTsv(**options)


def test_samples(shared):
  root = shared / "data"
  od = GlipTsv(str(root / "od_tsv_sample/train.yaml"))
  assert (len(od), len(od.classes), od.classes[-1]) == (10, 80, "toothbrush") and same(od[0], od[8]) is False
  assert od[0].labels == od[8].labels == od[9].labels  # row 0 stands three times in the line list
  one = GlipTsv(str(root / "cap_tsv_sample/handmade_caption.train.yaml"), confidence=0.0)
  two = GlipTsv(str(root / "cap_tsv_sample/handmade_caption_v2.train.yaml"), confidence=0.0)
  assert len(one) == len(two) == 12 and all(map(same, rows(one), rows(two)))
  assert one[3].caption[10:26] == "with an open mou" and one[3].spans[1] == ((35, 36), (37, 43), (44, 47))
  strict = GlipTsv(str(root / "cap_tsv_sample/handmade_caption.train.yaml"))
  weak = [i for i in range(12) if not any(s > 0.5 for s in _scores(root)[i])]
  assert weak
  for i in range(12):
    if i in weak:
      with pytest.raises(BadRecord, match="too_few_boxes"):
        strict[i]
    else:
      assert len(strict[i].spans) == sum(s > 0.5 for s in _scores(root)[i])


def _scores(root):
  lines = (root / "cap_tsv_sample/train.label.tsv").read_text().splitlines()
  return [json.loads(line.split("\t")[1])["scores"] for line in lines]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\n\n\n"])
def test_lines(tmp_path, end):
  """Any end of the last line, empty lines in between, an edge of the search window anywhere."""
  wanted = [b"a", b"", b"cc" * 50, b"d"]
  (tmp_path / "x").write_bytes(b"\n".join(wanted) + end)
  lines = Lines(tmp_path / "x", "annotations")
  assert [lines[i] for i in range(len(lines))] == wanted
  (tmp_path / "empty").write_bytes(end.replace(b"\r", b""))
  with pytest.raises(ValueError, match="is empty"):
    Lines(tmp_path / "empty", "annotations")


def test_lines_found_across_windows(tmp_path, monkeypatch):
  monkeypatch.setattr("pipelines.sources.lines._CHUNK", 7)
  rng = np.random.default_rng(0)
  for n in range(40):
    wanted = [b"x" * int(rng.integers(1, 12)) for _ in range(n + 1)]
    (tmp_path / "x").write_bytes(b"\n".join(wanted) + b"\n" * int(rng.integers(3)))
    lines = Lines(tmp_path / "x", "annotations")
    assert [lines[i] for i in range(len(lines))] == wanted

"""eval/files.py: what is wrong with a file is said with its name, the record and the remedy."""

import json
import warnings

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from eval import files

SIZES = {k: (80, 100) for k in range(3)}


def records(n=7):
  return [{"image_id": k % 3, "category_id": 1, "bbox": [k, 2, 3.5, 4], "score": k / 10} for k in range(n)]


def written(tmp_path, text):
  path = tmp_path / "results.json"
  path.write_text(text)
  return path


VALUES = st.recursive(
  st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
  lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@hypothesis.given(VALUES, st.booleans(), st.integers(0, 3))
def test_json_is_read_as_the_standard_library_reads_it(value, plain, lost):
  text = json.dumps(value, ensure_ascii=plain)
  assert json.dumps(files.loads(text)) == json.dumps(json.loads(text))
  broken = text[: len(text) - lost]
  try:
    expected = json.dumps(json.loads(broken))
  except json.JSONDecodeError:
    with pytest.raises(json.JSONDecodeError):
      files.loads(broken)
  else:
    assert json.dumps(files.loads(broken)) == expected


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("chunk", [50, 120, 1 << 22])
def test_a_file_gives_the_columns_of_its_records_however_it_is_cut(tmp_path, monkeypatch, indent, chunk):
  monkeypatch.setattr(files, "_CHUNK", chunk)
  read = files.read_detections(written(tmp_path, json.dumps(records(), indent=indent) + "\n"))
  assert read.image_id.tolist() == [k % 3 for k in range(7)] and read.category_id.tolist() == [1] * 7
  assert read.score.tolist() == [k / 10 for k in range(7)]
  assert read.bbox_xywh_px.tolist() == [[k, 2, 3.5, 4] for k in range(7)]
  np.testing.assert_array_equal(read.bbox_xywh_px, files.read_detections(records()).bbox_xywh_px)


@pytest.mark.parametrize("source", ["[]", " [ ] \n", []])
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_no_detections(tmp_path, source, iou_type):
  read = files.read_detections(written(tmp_path, source) if isinstance(source, str) else source, iou_type)
  assert len(read) == 0 and read.bbox_xywh_px.shape == (0, 4)


@pytest.mark.parametrize("chunk", [50, 1 << 22])
def test_a_file_cut_short_names_the_record(tmp_path, monkeypatch, chunk):
  monkeypatch.setattr(files, "_CHUNK", chunk)
  text = json.dumps(records())
  for cut, record in ((len(text) - 5, 6), (text.index('"score": 0.3') + 3, 3), (1, 0)):
    with pytest.raises(ValueError, match=f"results.json: record {record} breaks off"):
      files.read_detections(written(tmp_path, text[:cut]))
  with pytest.raises(ValueError, match="results.json does not start with"):
    files.read_detections(written(tmp_path, '{"a": 1}'))
  with pytest.raises(FileNotFoundError, match="nowhere.json does not exist"):
    files.read_detections(tmp_path / "nowhere.json")


def test_read_json_tells_a_broken_file(tmp_path):
  with pytest.raises(ValueError, match="results.json is not JSON .cut short"):
    files.read_json(written(tmp_path, '{"images": [1, 2'))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"bbox": [1, 2, 3]}, r"record 4 has bbox \[1, 2, 3\]; give the four numbers"),
    ({"bbox": None}, "record 4 has bbox None"),
    ({"bbox": ["1", 2, 3, 4]}, "record 4 has bbox .'1'"),
    ({"image_id": 1.5}, "record 4 has image_id 1.5; ids are whole numbers"),
    ({"category_id": [1]}, r"record 4 has category_id \[1\]"),
    ({"score": None}, "record 4 has score None"),
  ],
)
def test_records_of_another_form(tmp_path, change, message):
  broken = records()
  broken[4] |= change
  for source in (broken, written(tmp_path, json.dumps(broken))):
    with pytest.raises(ValueError, match=message):
      files.read_detections(source)


def test_records_that_are_no_records():
  with pytest.raises(ValueError, match="record 1 is a int; give objects with image_id"):
    files.read_detections([*records(1), 3])
  with pytest.raises(ValueError, match="holds a dict; give a JSON list"):
    files.read_detections({"image_id": 1})
  with pytest.raises(ValueError, match="iou_type 'box' is not known"):
    files.read_detections([], "box")


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"image_id": 9}, "record 2 is on image id 9, .* split"),
    ({"category_id": 5}, r"record 2 has category id 5; known ids: \[1\]"),
    ({"score": float("inf")}, "record 2 has score inf"),
    ({"bbox": [0, 0, -1, 4]}, "record 2 has bbox .* at least 0"),
    ({"bbox": [0, float("nan"), 1, 4]}, "record 2 has bbox .*nan"),
  ],
)
def test_detections_that_cannot_be_scored(change, message):
  wrong = records()
  wrong[2] |= change
  with pytest.raises(ValueError, match=message):
    files.check_detections(files.read_detections(wrong), SIZES, [1])


def test_masks_have_the_size_of_their_picture():
  def mask(h, w):
    return {"image_id": 0, "category_id": 1, "score": 1, "segmentation": {"size": [h, w], "counts": [0, h * w]}}

  good = files.read_detections([mask(80, 100)], "segm")
  files.check_detections(good, SIZES, [1])
  assert good.areas().tolist() == [8000]
  with pytest.raises(ValueError, match=r"record 1 has a mask of \[100, 80\], but image 0 is \[80, 100\]"):
    files.check_detections(files.read_detections([mask(80, 100), mask(100, 80)], "segm"), SIZES, [1])
  short = {**mask(80, 100), "segmentation": {"size": [80, 100], "counts": [0, 10]}}
  with pytest.raises(ValueError, match=r"record 1 has a mask of \[80, 100\] whose counts add up to 10"):
    files.read_detections([mask(80, 100), short], "segm")
  polygon = {**mask(1, 1), "segmentation": [[0, 0, 5, 0, 5, 5]]}
  with pytest.raises(ValueError, match="record 0 has a segmentation that is not a run-length mask"):
    files.read_detections([polygon], "segm")


def test_corners_for_sizes_are_warned_of():
  rng = np.random.default_rng(0)
  corners = np.sort(rng.uniform(0, 80, (30, 2, 2)), axis=1).reshape(30, 4)
  xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)

  def check(boxes):
    given = [{"image_id": 0, "category_id": 1, "score": 0.5, "bbox": box} for box in boxes.tolist()]
    files.check_detections(files.read_detections(given), SIZES, [1])

  with pytest.warns(UserWarning, match="boxes look like x1, y1, x2, y2 .*subtract"):
    check(corners)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    check(xywh)
    check(np.array([[0.0, 0, 100, 80]]))  # a whole picture reads either way


def test_ids_given_twice_or_unknown():
  with pytest.raises(ValueError, match="image 0 and image 2 have the same id 4"):
    files.unique([4, 5, 4], "file", "image")
  with pytest.raises(ValueError, match="f: record 1 is a second one for question 7"):
    files.by_key([(0, 7, "a"), (1, 7, "b")], [7], "f", "question")
  with pytest.raises(ValueError, match="f: record 0 is for question 8, which the annotations do not list"):
    files.by_key([(0, 8, "a")], [7], "f", "question")

"""What the sources share: json read in pieces, compact columns."""

import json
import pickle

import numpy as np
import pytest

from pipelines.records import BadRecord
from pipelines.sources import index
from pipelines.sources.pictures import Pictures


@pytest.fixture(params=[1, 7, 1 << 20])
def chunk(request, monkeypatch):
  """Pieces so small that every token is cut somewhere, and one that holds everything."""
  monkeypatch.setattr(index, "_CHUNK", request.param)


def read(path, *lists):
  return list(index.read_json(path, lists, "annotations", "a json file"))


CONTENT = {
  "info": {"a": [1, {"b": None}], "text": 'quote " and brace } and ] and ünï😀'},
  "images": [{"id": 1, "name": "grün 😀"}, {"id": 2, "name": "a\\b\n"}, {"id": 3, "nested": {"x": [[], {}]}}],
  "skipped": [1, 2.5, "x", [3]],
  "empty": [],
  "annotations": [{"id": 123456789, "bbox": [1.25, -3e2, 0, None]}] * 5,
  "end": 12,
}


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_pieces_give_what_json_gives(chunk, tmp_path, ascii_only, indent, bom):
  path = tmp_path / "a.json"
  path.write_bytes(bom + json.dumps(CONTENT, ensure_ascii=ascii_only, indent=indent).encode())
  records = read(path, "images", "annotations", "empty")
  for key in ("images", "annotations"):
    mine = [record for record in records if record.list == key]
    assert [record.value for record in mine] == CONTENT[key]
    assert [record.number for record in mine] == list(range(len(mine)))
    places = index.Places(path, [record.begin for record in mine], [record.end for record in mine])
    assert places.read(range(len(mine))) == CONTENT[key]
    assert places.take(np.array([1, 0])).read([0]) == [CONTENT[key][1]]


def test_a_file_that_is_a_list(chunk, tmp_path):
  path = tmp_path / "a.json"
  path.write_text('  [{"a": 1}, {"a": 2} ]\n ')
  assert [record.value for record in read(path, "")] == [{"a": 1}, {"a": 2}]
  path.write_text("[]")
  assert read(path, "") == []
  path.write_text("[123, 45]")
  assert [record.value for record in read(path, "")] == [123, 45]


@pytest.mark.parametrize(
  "text, message",
  [
    ('{"images": [{"a": 1}', "not valid json .*too early.*truncated"),
    ('{"images": [{"a": 1}, {"b', "not valid json .*truncated"),
    ('{"images": [{"a": 1}]', "not valid json"),
    ('{"images": [{"a": 1}]} x', "not valid json .*follows the end"),
    ('{"images": [{"a": 1} {"a": 1}]}', "not valid json .*expected one of"),
    ('{"images": [{"a": 1},]}', "not valid json"),
    ('{"images": [], "images": []}', "'images' stands in it twice"),
    ("{images: []}", "expected a name in quotation marks"),
    ('{"images": [' + "[" * 100_000, "not valid json"),
    ('{"images": {"a": 1}}', "has no list images; set `annotations` to a json file"),
    ('{"images": null}', "has no list images"),
    ("[]", "has no list images"),
    ("", "not valid json"),
    ("12", "not valid json"),
  ],
)
def test_broken_files_are_named(tmp_path, text, message):
  path = tmp_path / "a.json"
  path.write_text(text)
  with pytest.raises(ValueError, match=rf"annotation file .*a\.json .*{message}"):
    read(path, "images")


def test_wrong_bytes_are_named(tmp_path):
  path = tmp_path / "a.json"
  path.write_bytes(b'{"images": ["\xff\xfe"]}')
  with pytest.raises(ValueError, match=r"a\.json is not valid json"):
    read(path, "images")
  path.write_text('{"images": []}')
  with pytest.raises(ValueError, match=r"a\.json is no list; set"):
    read(path, "")
  with pytest.raises(FileNotFoundError, match="set `annotations` to a json file"):
    read(tmp_path / "b.json", "images")


def test_a_broken_record_is_not_read_into_memory_without_end(monkeypatch, tmp_path):
  path = tmp_path / "a.json"
  path.write_text('{"images": ["' + "x" * 100_000)
  monkeypatch.setattr(index, "_CHUNK", 100)
  monkeypatch.setattr(index, "_LONGEST", 1000)
  stream = index._Stream(open(path, "rb"))
  stream.take("{"), stream.value(), stream.take(":"), stream.take("[")
  with pytest.raises(json.JSONDecodeError):
    stream.value()
  assert len(stream.text) < 10_000


@pytest.mark.parametrize(
  "ask, message",
  [
    (lambda r: r["missing"], r"images\[4\] has no 'missing'; add it or remove the entry"),
    (lambda r: r.whole("text"), "has the text 'abc'; it needs a whole number"),
    (lambda r: r.whole("true"), "has the true True; it needs a whole number"),
    (lambda r: r.whole("big"), "it needs a whole number"),
    (lambda r: r.text("list"), "it needs a text"),
    (lambda r: r.text("half"), "it needs a text"),
    (lambda r: r.flag("big"), "it needs 0 or 1"),
    (lambda r: r.items("text"), "it needs a list"),
    (lambda r: r.wholes("texts"), "it needs whole numbers"),
    (lambda r: r.numbers("list", 3), "it needs 3 numbers"),
    (lambda r: r.numbers("texts", 2), "it needs 2 numbers"),
  ],
)
def test_accessors_name_the_entry(tmp_path, ask, message):
  value = {"text": "abc", "true": True, "big": 2**63, "list": [1, 2], "half": "\ud800", "texts": ["1", "2"]}
  record = index.Record(tmp_path / "a.json", "images", 4, value)
  with pytest.raises(ValueError, match=message):
    ask(record)
  with pytest.raises(ValueError, match="has no 'x'"):
    index.Record(tmp_path, "", 0, [1, 2])["x"]


def test_accessors_give_values(tmp_path):
  record = index.Record(tmp_path, "", 0, {"a": 2**62, "b": [1, None, 1e400, 2.5], "c": "é", "d": 1, "e": False})
  assert record.whole("a") == 2**62 and record.text("c") == "é" and record.flag("d") and not record.flag("e")
  np.testing.assert_array_equal(record.numbers("b", 4), [1, np.nan, np.nan, 2.5])
  assert record.optional("a") == 2**62 and record.optional("z") is None


def test_strings():
  texts = ["", "abc", "grün", "😀", ""]
  strings = pickle.loads(pickle.dumps(index.Strings(texts)))
  assert list(strings) == texts and len(strings) == 5
  with pytest.raises(IndexError):
    strings[5]


def test_group_and_inclusive():
  order, ends = index.group(np.array([2, 0, 2, 0]), 4)
  assert [order[ends[i] : ends[i + 1]].tolist() for i in range(4)] == [[1, 3], [], [0, 2], []]
  boxes = index.inclusive(np.array([[1, 2, 3, 4], [1, 2, 0.5, 1], [5, 5, 0, -2], [0, 0, np.nan, 1]]))
  np.testing.assert_array_equal(boxes[:3], [[1, 2, 3, 5], [1, 2, 1, 2], [5, 5, 4, 2]])
  assert np.isnan(boxes[3, 2])


def test_pictures_are_files(tmp_path):
  (tmp_path / "a.jpg").write_bytes(b"xyz")
  pictures = Pictures(tmp_path, ["a.jpg", "b.jpg", ".", "/dev/zero", "a\0b"])
  assert Pictures.found(tmp_path, [["x"], ["a.jpg"], ["a.jpg", "b.jpg"]], [0]).names[0] == "a.jpg"
  assert pictures.read(0, "r") == b"xyz"
  for i in range(1, 5):
    with pytest.raises(BadRecord, match="missing_image"):
      pictures.read(i, "r")
  with pytest.raises(FileNotFoundError, match="none of the first 2 pictures exists.*check `images`"):
    Pictures.found(tmp_path, [["a.jpg", "b", "c"], ["d", "e", "f"]], [1, 2])

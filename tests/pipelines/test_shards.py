"""pipelines/prepare/shards.py and the source array_record: nothing is lost on the way, and cut-off work goes on."""

import dataclasses
import hashlib
import json
import pathlib
import sys

import numpy as np
import pytest

from launch import data
from pipelines import images, masks
from pipelines.example_bytes import from_bytes, to_bytes
from pipelines.records import BadRecord, Example, KnowsSizes, Question
from pipelines.sources import open_source
from tests.pipelines.box_dialects import BOX_WRITERS
from tests.pipelines.dialects import WRITERS, copied, picture, read_all, same

EVERY = WRITERS | BOX_WRITERS
FULL = Example(
  source="mine",
  image_id=2**62 + 1,
  kind="grounding",
  image=picture(3),
  boxes_xyxy_px=np.array([[0.1, 1.7, 9, 9], [np.nan, -3, np.inf, 1e-30], [1, 2, 3, 4]], np.float32),
  labels=("a", "ü 🐶", "a"),
  caption="ein Hund 🐶 und",
  spans=(((0, 3), (4, 8)), (), ((9, 10),)),
  absent=("b", "c"),
  unsure=("d",),
  masks=(
    masks.from_pixels(np.arange(600).reshape(20, 30) % 7 < 3),
    None,
    masks.from_points([[[1, 2], [10.3, 2], [7, 9.1]], [[1, 1], [2, 1], [2, 2]]], (20, 30)),
  ),
  questions=(Question("what?", ("a dog", "dog"), 2**40), Question("why?")),
  image_size=(20, 30),
  text_id=-5,
)


def test_every_field_survives():
  for field in dataclasses.fields(Example):
    default = field.default
    assert default is dataclasses.MISSING or getattr(FULL, field.name) != default, f"FULL lacks {field.name}"
  found = from_bytes(to_bytes(FULL))
  for field in dataclasses.fields(Example):
    own, other = getattr(FULL, field.name), getattr(found, field.name)
    assert type(own) is type(other)
    if field.name == "boxes_xyxy_px":
      assert own.dtype == other.dtype and own.tobytes() == other.tobytes()
    elif field.name == "masks":
      assert [m and m.size for m in own] == [m and m.size for m in other]
      np.testing.assert_array_equal(own[0].runs, other[0].runs)
      assert own[2].runs is other[2].runs is None and other[0].polygons == ()
      assert [p.tolist() for p in own[2].polygons] == [p.tolist() for p in other[2].polygons]
    else:
      assert own == other


def test_absence_is_not_emptiness():
  bare = dataclasses.replace(FULL, absent=None, masks=None, text_id=None, image_size=None, questions=())
  found = from_bytes(to_bytes(bare))
  assert (found.absent, found.masks, found.text_id, found.image_size, found.questions) == (None, None, None, None, ())
  assert from_bytes(to_bytes(dataclasses.replace(FULL, absent=(), masks=()))).absent == ()


def test_pixels_come_back_as_the_same_pixels():
  pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
  found = from_bytes(to_bytes(dataclasses.replace(FULL, image=pixels)))
  np.testing.assert_array_equal(images.decode(found.image), pixels)


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_bytes_that_are_no_record(cut):
  with pytest.raises(ValueError, match="bytes are no example"):
    from_bytes(to_bytes(FULL)[:cut])


def prepare(source, out, *more):
  return data.main(["prepare", "--source", *source, "--out", str(out), *more])


def words(kind, options):
  return [kind, *(f"{name}={value!r}" for name, value in options.items())]


@pytest.mark.parametrize("name", EVERY)
def test_every_dialect_comes_back(tmp_path, name):
  kind, write, _ = EVERY[name]
  folder = tmp_path / "source"
  folder.mkdir()
  options = write(folder)
  assert prepare(words(kind, options), tmp_path / "out", "--per-shard", "2") == 0
  source, shards = open_source(kind, **options), open_source("array_record", data=str(tmp_path / "out"))
  assert (shards.name, shards.kind, shards.classes) == (source.name, source.kind, source.classes)
  originals = read_all(source)
  assert len(shards) == len(originals) > 0 and not any(isinstance(example, BadRecord) for example in originals)
  assert all(map(same, originals, read_all(shards))) and all(map(same, originals, read_all(copied(shards))))
  assert isinstance(shards, KnowsSizes)  # so that batches are made of one shape
  assert shards.sizes().tolist() == [list(images.decode(example.image).shape[:2]) for example in originals]


SHAPES = ["shapes", "split=val", "size=(64, 64)", "length=11"]


def test_work_that_was_cut_off_goes_on(tmp_path):
  assert prepare(SHAPES, tmp_path, "--per-shard", "3") == 0
  manifest = json.loads((tmp_path / "manifest.json").read_text())
  assert [s["records"] for s in manifest["shards"]] == [3, 3, 3, 2] and manifest["records"] == 11
  files = [tmp_path / shard["file"] for shard in manifest["shards"]]
  for file, shard in zip(files, manifest["shards"]):
    assert hashlib.sha256(file.read_bytes()).hexdigest() == shard["sha256"]
    assert file.stat().st_size == shard["bytes"]
  times = [file.stat().st_mtime_ns for file in files]
  files[1].with_suffix(".json").unlink()  # cut off between the shard and its json
  files[2].write_bytes(files[2].read_bytes()[:-1])  # cut short
  damaged = bytearray(files[3].read_bytes())
  damaged[-40] ^= 1
  files[3].write_bytes(damaged)
  (tmp_path / "manifest.json").unlink()
  with pytest.raises(FileNotFoundError, match="manifest.json does not exist"):
    open_source("array_record", data=str(tmp_path))
  assert prepare(SHAPES, tmp_path, "--per-shard", "3", "--verify") == 0
  again = [file.stat().st_mtime_ns for file in files]
  assert [a == b for a, b in zip(times, again)] == [True, False, False, False]
  shards, source = open_source("array_record", data=str(tmp_path)), open_source("shapes", split="val", size=(64, 64))
  for i in (10, 0, 5):
    np.testing.assert_array_equal(images.decode(shards[i].image), source[i].image)
    assert shards[i].labels == source[i].labels and shards[i].questions == source[i].questions
  assert not list(tmp_path.glob("*.unfinished"))


def test_another_plan_is_refused(tmp_path, capsys):
  assert prepare(SHAPES, tmp_path, "--per-shard", "6") == 0
  assert prepare(SHAPES, tmp_path, "--per-shard", "3") == 1
  assert "per_shard 6 -> 3" in capsys.readouterr().err


@pytest.fixture
def broken(tmp_path):
  """(the words of a COCO-format source with a broken picture, its clean Examples, how many of them are broken)."""
  kind, write, _ = BOX_WRITERS["coco"]
  folder = tmp_path / "source"
  folder.mkdir()
  options = write(folder)
  clean = read_all(open_source(kind, **options))
  for path in folder.rglob("*.png"):
    if path.read_bytes() == clean[0].image:
      path.write_bytes(clean[0].image[:40])
  count = sum(e.image == clean[0].image for e in clean)
  assert 0 < count < len(clean)
  return words(kind, options), clean, count


def test_broken_records_are_counted_and_too_many_stop(tmp_path, capsys, broken):
  """A whole shard without a usable record too."""
  command, clean, count = broken
  assert prepare(command, tmp_path / "out", "--per-shard", "1") == 1
  assert "undecodable_image" in capsys.readouterr().err
  assert not (tmp_path / "out" / "manifest.json").exists()
  assert prepare(command, tmp_path / "out", "--per-shard", "1", "--skip-limit", "0.99") == 0
  assert json.loads((tmp_path / "out" / "manifest.json").read_text())["left_out"] == {"undecodable_image": count}
  shards = open_source("array_record", data=str(tmp_path / "out"))
  assert all(map(same, [e for e in clean if e.image != clean[0].image], read_all(shards)))
  assert len(shards) == len(clean) - count


def test_beam_makes_the_same_bytes_and_goes_on(tmp_path, broken, capsys):
  """Broken records are counted, too many stop it, finished shards stay as they are."""
  pytest.importorskip("apache_beam", reason="needs the extra `beam`")
  command, plain, beam = broken[0], tmp_path / "plain", tmp_path / "beam"
  assert prepare(command, beam, "--per-shard", "1", "--beam") == 1
  assert "undecodable_image" in capsys.readouterr().err and not (beam / "manifest.json").exists()
  gone, *kept = sorted(beam.glob("*.array_record"))
  times = [path.stat().st_mtime_ns for path in kept]
  gone.unlink()
  limit = ["--skip-limit", "0.99"]
  assert prepare(command, beam, "--per-shard", "1", *limit, "--beam", "--direct_num_workers", "1") == 0
  assert [path.stat().st_mtime_ns for path in kept] == times
  assert prepare(command, plain, "--per-shard", "1", *limit) == 0
  made = sorted(path.name for path in plain.iterdir())
  assert made == sorted(path.name for path in beam.iterdir())
  assert all((plain / name).read_bytes() == (beam / name).read_bytes() for name in made)
  assert prepare(command, plain, "--per-shard", "1", "--beam", "--runner", "nothing") == 1
  assert "Unexpected pipeline runner: nothing" in capsys.readouterr().err


def test_beam_is_missing_or_in_the_way(tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, "apache_beam", None)
  assert prepare(SHAPES, tmp_path, "--beam") == 1
  assert 'pip install "glipv2_jax[beam]"' in capsys.readouterr().err
  assert prepare(SHAPES, tmp_path, "--processes", "2", "--beam") == 1
  assert "--processes and --beam exclude each other" in capsys.readouterr().err


def test_damage_is_a_bad_record_or_stops_the_start(tmp_path):
  assert prepare(SHAPES, tmp_path, "--per-shard", "11") == 0
  (path,) = tmp_path.glob("*.array_record")
  original, rng = path.read_bytes(), np.random.default_rng(0)
  clean, seen = read_all(open_source("array_record", data=str(tmp_path))), 0
  assert not any(isinstance(example, BadRecord) for example in clean)
  for _ in range(30):
    damaged = bytearray(original)
    damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
    path.write_bytes(damaged)
    found = read_all(open_source("array_record", data=str(tmp_path)))
    assert all(isinstance(e, BadRecord) or same(e, c) for e, c in zip(found, clean, strict=True))
    seen += any(isinstance(e, BadRecord) for e in found)
  assert seen > 15
  shards, sizes = open_source("array_record", data=str(tmp_path)), tmp_path / "sizes.npy"
  np.save(sizes, shards.sizes()[1:])
  with pytest.raises(ValueError, match=r"sizes.npy holds \(10, 2\) int32, not \(11, 2\)"):
    shards.sizes()
  sizes.unlink()
  with pytest.raises(FileNotFoundError, match="sizes.npy is missing; run the command"):
    shards.sizes()
  path.write_bytes(original[:-7])
  with pytest.raises(FileNotFoundError, match="has not the"):
    open_source("array_record", data=str(tmp_path))


def test_many_shards_keep_few_files_open(tmp_path):
  assert prepare(["shapes", "split=val", "size=(64, 64)", "length=90"], tmp_path, "--per-shard", "1") == 0
  shards = open_source("array_record", data=str(tmp_path))
  descriptors = pathlib.Path("/proc/self/fd")
  if not descriptors.is_dir():
    pytest.skip("needs /proc")
  before = len(list(descriptors.iterdir()))
  assert [shards[i].image_id for i in range(90)] == list(range(90))
  assert len(list(descriptors.iterdir())) - before <= 64

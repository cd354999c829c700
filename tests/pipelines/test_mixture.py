"""Batches: the same for any number of workers, hosts and restarts; evaluation sees every image once."""

import collections
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from glipv2_jax.schema import abstract_batch
from pipelines import build, mixture
from pipelines.build import DataConfig, Look, evaluation_batches, evaluation_plan, train_batches
from pipelines.masking import MaskingConfig
from pipelines.mixture import Mixture, Part, Place
from pipelines.prepare_example import Prepare, PrepareConfig
from pipelines.prompts import PromptConfig
from pipelines.records import BadRecord, Example, HostBatch
from pipelines.sources.coco_json import CocoJson
from pipelines.sources.shapes import Shapes
from pipelines.words import load_words

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Options of a COCO-format folder of 12 pictures, one of them truncated."""
  path = tmp_path_factory.mktemp("coco")
  for i in range(12):
    pixels = np.random.default_rng(i).integers(0, 255, (30 + i, 40, 3), np.uint8)
    Image.fromarray(pixels).save(path / f"{i}.jpg")
  data = (path / "5.jpg").read_bytes()
  (path / "5.jpg").write_bytes(data[: len(data) // 2])
  content = {
    "images": [{"id": i, "file_name": f"{i}.jpg", "height": 30 + i, "width": 40} for i in range(12)],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    "annotations": [
      {"id": i, "image_id": i % 12, "category_id": 1 + i % 2, "bbox": [i % 12, 3, 9, 9]} for i in range(23)
    ],
  }
  (path / "a.json").write_text(json.dumps(content))
  return (("annotations", str(path / "a.json")), ("images", str(path)))


@pytest.fixture(scope="module")
def cfg(folder):
  return DataConfig(
    sources=(
      ("shapes", 0.5, (("size", (64, 64)), ("task", "grounding"))),
      ("shapes", 0.25, (("size", (64, 64)),)),
      ("coco_json", 0.25, folder),
    ),
    tokenizer="shapes",
    max_tokens=48,
    canvases=((64, 64), (48, 80)),
    masking=MaskingConfig(),
    batch=4,
    max_boxes=10,
  )


def read(cfg, count, **options) -> list[HostBatch]:
  with train_batches(cfg, **options) as batches:
    return [next(batches) for _ in range(count)]


def same(a: HostBatch, b: HostBatch) -> bool:
  arrays = (f.name for f in dataclasses.fields(a.batch))
  equal = all(np.array_equal(getattr(a.batch, name), getattr(b.batch, name)) for name in arrays)
  return equal and (a.info, a.skipped, a.reduced) == (b.info, b.skipped, b.reduced)


def test_batches_have_the_shapes_of_the_schema(cfg):
  seen = set()
  for host_batch in read(cfg, 8):
    canvas = host_batch.batch.image.shape[1:3]
    expected = abstract_batch(4, canvas, 48, 10, hidden=True)
    for field in dataclasses.fields(expected):
      got, wanted = getattr(host_batch.batch, field.name), getattr(expected, field.name)
      assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype), field.name
    seen.add(canvas)
    valid = host_batch.batch.boxes_valid
    assert host_batch.batch.positive_map.any(-1).tolist() == valid.tolist()
    assert not host_batch.batch.boxes_xyxy_px[~valid].any() and (host_batch.batch.box_concept[~valid] == -1).all()
    assert host_batch.batch.example_valid.all() and None not in host_batch.info
  assert seen == set(cfg.canvases)


def test_workers_change_nothing(cfg):
  alone = read(cfg, 6)
  for workers in (1, 2):
    other = read(dataclasses.replace(cfg, workers=workers), 6)
    assert all(map(same, alone, other))
  assert any(batch.skipped for batch in read(cfg, 30))  # the truncated picture took part


def test_hosts_concatenate_to_the_batches_of_one(cfg):
  alone = read(cfg, 5)
  halves = [read(cfg, 5, host=host, hosts=2) for host in range(2)]
  for whole, first, second in zip(alone, *halves, strict=True):
    for field in dataclasses.fields(whole.batch):
      parts = [getattr(x.batch, field.name) for x in (first, second)]
      np.testing.assert_array_equal(np.concatenate(parts), getattr(whole.batch, field.name))
    assert first.info + second.info == whole.info and first.skipped + second.skipped == whole.skipped


def test_resume_in_the_middle_is_exact(cfg):
  alone = read(cfg, 9)
  assert all(map(same, alone[5:], read(cfg, 4, start_step=5)))
  second = read(cfg, 9, host=1, hosts=2)
  assert all(map(same, second[7:], read(cfg, 2, start_step=7, host=1, hosts=2)))


def test_seed_changes_batches(cfg):
  assert not any(map(same, read(cfg, 3), read(dataclasses.replace(cfg, seed=1), 3)))


def test_weights_and_epochs():
  mixed = Mixture([10, 4], [0.75, 0.25], ((8, 8),), batch=4, seed=0)
  drawn = [mixed(k) for k in range(4000)]
  assert abs(sum(place.source == 0 for place in drawn) - 3000) <= 2
  for source, length in ((0, 10), (1, 4)):
    records = [place.record for place in drawn if place.source == source]
    epochs = [records[i : i + length] for i in range(0, len(records) - length, length)]
    assert all(sorted(epoch) == list(range(length)) for epoch in epochs)  # everything once per epoch
    assert len({tuple(epoch) for epoch in epochs}) > 10  # in ever new order
  assert mixed(4 * 10**15).record in range(10)  # any position is reached at once


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 24, 1000])
def test_an_order_is_a_permutation(length):
  part = Part(0, length, key=(0, length))
  for epoch in range(3):
    assert sorted(part(epoch * length + i) for i in range(length)) == list(range(length))


def test_orders_are_uniform():
  """Of four records each of the 24 orders turns up as often as the others: chi-square with 23 degrees of freedom."""
  part, count = Part(0, 4, key=(7, 0)), 4800
  orders = collections.Counter(tuple(part(epoch * 4 + i) for i in range(4)) for epoch in range(count))
  assert len(orders) == 24
  assert sum((n - count / 24) ** 2 / (count / 24) for n in orders.values()) < 50  # 0.999 quantile: 49.7


def test_neighbours_in_a_large_source_are_strangers():
  part = Part(0, 10_000_000, key=(0, 0))
  drawn = np.array([part(k) for k in range(3000)])
  assert len(set(drawn.tolist())) == 3000
  assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.06
  counts = np.histogram(drawn, bins=10, range=(0, 10_000_000))[0]
  assert abs(counts - 300).max() < 80


@pytest.mark.parametrize("parts", [(1,), (1, 1), (3, 1), (1, 5, 2), (400, 150, 450)])
def test_interleaving_is_even_and_leaves_nothing_out(parts):
  found = [mixture.interleave(k, parts) for k in range(1000)]
  for which, part in enumerate(parts):
    positions = [position for w, position in found if w == which]
    assert positions == list(range(len(positions)))
    for n in (10, 137, 1000):
      assert abs(sum(w == which for w, _ in found[:n]) - n * part / sum(parts)) < len(parts)


def test_shares_of_sources():
  lengths, weights = [100, 300], [1.0, 1.0]
  assert mixture.shares(lengths, weights, "share", 1.0) == [0.5, 0.5]
  assert mixture.shares(lengths, weights, "repeats", 1.0) == [0.25, 0.75]
  assert mixture.shares(lengths, [3.0, 1.0], "repeats", 1.0) == [0.5, 0.5]
  warm = mixture.shares(lengths, weights, "repeats", 2.0)
  np.testing.assert_allclose(warm, np.sqrt([0.25, 0.75]) / np.sqrt([0.25, 0.75]).sum())
  for options, message in (
    (([1, 2], [1.0, 1.0], "parts", 1.0), "weighting 'parts'"),
    (([1, 2], [1.0, 1.0], "share", 0.0), "temperature 0.0"),
    (([1, 2], [1.0, -1.0], "share", 1.0), "above 0"),
    (([1, 0], [1.0, 1.0], "share", 1.0), "above 0"),
  ):
    with pytest.raises(ValueError, match=message):
      mixture.shares(*options)


CANVASES = ((480, 672), (672, 480), (800, 1120), (1120, 800))


def test_canvas_depends_on_seed_and_batch_alone():
  canvases = ((1, 1), (3, 3), (5, 5))
  drawn = [Mixture([9], [1.0], canvases, 2, seed=0).canvas(n) for n in range(600)]
  assert min(collections.Counter(drawn)[c] for c in canvases) > 150
  assert drawn != [Mixture([9], [1.0], canvases, 2, seed=1).canvas(n) for n in range(600)]
  assert drawn == [Mixture([4, 5], [0.5, 0.5], canvases, 2, seed=0).canvas(n) for n in range(600)]


def test_batches_take_pictures_of_their_shape():
  """Two sources, one of them without sizes; every record of both is still read once per epoch of its shape."""
  sizes = np.array([(480, 640), (640, 480), (427, 640), (500, 333), (480, 640), (0, 0)], np.int32)
  assert mixture.shapes(CANVASES) == [[(480, 672), (800, 1120)], [(672, 480), (1120, 800)]]
  mixed = Mixture([6, 5], [0.6, 0.4], CANVASES, batch=4, seed=3, sizes=lambda source: None if source else sizes)
  places = [mixed(k) for k in range(8000)]
  for n in range(0, 8000, 4):
    assert len({place.canvas for place in places[n : n + 4]}) == 1 and places[n].canvas == mixed.canvas(n // 4)
  assert {p.record for p in places if p.source == 0 and p.canvas[0] > p.canvas[1]} == {1, 3}
  assert {p.record for p in places if p.source == 0 and p.canvas[0] < p.canvas[1]} == {0, 2, 4, 5}
  assert all(p.canvas[0] < p.canvas[1] for p in places if p.source == 1)  # unknown: the shape of the first canvas
  counts = collections.Counter((p.source, p.record) for p in places)
  for record in range(6):
    assert abs(counts[0, record] - 800) <= 8
  for record in range(5):
    assert abs(counts[1, record] - 640) <= 8
  with pytest.raises(ValueError, match=r"sizes of shape \(5, 2\) for 6 records"):
    Mixture([6], [1.0], CANVASES, 4, 0, lambda source: sizes[:5])


def test_impossible_configurations_stop_at_start(cfg):
  for options, message in (
    (dict(batch=5), "global batch of 5 cannot be split over 2 hosts"),
    (dict(sources=()), r"sources=\(\)"),
    (dict(canvases=()), r"canvases=\(\)"),
    (dict(sources=(("shapes", 0.0, ()),)), r"weights \[0.0\]"),
  ):
    with pytest.raises(ValueError, match=message):
      train_batches(dataclasses.replace(cfg, **options), hosts=2)
  with pytest.raises(ValueError, match="host 2 of 2"):
    train_batches(cfg, host=2, hosts=2)


class Flaky:
  """A source in which every second record is broken (`stride` 2), or every one (1)."""

  name, classes = "flaky", ("cat",)

  def __init__(self, stride):
    self.stride = stride

  def __len__(self):
    return 20

  def __getitem__(self, index):
    if index % self.stride == 0:
      raise BadRecord("broken", f"flaky/{index}")
    pixels = np.full((8, 8, 3), index, np.uint8)
    return Example("flaky", index, "detection", pixels, np.array([[1, 1, 4, 4]], np.float32), ("cat",))


def test_bad_records_are_replaced_and_counted():
  cfg = PrepareConfig(canvases=((8, 8),), batch=4, max_boxes=2, prompt=PromptConfig(mode="all"))
  words = load_words("shapes", 16)
  mixed = Mixture([20], [1.0], cfg.canvases, cfg.batch, seed=0)
  prepare = Prepare((Flaky(2),), words, cfg, mixed)
  for k in range(20):
    place = Place((8, 8), 0, 0, k)
    out = prepare(k, place)
    assert out.image_id % 2 == 1 and out.image_id == out.image[0, 0, 0]
    assert (len(out.skipped) == 0 and out.image_id == k) if k % 2 else out.skipped[0] == ("broken", f"flaky/{k}")
    assert out.skipped == prepare(k, place).skipped
  with pytest.raises(RuntimeError, match="'flaky': 20 records in a row cannot be used.*flaky/3"):
    Prepare((Flaky(1),), words, cfg, mixed)(0, Place((8, 8), 0, 0, 3))


def test_training_counts_the_truncated_picture(cfg, folder):
  batches = read(dataclasses.replace(cfg, sources=(("coco_json", 1.0, folder),)), 12)
  assert {pair for batch in batches for pair in batch.skipped} == {("undecodable_image", "coco_json/5")}


def evaluate(source, words, cfg, limit=None, **options):
  with evaluation_batches(source, words, cfg, evaluation_plan(source, cfg, limit), **options) as batches:
    assert batches.length == len(found := list(batches))
    return found


@pytest.mark.parametrize("hosts", [1, 2])
def test_evaluation_sees_every_image_once_per_look(folder, hosts):
  source = CocoJson(**dict(folder), keep_empty=True)
  words = load_words("shapes", 16)
  cfg = PrepareConfig(canvases=((40, 40), (24, 60)), batch=4, max_boxes=4)
  looks = (Look(), Look(2.0, mirrored=True))
  parts = [evaluate(source, words, cfg, host=h, hosts=hosts, looks=looks) for h in range(hosts)]
  assert len({len(part) for part in parts}) == 1
  for together in zip(*parts, strict=True):
    assert len({x.batch.image.shape for x in together}) == 1  # every host has the same canvas
  rows = [info for part in parts for batch in part for info in batch.info if info]
  assert collections.Counter((i.image_id, i.mirrored) for i in rows) == collections.Counter(
    (i, mirrored) for i in range(12) if i != 5 for mirrored in (False, True)
  )
  for part in parts:  # the two looks at a batch follow each other
    for first, second in zip(part[::2], part[1::2], strict=True):
      assert [i and i.image_id for i in first.info] == [i and i.image_id for i in second.info]
      assert first.batch.image.shape[1] in (40, 24) and second.batch.image.shape[1] in (64, 96)
  skipped = [pair for part in parts for batch in part for pair in batch.skipped]
  assert skipped == [("undecodable_image", "coco_json/5")] * 2
  for part in parts:
    for batch in part:
      assert batch.batch.example_valid.tolist() == [info is not None for info in batch.info]
      assert batch.batch.tokens_valid.any(1).all()


def test_evaluation_groups_by_the_best_canvas():
  source = Shapes(split="val", task="grounding", size=(64, 64), max_size=(96, 160), length=10)
  cfg = PrepareConfig(canvases=((64, 64), (64, 128)), batch=3, max_boxes=12)
  found = evaluate(source, load_words("shapes", 48), cfg)
  for batch in found:
    for info in filter(None, batch.info):
      height, width = info.original_size
      wide = min(64 / height, 128 / width) > min(64 / height, 64 / width)
      assert batch.batch.image.shape[2] == (128 if wide else 64)
  ids = [info.image_id for batch in found for info in batch.info if info]
  assert sorted(ids) == list(range(10))


def test_evaluation_with_workers_and_limit_is_the_same():
  source = Shapes(split="val", size=(64, 64), length=9)
  words, cfg = load_words("shapes", 128), PrepareConfig(canvases=((64, 64),), batch=4, max_boxes=10)
  alone, helped = (evaluate(source, words, cfg, limit=6, workers=workers) for workers in (0, 1))
  assert len(alone) == len(helped) and all(map(same, alone, helped))
  assert {info.image_id for batch in alone for info in batch.info if info} == set(range(6))


PROGRAM = """
from pipelines.build import DataConfig, train_batches
import jax

if __name__ == "__main__":
  cfg = DataConfig((("shapes", 1.0, (("size", (64, 64)),)),), "shapes", 64, ((64, 64),), 4, workers={workers})
  batches = train_batches(cfg)
  print(next(batches).info[0].image_id, len(jax._src.xla_bridge._backends))
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_a_program_that_does_not_close_ends_quietly(tmp_path, workers):
  """A script without absl flags, left in the middle; nothing on the host side starts a JAX backend."""
  (tmp_path / "program.py").write_text(PROGRAM.format(workers=workers))
  env = os.environ | {"PYTHONPATH": str(ROOT)}
  done = subprocess.run(
    [sys.executable, str(tmp_path / "program.py")], capture_output=True, text=True, timeout=600, env=env
  )
  assert done.returncode == 0 and done.stderr == ""
  assert done.stdout.split()[1] == "0"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes by their number")
def test_workers_end_with_a_killed_program(tmp_path):
  """kill -9 on the main process leaves no worker behind."""
  program = PROGRAM.format(workers=1) + "\n  import multiprocessing, os, time"
  program += "\n  print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n  time.sleep(60)\n"
  (tmp_path / "program.py").write_text(program)
  env = os.environ | {"PYTHONPATH": str(ROOT)}
  with subprocess.Popen(
    [sys.executable, str(tmp_path / "program.py")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env
  ) as main:
    main.stdout.readline()
    workers = [int(pid) for pid in main.stdout.readline().split()]
    assert workers and all(pathlib.Path(f"/proc/{pid}").exists() for pid in workers)
    main.kill()
  deadline = time.monotonic() + 20
  while any(pathlib.Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
    time.sleep(0.1)
  assert not any(pathlib.Path(f"/proc/{pid}").exists() for pid in workers)


def test_errors_of_workers_reach_the_main_process(folder, tmp_path):
  for name in ("a.json", "0.jpg"):
    (tmp_path / name).write_bytes((pathlib.Path(dict(folder)["images"]) / name).read_bytes())
  (tmp_path / "0.jpg").write_bytes(b"nothing")
  source = ("coco_json", 1.0, (("annotations", str(tmp_path / "a.json")), ("images", str(tmp_path))))
  cfg = DataConfig((source,), "shapes", 16, ((32, 32),), batch=1, workers=1)
  with train_batches(cfg) as batches, pytest.raises(RuntimeError, match="coco_json.*20 records in a row"):
    next(batches)


def test_closed_batches_say_so(cfg):
  batches = build.train_batches(cfg)
  next(batches)
  batches.close()
  batches.close()
  with pytest.raises(ValueError, match="closed"):
    next(batches)

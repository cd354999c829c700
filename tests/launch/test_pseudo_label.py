"""`glipv2 pseudo-label` with the checkpoint of a tiny random network: files, restart, hosts, counts, truth."""

import collections
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import demo
from glipv2_jax.models import glipv2, variants
from glipv2_jax.train import checkpoint
from glipv2_jax.train.state import TrainState
from launch import cli, predicting
from pipelines import images, pseudo_labels
from pipelines.prepare_example import PrepareConfig
from pipelines.pseudo_labels import Rules
from pipelines.records import Example
from pipelines.sources import open_source
from pipelines.sources.glip_tsv import GlipTsv
from pipelines.sources.shapes import Shapes
from pipelines.words import load_words
from tests.launch.test_predict import tiny_model


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  c = demo.get_config()
  c.model.variant = "tiny"
  c.eval.canvases = ((64, 96),)
  c.eval.batch = 8
  c.train.evaluate_ema = False
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(variants.VARIANTS, "tiny", tiny_model())
    patch.setattr(jax, "local_devices", lambda: jax.devices()[:2])
    patch.setattr(predicting, "Predictor", functools.cache(predicting.Predictor))  # compiles once for all commands
    folder = tmp_path_factory.mktemp("teacher")
    rng = np.random.default_rng(0)
    shapes = glipv2.abstract_params(tiny_model())
    params = jax.tree.map(lambda x: jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype), shapes)
    state = TrainState(jnp.int32(7), params, {}, params)
    with checkpoint.manager(folder / checkpoint.FOLDER) as checkpoints:
      checkpoint.save(checkpoints, state, checkpoint.Meta(7, 70, 1.0, "tiny", c.to_dict(), "unknown", {}, {}))
    yield folder


SOURCE = ["shapes", "task='grounding'", "size=[64, 64]", "split=val", "max_size=(64, 90)"]
CAPTIONS = 22


def label(teacher, out, *more):
  rules = ["--threshold", "0.06", "--limit", str(CAPTIONS), "--shard-size", "8", "--tagger", "rules", "--workers", "2"]
  options = ["--checkpoint", str(teacher), "--source", *SOURCE, "--out", str(out), *rules, *more]
  return cli.main(["pseudo-label", *options])


@pytest.fixture(scope="module")
def done(teacher, tmp_path_factory):
  out = tmp_path_factory.mktemp("done")
  assert label(teacher, out) == 0
  return out


def test_shards_are_read_as_a_data_set(done):
  """Every row is the caption and picture of its scene, boxes lie inside and their spans are phrases of the caption."""
  manifest = json.loads((done / "manifest.json").read_text())
  rows = GlipTsv(str(done / "*.train.yaml"), confidence=0.0)
  truth = Shapes(split="val", task="grounding", size=(64, 64), max_size=(64, 90))
  assert 0 < len(rows) == manifest["counts"]["kept"]
  keys = [
    int(k) for p in sorted(done.glob("*.label.tsv")) for k in (x.split("\t")[0] for x in p.read_text().splitlines())
  ]
  assert keys == sorted(keys)
  for i, key in enumerate(keys):
    example, scene = rows[i], truth[key]
    assert example.caption == scene.caption and example.image_size == scene.image.shape[:2]
    np.testing.assert_array_equal(images.decode(example.image), scene.image)
    height, width = example.image_size
    assert (example.boxes_xyxy_px >= 0).all() and (example.boxes_xyxy_px < [width, height] * 2).all()
    assert all(0 <= b < e <= len(example.caption) for spans in example.spans for b, e in spans)


def test_counts_add_up(done):
  counts = json.loads((done / "manifest.json").read_text())["counts"]
  dropped = sum(number for name, number in counts.items() if name.startswith("dropped_"))
  assert counts["captions"] == CAPTIONS == counts["kept"] + dropped
  labels = [json.loads(x.split("\t")[1]) for p in done.glob("*.label.tsv") for x in p.read_text().splitlines()]
  boxes = [box for row in labels for boxes in row["bboxes"] for box in boxes]
  assert counts["boxes_kept"] == len(boxes) and all(s > 0.06 for r in labels for ss in r["scores"] for s in ss)
  assert counts["phrases_kept"] == sum(len(row["bboxes"]) for row in labels) <= counts["phrases"]
  assert counts["right_boxes"] <= min(counts["boxes_kept"], counts["true_boxes"]) and counts["true_boxes"] > 0


def test_finished_shards_are_kept_and_missing_ones_made(teacher, done, tmp_path, capsys):
  """Two hosts, one after the other, with an interruption: the same files as in one go."""
  out = tmp_path / "two"
  assert label(teacher, out, "--hosts", "2", "--host", "1") == 0
  assert "other shards" in capsys.readouterr().out and not (out / "manifest.json").exists()
  assert sorted(p.name for p in out.glob("*-of-00003.json")) == ["00001-of-00003.json"]
  before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
  assert label(teacher, out) == 0
  assert before.items() <= {p.name: p.stat().st_mtime_ns for p in out.iterdir()}.items()
  for path in done.glob("*.tsv"):
    assert (out / path.name).read_bytes() == path.read_bytes(), path.name
  assert label(teacher, out) == 0 and "0 are left for this host" in capsys.readouterr().out
  assert label(teacher, out, "--threshold", "0.5") == 1
  assert "was begun with threshold = 0.06, now it is 0.5" in capsys.readouterr().err


@pytest.mark.parametrize(
  "more, message",
  [
    (["--source", "coco"], "source 'coco' is not known"),
    (["--source", "shapes", "sort=1"], "'sort'"),
    (["--source", "shapes", "task=detection"], r"has no captions \(kind 'detection'\)"),
    (["--source", "shapes", "x"], "'x' is no OPTION=VALUE"),
    (["--source", "shapes", "2=3"], "'2=3' is no OPTION=VALUE"),
    (["--threshold", "1.5"], "must lie between 0 and 1"),
    (["--host", "1"], "hosts are counted from 0"),
    (["--batch", "3"], "cannot be split over 2 devices"),
    (["--workers", "0"], "--workers 0 must be at least 1"),
  ],
)
def test_mistakes_end_with_one_line(teacher, tmp_path, capsys, more, message):
  assert label(teacher, tmp_path / "out", *more) == 1
  (line,) = capsys.readouterr().err.strip().splitlines()
  assert re.search(message, line), line


def test_a_shard_without_boxes(teacher, tmp_path):
  assert label(teacher, tmp_path, "--threshold", "0.99", "--limit", "4") == 0
  manifest = json.loads((tmp_path / "manifest.json").read_text())
  assert manifest["counts"]["dropped_no_box"] == 4 and manifest["counts"]["kept"] == 0
  assert not list(tmp_path.glob("*.yaml"))


def test_choice_of_boxes():
  counts = collections.Counter()
  boxes = np.arange(20, dtype=np.float32).reshape(5, 4)
  scores = np.array([0.9, 0.8, 0.7, 0.6, 0.4], np.float32)
  chosen = pseudo_labels.choose(boxes, scores, np.array([1, 1, 0, 1, 0]), 3, Rules(0.5, 2), counts)
  assert [[score for _, score in of_phrase] for of_phrase in chosen] == [[0.7], [0.9, 0.8], []]
  assert chosen[1][1][0] == [4, 5, 6, 7]
  assert counts == dict(boxes_below_threshold=1, boxes_over_cap=1, phrases=3, phrases_kept=2, boxes_kept=3)


def test_comparison_with_the_truth():
  """Right place and words; right place, other words; a second box on the same thing; nowhere."""
  truth = np.array([[0, 0, 9, 9], [20, 0, 29, 9]], np.float32)
  example = Example("x", 0, "grounding", b"", truth, caption="a dog and a cat", spans=(((0, 5),), ((10, 15),)))
  asked = pseudo_labels.Asked(example, ((2, 5), (10, 15)), None, 0)
  counts = collections.Counter()
  near = [1.0, 1, 9, 9]
  pseudo_labels.compare(asked, [[(near, 0.9), ([0.0, 0, 9, 9], 0.8)], [(near, 0.95), ([60.0, 0, 70, 9], 0.7)]], counts)
  assert counts == dict(true_boxes=2, right_boxes=1)


def test_words_of_phrases_and_captions_without_any():
  words, cfg = load_words("shapes", 8), PrepareConfig(canvases=((64, 64),), batch=1)
  source = open_source("shapes", task="grounding", size=(64, 64))
  with pytest.raises(Exception, match="no_phrase"):
    pseudo_labels.ask(source, 0, lambda caption: (), words, cfg)
  caption = source[0].caption
  every = tuple((i, i + 3) for i in range(0, len(caption) - 3, 4))
  asked = pseudo_labels.ask(source, 0, lambda _: (*every, *every), words, cfg)
  assert 0 < len(asked.spans) < len(every) and asked.beyond == len(every) - len(asked.spans)  # 8 tokens
  assert asked.prepared.image_id == 0 and len(asked.prepared.phrases) == len(asked.spans)
  label_row = pseudo_labels.row(asked, [[([0.0, 0, 1, 1], 0.5)]] + [[]] * (len(asked.spans) - 1))
  begin, end = asked.spans[0]
  spans = label_row["tokens_positive"][0]
  assert [caption[b:e] for b, e in spans] == caption[begin:end].split() and len(label_row["bboxes"]) == 1

"""launch/predicting.py and asking.py with a tiny random network: what is predicted does not depend on how."""

import dataclasses
import io

import jax
import numpy as np
import pytest
from PIL import Image

from glipv2_jax import infer
from glipv2_jax.infer import InferConfig
from glipv2_jax.models import glipv2
from glipv2_jax.parallel.mesh import make_mesh
from launch import asking, scoring
from launch.predicting import Predictor, predict_batches
from pipelines.build import DataConfig, evaluation_batches
from pipelines.images import Geometry
from pipelines.records import BadRecord
from pipelines.sources.shapes import Shapes
from pipelines.words import load_words
from tests import tiny

TINY = dataclasses.replace(tiny.model(), max_tokens=64)
TINY = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, vocab_size=512, positions=64))
ANYTHING = InferConfig(threshold=0.001, max_detections=20)  # random weights answer with about 0.01 everywhere
DATA = DataConfig((), "shapes", 64, canvases=((64, 64),), batch=4)


TWO_CANVASES = dataclasses.replace(DATA, canvases=((64, 64), (64, 96))).prepare()


@pytest.fixture(scope="module")
def words():
  return load_words("shapes", 64)


@pytest.fixture(scope="module")
def params(words):
  """Noise everywhere: a fresh network answers alike at every place, because its last layers start at zero."""
  assert words.vocab_size <= TINY.text.vocab_size
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: 0.1 * rng.normal(size=x.shape).astype(np.float32), glipv2.abstract_params(TINY))


@pytest.fixture(scope="module")
def one_device():
  return Predictor(TINY, ANYTHING, make_mesh(devices=jax.devices()[:1]))


def predictions(predictor, params, words, batch=4, task="grounding"):
  source = Shapes(split="val", task=task, size=(64, 64), max_size=(64, 90), length=6)
  cfg = dataclasses.replace(DATA, batch=batch).prepare()
  with evaluation_batches(source, words, cfg) as batches:
    return list(predict_batches(predictor, params, batches))


def test_every_picture_once_in_its_own_pixels(one_device, params, words):
  found = predictions(one_device, params, words)
  assert sorted(p.info.image_id for p in found) == list(range(6))
  for p in found:
    height, width = p.info.original_size
    assert (p.found.boxes_xyxy_px >= 0).all()
    assert (p.found.boxes_xyxy_px <= np.array([width, height] * 2) - 1).all()
    assert (np.diff(p.found.scores) <= 0).all()
    assert set(p.found.labels.tolist()) <= set(range(len(p.info.phrases)))
  assert any(len(p.found) == 20 for p in found)


def test_the_mesh_does_not_matter(one_device, params, words):
  """Eight devices (2 x 4), a batch of eight with padding: the same detections as one device in fours."""
  eight = Predictor(TINY, ANYTHING, make_mesh(data=2, fsdp=4))
  alone = {p.info.image_id: p for p in predictions(one_device, params, words)}
  spread = predictions(eight, params, words, batch=8)
  assert len(spread) == len(alone)
  for p in spread:
    np.testing.assert_array_equal(p.found.labels, alone[p.info.image_id].found.labels)
    np.testing.assert_allclose(p.found.scores, alone[p.info.image_id].found.scores, atol=1e-5)
    np.testing.assert_allclose(p.found.boxes_xyxy_px, alone[p.info.image_id].found.boxes_xyxy_px, atol=1e-2)


def test_truth_comes_back_in_original_pixels(one_device, params, words):
  source = Shapes(split="val", task="grounding", size=(64, 64), max_size=(64, 90), length=6)
  for p in predictions(one_device, params, words):
    expected = source[p.info.image_id].boxes_xyxy_px
    np.testing.assert_allclose(np.sort(p.truth_xyxy_px, axis=0), np.sort(expected, axis=0), atol=1e-3)


def test_report_of_a_random_network(one_device, params):
  options = {"split": "val", "size": (64, 64), "length": 5, "task": "grounding"}
  data = dataclasses.replace(DATA, sources=(("shapes", 1.0, tuple(options.items())),))
  report = scoring.evaluate(one_device, params, data, quiet=True)
  assert 0 <= report["grounding_recall_at_1"] <= report["grounding_recall_upper_bound"] <= 1
  assert report["sources"]["shapes_val/grounding"]["images"] == 5


def encoded(height, width, seed=0):
  stream = io.BytesIO()
  pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
  Image.fromarray(pixels).save(stream, "PNG")
  return stream.getvalue()


def test_answers_keep_the_order_of_the_pictures(one_device, params, words):
  """Mixed sizes are grouped by canvas inside; outside nothing shows. Two prompts are merged with labels of the list."""
  files = [("a.png", encoded(40, 40)), ("b.png", encoded(50, 100)), ("c.png", encoded(30, 30, seed=1))]
  whole = asking.ask_classes(["red circle", "blue star", "ring"], words)
  answers = asking.answer(one_device, params, files, whole, words, TWO_CANVASES)
  assert [a.image.shape[:2] for a in answers] == [(40, 40), (50, 100), (30, 30)]
  alone = asking.answer(one_device, params, files[2:], whole, words, TWO_CANVASES)
  np.testing.assert_allclose(alone[0].found.scores, answers[2].found.scores, atol=1e-5)
  cut = asking.Question("", tuple(asking.ask_classes([name], words).prompts[0] for name in whole.phrases))
  assert cut.phrases == whole.phrases
  [merged, _, _] = asking.answer(one_device, params, files, cut, words, TWO_CANVASES)
  assert set(merged.found.labels.tolist()) <= {0, 1, 2} and len(set(merged.found.labels.tolist())) > 1
  assert len(merged.found) == 20 and (np.diff(merged.found.scores) <= 0).all()


def test_questions_that_cannot_be_asked(one_device, params, words):
  with pytest.raises(ValueError, match="empty name"):
    asking.ask_classes(["red circle", " "], words)
  with pytest.raises(ValueError, match="'ring' is given twice"):
    asking.ask_classes(["ring", "ring "], words)
  with pytest.raises(ValueError, match="more than the 64 tokens"):
    asking.ask_caption("a red circle " * 40, words)
  question = asking.ask_caption("a red circle above a ring", words)
  assert question.phrases == ("a red circle", "a ring")
  with pytest.raises(BadRecord, match="broken.jpg"):
    asking.answer(one_device, params, [("broken.jpg", b"no picture")], question, words, TWO_CANVASES)


def test_original_pixels_agree_with_the_pipeline():
  """The way back is the inverse of the pipeline's way to the canvas."""
  geometry = Geometry((375, 500), (60, 80), (64, 96))
  boxes = np.array([[10, 20, 300, 250]], np.float32)
  np.testing.assert_allclose(infer.original_boxes(geometry.to_canvas(boxes), (60, 80), (375, 500)), boxes, atol=1e-3)

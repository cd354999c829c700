"""launch/predicting.py and asking.py with a tiny random network: what is predicted does not depend on how."""

import copy
import dataclasses
import io

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from glipv2_jax import anchors, infer
from glipv2_jax.infer import InferConfig
from glipv2_jax.models import glipv2
from glipv2_jax.parallel import hlo
from glipv2_jax.parallel.mesh import make_mesh
from launch import asking, predicting, scoring
from launch.official import Evaluated
from launch.predicting import Predictor, predict_batches
from launch.scoring import ScoringConfig
from pipelines.build import DataConfig, evaluation_batches, evaluation_plan
from pipelines.collate import collate
from pipelines.images import Geometry
from pipelines.prepare_example import evaluation_example
from pipelines.prompts import all_classes_prompts, phrases
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


def predictions(predictor, params, words, batch=4, task="grounding", prompts=()):
  source = Shapes(split="val", task=task, size=(64, 64), max_size=(64, 90), length=6)
  cfg = dataclasses.replace(DATA, batch=batch).prepare()
  plan, looks = evaluation_plan(source, cfg), predicting.looks(predictor.cfg, prompts)
  with evaluation_batches(source, words, cfg, plan, looks=looks) as batches:
    found = list(predict_batches(predictor, params, batches, prompts, words))
  return [p for _, rows in found for p in rows if p is not None]


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


def test_every_device_searches_its_own_pictures(params, words, monkeypatch):
  """Nothing that is found or compared on the way to detections goes over the devices."""
  eight = Predictor(TINY, ANYTHING, make_mesh(data=2, fsdp=4))
  called, answer = [], eight._answer
  monkeypatch.setattr(eight, "_answer", lambda *args: (called.append(args), answer(*args))[1])
  predictions(eight, params, words, batch=8)
  with jax.set_mesh(eight.mesh):
    program = hlo.Program(answer.lower(*called[0]).compile().as_text())
  travels = [program.source(inner) for use in program.uses() for inner in program.collectives(use)]
  assert not [trace for trace in travels if any("glipv2_jax/infer.py" in frame for frame in trace)]


def test_a_vocabulary_in_prompts_is_what_each_prompt_gives_alone(one_device, params, words, monkeypatch):
  """Pictures encoded once and prompts once for all of them: the same as the whole network on (picture, prompt)."""
  classes = Shapes(split="val", size=(64, 64)).classes[:5]
  prompts = all_classes_prompts(classes, words, per_prompt=2)
  assert len(prompts) == 3
  calls = []
  for name in ("_encode_image", "_encode_prompt", "_answer"):
    function = getattr(one_device, name)
    counted = lambda *a, name=name, function=function: (calls.append(name), function(*a))[1]  # noqa: E731
    monkeypatch.setattr(one_device, name, counted)
  found = predictions(one_device, params, words, task="detection", prompts=prompts)
  assert [calls.count(name) for name in ("_encode_image", "_encode_prompt", "_answer")] == [2, 3, 2 * 3]

  network = jax.jit(lambda params, batch: nnx.merge(glipv2.graphdef(TINY), params)(batch))
  places = anchors.anchors((64, 64), TINY.strides, TINY.anchor_scale)
  levels = anchors.level_slices((64, 64), TINY.strides)
  source = Shapes(split="val", size=(64, 64), max_size=(64, 90), length=6)
  for p in found[:2]:
    row = evaluation_example(source[p.info.image_id], words, DATA.prepare(), (64, 64))
    parts = []
    for k, prompt in enumerate(prompts):
      encoding = words.encode(prompt.text)
      asked = dataclasses.replace(row, tokens=encoding.tokens, tokens_valid=encoding.tokens_valid)
      outputs = network(params, collate([asked], max_boxes=9).batch)
      table = infer.phrase_map([phrases(prompt, encoding)], 16, 64)
      size = np.array([row.image_size], np.int32)
      alone = infer.of_image(infer.postprocess(outputs, size, table, places, levels, ANYTHING), 0)
      boxes = infer.original_boxes(alone.boxes_xyxy_px, row.image_size, row.original_size)
      parts.append(infer.ImageDetections(boxes, alone.scores, alone.labels + 2 * k))
    expected = infer.merge(parts, None)
    assert set(p.found.labels.tolist()) > {0, 4}
    np.testing.assert_allclose(p.found.scores, expected.scores, atol=1e-5)
    for label in range(5):
      ours, theirs = (np.sort(x.boxes_xyxy_px[x.labels == label], axis=0) for x in (p.found, expected))
      np.testing.assert_allclose(ours, theirs, atol=1e-2)


# Test-time augmentation. What the device does depends on the network and on whether there is any, so one predictor
# serves for all: only its host half is configured anew.


@pytest.fixture(scope="module")
def augmented(one_device):
  return Predictor(TINY, dataclasses.replace(ANYTHING, mirror=True), one_device.mesh)


def with_options(predictor, **options):
  other = copy.copy(predictor)
  other.cfg = dataclasses.replace(ANYTHING, **options)
  assert other.cfg.augmented
  return other


def test_looking_again_at_the_same_picture_changes_nothing(augmented, params, words):
  """A second look at the same scale finds the same boxes, which merging by suppression removes."""
  scale = (1.0, 0, 1e4)
  plain, again = (
    predictions(with_options(augmented, scales=scales), params, words) for scales in ((scale,), (scale, scale))
  )
  for a, b in zip(plain, again, strict=True):
    np.testing.assert_allclose(a.found.scores, b.found.scores, atol=1e-6)
    np.testing.assert_allclose(a.found.boxes_xyxy_px, b.found.boxes_xyxy_px, atol=1e-3)


@pytest.mark.parametrize("merge", infer.MERGES)
def test_scales_and_mirror_give_boxes_of_the_original_picture(augmented, params, words, merge):
  several = with_options(augmented, scales=((1.0, 0, 1e4), (1.5, 0, 40)), mirror=True, merge=merge)
  found = predictions(several, params, words)
  assert sorted(p.info.image_id for p in found) == list(range(6))
  for p in found:
    height, width = p.info.original_size
    assert 0 < len(p.found) <= 20 and (np.diff(p.found.scores) <= 0).all() and not p.info.mirrored
    assert (p.found.boxes_xyxy_px >= 0).all() and (p.found.boxes_xyxy_px <= np.array([width, height] * 2) - 1).all()


def test_a_mirrored_picture_gives_the_mirrored_boxes(augmented, params, words):
  """Scenes turned round by hand: with both sides looked at, the same boxes turned round."""
  scenes = [Shapes(split="val", size=(64, 64))[i].image for i in range(3)]
  question = asking.ask_classes(["red circle", "blue star"], words)
  straight, turned = (
    asking.answer(augmented, params, [("", picture) for picture in pictures], question, words, DATA.prepare())
    for pictures in (scenes, [np.ascontiguousarray(scene[:, ::-1]) for scene in scenes])
  )
  for a, b in zip(straight, turned, strict=True):
    np.testing.assert_allclose(a.found.scores, b.found.scores, atol=1e-5)
    left, right = a.found.boxes_xyxy_px[:, 0], b.found.boxes_xyxy_px[:, 2]
    np.testing.assert_allclose(np.sort(left), np.sort(63 - right), atol=1e-2)


def test_prompts_that_name_a_side_are_not_asked_of_mirrored_pictures(words):
  mirrored = dataclasses.replace(ANYTHING, mirror=True)
  assert len(predicting.looks(mirrored, asking.ask_classes(["ring"], words).prompts)) == 2
  assert len(predicting.looks(mirrored, asking.ask_classes(["ring", "left hand"], words).prompts)) == 1


def test_report_of_a_random_network(one_device, params):
  options = {"split": "val", "size": (64, 64), "length": 5, "task": "grounding"}
  cfg = ScoringConfig((Evaluated("scenes", ("shapes", 1.0, tuple(options.items()))),))
  report = scoring.evaluate(one_device, params, DATA, cfg, quiet=True)
  assert 0 <= report["R@1"] <= report["R@upper_bound"] <= 1
  assert report["sources"]["scenes"]["images"] == 5


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

"""`glipv2 predict` and `glipv2 evaluate` on the checkpoint of a tiny random network."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import demo
from glipv2_jax.models import glipv2, variants
from glipv2_jax.train import checkpoint
from glipv2_jax.train.state import TrainState
from launch import cli
from tests import tiny

TOKENS = 64


def tiny_model():
  model = dataclasses.replace(tiny.model(), max_tokens=TOKENS)
  return dataclasses.replace(model, text=dataclasses.replace(model.text, vocab_size=512, positions=TOKENS))


def config():
  c = demo.get_config()
  c.model.variant = "tiny"
  c.infer.threshold = 0.001
  c.infer.max_detections = 10
  c.eval.canvases = ((64, 64),)
  c.eval.batch = 8
  c.eval.limit = 9  # two batches of eight, the second one mostly padding
  del c.eval.sources.kinds
  c.eval.sources.captions.size = (64, 64)
  c.train.evaluate_ema = False
  return c.to_dict()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run folder whose parameters are noise and whose running average is zero."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(variants.VARIANTS, "tiny", tiny_model())
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    shapes = glipv2.abstract_params(tiny_model())
    params = jax.tree.map(lambda x: jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype), shapes)
    state = TrainState(jnp.int32(7), params, {}, jax.tree.map(jnp.zeros_like, params))
    with checkpoint.manager(folder / checkpoint.FOLDER) as checkpoints:
      checkpoint.save(checkpoints, state, checkpoint.Meta(7, 70, 1.0, "tiny", config(), "unknown", {}, {}))
    yield folder


@pytest.fixture
def pictures(tmp_path):
  """Two pictures of one name in two folders, one of them grey."""
  names = []
  for folder, mode, size in (("one", "RGB", (80, 60)), ("two", "L", (60, 90))):
    (tmp_path / folder).mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(tmp_path / folder / "scene.png")
    names.append(str(tmp_path / folder / "scene.png"))
  return names


def predict(run, pictures, out, *more):
  return cli.main(["predict", "--checkpoint", str(run), "--image", *pictures, "--out", str(out), *more])


def test_predict_classes(run, pictures, tmp_path, capsys):
  out = tmp_path / "answers"
  assert predict(run, pictures, out, "--classes", "red circle, blue star", "--threshold", "0.01") == 0
  content = json.loads((out / "predictions.json").read_text())
  assert content["phrases"] == ["red circle", "blue star"]
  assert [image["image"] for image in content["images"]] == pictures
  assert [image["drawn"] for image in content["images"]] == ["scene.png", "scene_2.png"]
  for image, (width, height) in zip(content["images"], ((80, 60), (60, 90)), strict=True):
    assert (image["width"], image["height"]) == (width, height)
    assert 0 < len(image["detections"]) <= 10
    assert len({d["score"] for d in image["detections"]}) > 1
    for d in image["detections"]:
      x, y, w, h = d["bbox"]
      assert x >= 0 and y >= 0 and x + w <= width + 0.02 and y + h <= height + 0.02
      assert d["phrase"] == content["phrases"][d["label"]] and d["score"] >= 0.01
    drawn = Image.open(out / image["drawn"])
    assert drawn.format == "PNG" and min(drawn.size) >= 360
  assert "predictions.json" in capsys.readouterr().out


def test_predict_caption_and_ema(run, pictures, tmp_path):
  """The running average of this checkpoint is zero: it scores every place alike, which shows that --ema reads it."""
  out = tmp_path / "answers"
  caption = "[a red circle] above a [blue star]"
  assert predict(run, pictures[:1], out, "--caption", caption, "--threshold", "0.01", "--ema") == 0
  content = json.loads((out / "predictions.json").read_text())
  assert content["question"] == "a red circle above a blue star"
  assert content["phrases"] == ["a red circle", "blue star"]
  scores = [d["score"] for d in content["images"][0]["detections"]]
  assert scores and len(set(scores)) == 1


@pytest.mark.parametrize(
  ("more", "message"),
  [
    (("--classes", "cat,,dog"), "empty name"),
    (("--caption", "[a dog on a sofa"), "without its partner"),
    (("--classes", "cat", "--threshold", "1.5"), "--threshold 1.5"),
  ],
)
def test_mistakes_end_with_one_line(run, pictures, tmp_path, capsys, more, message):
  assert predict(run, pictures, tmp_path / "out", *more) == 1
  error = capsys.readouterr().err
  assert error.startswith("glipv2 predict: ") and message in error and error.count("\n") == 1
  assert not (tmp_path / "out").exists()


def test_missing_files_and_pictures_that_are_none(run, pictures, tmp_path, capsys):
  classes = ("--classes", "cat")
  assert predict(run, [str(tmp_path / "nowhere.jpg")], tmp_path / "out", *classes) == 1
  assert "nowhere.jpg" in capsys.readouterr().err
  assert predict(tmp_path, pictures, tmp_path / "out", *classes) == 1
  assert "no checkpoint" in capsys.readouterr().err
  (tmp_path / "text.jpg").write_text("not a picture")
  assert predict(run, [str(tmp_path / "text.jpg")], tmp_path / "out", *classes) == 1
  assert "text.jpg: undecodable_image" in capsys.readouterr().err


def test_evaluate_writes_its_report(run, tmp_path, capsys):
  out = tmp_path / "metrics.json"
  assert cli.main(["evaluate", "--checkpoint", str(run), "--out", str(out)]) == 0
  report = json.loads(out.read_text())
  assert report["step"] == 7 and report["ema"] is False
  assert report["sources"]["captions"]["images"] == 9
  assert 0 <= report["R@1"] <= 1
  assert "captions (grounding): 9 images" in capsys.readouterr().out


def test_evaluate_names_what_does_not_fit(run, tmp_path, capsys):
  assert cli.main(["evaluate", "--checkpoint", str(run), "--batch", "3"]) == 1
  assert "3 rows cannot be split over 8 devices" in capsys.readouterr().err
  assert cli.main(["evaluate", "--checkpoint", str(tmp_path)]) == 1
  assert "glipv2 evaluate: no checkpoint" in capsys.readouterr().err

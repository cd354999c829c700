"""`glipv2 export-onnx` and `export-stablehlo`, and the detector of README.md that reads the first one's file."""

import dataclasses
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import demo
from glipv2_jax.convert import run_elsewhere
from glipv2_jax.models import glipv2, variants
from glipv2_jax.train import checkpoint
from glipv2_jax.train.state import TrainState
from launch import cli, exporting
from pipelines.words import load_words
from tests import tiny

TOKENS = 16
README = pathlib.Path(__file__).parents[2] / "README.md"


def model():
  cfg = dataclasses.replace(tiny.model(), max_tokens=TOKENS)
  return dataclasses.replace(cfg, text=dataclasses.replace(cfg.text, vocab_size=512, positions=TOKENS))


def config():
  c = demo.get_config()
  c.data.max_tokens = TOKENS
  c.eval.canvases = ((64, 96),)
  return c.to_dict()


@pytest.fixture
def run(tmp_path, monkeypatch):
  """A run folder whose running average is noise and whose parameters are zero."""
  monkeypatch.setitem(variants.VARIANTS, "demo", model())
  rng = np.random.default_rng(0)
  ema = jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), glipv2.abstract_params(model()))
  state = TrainState(jnp.int32(7), jax.tree.map(jnp.zeros_like, ema), {}, ema)
  with checkpoint.manager(tmp_path / "run" / checkpoint.FOLDER) as checkpoints:
    checkpoint.save(checkpoints, state, checkpoint.Meta(7, 70, 1.0, "demo", config(), "unknown", {}, {}))
  return tmp_path / "run"


def command(*arguments):
  return cli.main([str(argument) for argument in arguments])


def test_the_detector_of_the_readme_finds_what_predict_finds(run, tmp_path, capsys, monkeypatch):
  """Pictures, prompt, tokens, scores and suppression, by the text that users copy."""
  pytest.importorskip("jax2onnx", reason=f"the ONNX converter is not installed: {run_elsewhere.INSTALL}")
  pixels = np.random.default_rng(0).integers(0, 255, (50, 90, 3), np.uint8)
  Image.fromarray(pixels).resize((140, 60)).save(tmp_path / "photo.png")
  assert command("export-onnx", "--checkpoint", run, "--out", tmp_path / "mine.onnx") == 0
  assert "demo, canvas 64 x 96" in capsys.readouterr().out

  (code,) = (block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "onnx" in block)
  code = code.replace("photo.jpg", "photo.png").replace("person", "red star").replace("traffic light", "circle")
  monkeypatch.chdir(tmp_path)
  names = {}
  exec(code.replace("0.3", "0.01"), names)
  found = names["found"]

  asked = ("--image", "photo.png", "--classes", "red star,circle", "--threshold", "0.01", "--out", "answers")
  assert command("predict", "--checkpoint", run, *asked) == 0
  (answer,) = json.loads((tmp_path / "answers/predictions.json").read_text())["images"]
  wanted = answer["detections"]
  assert {d["phrase"] for d in wanted} == {"red star", "circle"}
  assert len(found) >= len(wanted) == 100  # predict stops there
  for d in wanted:
    x, y, w, h = d["bbox"]
    box = np.array([x, y, x + w - 1, y + h - 1])
    same = [score for name, score, other in found if name == d["phrase"] and np.abs(other - box).max() < 0.02]
    assert np.abs(np.array(same) - d["score"]).min(initial=1) < 1e-4, d


def test_stablehlo_command(run, tmp_path, capsys):
  out = tmp_path / "mine.npz"
  arguments = ("--checkpoint", run, "--out", out, "--canvas", 64, 64, "--batch", 2, "--platforms", "cpu")
  assert command("export-stablehlo", *arguments) == 0
  assert "demo, canvas 64 x 64" in capsys.readouterr().out
  with np.load(out) as file:
    about, weights = json.loads(str(file["about"])), {name: file[name] for name in file}
  assert json.loads(about["config"]) == json.loads(json.dumps(config()))
  params = checkpoint.restore_params(run, glipv2.abstract_params(model()), ema=True)  # as the demo evaluates
  for path, leaf in run_elsewhere.by_path(params).items():
    np.testing.assert_array_equal(weights[path], leaf)
  program = jax.export.deserialize(bytearray(weights.pop("program")))
  assert program.platforms == ("cpu",) and program.in_avals[-4].shape == (2, 64, 64, 3)


def test_without_its_tokenizer_the_file_is_written_and_says_so(run, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(exporting, "tokenizer", lambda name, max_tokens: load_words("gone/vocab.txt", max_tokens))
  out = tmp_path / "folder" / "mine.npz"
  assert command("export-stablehlo", "--checkpoint", run, "--out", out) == 0
  assert "goes without its tokenizer: vocabulary file 'gone/vocab.txt' does not exist" in capsys.readouterr().err
  with np.load(out) as file:
    assert set(json.loads(str(file["about"]))) == {"variant", "config"}


@pytest.mark.parametrize(
  ("more", "message"),
  [(("--batch", "0"), "--batch 0"), (("--canvas", "0", "64"), "--canvas 0 64"), (("--checkpoint", "none"), "none")],
)
def test_mistakes_end_with_one_line(run, tmp_path, capsys, more, message):
  for name in ("onnx", "stablehlo"):
    assert command(f"export-{name}", "--checkpoint", run, "--out", tmp_path / "x", *more) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"glipv2 export-{name}: ") and message in error and error.count("\n") == 1
  assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("text", ["a red circle", "one " * 40])
def test_the_tokenizer_in_the_file_is_that_of_the_pipeline(text):
  import tokenizers

  theirs = tokenizers.Tokenizer.from_str(exporting.tokenizer("shapes", TOKENS)).encode(text)
  ours = load_words("shapes", TOKENS).encode(text)
  np.testing.assert_array_equal(theirs.ids, ours.tokens)
  np.testing.assert_array_equal(theirs.attention_mask, ours.tokens_valid)
  np.testing.assert_array_equal(theirs.offsets, ours.offsets)

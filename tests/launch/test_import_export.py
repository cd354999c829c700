"""`glipv2 import-torch` and `export-torch`, and training that starts from weight files."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from glipv2_jax.convert import dialects, names, to_torch
from glipv2_jax.models import variants
from glipv2_jax.models.glipv2 import abstract_params
from glipv2_jax.train import checkpoint, objective, optim, state
from glipv2_jax.train.initialise import initialise
from launch import cli, experiment, import_torch
from tests import tiny

TOKENS = 64


def model():
  cfg = dataclasses.replace(tiny.model(), max_tokens=TOKENS)
  return dataclasses.replace(cfg, text=dataclasses.replace(cfg.text, vocab_size=512, positions=TOKENS))


@pytest.fixture(autouse=True)
def small_demo(monkeypatch):
  monkeypatch.setitem(variants.VARIANTS, "demo", model())


@pytest.fixture
def params():
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: (0.1 * rng.normal(size=x.shape)).astype(np.float32), abstract_params(model()))


@pytest.fixture
def weights(params, tmp_path):
  path = tmp_path / "glip.safetensors"
  save_file(to_torch.state_dict(params, model()), path)
  return path


def encoder_files(tmp_path):
  """An image and a text encoder in the names of their authors, of ones."""
  paths = []
  for part, name in (("image", "Swin, its authors, below ''"), ("text", "BERT, Hugging Face, below 'bert.'")):
    (dialect,) = (d for d in dialects.readable(model()) if d.part == part and d.name == name)
    entries = names.expand(dialect.rows, model())
    paths.append(str(tmp_path / f"{part}.safetensors"))
    save_file({n: np.ones(e.torch_shape(), np.float32) for e in entries for n in e.names}, paths[-1])
  return paths


def run(*arguments):
  return cli.main([str(argument) for argument in arguments])


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", ["demo", "dyhead_t", "glip_t", "glip_l", "glipv2_b"])
def test_the_configuration_describes_the_imported_network(name):
  """Else the checkpoint would be refused as that of another network."""
  described = experiment.from_tree(import_torch.configuration(name)).model
  assert described == dataclasses.replace(variants.get(name), remat=described.remat)


def test_in_and_out_again_is_bit_exact(weights, params, tmp_path, capsys):
  out, back = tmp_path / "run", tmp_path / "back.safetensors"
  assert run("import-torch", "--weights", weights, "--variant", "demo", "--out", out) == 0
  assert_equal(checkpoint.restore_params(out, abstract_params(model())), params)
  assert run("export-torch", "--checkpoint", out, "--out", back) == 0
  before, after = load_file(weights), load_file(back)
  assert before.keys() == after.keys()
  for name, value in before.items():
    np.testing.assert_array_equal(after[name], value)
  with safe_open(back, "np") as file:
    metadata = file.metadata()
  assert metadata["variant"] == "demo" and json.loads(metadata["config"])["model"]["variant"] == "demo"
  assert run("import-torch", "--weights", back, "--variant", "demo", "--out", out) == 1
  assert "holds a run already" in capsys.readouterr().err


def test_an_imported_checkpoint_predicts(weights, tmp_path):
  Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)).save(tmp_path / "a.png")
  assert run("import-torch", "--weights", weights, "--variant", "demo", "--out", tmp_path / "run") == 0
  asked = ("--image", tmp_path / "a.png", "--classes", "star,circle", "--out", tmp_path / "answers")
  assert run("predict", "--checkpoint", tmp_path / "run", *asked) == 0
  assert (tmp_path / "answers" / "predictions.json").is_file()


def test_refusals_end_with_status_1_and_leave_nothing(weights, tmp_path, capsys):
  out = tmp_path / "run"
  assert run("import-torch", "--weights", weights, "--variant", "glip_x", "--out", out) == 1
  assert "'glip_x' is not known" in capsys.readouterr().err
  state = load_file(weights)
  state["rpn.head.bias1"] = state.pop("rpn.head.bias0")
  save_file(state, weights)
  assert run("import-torch", "--weights", weights, "--variant", "demo", "--out", out) == 1
  message = capsys.readouterr().err
  assert "missing rpn.head.bias0 (nearest: rpn.head.bias1)" in message
  assert "surplus rpn.head.bias1 (nearest: rpn.head.bias0)" in message
  assert not out.exists()
  excuses = ("--allow-missing", r"rpn\.head\.bias0", "--allow-surplus", r"rpn\.head\.bias1")
  assert run("import-torch", "--weights", weights, "--variant", "demo", "--out", out, *excuses) == 0
  assert run("export-torch", "--checkpoint", out, "--out", tmp_path / "x.safetensors", "--ema") == 1
  assert "running average" in capsys.readouterr().err
  assert run("export-torch", "--checkpoint", tmp_path / "absent", "--out", tmp_path / "x.safetensors") == 1


def start(init_from, data=1, fsdp=1):
  from glipv2_jax.losses.grounding import LossConfig
  from glipv2_jax.parallel import mesh as meshes

  goal = objective.grounding(model(), LossConfig())
  mesh = meshes.make_mesh(data, fsdp, devices=jax.devices()[: data * fsdp])
  shapes = jax.eval_shape(goal.init, jax.random.key(0))
  optimizer = optim.make_optimizer(tiny.optimizer_config(ema_decay=0.9), shapes, 10, goal.frozen)
  abstract = state.abstract_state(goal.init, optimizer, mesh, min_size=1)
  return initialise(goal, optimizer, abstract, 0, init_from), abstract


def test_training_starts_from_files_on_a_mesh(weights, params, tmp_path):
  begun, abstract = start(str(weights), data=2, fsdp=2)
  assert_equal(begun.params, params)
  assert_equal(begun.ema, params)
  assert jax.tree.all(jax.tree.map(lambda x, like: x.sharding == like.sharding, begun.params, abstract.params))


def test_training_starts_from_a_pair_of_encoders_or_their_import(tmp_path):
  pair = encoder_files(tmp_path)
  begun, _ = start(",".join(pair))
  np.testing.assert_array_equal(begun.params["swin"]["stages"][3]["blocks"][0]["attn"]["qkv"]["kernel"], 1.0)
  np.testing.assert_array_equal(begun.params["text"]["embeddings"]["word"]["embedding"], 1.0)
  assert jnp.std(begun.params["tower"][0]["dyconv"]["branches"][0]["conv"]["kernel"]) > 0
  assert run("import-torch", "--weights", *pair, "--variant", "demo", "--out", tmp_path / "run") == 0
  assert_equal(checkpoint.restore_params(tmp_path / "run", abstract_params(model())), begun.params)


def test_an_absent_file_is_named_before_anything_is_computed():
  with pytest.raises(FileNotFoundError, match="absent.pth"):
    start("absent.pth")

"""The exported files, run where this package is not, against the network's own outputs decoded in NumPy."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from glipv2_jax import anchors, boxes
from glipv2_jax.convert import run_elsewhere
from glipv2_jax.models import glipv2
from tests import tiny

ABOUT = {"variant": "tiny", "config": "{}"}


def models():
  cfg = tiny.model()
  return {
    "bert": cfg,
    "clip, padding masked": dataclasses.replace(
      cfg, text=dataclasses.replace(cfg.text, kind="clip"), mask_padding=True, compute_dtype="bfloat16"
    ),
    "no text": dataclasses.replace(cfg, text=None, head=dataclasses.replace(cfg.head, fusion=False)),
  }


def random_params(cfg):
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32), glipv2.abstract_params(cfg))


def batch_of(rows):
  """Pictures smaller than the canvas, each of its own size."""
  batch = tiny.batch(3, rows)
  return dataclasses.replace(batch, image_size=np.array([[64 - 5 * b, 40 + 7 * b] for b in range(rows)], np.int32))


def fields(cfg, batch):
  return {name: getattr(batch, name) for name in run_elsewhere.inputs(cfg, tiny.CANVAS)}


def expected(cfg, params, batch):
  """By the network as training and `glipv2 predict` call it, in float32, the rest in NumPy."""
  graph = glipv2.graphdef(dataclasses.replace(cfg, compute_dtype="float32"))
  outputs = jax.device_get(jax.jit(lambda p, b: nnx.merge(graph, p)(b))(params, batch))
  found = boxes.decode(outputs.deltas, anchors.anchors(tiny.CANVAS, cfg.strides, cfg.anchor_scale))
  found = np.stack([boxes.clip(of_image, size) for of_image, size in zip(found, batch.image_size, strict=True)])
  return found, 1 / (1 + np.exp(-outputs.token_logits)), 1 / (1 + np.exp(-outputs.centerness))


def assert_same(found, wanted):
  for name, a, b in zip(run_elsewhere.OUTPUTS, found, wanted, strict=True):
    assert a.shape == b.shape and a.dtype == np.float32, name
    assert np.std(b[0], axis=0).max() > 1e-3, f"{name} is constant: this comparison would prove nothing"
    assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max(), name


# Slow: the converter takes ten seconds and more. tests/launch/test_export_elsewhere.py makes one such file always.
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow) for kind in models()])
def test_onnx(kind, tmp_path):
  pytest.importorskip("jax2onnx", reason=f"the ONNX converter is not installed: {run_elsewhere.INSTALL}")
  import onnxruntime

  cfg, batch, path = models()[kind], batch_of(2), tmp_path / "tiny.onnx"
  params = random_params(cfg)
  assert run_elsewhere.write_onnx(path, cfg, params, tiny.CANVAS, 2, ABOUT) == [path]
  session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
  assert session.get_modelmeta().custom_metadata_map == ABOUT
  assert [output.name for output in session.get_outputs()] == list(run_elsewhere.OUTPUTS)
  assert_same(session.run(None, fields(cfg, batch)), expected(cfg, params, batch))


def test_onnx_weights_beside_a_file_that_would_be_too_large(tmp_path, monkeypatch):
  pytest.importorskip("jax2onnx", reason=f"the ONNX converter is not installed: {run_elsewhere.INSTALL}")
  import onnxruntime

  monkeypatch.setattr(run_elsewhere, "LARGEST", 1000)

  def product(cfg, weights, image, image_size):
    found = image.astype(np.float32) @ weights["w"] + 0 * image_size[0, 0]
    return found, 2 * found, 3 * found

  monkeypatch.setattr(run_elsewhere, "with_weights", product)
  params = {"w": np.arange(3000, dtype=np.float32).reshape(3, 1000)}
  files = run_elsewhere.write_onnx(tmp_path / "w.onnx", models()["no text"], params, (2, 2), 1, {})
  assert [f.name for f in files] == ["w.onnx", "w.onnx.data"]
  assert files[0].stat().st_size < 5000 and files[1].stat().st_size >= 12000
  session = onnxruntime.InferenceSession(files[0], providers=["CPUExecutionProvider"])
  fed = {"image": np.ones((1, 2, 2, 3), np.uint8), "image_size": np.full((1, 2), 2, np.int32)}
  np.testing.assert_array_equal(session.run(None, fed)[0][0, 0, 0], params["w"].sum(0))


BARE = """
import sys
import jax, jax.export
import numpy as np

with np.load("tiny.npz") as file:
  weights = dict(file)
with np.load("inputs.npz") as file:
  inputs = [file[name] for name in ("image", "image_size", "tokens", "tokens_valid")]
program = jax.export.deserialize(bytearray(weights.pop("program")))
print(weights.pop("about"))
np.savez("answers.npz", **jax.jit(program.call)(weights, *inputs))
absent = {name.split(".")[0] for name in sys.modules} & {"flax", "glipv2_jax", "orbax", "optax", "pipelines", "launch"}
assert not absent, absent
"""


@pytest.mark.parametrize("batch", [pytest.param(None, id="any batch"), pytest.param(2, marks=pytest.mark.slow)])
def test_stablehlo_in_a_process_that_imports_only_jax_and_numpy(batch, tmp_path):
  cfg, rows = tiny.model(), 3 if batch is None else batch
  params, pictures = random_params(cfg), batch_of(rows)
  path = tmp_path / "tiny.npz"
  platforms = run_elsewhere.PLATFORMS
  assert run_elsewhere.write_stablehlo(path, cfg, params, tiny.CANVAS, batch, platforms, ABOUT) == [path]
  np.savez(tmp_path / "inputs.npz", **fields(cfg, pictures))
  ran = subprocess.run([sys.executable, "-c", BARE], cwd=tmp_path, capture_output=True, text=True, timeout=300)
  assert ran.returncode == 0, ran.stderr
  assert json.loads(ran.stdout) == ABOUT
  with np.load(tmp_path / "answers.npz") as file:
    assert_same([file[name] for name in run_elsewhere.OUTPUTS], expected(cfg, params, pictures))


def test_stablehlo_names_its_platforms_and_its_batch(tmp_path):
  cfg, path = tiny.model(), tmp_path / "tiny.npz"
  run_elsewhere.write_stablehlo(path, cfg, random_params(cfg), tiny.CANVAS, 2, ("cpu",), ABOUT)
  with np.load(path) as file:
    program = jax.export.deserialize(bytearray(file["program"]))
    weights = {name: file[name] for name in file if name not in ("program", "about")}
  assert program.platforms == ("cpu",) and program.nr_devices == 1
  with pytest.raises(ValueError, match="shape"):
    program.call(weights, *fields(cfg, batch_of(3)).values())

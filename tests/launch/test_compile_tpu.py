"""`glipv2 compile-tpu`: what it says of mistakes, how it looks for the largest batch, real compilations for TPUs."""

import functools
import json

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from configs import pretrain
from glipv2_jax.models.layers import Keys, LayerNorm
from glipv2_jax.models.swin import WindowAttention
from glipv2_jax.parallel import slices
from glipv2_jax.parallel.mesh import BATCH, make_mesh
from glipv2_jax.train import profile
from launch import compile_tpu, experiment

PRETRAIN = f"--config={pretrain.__file__}:t,debug"


def stops(arguments, capsys):
  assert compile_tpu.main(arguments) == 1
  return capsys.readouterr().err


def test_mistakes_are_named(capsys, tmp_path):
  out = f"--out={tmp_path / 'report.json'}"
  assert "--topology is needed" in stops([PRETRAIN, out], capsys)
  assert "--config is needed" in stops(["--topology=v5e:2x2", out], capsys)
  assert "fdsp" in stops([PRETRAIN, "--topology=v5e:2x2", out, "--config.train.fdsp=4"], capsys)


@pytest.mark.parametrize("largest", [0, 1, 2, 3, 11, 16])
def test_sweep_finds_the_largest_batch(largest):
  tried = []

  def fits(images):
    tried.append(images)
    return images <= largest

  assert compile_tpu.largest_that(fits) == largest
  assert len(tried) == len(set(tried)) <= 10


def test_sweep_goes_on_where_it_was(tmp_path, monkeypatch):
  asked = []

  def report(_experiment, topology, images):
    asked.append(images)
    return {"variant": "t", "topology": topology, "images_per_chip": images, "fits": False, "why": "too much"}

  monkeypatch.setattr(compile_tpu, "report", report)
  out = tmp_path / "sweep.json"
  out.write_text(json.dumps({"1": {"fits": True}, "2": {"fits": True}, "4": {"fits": False}}))
  assert sorted(compile_tpu.sweep(None, "v5e:2x2", out)) == ["1", "2", "3", "4"]
  assert asked == [3]
  assert json.loads(out.read_text())["3"]["fits"] is False


def test_the_largest_canvas_counts():
  config = pretrain.get_config("t")
  config.data.canvases = ((480, 832), (800, 1344), (1344, 800), (560, 960))
  assert compile_tpu.canvas(experiment.from_tree(config.to_dict())) == (800, 1344)


def test_slices_that_do_not_exist():
  pytest.importorskip("libtpu", reason="needs libtpu, the compiler of TPUs (the extra `tpu`)")
  assert dict(slices.slice_mesh("v5p:4x4x4", fsdp=16).shape) == {"data": 4, "fsdp": 16, "model": 1}
  assert slices.slice_mesh("v4:2x2x1").devices.size == 4  # one device per chip
  with pytest.raises(ValueError, match="'v9:2x2'.*look like"):
    slices.slice_mesh("v9:2x2")
  with pytest.raises(ValueError, match="fsdp=3"):
    slices.slice_mesh("v5e:4x4", fsdp=3)
  with pytest.raises(ValueError, match="does not fit the wires of v5p:4x4x4"):
    slices.slice_mesh("v5p:4x4x4", fsdp=8)


def test_a_program_for_four_chips():
  """Products in a loop, one batch row per chip, gradient summed over the chips: counted by hand."""
  pytest.importorskip("libtpu", reason="needs libtpu, the compiler of TPUs (the extra `tpu`)")
  mesh = slices.slice_mesh("v5e:2x2")
  chip = slices.chip(mesh)

  def loss(w, x):
    return jax.lax.fori_loop(0, 5, lambda _, x: jnp.tanh(x @ w), x).astype(jnp.float32).sum()

  w = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16, sharding=NamedSharding(mesh, jax.P()))
  x = jax.ShapeDtypeStruct((4 * 512, 256), jnp.bfloat16, sharding=NamedSharding(mesh, BATCH))
  compiled = jax.jit(jax.grad(loss)).lower(w, x).compile()
  product = 2 * 512 * 256 * 256
  found = profile.profile(compiled.as_text(), chip, model_flops=15 * product)
  assert found["flops"]["compiled"] in (14 * product, 15 * product)  # the first input needs no gradient
  assert found["loops_of_unknown_length"] == []
  assert 15 * product / chip.flops * chip.hertz < found["estimated_cycles"] < 1e6
  assert found["collectives"]["all-reduce"]["bytes"] >= 256 * 256 * 2
  assert "all-gather" not in found["collectives"]
  assert profile.memory(compiled.memory_analysis(), chip)["arguments"] == 256 * 256 * 2 + 512 * 256 * 2


@pytest.mark.parametrize(("chips", "pictures"), [("v5e:2x2", 4), ("v5e:2x2", 3), (None, 4)])
def test_maps_lie_in_the_order_of_their_axes_on_tpus_only(chips, pictures):
  """What the compiler is told of window attention and of the norm before it, one picture per chip: the layout of the
  maps and of their gradients, and to leave every picture where it is. On CPUs, and of pictures that the chips cannot
  share, it is told nothing."""
  if chips is not None:
    pytest.importorskip("libtpu", reason="needs libtpu, the compiler of TPUs (the extra `tpu`)")
  mesh = slices.slice_mesh(chips) if chips else make_mesh(devices=jax.devices()[:4])
  definition, params = nnx.split(nnx.eval_shape(lambda: Attending(Keys(jax.random.key(0)))))

  def loss(params, x):
    return jnp.sum(nnx.merge(definition, params)(x).astype(jnp.float32))

  def placed(sharding, x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, sharding))

  params = jax.tree.map(functools.partial(placed, jax.P()), params)
  x = placed(BATCH if pictures == 4 else jax.P(), jax.ShapeDtypeStruct((pictures, 14, 21, 64), jnp.float32))
  with jax.set_mesh(mesh):
    lowered = jax.jit(jax.grad(loss, (0, 1))).lower(params, x)
  fixed = [line for line in lowered.as_text().splitlines() if "@LayoutConstraint" in line]
  if chips is None or pictures != 4:
    assert fixed == []
    return
  # Input and output of the norm and input of the attention, there and back; the norm is made again for its gradient.
  assert len(fixed) >= 6 and all("dense<[3, 2, 1, 0]>" in line and "tensor<1x14x21x64x" in line for line in fixed)
  assert "all-gather" not in lowered.compile().as_text()


class Attending(nnx.Module):
  def __init__(self, rngs):
    self.norm = LayerNorm(64, 1e-5, rngs=rngs)
    self.attention = WindowAttention(64, 2, 7, dtype=jnp.bfloat16, rngs=rngs)

  def __call__(self, x):
    return self.attention(self.norm(x), 3, None)

"""Reading compiled programs: a text in the TPU compiler's form, counted by hand, and what the CPU compiler writes."""

import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding

from glipv2_jax.parallel import hlo
from glipv2_jax.parallel.slices import Chip
from glipv2_jax.train import profile
from glipv2_jax.train.flops import count

# A loop of 9 rounds: a fused product, a gather without estimate, an all-gather with its slice; then a condition and a
# copy that has no traceback. Frames: 1 = step.py, 2 = swin.py called by step.py, 3 = pairs.py called by step.py.
TEXT = (pathlib.Path(__file__).parent / "program.txt").read_text()
CHIP = Chip(hbm=2**30, flops=1e12, hertz=1e9, bandwidth=1e9)


def test_profile_of_a_program_counted_by_hand():
  found = profile.profile(TEXT, CHIP, model_flops=5000.0)
  product = 2 * 8 * 16 * 32
  gather = 9 * (256 + 32 + 256)  # operands and result, one cycle per byte on this chip
  assert found["loops_of_unknown_length"] == []
  assert found["estimated_cycles"] == 9 * (100 + 7) + 3 + 50
  assert found["at_most"]["estimated_cycles"] == 9 * (100 + 7) + 700 + 50
  assert found["floor_cycles"] == gather
  assert found["parts"]["swin"] == {"cycles": 9 * 100 + 3 + 50, "floor_cycles": gather, "flops": 9 * product}
  assert found["parts"]["inter"]["cycles"] == 9 * 7
  assert found["flops"] == {"model": 5000.0, "compiled": 9 * product}
  seconds = (found["estimated_cycles"] + gather) / 1e9
  assert found["estimated_seconds"] == pytest.approx(seconds)
  assert found["mfu"] == pytest.approx(5000.0 / (seconds * 1e12))
  assert found["not_estimated"] == {"gather": {"count": 9, "bytes": gather}}
  assert found["collectives"] == {"all-gather": {"count": 9, "bytes": 9 * 256}}
  assert [(row["part"], row["count"], row["bytes"]) for row in found["all_gathers"]] == [("inter", 9, 256)]


def test_parts_follow_the_traceback():
  def trace(*names):
    return tuple(f"/x/glipv2_jax/{name}" for name in names)

  layer = "models/layers.py:Linear.__call__"
  assert profile.part_of(trace(layer, "models/swin.py:Block.__call__", "models/glipv2.py:GLIPv2.encode")) == "swin"
  text = trace(layer, "models/bert.py:BertLayer.__call__")
  assert profile.part_of(text) == "text"
  assert profile.part_of((*text, *trace("models/glipv2.py:TowerStage.__call__"))) == "tower_text"
  assert profile.part_of(trace(layer, "models/heads.py:InterHead.__call__", "models/glipv2.py:GLIPv2.embed")) == "inter"
  assert profile.part_of(trace("boxes.py:iou", "assign.py:assign", "train/step.py:step")) == "losses"
  assert profile.part_of(("/site-packages/optax/adam.py:update", *trace("train/step.py:step"))) == "update"
  assert profile.part_of(("/site-packages/optax/adam.py:update",)) == "other"


def compiled(function, *args):
  return hlo.Program(jax.jit(function).lower(*args).compile().as_text())


def flops(program):
  return sum(use.times * program.flops(use) for use in program.uses())


def test_flops_of_compiled_products_equal_those_of_the_source():
  """Loops, strides, padding; the CPU compiler keeps small products as instructions."""
  a, b = jnp.ones((3, 5)), jnp.ones((5, 7))
  looped = lambda a, b: jax.lax.fori_loop(0, 6, lambda i, x: x + jnp.sin(a * i) @ b, jnp.zeros((3, 7)))  # noqa: E731
  assert flops(compiled(looped, a, b)) == 6 * 2 * 3 * 5 * 7

  def convolution(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

  x, kernel = jnp.ones((2, 9, 9, 3)), jnp.ones((3, 3, 3, 6))
  assert flops(compiled(convolution, x, kernel)) == count(convolution, x, kernel) == 2 * 2 * 4 * 4 * 6 * 3 * 3 * 3


@pytest.mark.parametrize(
  "rest,expected",
  [
    # a batched product as the TPU compiler writes it: the batch as a dilated spatial axis
    ("window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0io->0bf", 2 * 4 * 3 * 5 * 7),
    ("dim_labels=0bf_io0->b0f, window={size=4 pad=0_0}", 2 * 3 * 5 * 7 * 4),
  ],
)
def test_holes_and_padding_of_convolutions_are_not_counted(rest, expected):
  shapes = {
    "0bf_0io->0bf": ((4, 3, 5), (4, 5, 7), (4, 3, 7)),
    "0bf_io0->b0f": ((4, 3, 5), (5, 7, 4), (3, 1, 7)),
  }
  assert hlo._convolution(*next(s for labels, s in shapes.items() if labels in rest), rest) == expected


def test_collectives_of_a_sharded_program():
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  rows, whole = NamedSharding(mesh, jax.P("data")), NamedSharding(mesh, jax.P())
  x = jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=rows)

  def both(x):
    return jax.lax.with_sharding_constraint(x * 2, whole), x.sum()

  program = hlo.Program(jax.jit(both).lower(x).compile().as_text())
  sizes = {
    inner.instruction.collective: program.collective_bytes(inner)
    for use in program.uses()
    for inner in program.inside(use)
    if inner.instruction.collective
  }
  assert sizes == {"all-gather": 16 * 4 * 4, "all-reduce": 4}


def test_shapes():
  assert hlo.shape_bytes("f32[8,128]{1,0:T(8,128)}") == 4096
  assert hlo.shape_bytes("(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, pred[5], /*index=2*/s32[])") == 12 + 5 + 4
  assert hlo.shape_bytes("token[]") == 0
  with pytest.raises(ValueError, match="no ENTRY"):
    hlo.Program("something else")


# What the compiler for GPUs leaves of a strided convolution with its gradients, and of a matrix product.
GPU = """
ENTRY %main (image: bf16[1,65,65,128]) -> bf16[1024,512] {
  %image = bf16[1,65,65,128]{3,2,1,0} parameter(0)
  %kernel = bf16[256,3,3,128]{3,2,1,0} parameter(1)
  %grad = bf16[1,32,32,256]{3,2,1,0} parameter(2)
  %cells = bf16[1024,256]{1,0} parameter(3)
  %weight = bf16[256,512]{1,0} parameter(4)
  %cudnn-conv = (bf16[1,32,32,256]{3,2,1,0}, u8[0]{0}) custom-call(%image, %kernel), window={size=3x3 stride=2x2}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  %bw-filter = (bf16[256,3,3,128]{3,2,1,0}, u8[0]{0}) custom-call(%image, %grad), window={size=3x3 stride=2x2}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %bw-input = (bf16[1,65,65,128]{3,2,1,0}, u8[0]{0}) custom-call(%grad, %kernel), window={size=3x3 stride=2x2}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput"
  %sort = (bf16[1024,512]{1,0}, u8[0]{0}) custom-call(%cells), custom_call_target="__cub$DeviceRadixSort"
  ROOT %gemm = (bf16[1024,512]{1,0}, s8[4194304]{0}) custom-call(%cells, %weight), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
}
"""  # noqa: E501


def test_products_in_the_libraries_of_gpus():
  program = hlo.Program(GPU)
  convolution = 2 * 32 * 32 * 256 * 9 * 128
  found = {use.instruction.name: program.flops(use) for use in program.uses()}
  assert found == {
    "%cudnn-conv": convolution,
    "%bw-filter": convolution,
    "%bw-input": convolution,
    "%sort": 0,
    "%gemm": 2 * 1024 * 256 * 512,
  }


# An asynchronous all-gather of the TPU compiler: begun, taken further inside of a product, done; a prefetch in slices.
ASYNC = """
%start (words: f32[1,8]) -> (f32[1,8], f32[4,8], u32[]) {
  %words = f32[1,8]{1,0} parameter(0)
  %all-gather.1 = f32[4,8]{1,0} all-gather(%words), channel_id=1, dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %begun = (f32[1,8]{1,0}, f32[4,8]{1,0}, u32[]) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%product (lhs: bf16[8,16], rhs: bf16[16,32], words: f32[1,8]) -> (bf16[8,32], f32[4,8]) {
  %lhs = bf16[8,16]{1,0} parameter(0)
  %rhs = bf16[16,32]{1,0} parameter(1)
  %words = f32[1,8]{1,0} parameter(2)
  %convolution.1 = bf16[8,32]{1,0} convolution(%lhs, %rhs), dim_labels=bf_io->bf
  %all-gather.2 = f32[4,8]{1,0} all-gather(%words), channel_id=1, dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %both = (bf16[8,32]{1,0}, f32[4,8]{1,0}) tuple(%convolution.1, %all-gather.2)
}

ENTRY %main (x: bf16[8,16], w: bf16[16,32], words: f32[1,8]) -> (bf16[8,32], f32[4,8]) {
  %x = bf16[8,16]{1,0} parameter(0)
  %w = bf16[16,32]{1,0} parameter(1)
  %words = f32[1,8]{1,0} parameter(2)
  %begin = (f32[1,8]{1,0}, f32[4,8]{1,0}, u32[]) fusion(%words), kind=kCustom, calls=%start
  %half = ((bf16[16,32]{1,0}), bf16[8,32]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%w), slice={[0:8], [0:32]}
  %half-done = bf16[8,32]{1,0:S(1)} slice-done(%half)
  %whole = bf16[16,32]{1,0:S(1)} custom-call(%half-done, %half-done), custom_call_target="ConcatBitcast"
  ROOT %step = (bf16[8,32]{1,0}, f32[4,8]{1,0}) fusion(%x, %whole, %words), kind=kOutput, calls=%product, backend_config={"estimated_cycles":"40"}
}
"""  # noqa: E501


def test_asynchronous_pieces_count_once():
  found = profile.profile(ASYNC, CHIP, model_flops=1.0)
  assert found["collectives"] == {"all-gather": {"count": 1, "bytes": 4 * 8 * 4}}
  assert [row["count"] for row in found["all_gathers"]] == [1]
  assert found["estimated_cycles"] == 40 and found["flops"]["compiled"] == 2 * 8 * 16 * 32
  assert "slice-start" not in found["not_estimated"] and "ConcatBitcast" not in found["not_estimated"]

"""A whole tower stage restated in PyTorch from reference 4.2 to 4.4, run on a file exported after training here."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import demo
from glipv2_jax.models import variants
from glipv2_jax.models.glipv2 import abstract_params, graphdef, init_params
from glipv2_jax.train import checkpoint, loop, objective
from glipv2_jax.train.state import RUN_ONCE
from launch import cli
from tests import tiny

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install "glipv2_jax[torch]"')
F = torch.nn.functional

SHAPES = ((8, 10), (4, 5), (2, 3), (1, 2), (1, 1))
TOKENS = 8


def model():
  cfg = tiny.model()
  return dataclasses.replace(cfg, head=dataclasses.replace(cfg.head, fusion_dim=24, fusion_heads=3))


class Stage:
  """Fusion, text layer and DyConv number 0 of a state_dict in the authors' names, in float64."""

  def __init__(self, state, heads, fusion_heads, groups):
    prefix = "rpn.head.dyhead_tower."
    self.state = {n.removeprefix(prefix): v.double() for n, v in state.items() if n.startswith(prefix)}
    self.heads, self.fusion_heads, self.groups = heads, fusion_heads, groups

  def linear(self, name, x):
    return F.linear(x, self.state[name + ".weight"], self.state[name + ".bias"])

  def norm(self, name, x, eps):
    return F.layer_norm(x, x.shape[-1:], self.state[name + ".weight"], self.state[name + ".bias"], eps)

  def __call__(self, maps, words, valid):
    """maps b d h w, words b m e, valid b m -> maps, words."""
    flat = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1)
    flat, words = self.fuse(flat, words, valid)
    sizes = [x.shape[2] * x.shape[3] for x in maps]
    maps = [y.transpose(1, 2).reshape(x.shape) for x, y in zip(maps, flat.split(sizes, 1), strict=True)]
    words = self.text_layer(words, valid)
    return [self.dynamic_relu(self.mix(maps, level)) for level in range(len(maps))], words

  def fuse(self, v, l, valid):
    k = self.fusion_heads
    v, l = self.norm("0.b_attn.layer_norm_v", v, 1e-5), self.norm("0.b_attn.layer_norm_l", l, 1e-5)

    def heads(name, x):
      return self.linear("0.b_attn.attn." + name, x).unflatten(-1, (k, -1)).transpose(1, 2)

    q, keys = heads("v_proj", v), heads("l_proj", l)
    scores = (q * q.shape[-1] ** -0.5 @ keys.transpose(2, 3)).clamp(-50000, 50000)
    to_words = (scores + torch.where(valid, 1.0, -9e15)[:, None, None]).softmax(-1) @ heads("values_l_proj", l)
    to_cells = scores.transpose(2, 3).softmax(-1) @ heads("values_v_proj", v)
    delta_v = self.linear("0.b_attn.attn.out_v_proj", to_words.transpose(1, 2).flatten(2))
    delta_l = self.linear("0.b_attn.attn.out_l_proj", to_cells.transpose(1, 2).flatten(2))
    return v + self.state["0.b_attn.gamma_v"] * delta_v, l + self.state["0.b_attn.gamma_l"] * delta_l

  def text_layer(self, x, valid):
    def heads(name):
      return self.linear(f"1.attention.self.{name}", x).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    q, k, v = heads("query"), heads("key"), heads("value")
    scores = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).clamp(-50000, 50000)
    seen = (scores + torch.where(valid, 0.0, -1e4)[:, None, None]).softmax(-1) @ v
    out = self.linear("1.attention.output.dense", seen.transpose(1, 2).flatten(2))
    x = self.norm("1.attention.output.LayerNorm", out + x, 1e-12)
    hidden = F.gelu(self.linear("1.intermediate.dense", x))
    return self.norm("1.output.LayerNorm", self.linear("1.output.dense", hidden) + x, 1e-12)

  def mix(self, maps, level):
    x = maps[level]
    moved = F.conv2d(x, self.state["2.offset.weight"], self.state["2.offset.bias"], padding=1)
    offset, mask = moved[:, :18], moved[:, 18:].sigmoid()
    branches = [self.branch(1, x, offset, mask, 1)]
    if level > 0:
      branches.append(self.branch(2, maps[level - 1], offset, mask, 2))
    if level < len(maps) - 1:
      h, w = maps[level + 1].shape[2:]  # the authors' kernel reads the front of the finer level's buffers

      def front(t):
        return t.flatten(1)[:, : t.shape[1] * h * w].reshape(len(t), -1, h, w)

      coarse = self.branch(0, maps[level + 1], front(offset), front(mask), 1)
      branches.append(F.interpolate(coarse, x.shape[2:], mode="bilinear", align_corners=True))
    attention = [F.conv2d(y.mean((2, 3), True), self.state["2.AttnConv.1.weight"], self.state["2.AttnConv.1.bias"])
                 for y in branches]  # fmt: skip
    return torch.stack([y * F.hardsigmoid(a.relu()) for y, a in zip(branches, attention, strict=True)]).mean(0)

  def branch(self, j, x, offset, mask, stride):
    weight, bias = self.state[f"2.DyConv.{j}.conv.weight"], self.state[f"2.DyConv.{j}.conv.bias"]
    y = deformable(x, offset, mask, weight, bias, stride)
    return F.group_norm(y, self.groups, self.state[f"2.DyConv.{j}.bn.weight"], self.state[f"2.DyConv.{j}.bn.bias"])

  def dynamic_relu(self, x):
    hidden = self.linear("2.relu.fc.0", x.mean((2, 3))).relu()
    theta = F.hardsigmoid(self.linear("2.relu.fc.2", hidden))[:, :, None, None] - 0.5
    a1, b1, a2, b2 = theta.chunk(4, 1)
    return torch.maximum(x * (2 * a1 + 1) + b1, x * (2 * a2) + b2)


def deformable(x, offset, mask, weight, bias, stride):
  """Modulated deformable convolution, one `grid_sample` per tap."""
  h, w = x.shape[2:]
  rows, columns = mask.shape[2:]
  y0 = torch.arange(rows, dtype=x.dtype)[:, None] * stride - 1
  x0 = torch.arange(columns, dtype=x.dtype)[None] * stride - 1
  out = bias[None, :, None, None]
  for tap in range(9):
    i, j = divmod(tap, 3)
    at_y, at_x = y0 + i + offset[:, 2 * tap], x0 + j + offset[:, 2 * tap + 1]
    grid = torch.stack([(2 * at_x + 1) / w - 1, (2 * at_y + 1) / h - 1], -1)
    sampled = F.grid_sample(x, grid, padding_mode="zeros", align_corners=False) * mask[:, tap, None]
    out = out + torch.einsum("bchw,oc->bohw", sampled, weight[:, :, i, j])
  return out


@contextlib.contextmanager
def compiled_quickly():
  """Three steps run faster than XLA optimises them."""
  jax.config.update("jax_disable_most_optimizations", True)
  try:
    yield
  finally:
    jax.config.update("jax_disable_most_optimizations", False)


def inputs():
  """Maps of five levels, words, valid words."""
  cfg, rng = model(), np.random.default_rng(0)
  maps = [rng.normal(size=(2, *shape, cfg.head.channels)).astype(np.float32) for shape in SHAPES]
  words = rng.normal(size=(2, TOKENS, cfg.text.width)).astype(np.float32)
  return maps, words, np.arange(TOKENS) < np.array([[5], [8]])


def stage_of_ours(params, maps, words, valid):
  return nnx.merge(graphdef(model()), params).tower[0](maps, words, valid)


def the_stage_alone() -> objective.Objective:
  """What the loop trains here, on three levels: a whole network takes a minute to compile."""

  def targets(batch):
    return batch.boxes_valid, {"stage": jnp.float32(1)}, {"num_pos": jnp.float32(1)}

  def loss(params, batch, want, counts, key):
    maps, words, valid = inputs()
    levels, words = stage_of_ours(params, maps[-3:], words, valid)
    value = sum(jnp.square(x - 1).mean() for x in (*levels, words)) / counts["stage"]
    return value, {"stage": value}

  return objective.Objective(functools.partial(init_params, model()), targets, loss)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A run of three steps, and its export by the command."""
  folder = tmp_path_factory.mktemp("run")
  c = demo.get_config()
  c.model.variant, c.data.max_tokens = "tiny", TOKENS
  with pytest.MonkeyPatch.context() as patch, compiled_quickly():
    patch.setitem(variants.VARIANTS, "tiny", model())
    loop.train(the_stage_alone(), tiny.optimizer_config(), loop.TrainConfig(3), tiny.data, folder, variant="tiny",
               record=c.to_dict())  # fmt: skip
    assert cli.main(["export-torch", "--checkpoint", str(folder), "--out", str(folder / "x.pth")]) == 0
  return folder


def test_exported_stage_gives_our_outputs(trained):
  cfg = model()
  state = torch.load(trained / "x.pth", weights_only=True)["model"]
  assert state["rpn.head.dyhead_tower.2.offset.bias"].abs().min() > 1e-5  # it has learned
  maps, words, valid = inputs()
  params = checkpoint.restore_params(trained, abstract_params(cfg))
  # Offsets of a few cells, as after long training: the same factor on both sides.
  params["tower"][0]["dyconv"]["offset"]["kernel"] *= 5.0
  state["rpn.head.dyhead_tower.2.offset.weight"] *= 5.0
  ours, our_words = jax.jit(stage_of_ours, compiler_options=RUN_ONCE)(params, maps, words, valid)
  stage = Stage(state, cfg.text.heads, cfg.head.fusion_heads, cfg.head.groups)
  channels_first = [torch.from_numpy(x).double().permute(0, 3, 1, 2) for x in maps]
  theirs, their_words = stage(channels_first, torch.from_numpy(words).double(), torch.from_numpy(valid))
  for mine, other in zip([*ours, our_words], [*(x.permute(0, 2, 3, 1) for x in theirs), their_words], strict=True):
    error = np.abs(np.asarray(mine, np.float64) - other.numpy()).max() / other.abs().max().item()
    assert error < 1e-5

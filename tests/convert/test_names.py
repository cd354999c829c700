"""The name table: complete against the authors' lists, exact in both directions, strict with what does not fit."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from glipv2_jax.convert import from_torch, names, to_torch
from glipv2_jax.models import variants
from glipv2_jax.models.glipv2 import abstract_params, param_paths
from tests import tiny

CLIP = dataclasses.replace(variants.get("glip_t"), text=variants.CLIP_BASE)
LISTS = {
  "glip/glip_t": variants.get("glip_t"),
  "glip/glip_t_a": variants.get("glip_a"),
  "glip/glip_l": variants.get("glip_l"),
  "glip_more/glip_t_clip": CLIP,
}


@pytest.mark.parametrize("file", LISTS)
def test_names_and_shapes_are_the_authors(file, shared):
  cfg = LISTS[file]
  entries = json.loads((shared / f"golden/{file}_state_dict.json").read_text())["state_dict"]
  theirs = {e["name"]: tuple(e["shape"]) for e in entries if ".mlm_head." not in e["name"]}
  ours = {name: entry.torch_shape() for entry in names.entries(cfg) for name in entry.names}
  buffers = {name: value.shape for name, value in names.buffers(cfg).items()}
  assert ours | buffers == theirs
  assert set(buffers) == {e["name"] for e in entries if e["kind"] == "buffer"}


def kinds():
  cfg = tiny.model()
  plain = dataclasses.replace(cfg.head, fusion=False)
  return {
    "bert": cfg,
    "clip": dataclasses.replace(cfg, text=dataclasses.replace(cfg.text, kind="clip")),
    "no fusion": dataclasses.replace(cfg, head=plain),
    "no text": dataclasses.replace(cfg, text=None, head=plain),
  }


def random_params(cfg):
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), abstract_params(cfg))


@pytest.mark.parametrize("kind", kinds())
def test_round_trip(kind):
  cfg = kinds()[kind]
  params = random_params(cfg)
  state = to_torch.state_dict(params, cfg)
  back = from_torch.parameters({f"module.{name}": value for name, value in state.items()}, cfg)
  assert param_paths(back) == param_paths(params)
  jax.tree.map(np.testing.assert_array_equal, params, back)
  again = to_torch.state_dict(back, cfg)
  assert state.keys() == again.keys()
  for name, value in state.items():
    np.testing.assert_array_equal(value, again[name])


def test_layouts_of_joined_and_transposed_tensors():
  cfg = tiny.model()
  params = random_params(cfg)
  state = to_torch.state_dict(params, cfg)
  d = cfg.text.width
  layer = params["tower"][0]["text_layer"]["attention"]["qkv"]
  prefix = "rpn.head.dyhead_tower.1.attention.self."
  np.testing.assert_array_equal(state[prefix + "key.weight"], layer["kernel"][:, d : 2 * d].T)
  np.testing.assert_array_equal(state[prefix + "value.bias"], layer["bias"][2 * d :])
  kernel = params["tower"][0]["dyconv"]["branches"][2]["conv"]["kernel"]
  np.testing.assert_array_equal(state["rpn.head.dyhead_tower.2.DyConv.2.conv.weight"][3, 1], kernel[:, :, 1, 3])
  np.testing.assert_array_equal(state["rpn.head.scales.4.scale"], params["head"]["scales"][4:])
  assert names.torch_name("swin/norms/0/scale", cfg) == "backbone.body.norm1.weight"
  with pytest.raises(KeyError, match="swin/nothing"):
    names.torch_name("swin/nothing", cfg)


def test_buffers_by_formula():
  buffers = names.buffers(variants.get("glip_t"))
  np.testing.assert_array_equal(buffers["rpn.anchor_generator.cell_anchors.0"], [[-28, -28, 35, 35]])  # reference 5.1
  index = buffers["backbone.body.layers.0.blocks.0.attn.relative_position_index"]
  assert index.dtype == np.int64 and index.shape == (49, 49) and index[0, 0] == 84 and index[0, 48] == 0


def test_everything_that_does_not_fit_is_listed():
  cfg = tiny.model()
  state = to_torch.state_dict(random_params(cfg), cfg)
  state["rpn.resizer.fc.weight"] = np.zeros(1)  # known to be harmless
  del state["language_backbone.body.model.embeddings.position_ids"]  # absent in files of newer transformers
  from_torch.parameters(state, cfg)
  del state["rpn.head.bias0"]
  state["rpn.head.log_scale"] = np.zeros(2)
  state["rpn.head.extra"] = np.zeros(2)
  state["rpn.anchor_generator.cell_anchors.0"] = np.zeros((1, 4))
  with pytest.raises(ValueError) as error:
    from_torch.parameters(state, cfg)
  for part in (
    "4 differences",
    "missing rpn.head.bias0",
    "surplus rpn.head.extra (nearest: rpn.head.bias0)",
    "log_scale is (2,)",
    "cell_anchors.0",
  ):
    assert part in str(error.value)


def test_parameters_of_another_network_are_refused():
  with pytest.raises(ValueError, match="tower/0/fusion"):
    to_torch.state_dict(random_params(kinds()["no fusion"]), tiny.model())

"""Weight files in: what is read, what is cast, and that everything which does not fit is refused by name."""

import dataclasses
import json
import logging
import re

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from glipv2_jax.convert import dialects, files, from_torch, names, resize, to_torch
from glipv2_jax.convert.files import BadWeights
from glipv2_jax.convert.from_torch import Options
from glipv2_jax.losses.grounding import LossConfig
from glipv2_jax.models import variants
from glipv2_jax.models.glipv2 import abstract_params
from glipv2_jax.train import objective
from tests import tiny

CFG = tiny.model()
STRICT = Options()
TABLE = "backbone.body.layers.0.blocks.0.attn.relative_position_bias_table"


def clip_model():
  text = dataclasses.replace(CFG.text, kind="clip", layers=2, positions=16)
  return dataclasses.replace(CFG, text=text)


def random_params(cfg=CFG):
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), abstract_params(cfg))


def random_state(cfg=CFG):
  return to_torch.state_dict(random_params(cfg), cfg)


def encoder(dialect, cfg=CFG):
  """A file of an encoder alone, under the names of `dialect`."""
  rng = np.random.default_rng(1)
  entries = names.expand(dialect.rows, cfg)
  state = {n: rng.normal(size=e.torch_shape()).astype(np.float32) for e in entries for n in e.names}
  return state | names.buffers(cfg, dialect.buffers)


def speaking(part, words, cfg=CFG):
  (found,) = (d for d in dialects.readable(cfg) if d.part == part and words == d.name)
  return found


def values(state, cfg=CFG, options=STRICT):
  return dict(from_torch.check({"file": state}, cfg, options).arrays())


@pytest.mark.parametrize("name", ["state_dict_A", "state_dict_C", "state_dict_L"])
def test_the_authors_lists_fit(name, shared):
  listed = json.loads((shared / f"reference/{name}.json").read_text())
  cfg = variants.get({"A": "glip_a", "C": "glip_t", "L": "glip_l"}[name[-1]])
  state = {entry: np.broadcast_to(np.float32(0), shape) for entry, (shape, _) in listed.items()} | names.buffers(cfg)
  assert from_torch.check({"file": state}, cfg).fresh == ()
  with pytest.raises(BadWeights):
    from_torch.check({"file": state}, variants.get("glip_a" if name[-1] != "A" else "glip_t"))


def test_safetensors_are_views_of_the_file(tmp_path):
  state = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(4, dtype=np.float16),
    "c": np.arange(5).astype(ml_dtypes.bfloat16),
    "d": np.array(7, np.int64),
    "e": np.zeros((0, 3), np.float32),
  }
  save_file(state, tmp_path / "x.safetensors", metadata={"variant": "tiny"})
  file = files.read(tmp_path / "x.safetensors")
  assert file.variant == "tiny" and file.state.keys() == state.keys()
  for name, value in state.items():
    assert file.state[name].dtype == value.dtype
    assert isinstance(file.state[name], np.memmap) or value.size == 0
    np.testing.assert_array_equal(file.state[name], value)


@pytest.mark.parametrize("kept", [0, 5, 40, -1])
def test_truncated_safetensors_are_refused(tmp_path, kept):
  path = tmp_path / "x.safetensors"
  save_file(random_state(), path)
  path.write_bytes(path.read_bytes()[:kept])
  with pytest.raises(BadWeights, match="truncated or no safetensors file") as error:
    files.read(path)
  assert "\n" not in str(error.value)


def test_other_files_are_refused(tmp_path):
  (tmp_path / "x.npz").write_bytes(b"")
  with pytest.raises(BadWeights, match="ends in '.npz'"):
    files.read(tmp_path / "x.npz")
  with pytest.raises(FileNotFoundError, match="absent.pth"):
    files.read(tmp_path / "absent.pth")
  save_file({"a": np.zeros(2, np.uint16)}, tmp_path / "x.safetensors")
  with pytest.raises(BadWeights, match="dtype U16"):
    files.read(tmp_path / "x.safetensors")
  with pytest.raises(BadWeights, match="--ema"):
    files.read(tmp_path / "x.safetensors", ema=True)


def test_a_file_of_another_variant_is_refused(tmp_path):
  path = tmp_path / "x.safetensors"
  to_torch.write(path, random_params(), CFG, "safetensors", variant="demo", config={"a": 1})
  assert from_torch.load([path], CFG, variant="demo").fresh == ()
  with pytest.raises(BadWeights, match="holds variant 'demo', not 'glip_t'"):
    from_torch.load([path], CFG, variant="glip_t")


def test_half_precision_is_cast_and_said(caplog):
  state = random_state()
  name = "rpn.head.dyhead_tower.2.offset.weight"
  state[name] = state[name].astype(np.float16)
  state["rpn.head.bias0"] = state["rpn.head.bias0"].astype(ml_dtypes.bfloat16)
  with caplog.at_level(logging.INFO):
    found = values(state)
  assert all(value.dtype == np.float32 for value in found.values())
  np.testing.assert_array_equal(
    found["tower/0/dyconv/offset/kernel"], state[name].astype(np.float32).transpose(2, 3, 1, 0)
  )
  assert "1 tensors cast from float16 to float32" in caplog.text and "bfloat16" in caplog.text


def test_nan_is_counted_and_warned_of(caplog):
  state = random_state()
  state["rpn.head.bbox_pred.weight"][:2, 0] = np.nan
  state["rpn.head.bias0"][0] = np.inf
  found = values(state)
  assert np.isnan(found["head/bbox_pred/kernel"]).sum() == 2
  (record,) = (r for r in caplog.records if r.levelno == logging.WARNING)
  assert record.getMessage().startswith("3 numbers in 2 parameters are NaN or infinite: ")
  assert "head/bias0" in record.getMessage() and "head/bbox_pred/kernel" in record.getMessage()


def test_nan_goes_out_with_the_same_warning(tmp_path, caplog):
  params = random_params()
  params["head"]["bbox_pred"]["kernel"][0, :3] = np.nan
  to_torch.write(tmp_path / "x.safetensors", params, CFG, "safetensors", variant="tiny", config={})
  (record,) = (r for r in caplog.records if r.levelno == logging.WARNING)
  assert record.getMessage() == "3 numbers in 1 parameters are NaN or infinite: head/bbox_pred/kernel"
  assert np.isnan(files.read(tmp_path / "x.safetensors").state["rpn.head.bbox_pred.weight"]).sum() == 3


def test_patterns_excuse_missing_surplus_and_shape(caplog):
  state = random_state()
  del state["rpn.head.bias0"]
  state["rpn.head.cls_logits.weight"] = np.zeros((3, 16, 1, 1), np.float32)
  state["rpn.extra.weight"] = np.zeros(2, np.float32)
  with pytest.raises(BadWeights, match="3 differences"):
    values(state)
  for options in (Options(allow_missing=r"rpn\.head\.(bias0|cls_logits\.weight)"), Options(allow_surplus=".*")):
    with pytest.raises(BadWeights):
      values(state, options=options)
  options = Options(r"rpn\.head\.(bias0|cls_logits\.weight)", r"rpn\.extra\..*")
  with caplog.at_level(logging.INFO):
    weights = from_torch.check({"file": state}, CFG, options)
  assert set(weights.fresh) == {"head/bias0", "head/cls_logits/kernel"}
  assert "rpn.extra.weight" in caplog.text and "rpn.head.cls_logits.weight" in caplog.text
  with pytest.raises(BadWeights):  # a pattern must match the whole name
    values(state, options=Options("bias0|cls_logits", "extra"))


def test_training_starts_from_a_network_without_its_heads(tmp_path, caplog):
  cfg = dataclasses.replace(CFG, mlm=True, inter_dim=8)
  save_file(random_state(), tmp_path / "glip.safetensors")
  with pytest.raises(BadWeights, match=r"missing rpn\.head\.mlm_head"):
    from_torch.load([tmp_path / "glip.safetensors"], cfg)
  with caplog.at_level(logging.INFO):
    weights = objective.grounding(cfg, LossConfig()).read([tmp_path / "glip.safetensors"])
  assert {path.split("/")[0] for path in weights.fresh} == {"mlm", "inter"}
  assert "missing, allowed" in caplog.text and "shallow_log_scale" in caplog.text
  state = random_state(cfg)  # the authors hold the decoder's bias under two names
  np.testing.assert_array_equal(state["rpn.head.mlm_head.bias"], state["rpn.head.mlm_head.decoder.bias"])
  assert from_torch.check({"file": state}, cfg).fresh == ()


def test_another_window_only_when_asked():
  wide = dataclasses.replace(CFG, swin=dataclasses.replace(CFG.swin, window=6))
  state = random_state(wide)
  with pytest.raises(BadWeights, match="a window of 6 for one of 4; --resize-window"):
    values(state)
  state[TABLE] = np.repeat(np.arange(11.0, dtype=np.float32), 11)[:, None]  # grows with y, constant in x
  table = values(state, options=Options(resize_window=True))["swin/stages/0/blocks/0/attn/relative_position_bias_table"]
  plane = table.reshape(7, 7)
  np.testing.assert_allclose(plane, plane[:, :1].repeat(7, 1), atol=1e-5)
  np.testing.assert_allclose(plane[:, 0] + plane[::-1, 0], 10.0, atol=1e-5)
  assert (np.diff(plane[:, 0]) > 1).all()
  state["backbone.body.layers.0.blocks.0.attn.relative_position_index"][0, 0] += 1
  with pytest.raises(BadWeights, match="relative_position_index does not hold the values"):
    values(state, options=Options(resize_window=True))


IMAGE = [d.name for d in dialects.readable(CFG) if d.part == "image"]
BERT = [d.name for d in dialects.readable(CFG) if d.part == "text"]
CLIP = [d.name for d in dialects.readable(clip_model()) if d.part == "text"]


@pytest.mark.parametrize("name,part,cfg", [
  *((name, "image", CFG) for name in IMAGE), *((name, "text", CFG) for name in BERT),
  *((name, "text", clip_model()) for name in CLIP)], ids=lambda x: x if isinstance(x, str) else "")  # fmt: skip
def test_every_encoder_is_recognised_and_round_trips(name, part, cfg):
  dialect = speaking(part, name, cfg)
  state = encoder(dialect, cfg)
  assert [d.name for d in from_torch.spoken(state, cfg, "file")] == [name]
  weights = from_torch.check({"file": state}, cfg)
  assert all(
    path.startswith(("swin/norms", "fpn", "text" if part == "image" else "swin", "tower", "head"))
    for path in weights.fresh
  )
  entries = {entry.path: entry for entry in names.expand(dialect.rows, cfg)}
  for path, value in weights.arrays():
    for theirs, tensor in zip(entries[path].names, entries[path].to_torch(value), strict=True):
      np.testing.assert_array_equal(tensor, state[theirs])


def test_a_published_swin_brings_a_classifier_and_rgb(caplog):
  state = encoder(speaking("image", "Swin, its authors, below ''"))
  unused = {"norm.weight": (4,), "head.weight": (10, 4), "layers.0.blocks.1.attn_mask": (4, 16, 16)}
  state |= {name: np.zeros(shape, np.float32) for name, shape in unused.items()}
  with caplog.at_level(logging.INFO):
    found = values(state)
  assert all(name in caplog.text for name in unused)
  kernel = state["patch_embed.proj.weight"]
  np.testing.assert_array_equal(
    found["swin/patch_embed/proj/kernel"][1, 2, 0], kernel[:, 2, 1, 2]
  )  # blue is first here
  state["head2.weight"] = np.zeros(2)
  with pytest.raises(BadWeights, match="surplus head2.weight"):
    values(state)


def test_timm_keeps_the_downsampling_in_the_later_stage():
  state = encoder(speaking("image", "Swin, timm"))
  assert "layers.3.downsample.norm.weight" in state and "layers.0.downsample.norm.weight" not in state
  found = values(state)["swin/stages/2/downsample/reduction/kernel"]
  np.testing.assert_array_equal(found, state["layers.3.downsample.reduction.weight"].T)


def test_unicl_holds_both_encoders_and_positions_grow(caplog):
  cfg = clip_model()
  state = encoder(speaking("image", "Swin, its authors, below 'image_encoder.'", cfg), cfg)
  state |= encoder(speaking("text", "CLIP text, UniCL, below 'lang_encoder.'", cfg), cfg)
  state["lang_encoder.positional_embedding"] = np.linspace(0, 1, 5, dtype=np.float32)[:, None].repeat(16, 1)
  state |= {"text_projection": np.zeros((2, 2)), "vision_projection": np.zeros((2, 2)), "logit_scale": np.zeros(())}
  with caplog.at_level(logging.INFO):
    found = values(state, cfg)
  assert "text/position/embedding resized from (5, 16) to (16, 16)" in caplog.text
  column = found["text/position/embedding"][:, 3]
  want = np.clip(((np.arange(16) + 0.5) * 5 / 16 - 0.5) / 4, 0, 1)  # half-pixel centres, edges repeated
  np.testing.assert_allclose(column, want, atol=1e-6)
  whole = random_state(cfg)
  whole["language_backbone.body.positional_embedding"] = state["lang_encoder.positional_embedding"]
  with pytest.raises(BadWeights, match="positional_embedding is"):  # a whole network must fit as it is
    values(whole, cfg)


def test_pairs_of_files():
  image, text = encoder(speaking("image", IMAGE[0])), encoder(speaking("text", BERT[0]))
  weights = from_torch.check({"swin": image, "bert": text}, CFG)
  assert not any(path.startswith("text/") or path.startswith("swin/stages") for path in weights.fresh)
  with pytest.raises(BadWeights, match="swin2 and swin both hold weights of the image"):
    from_torch.check({"swin": image, "swin2": image}, CFG)
  with pytest.raises(BadWeights, match="both hold"):
    from_torch.check({"glip": random_state(), "bert": text}, CFG)
  with pytest.raises(BadWeights, match="no name that this network knows"):
    from_torch.check({"resnet": {"conv1.weight": np.zeros(3)}}, CFG)


def converted_by_mmdetection(state):
  """The rules of its tools/model_converters/glip_to_mmdet.py (later version, with `dyconvs`) in other words."""
  fpn = {f"fpn_{kind}{k + 2}": f"{place}.{k}" for k in range(3)
         for kind, place in (("inner", "lateral_convs"), ("layer", "fpn_convs"))}  # fmt: skip
  fpn |= {"top_blocks.p6": "fpn_convs.3", "top_blocks.p7": "fpn_convs.4"}
  found = {}
  for name, value in state.items():
    if re.search("anchor_generator|cls_logits|pooler|resizer", name):
      continue
    if name.startswith("backbone.fpn."):
      block, leaf = name.removeprefix("backbone.fpn.").rsplit(".", 1)
      name = f"neck.{fpn[block]}.conv.{leaf}"
    elif name.startswith("backbone.body."):
      changes = {"backbone.body": "backbone", "patch_embed.proj": "patch_embed.projection", "layers": "stages",
                 "mlp.fc1": "ffn.layers.0.0", "mlp.fc2": "ffn.layers.1", ".attn.": ".attn.w_msa."}  # fmt: skip
      for old, new in changes.items():
        name = name.replace(old, new)
      if "downsample" in name:  # four neighbours: column by column -> row by row, inside each channel
        corners = value.reshape(*value.shape[:-1], 4, -1)[..., [0, 2, 1, 3], :]
        value = np.swapaxes(corners, -1, -2).reshape(value.shape)
    elif name.startswith("language_backbone."):
      name = "language_model." + name
    else:
      name = name.replace("rpn.", "bbox_head.", 1).replace("DyConv", "dyconvs").replace("AttnConv", "attnconv")
    found[name] = value
  return found


def test_mmdetection_names():
  """As its published converter makes them from the authors' file, and back."""
  params = random_params()
  state = to_torch.state_dict(params, CFG, "mmdet")
  want = converted_by_mmdetection(to_torch.state_dict(params, CFG))
  assert state.keys() == want.keys()
  for name, value in want.items():
    np.testing.assert_array_equal(state[name], value, name)
  weights = from_torch.check({"file": state}, CFG)
  assert set(weights.fresh) == {"head/cls_logits/kernel", "head/cls_logits/bias"}
  ours = values(random_state())
  for path, value in weights.arrays():
    np.testing.assert_array_equal(value, ours[path])
  heads = dataclasses.replace(CFG, mlm=True, inter_dim=8)  # of training, unknown to MMDetection
  assert to_torch.state_dict(random_params(heads), heads, "mmdet").keys() == state.keys()
  with pytest.raises(ValueError, match="BERT"):
    to_torch.state_dict(random_params(clip_model()), clip_model(), "mmdet")


def test_interpolation_keeps_its_own_size():
  table = np.random.default_rng(0).normal(size=(49, 3)).astype(np.float32)
  np.testing.assert_allclose(resize.bias_table(table, 4), table, atol=1e-6)
  np.testing.assert_allclose(resize.bias_table(np.ones((49, 3), np.float32), 7), 1.0, atol=1e-6)

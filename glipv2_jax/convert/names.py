"""One table between our parameter paths and the names in the authors' state_dict, read in both directions.

Each row names a module of ours and of theirs and says how its tensors are laid out; `entries` expands the table for one
network. Joined tensors (query, key and value; the scales of the five levels) are several names of theirs for one of
ours. Buffers hold no information: they are computed for export and, where an imported file has them, checked.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping

import jax
import numpy as np

from glipv2_jax.models.glipv2 import abstract_params, param_paths
from glipv2_jax.models.swin import relative_position_index
from glipv2_jax.models.variants import ModelConfig

# Module kinds: our leaf -> (their leaves, layout). Several leaves of theirs are joined along our last axis.
KINDS = {
  "linear": {"kernel": (("weight",), "linear"), "bias": (("bias",), "same")},
  "conv": {"kernel": (("weight",), "conv"), "bias": (("bias",), "same")},
  "pointwise": {"kernel": (("weight",), "pointwise"), "bias": (("bias",), "same")},  # 1x1 convolution, linear here
  "norm": {"scale": (("weight",), "same"), "bias": (("bias",), "same")},
  "embedding": {"embedding": (("weight",), "same")},
  "query_key_value": {
    "kernel": (("query.weight", "key.weight", "value.weight"), "linear"),
    "bias": (("query.bias", "key.bias", "value.bias"), "same"),
  },
  "in_proj": {"kernel": (("in_proj_weight",), "linear"), "bias": (("in_proj_bias",), "same")},
}

# Layouts: (theirs -> ours, ours -> theirs).
LAYOUTS = {
  "same": (lambda x: x, lambda x: x),
  "linear": (np.transpose, np.transpose),
  "conv": (lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)),
  "pointwise": (lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None]),
}

BERT_LAYER = (  # the same below the encoder and below the tower
  ("attention/qkv", "attention.self", "query_key_value"),
  ("attention/out", "attention.output.dense", "linear"),
  ("attention_norm", "attention.output.LayerNorm", "norm"),
  ("fc1", "intermediate.dense", "linear"),
  ("fc2", "output.dense", "linear"),
  ("output_norm", "output.LayerNorm", "norm"),
)
CLIP_LAYER = (
  ("attention/qkv", "attn", "in_proj"),
  ("attention/out", "attn.out_proj", "linear"),
  ("ln_1", "ln_1", "norm"),
  ("ln_2", "ln_2", "norm"),
  ("mlp/fc1", "mlp.c_fc", "linear"),
  ("mlp/fc2", "mlp.c_proj", "linear"),
)
IMAGE = (  # {i}, {j}: indices; {next} = i + 1
  ("swin/patch_embed/proj", "backbone.body.patch_embed.proj", "conv"),
  ("swin/patch_embed/norm", "backbone.body.patch_embed.norm", "norm"),
  *(
    (f"swin/stages/{{i}}/blocks/{{j}}/{ours}", f"backbone.body.layers.{{i}}.blocks.{{j}}.{theirs}", kind)
    for ours, theirs, kind in (
      ("norm1", "norm1", "norm"),
      ("norm2", "norm2", "norm"),
      ("attn/qkv", "attn.qkv", "linear"),
      ("attn/proj", "attn.proj", "linear"),
      ("attn/relative_position_bias_table", "attn.relative_position_bias_table", "tensor"),
      ("mlp/fc1", "mlp.fc1", "linear"),
      ("mlp/fc2", "mlp.fc2", "linear"),
    )
  ),
  ("swin/stages/{i}/downsample/norm", "backbone.body.layers.{i}.downsample.norm", "norm"),
  ("swin/stages/{i}/downsample/reduction", "backbone.body.layers.{i}.downsample.reduction", "linear"),
  ("swin/norms/{i}", "backbone.body.norm{next}", "norm"),
  *((f"fpn/inner{k}", f"backbone.fpn.fpn_inner{k}", "conv") for k in (2, 3, 4)),
  *((f"fpn/layer{k}", f"backbone.fpn.fpn_layer{k}", "conv") for k in (2, 3, 4)),
  *((f"fpn/{p}", f"backbone.fpn.top_blocks.{p}", "conv") for p in ("p6", "p7")),
)
BERT_MODEL = "language_backbone.body.model"
TEXT = {
  "bert": (
    ("text/embeddings/word", f"{BERT_MODEL}.embeddings.word_embeddings", "embedding"),
    ("text/embeddings/position", f"{BERT_MODEL}.embeddings.position_embeddings", "embedding"),
    ("text/embeddings/token_type", f"{BERT_MODEL}.embeddings.token_type_embeddings", "embedding"),
    ("text/embeddings/norm", f"{BERT_MODEL}.embeddings.LayerNorm", "norm"),
    *((f"text/layers/{{i}}/{ours}", f"{BERT_MODEL}.encoder.layer.{{i}}.{their}", k) for ours, their, k in BERT_LAYER),
  ),
  "clip": (
    ("text/token", "language_backbone.body.token_embedding", "embedding"),
    ("text/position/embedding", "language_backbone.body.positional_embedding", "tensor"),
    ("text/ln_final", "language_backbone.body.ln_final", "norm"),
    *(
      (f"text/layers/{{i}}/{ours}", f"language_backbone.body.resblocks.{{i}}.{their}", k)
      for ours, their, k in CLIP_LAYER
    ),
  ),
}
TOWER = "rpn.head.dyhead_tower"
FUSION = (  # {fusion}, {text}, {dyconv}: position of the part of stage i in the authors' sequence
  *(("tower/{i}/fusion/" + g, TOWER + ".{fusion}.b_attn." + g, "tensor") for g in ("gamma_v", "gamma_l")),
  *(("tower/{i}/fusion/" + n, TOWER + ".{fusion}.b_attn." + n, "norm") for n in ("layer_norm_v", "layer_norm_l")),
  *(
    ("tower/{i}/fusion/" + n, TOWER + ".{fusion}.b_attn.attn." + n, "linear")
    for n in ("v_proj", "l_proj", "values_v_proj", "values_l_proj", "out_v_proj", "out_l_proj")
  ),
)
TEXT_LAYER = {
  kind: tuple(("tower/{i}/text_layer/" + ours, TOWER + ".{text}." + theirs, k) for ours, theirs, k in layer)
  for kind, layer in (("bert", BERT_LAYER), ("clip", CLIP_LAYER))
}
DYCONV = (
  ("tower/{i}/dyconv/offset", TOWER + ".{dyconv}.offset", "conv"),
  ("tower/{i}/dyconv/branches/{j}/conv", TOWER + ".{dyconv}.DyConv.{j}.conv", "conv"),
  ("tower/{i}/dyconv/branches/{j}/norm", TOWER + ".{dyconv}.DyConv.{j}.bn", "norm"),
  ("tower/{i}/dyconv/scale_attention", TOWER + ".{dyconv}.AttnConv.1", "pointwise"),
  ("tower/{i}/dyconv/dyrelu/reduce", TOWER + ".{dyconv}.relu.fc.0", "linear"),
  ("tower/{i}/dyconv/dyrelu/expand", TOWER + ".{dyconv}.relu.fc.2", "linear"),
)
HEAD = (
  *((f"head/{n}", f"rpn.head.{n}", "pointwise") for n in ("cls_logits", "bbox_pred", "centerness")),
  ("head/scales", "rpn.head.scales", "scales"),
)
ALIGNMENT = (
  ("head/projection_text", "rpn.head.dot_product_projection_text", "linear"),
  *((f"head/{n}", f"rpn.head.{n}", "tensor") for n in ("log_scale", "bias_lang", "bias0")),
)
MLM = (
  ("mlm/dense", "rpn.head.mlm_head.transform.dense", "linear"),
  ("mlm/norm", "rpn.head.mlm_head.transform.LayerNorm", "norm"),
  ("mlm/decoder", "rpn.head.mlm_head.decoder", "linear"),
)
INTER = (
  ("inter/projection_image", "rpn.loss_evaluator.shallow_contrastive_projection_image", "linear"),
  ("inter/projection_text", "rpn.loss_evaluator.shallow_contrastive_projection_text", "linear"),
  ("inter/log_scale", "rpn.loss_evaluator.shallow_log_scale", "tensor"),
)
# Found in released files, without meaning for the network (reference 10; golden/glip README). The last one is the same
# tensor as mlm_head.decoder.bias.
IGNORED = (r"rpn\.resizer\..*", r".*\.pooler\..*", r"rpn\.head\.mlm_head\.bias")


@dataclasses.dataclass(frozen=True)
class Entry:
  """One parameter: our path and shape, their names, and the layout between the two (a key of `LAYOUTS`)."""

  path: str
  names: tuple[str, ...]
  layout: str
  shape: tuple[int, ...]

  def from_torch(self, tensors: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([LAYOUTS[self.layout][0](x) for x in tensors], -1)

  def to_torch(self, value: np.ndarray) -> list[np.ndarray]:
    return [np.ascontiguousarray(LAYOUTS[self.layout][1](x)) for x in np.split(value, len(self.names), -1)]

  def torch_shape(self) -> tuple[int, ...]:
    part = (*self.shape[:-1], self.shape[-1] // len(self.names))
    return LAYOUTS[self.layout][1](np.broadcast_to(np.float32(0), part)).shape


def table(cfg: ModelConfig) -> tuple[tuple[str, str, str], ...]:
  """The rows (our module, their module, kind) that the network of `cfg` has."""
  rows = IMAGE + DYCONV + HEAD
  if cfg.text is not None:
    rows += TEXT[cfg.text.kind] + ALIGNMENT
  if cfg.head.fusion:
    rows += FUSION + TEXT_LAYER[cfg.text.kind]
  if cfg.mlm:
    rows += MLM
  if cfg.inter_dim:
    rows += INTER
  return rows


@functools.cache
def entries(cfg: ModelConfig) -> tuple[Entry, ...]:
  """Every parameter of the network, in the order of `param_paths`. Raises KeyError for a path without a row."""
  rules = [(re.compile(re.sub(r"\{(\w)\}", r"(?P<\1>\\d+)", ours) + r"(?:/(?P<leaf>\w+))?"), theirs, kind)
           for ours, theirs, kind in table(cfg)]  # fmt: skip
  params = abstract_params(cfg)
  return tuple(
    Entry(path, *_torch_names(path, rules, cfg), leaf.shape)
    for path, leaf in zip(param_paths(params), jax.tree.leaves(params), strict=True)
  )


def _torch_names(path: str, rules, cfg: ModelConfig) -> tuple[tuple[str, ...], str]:
  for pattern, theirs, kind in rules:
    match = pattern.fullmatch(path)
    if match is None:
      continue
    leaf = match["leaf"]
    if (leaf is None) != (kind in ("tensor", "scales")) or (leaf is not None and leaf not in KINDS[kind]):
      continue
    indices = {name: int(text) for name, text in match.groupdict().items() if name != "leaf"}
    if "i" in indices:
      i = indices["i"]
      indices |= {"next": i + 1, "fusion": 3 * i, "text": 3 * i + 1, "dyconv": 3 * i + 2 if cfg.head.fusion else i}
    module = theirs.format(**indices)
    if kind == "tensor":
      return (module,), "same"
    if kind == "scales":
      return tuple(f"{module}.{level}.scale" for level in range(len(cfg.strides))), "same"
    leaves, layout = KINDS[kind][leaf]
    return tuple(f"{module}.{name}" for name in leaves), layout
  raise KeyError(f"parameter {path!r} has no row in convert/names.py; add one to its table")


def torch_name(path: str, cfg: ModelConfig) -> str:
  """Their name for our `path`; joined tensors give their names separated by commas. Raises KeyError if unknown."""
  for entry in entries(cfg):
    if entry.path == path:
      return ",".join(entry.names)
  raise KeyError(f"{path!r} is not a parameter of this network; see param_paths")


def buffers(cfg: ModelConfig) -> dict[str, np.ndarray]:
  """The computed entries of a state_dict: index tables of Swin, anchor templates, BERT's position ids."""
  index = relative_position_index(cfg.swin.window).astype(np.int64)
  found = {
    f"backbone.body.layers.{i}.blocks.{j}.attn.relative_position_index": index
    for i, depth in enumerate(cfg.swin.depths)
    for j in range(depth)
  }
  for level, stride in enumerate(cfg.strides):
    centre, half = (stride - 1) / 2, (cfg.anchor_scale * stride - 1) / 2
    template = np.array([[centre - half, centre - half, centre + half, centre + half]], np.float32)
    found[f"rpn.anchor_generator.cell_anchors.{level}"] = template
  if cfg.text is not None and cfg.text.kind == "bert":
    found[f"{BERT_MODEL}.embeddings.position_ids"] = np.arange(cfg.text.positions, dtype=np.int64)[None]
  return found


def from_torch(state: Mapping[str, np.ndarray], cfg: ModelConfig, ignore: tuple[str, ...] = IGNORED) -> dict:
  """A state_dict as numpy arrays -> our nested parameters (float32).

  A leading 'module.' on every name is removed. Buffers may be absent; present ones must have the computed values.
  Raises ValueError listing every missing, surplus and misshaped name; `ignore` holds patterns of surplus names to skip.
  """
  if state and all(name.startswith("module.") for name in state):
    state = {name.removeprefix("module."): value for name, value in state.items()}
  wanted, computed = entries(cfg), buffers(cfg)
  known = {name for entry in wanted for name in entry.names}
  problems = [f"missing {name}" for name in sorted(known - state.keys())]
  for name in sorted(state.keys() - known):
    if name in computed:
      if not np.array_equal(np.asarray(state[name]), computed[name]):
        problems.append(f"buffer {name} does not hold the values that this network computes")
    elif not any(re.fullmatch(pattern, name) for pattern in ignore):
      problems.append(f"surplus {name}")
  for entry in wanted:
    for name in entry.names:
      if name in state and tuple(state[name].shape) != entry.torch_shape():
        problems.append(f"shape of {name} is {tuple(state[name].shape)}, this network has {entry.torch_shape()}")
  if problems:
    raise ValueError(f"the state_dict does not fit this network ({len(problems)} problems):\n" + "\n".join(problems))
  leaves = [entry.from_torch([np.asarray(state[name], np.float32) for name in entry.names]) for entry in wanted]
  return jax.tree.unflatten(jax.tree.structure(abstract_params(cfg)), leaves)


def to_torch(params: dict, cfg: ModelConfig) -> dict[str, np.ndarray]:
  """Our nested parameters -> a complete state_dict (buffers included) of float32 numpy arrays, without 'module.'."""
  wanted, leaves = entries(cfg), jax.tree.leaves(params)
  paths = param_paths(params)
  if paths != [entry.path for entry in wanted]:
    different = sorted(set(paths) ^ {entry.path for entry in wanted})
    raise ValueError(f"the parameters are not those of this network; paths on one side only: {different}")
  state = {}
  for entry, value in zip(wanted, leaves, strict=True):
    if tuple(value.shape) != tuple(entry.shape):
      raise ValueError(f"{entry.path} has shape {tuple(value.shape)}, this network has {entry.shape}")
    state.update(zip(entry.names, entry.to_torch(np.asarray(value, np.float32)), strict=True))
  return state | buffers(cfg)

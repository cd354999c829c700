"""One table between our parameter paths and the names in the authors' state_dict, read in both directions.

Each row names a module of ours and of theirs and says how its tensors are laid out; `expand` applies rows to one
network. Joined tensors (query, key and value; the scales of the five levels) are several names of theirs for one of
ours. Buffers hold no information: they are computed for export and, where an imported file has them, checked. Other
people's names for the same modules are rows of the same form in dialects.py.
"""

import dataclasses
import functools
import re

import jax
import numpy as np

from glipv2_jax.convert.layouts import KINDS, LAYOUTS
from glipv2_jax.models.glipv2 import abstract_params, param_paths
from glipv2_jax.models.swin import relative_position_index
from glipv2_jax.models.variants import ModelConfig

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
# Heads that only training uses: a file to start from may lack them.
TRAINING_HEADS = r"rpn\.(head\.mlm_head|loss_evaluator)\..*"
# Entries that repeat another one: written, and not read.
COPIES = {"rpn.head.mlm_head.bias": "rpn.head.mlm_head.decoder.bias"}
# Found in released files, without meaning for the network (reference 10; golden/glip README).
IGNORED = (r"rpn\.resizer\..*", r".*\.pooler\..*", *map(re.escape, COPIES))


@dataclasses.dataclass(frozen=True)
class BufferNames:
  """Where a state_dict keeps its computed entries; None: it has none of that sort."""

  index: str | None = None  # {i}, {j}: stage, block
  anchors: str | None = None  # {level}
  position_ids: str | None = None


BUFFERS = BufferNames(
  "backbone.body.layers.{i}.blocks.{j}.attn.relative_position_index",
  "rpn.anchor_generator.cell_anchors.{level}",
  f"{BERT_MODEL}.embeddings.position_ids",
)


@dataclasses.dataclass(frozen=True)
class Entry:
  """One parameter: our path and shape, their names, and the layout between the two (a key of `LAYOUTS`)."""

  path: str
  names: tuple[str, ...]
  layout: str
  shape: tuple[int, ...]

  def from_torch(self, tensors: list[np.ndarray]) -> np.ndarray:
    """Their tensors, of any dtype -> ours, a new float32 array; one copy."""
    value = np.empty(self.shape, np.float32)
    for part, tensor in zip(np.split(value, len(self.names), -1), tensors, strict=True):
      part[...] = LAYOUTS[self.layout][0](tensor)
    return value

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
def shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
  """path -> shape of every parameter, in the order of `param_paths`."""
  params = abstract_params(cfg)
  return {path: leaf.shape for path, leaf in zip(param_paths(params), jax.tree.leaves(params), strict=True)}


@functools.cache
def expand(rows: tuple[tuple[str, str, str], ...], cfg: ModelConfig) -> tuple[Entry, ...]:
  """The parameters of the network that `rows` name, in the order of `param_paths`."""
  rules = [(re.compile(re.sub(r"\{(\w)\}", r"(?P<\1>\\d+)", ours) + r"(?:/(?P<leaf>\w+))?"), theirs, kind)
           for ours, theirs, kind in rows]  # fmt: skip
  named = ((path, shape, _torch_names(path, rules, cfg)) for path, shape in shapes(cfg).items())
  return tuple(Entry(path, *found, shape) for path, shape, found in named if found)


@functools.cache
def entries(cfg: ModelConfig) -> tuple[Entry, ...]:
  """Every parameter of the network under the authors' names. Raises KeyError for a path without a row."""
  found = expand(table(cfg), cfg)
  unnamed = sorted(shapes(cfg).keys() - {entry.path for entry in found})
  if unnamed:
    raise KeyError(f"parameters {unnamed} have no row in convert/names.py; add them to its table")
  return found


def _torch_names(path: str, rules, cfg: ModelConfig) -> tuple[tuple[str, ...], str] | None:
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
  return None


def torch_name(path: str, cfg: ModelConfig) -> str:
  """Their name for our `path`; joined tensors give their names separated by commas. Raises KeyError if unknown."""
  for entry in entries(cfg):
    if entry.path == path:
      return ",".join(entry.names)
  raise KeyError(f"{path!r} is not a parameter of this network; see param_paths")


def buffers(cfg: ModelConfig, names: BufferNames = BUFFERS) -> dict[str, np.ndarray]:
  """The computed entries of a state_dict: index tables of Swin, anchor templates, BERT's position ids."""
  found = {}
  if names.index is not None:
    index = relative_position_index(cfg.swin.window).astype(np.int64)
    blocks = ((i, j) for i, depth in enumerate(cfg.swin.depths) for j in range(depth))
    found |= {names.index.format(i=i, j=j): index for i, j in blocks}
  if names.anchors is not None:
    for level, stride in enumerate(cfg.strides):
      centre, half = (stride - 1) / 2, (cfg.anchor_scale * stride - 1) / 2
      corners = [centre - half, centre - half, centre + half, centre + half]
      found[names.anchors.format(level=level)] = np.array([corners], np.float32)
  if names.position_ids is not None and cfg.text is not None and cfg.text.kind == "bert":
    found[names.position_ids] = np.arange(cfg.text.positions, dtype=np.int64)[None]
  return found

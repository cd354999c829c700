"""Other people's names for the parts of the network: rows like those of names.py, one `Dialect` per naming.

Whole networks: the authors' GLIP and MMDetection's port of it. Encoders alone, as they are published: Swin in the names
of its authors, of timm and of Hugging Face; BERT in Hugging Face's; the CLIP text transformer in OpenAI's, UniCL's and
Hugging Face's (reference 3.3, 11.4). The parts of a published file that this network has no use for are listed too.
"""

import dataclasses
import re

from glipv2_jax.convert import names
from glipv2_jax.convert.names import BufferNames
from glipv2_jax.models.variants import ModelConfig

Rows = tuple[tuple[str, str, str], ...]


@dataclasses.dataclass(frozen=True)
class Dialect:
  """`part` 'network', 'image' or 'text'; `ignored`: patterns (whole names) of entries without meaning here."""

  name: str
  part: str
  rows: Rows
  buffers: BufferNames = BufferNames()
  ignored: tuple[str, ...] = ()


def _moved(rows: Rows, old: str, new: str) -> Rows:
  """`rows` with their modules' leading `old` replaced; rows of other modules are left out."""
  return tuple((ours, new + theirs.removeprefix(old), kind) for ours, theirs, kind in rows if theirs.startswith(old))


def _kinds(rows: Rows, **replaced: str) -> Rows:
  return tuple((ours, theirs, replaced.get(kind, kind)) for ours, theirs, kind in rows)


# MMDetection 3: names and values as its tools/model_converters/glip_to_mmdet.py makes them (the tests restate it). No
# classifier without words, no anchors, and patches merged in the order of nn.Unfold.
MMDET_IMAGE = (
  ("swin/patch_embed/proj", "backbone.patch_embed.projection", "conv"),
  ("swin/patch_embed/norm", "backbone.patch_embed.norm", "norm"),
  *(
    (f"swin/stages/{{i}}/blocks/{{j}}/{ours}", f"backbone.stages.{{i}}.blocks.{{j}}.{theirs}", kind)
    for ours, theirs, kind in (
      ("norm1", "norm1", "norm"),
      ("norm2", "norm2", "norm"),
      ("attn/qkv", "attn.w_msa.qkv", "linear"),
      ("attn/proj", "attn.w_msa.proj", "linear"),
      ("attn/relative_position_bias_table", "attn.w_msa.relative_position_bias_table", "tensor"),
      ("mlp/fc1", "ffn.layers.0.0", "linear"),
      ("mlp/fc2", "ffn.layers.1", "linear"),
    )
  ),
  ("swin/stages/{i}/downsample/norm", "backbone.stages.{i}.downsample.norm", "unfold_norm"),
  ("swin/stages/{i}/downsample/reduction", "backbone.stages.{i}.downsample.reduction", "unfold_linear"),
  ("swin/norms/{i}", "backbone.norm{next}", "norm"),
  *((f"fpn/inner{k}", f"neck.lateral_convs.{k - 2}.conv", "conv") for k in (2, 3, 4)),
  *((f"fpn/layer{k}", f"neck.fpn_convs.{k - 2}.conv", "conv") for k in (2, 3, 4)),
  *((f"fpn/{p}", f"neck.fpn_convs.{k}.conv", "conv") for p, k in (("p6", 3), ("p7", 4))),
)
MMDET_LACKS = ("head/cls_logits", "mlm/", "inter/")
MMDET_HEAD = {".DyConv.": ".dyconvs.", ".AttnConv.": ".attnconv."}


def _mmdet(cfg: ModelConfig) -> Dialect:
  glip = tuple(row for row in names.table(cfg) if not row[0].startswith(MMDET_LACKS))
  head = _moved(glip, "rpn.", "bbox_head.")
  for old, new in MMDET_HEAD.items():
    head = tuple((ours, theirs.replace(old, new), kind) for ours, theirs, kind in head)
  text = _moved(glip, "language_backbone.", "language_model.language_backbone.")
  buffers = BufferNames(
    index="backbone.stages.{i}.blocks.{j}.attn.w_msa.relative_position_index",
    position_ids=f"language_model.{names.BERT_MODEL}.embeddings.position_ids",
  )
  return Dialect("MMDetection's GLIP", "network", MMDET_IMAGE + text + head, buffers, (r".*\.pooler\..*",))


# Swin of image classification. It reads RGB, this network BGR with the same mean and deviation per colour: turning the
# input channels of the first layer makes both the same function. The norms of the outputs are new here.
SWIN = _kinds(
  tuple(row for row in _moved(names.IMAGE, "backbone.body.", "") if not row[0].startswith("swin/norms")),
  conv="conv_rgb",
)
SWIN_INDEX = "layers.{i}.blocks.{j}.attn.relative_position_index"
SWIN_UNUSED = (r"norm\..*", r"head\..*", r"layers\.\d+\.blocks\.\d+\.attn_mask")
# timm (1.0.31: swin tiny, base and large fit) keeps the map between two stages in the later one.
TIMM = tuple((ours, theirs.replace("{i}.downsample", "{next}.downsample"), kind) for ours, theirs, kind in SWIN)
HF_SWIN = (
  ("swin/patch_embed/proj", "embeddings.patch_embeddings.projection", "conv_rgb"),
  ("swin/patch_embed/norm", "embeddings.norm", "norm"),
  *(
    (f"swin/stages/{{i}}/blocks/{{j}}/{ours}", f"encoder.layers.{{i}}.blocks.{{j}}.{theirs}", kind)
    for ours, theirs, kind in (
      ("norm1", "layernorm_before", "norm"),
      ("norm2", "layernorm_after", "norm"),
      ("attn/qkv", "attention.self", "query_key_value"),
      ("attn/proj", "attention.output.dense", "linear"),
      ("attn/relative_position_bias_table", "attention.self.relative_position_bias_table", "tensor"),
      ("mlp/fc1", "intermediate.dense", "linear"),
      ("mlp/fc2", "output.dense", "linear"),
    )
  ),
  ("swin/stages/{i}/downsample/norm", "encoder.layers.{i}.downsample.norm", "norm"),
  ("swin/stages/{i}/downsample/reduction", "encoder.layers.{i}.downsample.reduction", "linear"),
)
HF_SWIN_INDEX = "encoder.layers.{i}.blocks.{j}.attention.self.relative_position_index"
# Of their contrastive tasks. UniCL's first files said vision_projection, visual. and text. (its _convert_old_weights).
UNICL = ("text_projection", "image_projection", "vision_projection", "logit_scale")
OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")  # scalars in OpenAI's own files


def _image() -> tuple[Dialect, ...]:
  dialects = [
    Dialect("Swin, timm", "image", TIMM, BufferNames(SWIN_INDEX), SWIN_UNUSED),
    *(
      Dialect(f"Swin, its authors, below '{prefix}'", "image", _moved(SWIN, "", prefix),
              BufferNames(prefix + SWIN_INDEX), (*(re.escape(prefix) + unused for unused in SWIN_UNUSED), *UNICL))
      for prefix in ("", "visual.", "image_encoder.")
    ),
    *(
      Dialect(f"Swin, Hugging Face, below '{prefix}'", "image", _moved(HF_SWIN, "", prefix),
              BufferNames(prefix + HF_SWIN_INDEX), (r"(swin\.)?(layernorm|pooler)\..*", r"classifier\..*"))
      for prefix in ("", "swin.")
    ),
  ]  # fmt: skip
  return tuple(dialects)


BERT = _moved(names.TEXT["bert"], names.BERT_MODEL + ".", "")
CLIP = _moved(names.TEXT["clip"], "language_backbone.body.", "")
OPENAI = tuple((ours, theirs.replace("resblocks.", "transformer.resblocks."), kind) for ours, theirs, kind in CLIP)
HF_CLIP = (
  ("text/token", "embeddings.token_embedding", "embedding"),
  ("text/position/embedding", "embeddings.position_embedding.weight", "tensor"),
  ("text/ln_final", "final_layer_norm", "norm"),
  *(
    (f"text/layers/{{i}}/{ours}", f"encoder.layers.{{i}}.{theirs}", kind)
    for ours, theirs, kind in (
      ("attention/qkv", "self_attn", "q_k_v_proj"),
      ("attention/out", "self_attn.out_proj", "linear"),
      ("ln_1", "layer_norm1", "norm"),
      ("ln_2", "layer_norm2", "norm"),
      ("mlp/fc1", "mlp.fc1", "linear"),
      ("mlp/fc2", "mlp.fc2", "linear"),
    )
  ),
)


def _text(kind: str) -> tuple[Dialect, ...]:
  if kind == "bert":
    return tuple(
      Dialect(f"BERT, Hugging Face, below '{prefix}'{note}", "text", _moved(_kinds(BERT, norm=norm), "", prefix),
              BufferNames(position_ids=prefix + "embeddings.position_ids"), (r"(bert\.)?pooler\..*", r"cls\..*"))
      for prefix in ("", "bert.")
      for norm, note in (("norm", ""), ("norm_gamma", ", norms with gamma and beta"))
    )  # fmt: skip
  return (
    Dialect("CLIP text, OpenAI", "text", OPENAI, ignored=(r"visual\..*", *UNICL, *OPENAI_SIZES)),
    *(
      Dialect(f"CLIP text, UniCL, below '{prefix}'", "text", _moved(CLIP, "", prefix),
              ignored=(re.escape(prefix) + "text_projection", *UNICL))
      for prefix in ("", "text.", "lang_encoder.", "text_encoder.")
    ),
    *(
      Dialect(f"CLIP text, Hugging Face, below '{prefix}'", "text", _moved(HF_CLIP, "", prefix),
              ignored=(re.escape(prefix) + r"embeddings\.position_ids", r"vision_model\..*",
                       r"(visual|text)_projection\..*", *UNICL))
      for prefix in ("text_model.", "")
    ),
  )  # fmt: skip


def glip(cfg: ModelConfig) -> Dialect:
  return Dialect("the authors' GLIP", "network", names.table(cfg), names.BUFFERS, names.IGNORED)


def mmdet(cfg: ModelConfig) -> Dialect:
  """Raises ValueError for a network that MMDetection's GLIP cannot be."""
  if cfg.text is None or cfg.text.kind != "bert":
    raise ValueError("MMDetection's GLIP reads its words with BERT, this network does not; use the names of GLIP")
  return _mmdet(cfg)


def readable(cfg: ModelConfig) -> tuple[Dialect, ...]:
  """Every naming in which a file may hold this network or one of its encoders."""
  bert = cfg.text is not None and cfg.text.kind == "bert"
  text = () if cfg.text is None else _text(cfg.text.kind)
  return (glip(cfg), *((mmdet(cfg),) if bert else ()), *_image(), *text)

"""Sizes as data: one frozen `ModelConfig` per published network, and `demo`, the same architecture for CPUs.

Numbers: reference 1.1 (GLIP A, B, C, L), 11.5 (GLIPv2 T, B, H).
"""

import dataclasses

REMAT = ("swin", "text", "dyconv")
DEFORM = ("gather", "windows", "columns")
FUSION = ("heads", "lanes", "kernels")


@dataclasses.dataclass(frozen=True)
class SwinConfig:
  """Swin v1 (reference 2.2)."""

  embed_dim: int
  depths: tuple[int, ...]
  heads: tuple[int, ...]
  window: int
  drop_path: float
  mlp_ratio: int = 4
  patch: int = 4


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """kind 'bert': post-LN BERT (reference 3.2); kind 'clip': pre-LN transformer (reference 3.3)."""

  kind: str
  vocab_size: int
  width: int
  layers: int
  heads: int
  mlp_dim: int
  positions: int
  dropout: float = 0.1


@dataclasses.dataclass(frozen=True)
class HeadConfig:
  """The tower and the prediction layers (reference 4)."""

  stages: int
  channels: int = 256
  groups: int = 16  # GroupNorm
  fusion: bool = True  # False: DyConv only, token logits from the text encoder's own output (GLIP-A)
  fusion_dim: int = 2048
  fusion_heads: int = 8
  fusion_dropout: float = 0.1
  dyrelu_reduction: int = 4
  classes: int = 80  # channels of cls_logits: frozen and unused with text, the classifier without


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """One network, complete. `text=None` is the detector without language (DyHead)."""

  swin: SwinConfig
  text: TextConfig | None
  head: HeadConfig
  max_tokens: int = 256
  dropblock: float = 0.3  # reference 2.3, training only
  strides: tuple[int, ...] = (8, 16, 32, 64, 128)
  anchor_scale: float = 8.0  # anchor side = anchor_scale * stride (reference 5.1)
  freeze_stages: int = -1  # 2: patch_embed and the first Swin stage (GLIP-L, reference 1.1)
  image_mean_bgr: tuple[float, float, float] = (103.530, 116.280, 123.675)
  image_std_bgr: tuple[float, float, float] = (57.375, 57.120, 58.395)
  mlm: bool = False  # the head that names hidden words
  inter_dim: int = 0  # width of the embeddings of the inter-image loss (the authors': 64); 0: no such head
  inter_fused: bool = False  # its words come after the fusion, as in the published code; the paper: before
  inter_temperature: float = 1.0  # its first value
  # (path pattern, factor on the initial value), first match wins; () keeps the authors' initialisation. That one is
  # made for wide networks with pre-trained encoders; a narrow one that starts from nothing may need other scales.
  init_scale: tuple[tuple[str, float], ...] = ()
  # Options that are not part of the network's identity; launch code replaces them.
  compute_dtype: str = "float32"  # matmuls and convolutions; 'bfloat16' on accelerators
  mask_padding: bool = False  # True: padded pixels and cells take no part (not checkpoint-exact with the authors)
  deform: str = "gather"  # form of the deformable convolution: 'gather' on CPUs, 'windows' on TPUs, 'columns' on GPUs
  fusion: str = "heads"  # form of the fusion: 'heads', one after the other; 'lanes' on TPUs; 'kernels' on NVIDIA GPUs
  loop: bool = False  # equal layers as loops of the program: compiles in a fraction of the time, copies parameters
  remat: tuple[str, ...] = ()  # parts of REMAT recomputed in the backward pass (fusion.py always does it)

  def __post_init__(self):
    unknown = sorted(set(self.remat) - set(REMAT))
    if unknown:
      raise ValueError(f"model.remat names unknown parts {unknown}; known: {', '.join(REMAT)}")
    for name, known in (("deform", DEFORM), ("fusion", FUSION)):
      if getattr(self, name) not in known:
        raise ValueError(f"model.{name} is {getattr(self, name)!r}; known: {', '.join(known)}")
    if self.fusion == "kernels" and self.max_tokens & (self.max_tokens - 1):
      raise ValueError(f"model.fusion='kernels' needs a power of two as max_tokens, not {self.max_tokens}; use 'heads'")


BERT_BASE = TextConfig(kind="bert", vocab_size=30522, width=768, layers=12, heads=12, mlp_dim=3072, positions=512)
CLIP_BASE = TextConfig(
  kind="clip", vocab_size=49408, width=512, layers=12, heads=8, mlp_dim=2048, positions=256, dropout=0.0
)
CLIP_LARGE = dataclasses.replace(CLIP_BASE, width=1024, layers=16, heads=16, mlp_dim=4096)  # "clip" width of H

SWIN_T = SwinConfig(embed_dim=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), window=7, drop_path=0.2)
SWIN_B = SwinConfig(embed_dim=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32), window=7, drop_path=0.3)
SWIN_L = SwinConfig(embed_dim=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48), window=12, drop_path=0.4)
SWIN_H = SwinConfig(embed_dim=352, depths=(2, 2, 18, 2), heads=(11, 22, 44, 88), window=12, drop_path=0.5)

VARIANTS: dict[str, ModelConfig] = {
  "dyhead_t": ModelConfig(swin=SWIN_T, text=None, head=HeadConfig(stages=6, fusion=False), max_tokens=80),
  "glip_a": ModelConfig(swin=SWIN_T, text=BERT_BASE, head=HeadConfig(stages=6, fusion=False)),
  "glip_t": ModelConfig(swin=SWIN_T, text=BERT_BASE, head=HeadConfig(stages=6)),
  "glip_l": ModelConfig(swin=SWIN_L, text=BERT_BASE, head=HeadConfig(stages=8), freeze_stages=2),
  "glipv2_t": ModelConfig(swin=SWIN_T, text=BERT_BASE, head=HeadConfig(stages=6)),
  "glipv2_b": ModelConfig(swin=SWIN_B, text=CLIP_BASE, head=HeadConfig(stages=6)),
  "glipv2_h": ModelConfig(swin=SWIN_H, text=CLIP_LARGE, head=HeadConfig(stages=8)),
  "demo": ModelConfig(
    swin=SwinConfig(embed_dim=32, depths=(2, 2, 2, 2), heads=(2, 4, 8, 8), window=4, drop_path=0.0),
    text=TextConfig(kind="bert", vocab_size=512, width=128, layers=2, heads=4, mlp_dim=512, positions=128, dropout=0.0),
    head=HeadConfig(
      stages=2, channels=64, groups=16, fusion_dim=128, fusion_heads=4, fusion_dropout=0.0, dyrelu_reduction=4
    ),
    max_tokens=64,
    dropblock=0.0,
    anchor_scale=4.0,
    init_scale=(
      (r"swin/stages/.*/kernel", 4.0),  # N(0, 0.02) suits widths of several hundred
      (r"text/embeddings/word/.*", 5.0),  # words louder than positions
      (r"text/.*/kernel", 2.0),
      (r".*/offset/.*", 0.02),  # the deformable convolution starts as a plain one
      # Words and regions learn from their products: small ones on both sides are a saddle that takes long to leave.
      (r"head/projection_text/kernel", 12.0),
      (r"tower/.*/fusion/gamma_[vl]", 0.2),  # untrained fusion adds the same noise to all cells, and to all words
    ),
  ),
}


def get(name: str, **options) -> ModelConfig:
  """The variant `name` with some fields replaced. Raises ValueError naming the known variants."""
  if name not in VARIANTS:
    raise ValueError(f"model variant {name!r} is not known; known: {', '.join(VARIANTS)}")
  return dataclasses.replace(VARIANTS[name], **options)

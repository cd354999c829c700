"""The network: Swin and FPN, text encoder, fusion tower, prediction layers (reference 0.1).

`GLIPv2` is the definition. Jitted code works on `(graphdef(cfg), params)`, params being a plain nested dict:
`nnx.merge(graphdef, params)(batch)`. Four methods, each usable alone, chained by `__call__`:

  encode_image -> pyramid P3..P7 -.
                                   > fuse -> predict -> Outputs
  encode_text  -> TextFeatures  --'
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
from flax import nnx

from glipv2_jax.models.bert import Bert, BertLayer
from glipv2_jax.models.clip_text import ClipLayer, ClipText
from glipv2_jax.models.dyhead import DyConv
from glipv2_jax.models.fpn import FPN
from glipv2_jax.models.fusion import BiAttention
from glipv2_jax.models.heads import DetectionHead, InterHead, MlmHead
from glipv2_jax.models.layers import Keys, fold, in_turn, loop, maybe_checkpoint
from glipv2_jax.models.padding import cells_valid, level_sizes
from glipv2_jax.models.swin import Swin
from glipv2_jax.models.variants import ModelConfig
from glipv2_jax.schema import Batch, Embeddings, Outputs

SWIN_STRIDES = (4, 8, 16, 32)
IMAGE, TEXT, TOWER, REGIONS = 0, 1, 2, 3  # streams of the training key; the last one chooses regions for L_inter


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TextFeatures:
  """What the text encoder hands on. The tower replaces `hidden` stage by stage."""

  hidden: jax.Array  # b m d float32, last layer, padding positions hold numbers too
  embedded: jax.Array  # b m d float32, zero at padding for 'bert', equal to `hidden` for 'clip' (reference 3.2, 3.3)


def normalise_image(image: jax.Array, image_size: jax.Array, cfg: ModelConfig) -> jax.Array:
  """uint8 RGB b h w 3 -> float32 BGR (x - mean) / std, exact zeros outside `image_size` (reference 2.1)."""
  pixels = image[..., ::-1].astype(jnp.float32) - jnp.asarray(cfg.image_mean_bgr, jnp.float32)
  pixels = pixels / jnp.asarray(cfg.image_std_bgr, jnp.float32)
  return jnp.where(cells_valid(image_size, *image.shape[1:3])[..., None], pixels, 0.0)


class TowerStage(nnx.Module):
  """Fusion, one text layer, one DyConv; without fusion only the DyConv (reference 4.1)."""

  def __init__(self, cfg: ModelConfig, *, dtype, rngs: nnx.Rngs):
    self.fused = cfg.head.fusion
    if self.fused:
      self.fusion = BiAttention(cfg.head, cfg.text.width, dtype=dtype, rngs=rngs, form=cfg.fusion)
      if cfg.text.kind == "bert":
        self.text_layer = BertLayer(cfg.text, limited=True, dtype=dtype, rngs=rngs)
      else:
        self.text_layer = ClipLayer(cfg.text, dtype=dtype, rngs=rngs)
    self.dyconv = DyConv(cfg.head, dtype=dtype, rngs=rngs, deform=cfg.deform)
    self.remat = cfg.remat

  def fuse(self, levels, words, words_valid, sizes, key):
    """The bi-directional attention over all levels at once: five maps and words in, five maps and words out."""
    shapes = [x.shape for x in levels]
    cells = jnp.concatenate([x.reshape(x.shape[0], -1, x.shape[-1]) for x in levels], 1)
    valid = None
    if sizes is not None:
      masks = [cells_valid(size, *shape[1:3]) for size, shape in zip(sizes, shapes, strict=True)]
      valid = jnp.concatenate([mask.reshape(mask.shape[0], -1) for mask in masks], 1)
    cells, words = self.fusion(cells, words, words_valid, valid, key)
    if valid is not None:
      cells = jnp.where(valid[..., None], cells, 0.0)
    levels, start = [], 0
    for b, h, w, d in shapes:
      levels.append(cells[:, start : start + h * w].reshape(b, h, w, d))
      start += h * w
    return levels, words

  def __call__(self, levels, words, words_valid, sizes=None, key=None):
    """levels: five maps; words: b m e or None; returns both, updated."""
    if self.fused:
      levels, words = self.fuse(levels, words, words_valid, sizes, fold(key, 0))
      words = maybe_checkpoint(self.text_layer, self.remat, "text")(words, words_valid, fold(key, 1))
    return maybe_checkpoint(self.dyconv, self.remat, "dyconv")(levels, sizes), words


class GLIPv2(nnx.Module):
  """The network of `cfg`. It holds nothing but parameters: dropout takes its key at call time (None = evaluation)."""

  def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs | Keys):
    if cfg.head.fusion and cfg.text is None:
      raise ValueError("head.fusion=True needs a text encoder; set head.fusion=False or give ModelConfig.text")
    if (cfg.inter_dim or cfg.mlm) and cfg.text is None:
      raise ValueError("inter_dim and mlm need a text encoder; set inter_dim=0 and mlm=False")
    dtype = jnp.dtype(cfg.compute_dtype)
    widths = tuple(cfg.swin.embed_dim * 2**i for i in (1, 2, 3))
    self.cfg = cfg
    self.swin = Swin(cfg.swin, dtype=dtype, remat=cfg.remat, looped=cfg.loop, rngs=rngs)
    self.fpn = FPN(widths, cfg.head.channels, dropblock=cfg.dropblock, dtype=dtype, rngs=rngs)
    if cfg.text is not None:
      encoder = {"bert": Bert, "clip": ClipText}[cfg.text.kind]
      self.text = encoder(cfg.text, dtype=dtype, remat=cfg.remat, looped=cfg.loop, rngs=rngs)
    self.tower = nnx.List(TowerStage(cfg, dtype=dtype, rngs=rngs) for _ in range(cfg.head.stages))
    self.head = DetectionHead(cfg, rngs=rngs)
    if cfg.mlm:
      self.mlm = MlmHead(cfg, dtype=dtype, rngs=rngs)
    if cfg.inter_dim:
      self.inter = InterHead(cfg, rngs=rngs)

  def sizes(self, image_size: jax.Array, strides: tuple[int, ...]) -> list[jax.Array] | None:
    """Valid cells (b 2) per stride, or None where padding takes part as in the authors' network."""
    return level_sizes(image_size, strides) if self.cfg.mask_padding else None

  def encode_image(self, image: jax.Array, image_size: jax.Array, key: jax.Array | None = None) -> list[jax.Array]:
    """image b h w 3 uint8 RGB, image_size b 2 int32 -> five maps b h w d at `cfg.strides`, before fusion."""
    pixels = normalise_image(image, image_size, self.cfg)
    maps = self.swin(pixels, self.sizes(image_size, SWIN_STRIDES), fold(key, 0))
    return self.fpn(maps[1:], self.sizes(image_size, self.cfg.strides), fold(key, 1))

  def encode_text(self, tokens: jax.Array, tokens_valid: jax.Array, key: jax.Array | None = None) -> TextFeatures:
    """tokens b m int32, tokens_valid b m bool -> features before fusion."""
    hidden = self.text(tokens, tokens_valid, key)
    masked = self.cfg.text.kind == "bert"
    return TextFeatures(hidden, jnp.where(tokens_valid[..., None], hidden, 0.0) if masked else hidden)

  def fuse(
    self,
    levels: list[jax.Array],
    text: TextFeatures | None,
    tokens_valid: jax.Array | None,
    image_size: jax.Array,
    key: jax.Array | None = None,
  ) -> tuple[list[jax.Array], TextFeatures | None]:
    """The tower: maps and words in, maps and words out. Without fusion the words pass unchanged."""
    sizes = self.sizes(image_size, self.cfg.strides)
    words = None if text is None else text.hidden

    def run(stage, carry, i):
      levels, words = stage(*carry, tokens_valid, sizes, fold(key, i))
      return [x.astype(jnp.float32) for x in levels], words

    carry = [x.astype(jnp.float32) for x in levels], words  # as every stage hands them on
    levels, words = (loop if self.cfg.loop else in_turn)(self.tower, run, carry)
    return levels, None if text is None else dataclasses.replace(text, hidden=words)

  def predict(self, levels: list[jax.Array], text: TextFeatures | None) -> Outputs:
    """Fused features -> `Outputs`. Fused networks align with `hidden`, GLIP-A with `embedded` (reference 4.5)."""
    if text is None:
      return self.head(levels, None)
    return self.head(levels, text.hidden if self.cfg.head.fusion else text.embedded)

  def embed(self, pyramid: list[jax.Array], text: TextFeatures, regions: jax.Array) -> Embeddings:
    """For L_inter: the chosen locations (b r int32) of the pyramid before the fusion, and all words."""
    return self.inter(pyramid, text.hidden if self.cfg.inter_fused else text.embedded, regions)

  def encode(self, batch: Batch, key: jax.Array | None = None) -> tuple[list[jax.Array], TextFeatures | None]:
    """Everything before the fusion: the pyramid, and the text if there is any."""
    pyramid = self.encode_image(batch.image, batch.image_size, fold(key, IMAGE))
    if self.cfg.text is None:
      return pyramid, None
    return pyramid, self.encode_text(batch.tokens, batch.tokens_valid, fold(key, TEXT))

  def __call__(self, batch: Batch, key: jax.Array | None = None, regions: jax.Array | None = None) -> Outputs:
    """With `regions` (b r int32, locations) the outputs hold embeddings for L_inter, with labels logits for L_mlm."""
    pyramid, text = self.encode(batch, key)
    levels, text = self.fuse(pyramid, text, batch.tokens_valid, batch.image_size, fold(key, TOWER))
    outputs = self.predict(levels, text)
    if regions is not None:
      outputs = dataclasses.replace(outputs, embeddings=self.embed(pyramid, text, regions))
    if self.cfg.mlm and batch.mlm_labels is not None:
      outputs = dataclasses.replace(outputs, word_logits=self.mlm(text.hidden))
    return outputs


@functools.cache
def graphdef(cfg: ModelConfig) -> nnx.GraphDef:
  """The static half of the model; builds no array."""
  return nnx.graphdef(nnx.eval_shape(lambda: GLIPv2(cfg, rngs=Keys(jax.random.key(0)))))


def init_params(cfg: ModelConfig, key: jax.Array) -> dict:
  """Fresh parameters as a nested dict. Jit it (with `out_shardings`) or call it under `jax.eval_shape`."""
  params = nnx.to_pure_dict(nnx.state(GLIPv2(cfg, rngs=Keys(key)), nnx.Param))

  def scaled(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return x * next((factor for pattern, factor in cfg.init_scale if re.fullmatch(pattern, name)), 1.0)

  return jax.tree_util.tree_map_with_path(scaled, params) if cfg.init_scale else params


def abstract_params(cfg: ModelConfig) -> dict:
  """`init_params` as `jax.ShapeDtypeStruct`."""
  return jax.eval_shape(functools.partial(init_params, cfg), jax.random.key(0))


def param_paths(params: dict) -> list[str]:
  """'/'-joined path of every leaf, in the order of `jax.tree.leaves`."""
  return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(params)]

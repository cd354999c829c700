"""Prediction layers: token logits, box deltas and centerness of every location (reference 4.5); the vocabulary at every
word (4.6); the embeddings that the inter-image loss compares (5.6)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from glipv2_jax.models.layers import LayerNorm, Linear, gelu, l2_normalise, normal_01, normal_02, xavier
from glipv2_jax.models.variants import ModelConfig
from glipv2_jax.schema import Embeddings, Outputs

LIMIT = 50000.0
EPSILON = 1e-12
PRIOR = float(-np.log(99.0))  # logit of the prior probability 0.01


class DetectionHead(nnx.Module):
  """Alignment of every location with every word, one box and one centerness per location; float32 throughout."""

  def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
    d = cfg.head.channels

    def make(d_out, bias=0.0):
      bias_init = nnx.initializers.constant(bias)
      return Linear(d, d_out, dtype=jnp.float32, kernel_init=normal_01, bias_init=bias_init, rngs=rngs)

    # With text this layer is unused and frozen; checkpoints carry it.
    self.cls_logits = make(cfg.head.classes, PRIOR)
    self.bbox_pred, self.centerness = make(4), make(1)
    self.scales = nnx.Param(jnp.ones((len(cfg.strides),)))
    self.with_text = cfg.text is not None
    if cfg.text is not None:
      self.projection_text = Linear(cfg.text.width, d, dtype=jnp.float32, rngs=rngs)
      self.log_scale = nnx.Param(jnp.zeros((1,)))
      self.bias_lang = nnx.Param(jnp.zeros((cfg.text.width,)))
      self.bias0 = nnx.Param(jnp.full((1,), PRIOR, jnp.float32))

  def __call__(self, levels: list[jax.Array], words: jax.Array | None) -> Outputs:
    """levels: five maps b h w d; words: b m e, None without text (then the logits are those of the classes)."""
    cells = [x.reshape(x.shape[0], -1, x.shape[-1]).astype(jnp.float32) for x in levels]
    counts = [x.shape[1] for x in cells]
    x = jnp.concatenate(cells, 1)
    # Not jnp.repeat: of its running sum over all cells the compiler for GPUs works out every term, for minutes.
    scale = jnp.concatenate([jnp.broadcast_to(scale, n) for scale, n in zip(self.scales[...], counts, strict=True)])
    return Outputs(
      token_logits=self.token_logits(x, words) if self.with_text else self.cls_logits(x),
      deltas=self.bbox_pred(x) * scale[:, None],
      centerness=self.centerness(x)[..., 0],
    )

  def token_logits(self, x: jax.Array, words: jax.Array) -> jax.Array:
    """x: b n d raw features; words: b m e. Returns b n m. The words are normalised and then halved, the bias is not."""
    words = l2_normalise(words)
    projected = self.projection_text(words / 2)
    bias = words @ self.bias_lang[...] + self.bias0[...]
    logits = jnp.einsum("bnd,bmd->bnm", x, projected) / jnp.exp(self.log_scale[...]) + bias[:, None]
    return jnp.clip(logits, -LIMIT, LIMIT)


class MlmHead(nnx.Module):
  """Fused words -> logits of the vocabulary (reference 4.6); the output matrix is not that of the embeddings."""

  def __init__(self, cfg: ModelConfig, *, dtype, rngs: nnx.Rngs):
    e = cfg.text.width
    self.dense = Linear(e, e, dtype=dtype, kernel_init=normal_02, rngs=rngs)
    self.norm = LayerNorm(e, EPSILON, rngs=rngs)
    self.decoder = Linear(e, cfg.text.vocab_size, dtype=dtype, kernel_init=normal_02, rngs=rngs)

  def __call__(self, words: jax.Array) -> jax.Array:
    """b m e -> b m v float32."""
    return self.decoder(self.norm(gelu(self.dense(words)))).astype(jnp.float32)


class InterHead(nnx.Module):
  """Regions and words projected into one space, with a learned temperature; float32 throughout."""

  def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
    def make(d_in):
      return Linear(d_in, cfg.inter_dim, dtype=jnp.float32, kernel_init=xavier, rngs=rngs)

    self.projection_image = make(cfg.head.channels)
    self.projection_text = make(cfg.text.width)
    self.log_scale = nnx.Param(jnp.full((1,), np.log(cfg.inter_temperature), jnp.float32))

  def __call__(self, levels: list[jax.Array], words: jax.Array, regions: jax.Array) -> Embeddings:
    """levels: five maps b h w d; words: b m e; regions b r int32: locations in the order of the anchors."""
    cells = jnp.concatenate([x.reshape(x.shape[0], -1, x.shape[-1]) for x in levels], 1)
    chosen = jnp.take_along_axis(cells, regions[..., None], axis=1)
    return Embeddings(
      regions=l2_normalise(self.projection_image(chosen)),
      words=l2_normalise(self.projection_text(l2_normalise(words))),
      log_scale=self.log_scale[...],
    )

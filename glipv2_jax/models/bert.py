"""Post-LN BERT: the text encoder of the T and L models, and the text layer of their tower (reference 3.2, 4.3)."""

import jax
import jax.numpy as jnp
from flax import nnx

from glipv2_jax.models.layers import (
  LayerNorm,
  Linear,
  SelfAttention,
  dropout,
  fold,
  gelu,
  in_turn,
  loop,
  maybe_checkpoint,
  normal_02,
)
from glipv2_jax.models.variants import TextConfig

EPSILON = 1e-12
LIMIT = 50000.0


class BertLayer(nnx.Module):
  """Attention and feed-forward, each followed by residual and norm.

  `limited` is the layer inside the tower: the authors clip its values to +-50000 and it keeps PyTorch's default
  initialisation (reference 4.3); the layers of the encoder have BERT's N(0, 0.02).
  """

  def __init__(self, cfg: TextConfig, *, limited: bool, dtype, rngs: nnx.Rngs):
    init = None if limited else normal_02
    self.attention = SelfAttention(
      cfg.width, cfg.heads, dtype=dtype, qkv_init=init, out_init=init, limit=LIMIT if limited else None, rngs=rngs
    )
    self.attention_norm = LayerNorm(cfg.width, EPSILON, rngs=rngs)
    self.fc1 = Linear(cfg.width, cfg.mlp_dim, dtype=dtype, kernel_init=init, rngs=rngs)
    self.fc2 = Linear(cfg.mlp_dim, cfg.width, dtype=dtype, kernel_init=init, rngs=rngs)
    self.output_norm = LayerNorm(cfg.width, EPSILON, rngs=rngs)
    self.limited, self.rate = limited, cfg.dropout

  def clip(self, x: jax.Array) -> jax.Array:
    return jnp.clip(x, -LIMIT, LIMIT) if self.limited else x

  def __call__(self, x: jax.Array, valid: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """x: b m d float32; valid: b m bool. Returns b m d float32."""
    attended = self.attention(x, valid, self.rate, fold(key, 0))
    x = self.attention_norm(dropout(attended, self.rate, fold(key, 1)) + x)
    hidden = self.clip(gelu(self.clip(self.fc1(x))))
    hidden = dropout(self.clip(self.fc2(hidden)), self.rate, fold(key, 2))
    return self.clip(self.output_norm(hidden + x))


class Embeddings(nnx.Module):
  def __init__(self, cfg: TextConfig, *, rngs: nnx.Rngs):
    self.word = nnx.Embed(cfg.vocab_size, cfg.width, embedding_init=normal_02, rngs=rngs)
    self.position = nnx.Embed(cfg.positions, cfg.width, embedding_init=normal_02, rngs=rngs)
    self.token_type = nnx.Embed(2, cfg.width, embedding_init=normal_02, rngs=rngs)
    self.norm = LayerNorm(cfg.width, EPSILON, rngs=rngs)

  def __call__(self, tokens: jax.Array) -> jax.Array:
    position = self.position.embedding[...][: tokens.shape[1]]
    return self.norm(self.word(tokens) + self.token_type.embedding[...][0] + position)


class Bert(nnx.Module):
  """tokens b m int32, tokens_valid b m bool -> last hidden layer b m d float32 (padding positions not masked)."""

  def __init__(self, cfg: TextConfig, *, dtype, remat: tuple[str, ...] = (), looped: bool = False, rngs: nnx.Rngs):
    self.embeddings = Embeddings(cfg, rngs=rngs)
    self.layers = nnx.List(BertLayer(cfg, limited=False, dtype=dtype, rngs=rngs) for _ in range(cfg.layers))
    self.rate, self.remat, self.looped = cfg.dropout, remat, looped

  def __call__(self, tokens: jax.Array, tokens_valid: jax.Array, key: jax.Array | None = None) -> jax.Array:
    x = dropout(self.embeddings(tokens), self.rate, fold(key, len(self.layers)))

    def run(layer, x, i):
      return maybe_checkpoint(layer, self.remat, "text")(x, tokens_valid, fold(key, i))

    x = (loop if self.looped else in_turn)(self.layers, run, x)
    return x

"""Pre-LN text transformer of the B and H models, and the text layer of their tower (reference 3.3, 4.3)."""

import jax
import jax.numpy as jnp
from flax import nnx

from glipv2_jax.models.layers import (
  LayerNorm,
  Mlp,
  SelfAttention,
  dropout,
  fold,
  in_turn,
  loop,
  maybe_checkpoint,
  normal_02,
  quick_gelu,
  xavier,
)
from glipv2_jax.models.variants import TextConfig

EPSILON = 1e-12


class ClipLayer(nnx.Module):
  """x + attention(ln_1(x)), then x + mlp(ln_2(x)); every word sees every valid word."""

  def __init__(self, cfg: TextConfig, *, dtype, rngs: nnx.Rngs):
    self.ln_1 = LayerNorm(cfg.width, EPSILON, rngs=rngs)
    # PyTorch's MultiheadAttention draws its joint input matrix itself (xavier); the authors' rule reaches the rest.
    self.attention = SelfAttention(cfg.width, cfg.heads, dtype=dtype, qkv_init=xavier, out_init=normal_02, rngs=rngs)
    self.ln_2 = LayerNorm(cfg.width, EPSILON, rngs=rngs)
    self.mlp = Mlp(cfg.width, cfg.mlp_dim, quick_gelu, dtype=dtype, kernel_init=normal_02, rngs=rngs)
    self.rate = cfg.dropout

  def __call__(self, x: jax.Array, valid: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """x: b m d float32; valid: b m bool. Returns b m d float32."""
    attended = self.attention(self.ln_1(x), valid, self.rate, fold(key, 0))
    x = x + dropout(attended, self.rate, fold(key, 1))
    return x + dropout(self.mlp(self.ln_2(x)), self.rate, fold(key, 2))


class ClipText(nnx.Module):
  """tokens b m int32, tokens_valid b m bool -> normalised last layer b m d float32, nothing masked."""

  def __init__(self, cfg: TextConfig, *, dtype, remat: tuple[str, ...] = (), looped: bool = False, rngs: nnx.Rngs):
    self.token = nnx.Embed(cfg.vocab_size, cfg.width, embedding_init=normal_02, rngs=rngs)
    self.position = nnx.Embed(cfg.positions, cfg.width, embedding_init=normal_02, rngs=rngs)
    self.layers = nnx.List(ClipLayer(cfg, dtype=dtype, rngs=rngs) for _ in range(cfg.layers))
    self.ln_final = LayerNorm(cfg.width, EPSILON, rngs=rngs)
    self.remat, self.looped = remat, looped

  def __call__(self, tokens: jax.Array, tokens_valid: jax.Array, key: jax.Array | None = None) -> jax.Array:
    x = self.token(tokens) + self.position.embedding[...][: tokens.shape[1]]

    def run(layer, x, i):
      return maybe_checkpoint(layer, self.remat, "text")(x, tokens_valid, fold(key, i))

    x = (loop if self.looped else in_turn)(self.layers, run, x)
    return self.ln_final(x).astype(jnp.float32)

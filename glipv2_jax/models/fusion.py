"""Deep fusion of GLIP: cross-attention between all cells of the pyramid and all words, in both directions.

Reference 4.2 (VLFuse, type MHA-B). Two habits of the authors that checkpoints depend on: the residual starts from the
layer-normed tensor, and nothing masks the softmax over cells.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from glipv2_jax.models.layers import LayerNorm, Linear, dropout, fold, xavier
from glipv2_jax.models.variants import HeadConfig

EPSILON = 1e-5
LIMIT = 50000.0


class BiAttention(nnx.Module):
  """(cells b n d, words b m e) -> the same shapes, each having looked at the other."""

  def __init__(self, cfg: HeadConfig, text_width: int, *, dtype, rngs: nnx.Rngs):
    def make(d_in, d_out):
      return Linear(d_in, d_out, dtype=dtype, kernel_init=xavier, rngs=rngs)

    d, e, dim = cfg.channels, text_width, cfg.fusion_dim
    self.layer_norm_v, self.layer_norm_l = LayerNorm(d, EPSILON, rngs=rngs), LayerNorm(e, EPSILON, rngs=rngs)
    self.v_proj, self.values_v_proj, self.out_v_proj = make(d, dim), make(d, dim), make(dim, d)
    self.l_proj, self.values_l_proj, self.out_l_proj = make(e, dim), make(e, dim), make(dim, e)
    self.gamma_v = nnx.Param(jnp.full((d,), 1 / cfg.stages))
    self.gamma_l = nnx.Param(jnp.full((e,), 1 / cfg.stages))
    self.heads, self.rate = cfg.fusion_heads, cfg.fusion_dropout

  def __call__(
    self,
    cells: jax.Array,
    words: jax.Array,
    words_valid: jax.Array,
    cells_valid: jax.Array | None = None,
    key: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """words_valid: b m; cells_valid: b n or None (padded cells then update the words too). Returns float32."""
    b, n, _ = cells.shape
    heads = self.heads

    def split(x):
      return x.reshape(b, x.shape[1], heads, -1)

    v, l = self.layer_norm_v(cells), self.layer_norm_l(words)
    q, k = split(self.v_proj(v)), split(self.l_proj(l))
    v_values, l_values = split(self.values_v_proj(v)), split(self.values_l_proj(l))
    q = q * q.shape[-1] ** -0.5
    scores = jnp.einsum("bnkd,bmkd->bknm", q, k, preferred_element_type=jnp.float32)
    scores = jnp.clip(scores, -LIMIT, LIMIT)

    over_words = jax.nn.softmax(jnp.where(words_valid[:, None, None, :], scores, -9e15), axis=3)
    over_words = dropout(over_words, self.rate, fold(key, 0)).astype(l_values.dtype)
    v_delta = self.out_v_proj(jnp.einsum("bknm,bmkd->bnkd", over_words, l_values).reshape(b, n, -1))

    if cells_valid is not None:
      scores = jnp.where(cells_valid[:, None, :, None], scores, -9e15)
    over_cells = dropout(jax.nn.softmax(scores, axis=2), self.rate, fold(key, 1)).astype(v_values.dtype)
    l_delta = self.out_l_proj(jnp.einsum("bknm,bnkd->bmkd", over_cells, v_values).reshape(b, words.shape[1], -1))
    return v + self.gamma_v[...] * v_delta, l + self.gamma_l[...] * l_delta

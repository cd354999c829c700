"""Deep fusion of GLIP: cross-attention between all cells of the pyramid and all words, in both directions.

Reference 4.2 (VLFuse, type MHA-B). Two habits of the authors that checkpoints depend on: the residual starts from the
layer-normed tensor, and nothing masks the softmax over cells.

There are many more cells (n) than words (m), so the cells are never projected. With k = l Wk + bk a head's scores are
(v Wq + bq) k^T = v [Wq k^T] + bq k^T, its answers p (l Wl + bl) Wo = p [(l Wl + bl) Wo], and what the words collect is
c^T (v Wv + bv) = [c^T v] Wv + (c^T 1) bv. The brackets are small: three products with n remain of six (half of the
FLOPs at d = head dim = m = 256). One head at a time, recomputed in the backward pass: the scores of a single head exist
(4bnm bytes), never those of all.
"""

import functools

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
    self.gamma_v = nnx.Param(jnp.full((d,), 1 / cfg.stages, jnp.float32))
    self.gamma_l = nnx.Param(jnp.full((e,), 1 / cfg.stages, jnp.float32))
    self.heads, self.dim, self.rate = cfg.fusion_heads, dim // cfg.fusion_heads, cfg.fusion_dropout

  def __call__(
    self,
    cells: jax.Array,
    words: jax.Array,
    words_valid: jax.Array,
    cells_valid: jax.Array | None = None,
    key: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """words_valid: b m; cells_valid: b n or None (padded cells then update the words too). Returns float32."""
    b, m, _ = words.shape
    v, l = self.layer_norm_v(cells), self.layer_norm_l(words)
    dtype, d = self.v_proj.dtype, v.shape[-1]
    narrow = v.astype(dtype)

    def of_words(layer):
      return jnp.moveaxis(layer(l).reshape(b, m, self.heads, -1), 2, 0)  # k b m h

    def of_cells(layer):
      kernel, bias = (x[...].astype(dtype).reshape(-1, self.heads, self.dim) for x in (layer.kernel, layer.bias))
      return jnp.moveaxis(kernel, 1, 0), bias[0]  # k d h, k h

    out = self.out_v_proj.kernel[...].astype(dtype).reshape(self.heads, self.dim, d)
    by_head = (
      jnp.arange(self.heads), of_words(self.l_proj), of_words(self.values_l_proj),
      of_cells(self.v_proj), of_cells(self.values_v_proj), out,
    )  # fmt: skip

    @functools.partial(jax.checkpoint, prevent_cse=False)  # a scan needs no guard against merging
    def attend(head):
      index, keys, l_values, (query_kernel, query_bias), (value_kernel, value_bias), out = head
      keys = keys * self.dim**-0.5
      scores = product("bnd,bdm->bnm", narrow, product("dh,bmh->bdm", query_kernel, keys).astype(dtype))
      scores = jnp.clip(scores + product("h,bmh->bm", query_bias, keys)[:, None], -LIMIT, LIMIT)

      over_words = jax.nn.softmax(jnp.where(words_valid[:, None], scores, -9e15))
      over_words = dropout(over_words, self.rate, fold(fold(key, 0), index)).astype(dtype)
      v_delta = product("bnm,bmd->bnd", over_words, product("bmh,hd->bmd", l_values, out).astype(dtype))

      if cells_valid is not None:
        scores = jnp.where(cells_valid[..., None], scores, -9e15)
      over_cells = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, 1, keepdims=True)))
      total = jnp.sum(over_cells, 1)[..., None]
      over_cells = dropout(over_cells, self.rate, fold(fold(key, 1), index))
      collected = product("bnm,bnd->bmd", over_cells.astype(dtype), narrow) / total
      share = jnp.sum(over_cells, 1)[..., None] / total  # 1 without dropout
      return v_delta, product("bmd,dh->bmh", collected.astype(dtype), value_kernel) + share * value_bias

    def add(v_delta, head):
      more, collected = attend(head)
      return v_delta + more, collected

    v_delta, collected = jax.lax.scan(add, jnp.zeros(v.shape, jnp.float32), by_head)
    v_delta += self.out_v_proj.bias[...]
    l_delta = self.out_l_proj(jnp.moveaxis(collected, 0, 2).reshape(b, m, -1))
    return v + self.gamma_v[...] * v_delta, l + self.gamma_l[...] * l_delta


def product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
  """`einsum` with a float32 result."""
  return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)

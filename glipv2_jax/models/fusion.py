"""Deep fusion of GLIP: cross-attention between all cells of the pyramid and all words, in both directions.

Reference 4.2 (VLFuse, type MHA-B). Two habits of the authors that checkpoints depend on: the residual starts from the
layer-normed tensor, and nothing masks the softmax over cells.

There are many more cells (n) than words (m), so the cells are never projected. With k = l Wk + bk a head's scores are
(v Wq + bq) k^T = v [Wq k^T] + bq k^T, its answers p (l Wl + bl) Wo = p [(l Wl + bl) Wo], and what the words collect is
c^T (v Wv + bv) = [c^T v] Wv + (c^T 1) bv. The brackets are small: three products with n remain of six (half of the
FLOPs at d = head dim = m = 256); `attend` is these three. Its backward pass makes the scores again. The form 'heads'
takes one head after the other, so that the scores of a single one exist (4bnm bytes). So does 'lanes', for TPUs, with
the cells along the lanes of the vector registers: what belongs to a cell (maximum, denominator) is then added up and
applied register by register, where the compiler's own choice, words along the lanes, moves numbers between lanes (one
stage of GLIPv2-T, 800x1120, forward and backward on v5e: 9.0 -> 6.0 M estimated cycles). 'kernels', for GPUs, takes all
heads at once, with fusion_kernels.py between the products.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint

from glipv2_jax.models import fusion_kernels
from glipv2_jax.models.fusion_kernels import NOWHERE
from glipv2_jax.models.layers import LayerNorm, Linear, dropout_seeds, fold, kept, scrambled, xavier
from glipv2_jax.models.variants import HeadConfig
from glipv2_jax.parallel.mesh import BATCH, on_each_device, row_major

EPSILON = 1e-5
LIMIT = 50000.0


class BiAttention(nnx.Module):
  """(cells b n d, words b m e) -> the same shapes, each having looked at the other."""

  def __init__(self, cfg: HeadConfig, text_width: int, *, dtype, rngs: nnx.Rngs, form: str = "heads"):
    def make(d_in, d_out):
      return Linear(d_in, d_out, dtype=dtype, kernel_init=xavier, rngs=rngs)

    d, e, dim = cfg.channels, text_width, cfg.fusion_dim
    self.layer_norm_v, self.layer_norm_l = LayerNorm(d, EPSILON, rngs=rngs), LayerNorm(e, EPSILON, rngs=rngs)
    self.v_proj, self.values_v_proj, self.out_v_proj = make(d, dim), make(d, dim), make(dim, d)
    self.l_proj, self.values_l_proj, self.out_l_proj = make(e, dim), make(e, dim), make(dim, e)
    self.gamma_v = nnx.Param(jnp.full((d,), 1 / cfg.stages, jnp.float32))
    self.gamma_l = nnx.Param(jnp.full((e,), 1 / cfg.stages, jnp.float32))
    self.heads, self.dim, self.rate = cfg.fusion_heads, dim // cfg.fusion_heads, cfg.fusion_dropout
    self.form = form

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

    (query_kernel, query_bias), (value_kernel, value_bias) = of_cells(self.v_proj), of_cells(self.values_v_proj)
    keys, l_values = of_words(self.l_proj) * self.dim**-0.5, of_words(self.values_l_proj)
    out = self.out_v_proj.kernel[...].astype(dtype).reshape(self.heads, self.dim, d)
    seeds = None
    if key is not None and self.rate:
      of_ways = jax.vmap(lambda head, way: dropout_seeds(fold(fold(key, way), head), b), (None, 0))
      seeds = jax.vmap(of_ways, (0, None))(jnp.arange(self.heads), jnp.arange(2))  # k 2 2 b

    def some(v_delta, heads):
      keys, query_kernel, query_bias, l_values, out, seeds = heads
      to_scores = product("kdh,kbmh->bdkm", query_kernel, keys).astype(dtype)
      answers = product("kbmh,khd->bkmd", l_values, out).astype(dtype)
      bias = product("kh,kbmh->bkm", query_bias, keys)
      arrays = narrow, to_scores, bias, answers, words_valid, cells_valid, seeds
      both_ways = functools.partial(attend, self.form, self.rate)
      if self.form != "heads":
        of_seeds = jax.P(None, None, None, *BATCH)
        both_ways = on_each_device(both_ways, (BATCH,) * 6 + (of_seeds,))
      more, collected, share = both_ways(*arrays)
      return v_delta + more, (jnp.moveaxis(collected, 1, 0), jnp.moveaxis(share, 1, 0))

    by_head = keys, query_kernel, query_bias, l_values, out, seeds
    at_once = self.heads if self.form == "kernels" else 1
    groups = jax.tree.map(lambda x: x.reshape(-1, at_once, *x.shape[1:]), by_head)
    v_delta, found = jax.lax.scan(some, jnp.zeros(v.shape, jnp.float32), groups)
    collected, share = (x.reshape(self.heads, *x.shape[2:]) for x in found)  # k b m d, k b m
    collected = product("kbmd,kdh->bmkh", collected.astype(dtype), value_kernel)
    collected += jnp.moveaxis(share, 0, -1)[..., None] * value_bias
    v_delta = row_major(v_delta) + self.out_v_proj.bias[...]
    l_delta = self.out_l_proj(collected.reshape(b, m, -1))
    return v + self.gamma_v[...] * v_delta, l + self.gamma_l[...] * l_delta


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend(form, rate, cells, to_scores, bias, answers, words_valid, cells_valid, seeds):
  """Both directions of k heads: cells b n d, to_scores b d k m, bias b k m, answers b k m d.

  words_valid b m, cells_valid b n or None; seeds k 2 2 b uint32 of the dropout in both directions, or None.
  Returns float32: the sum over heads of what the cells hear, b n d; what every head's words collect, b k m d; and the
  sum of the weights that they collected it with, b k m (1 without dropout).
  """
  return _attend_forward(form, rate, cells, to_scores, bias, answers, words_valid, cells_valid, seeds)[0]


def _attend_forward(form, rate, *arrays):
  cells, to_scores, bias, answers, *conditions = arrays
  between = fusion_kernels.weigh if form == "kernels" else weigh
  raw = in_layout(form, product("bnd,bdkm->bnkm", cells, to_scores))
  rate = 0.0 if conditions[-1] is None else rate
  over_words, over_cells, sums, share = between(rate, LIMIT, cells.dtype, raw, bias, conditions)
  heard = product("bnkm,bkmd->bnd", over_words, answers)
  collected = product("bnkm,bnd->bkmd", over_cells, cells) / sums[-1][..., None]
  share = share / sums[-1]
  return (heard, collected, share), (arrays, sums, collected, share)


def _attend_backward(form, rate, saved, gradients):
  """With p = softmax(s), u = p * dropout: ds = u du - p sum(u du), for each direction."""
  (cells, to_scores, bias, answers, *conditions), sums, collected, share = saved
  to_heard, to_collected, to_share = gradients
  dtype = cells.dtype
  to_heard, to_collected = to_heard.astype(dtype), to_collected.astype(dtype)
  between = fusion_kernels.weigh_backward if form == "kernels" else weigh_backward
  raw = in_layout(form, product("bnd,bdkm->bnkm", cells, to_scores))
  by_words = in_layout(form, product("bnd,bkmd->bnkm", to_heard, answers))
  by_cells = in_layout(form, product("bnd,bkmd->bnkm", cells, to_collected))
  mean = jnp.sum(collected * to_collected, -1) + share * to_share  # sum(u du) over cells
  rate = 0.0 if conditions[-1] is None else rate
  gradients = by_words, by_cells, to_share, mean
  over_words, over_cells, to_raw, to_bias = between(rate, LIMIT, dtype, raw, bias, conditions, sums, gradients)
  to_cells = product("bnkm,bdkm->bnd", to_raw, to_scores) + product("bnkm,bkmd->bnd", over_cells, to_collected)
  to_to_scores = product("bnd,bnkm->bdkm", cells, to_raw)
  to_answers = product("bnkm,bnd->bkmd", over_words, to_heard)
  return to_cells.astype(dtype), to_to_scores.astype(dtype), to_bias, to_answers.astype(dtype), None, None, None


attend.defvjp(_attend_forward, _attend_backward)


def weigh(rate, limit, dtype, raw, bias, conditions):
  """Products b n k m of cells and words -> weights of the words for every cell, a softmax, and of the cells for every
  word, without its denominator, both after dropout, in `dtype`; largest score and denominator of both softmaxes; and
  the sums of the second weights, b k m. `conditions`: words_valid, cells_valid and seeds of `attend`."""
  words_valid, cells_valid, seeds = conditions
  scores = jnp.clip(raw + bias[:, None], -limit, limit)
  # A sum, which the CPU compiler takes into the kernel of the softmax; of a choice it would make an array.
  by_words = scores + jnp.where(words_valid, 0.0, NOWHERE)[:, None, None]
  words_top = jnp.max(by_words, -1, keepdims=True)
  over_words = jnp.exp(by_words - words_top)
  words_total = jnp.sum(over_words, -1, keepdims=True)
  over_words = _thinned(over_words / words_total, rate, seeds, 0)

  by_cells = scores if cells_valid is None else jnp.where(cells_valid[..., None, None], scores, NOWHERE)
  cells_top = jnp.max(by_cells, 1)
  over_cells = jnp.exp(by_cells - cells_top[:, None])
  cells_total = jnp.sum(over_cells, 1)
  over_cells = _thinned(over_cells, rate, seeds, 1)
  sums = words_top, words_total, cells_top, cells_total
  return over_words.astype(dtype), over_cells.astype(dtype), sums, jnp.sum(over_cells, 1)


def weigh_backward(rate, limit, dtype, raw, bias, conditions, sums, gradients):
  """`gradients`: of the weights of the words and of the cells, b n k m (the latter without that of their sums), of
  these sums, b k m, and sum(u du) over cells, b k m. Returns both weights again, the cells' with its denominator, and
  the gradients of raw (`dtype`) and bias."""
  words_valid, cells_valid, seeds = conditions
  by_words, by_cells, to_share, mean = gradients
  words_top, words_total, cells_top, cells_total = sums
  scores = jnp.clip(raw + bias[:, None], -limit, limit)
  valid = words_valid[:, None, None]
  p = jnp.exp(jnp.where(valid, scores, NOWHERE) - words_top) / words_total
  over_words = _thinned(p, rate, seeds, 0)
  weighted = over_words * by_words
  to_scores = jnp.where(valid, weighted - p * jnp.sum(weighted, -1, keepdims=True), 0.0)

  valid = True if cells_valid is None else cells_valid[..., None, None]
  p = jnp.exp(jnp.where(valid, scores, NOWHERE) - cells_top[:, None]) / cells_total[:, None]
  over_cells = _thinned(p, rate, seeds, 1)
  weighted = over_cells * (by_cells + to_share[:, None])
  to_scores += jnp.where(valid, weighted - p * mean[:, None], 0.0)

  to_raw = jnp.where(jnp.abs(scores) < limit, to_scores, 0.0)
  return over_words.astype(dtype), over_cells.astype(dtype), to_raw.astype(dtype), jnp.sum(to_raw, 1)


def _thinned(x: jax.Array, rate: float, seeds: jax.Array | None, way: int) -> jax.Array:
  """Dropout of b n k m in direction `way`; every head has its own seeds, so it does not matter which go together."""
  if seeds is None:
    return x
  _, n, _, m = x.shape
  row, column = (jax.lax.broadcasted_iota(jnp.uint32, (1, n, 1, m), axis) for axis in (1, 3))
  words = jnp.transpose(seeds[:, way], (1, 2, 0))[:, :, None, :, None]  # 2 b 1 k 1
  return jnp.where(kept(scrambled(row * m + column, words), rate), x / (1 - rate), 0.0)


def in_layout(form: str, scores: jax.Array) -> jax.Array:
  """b n k m, in memory as `form` wants it."""
  return with_layout_constraint(scores, Layout((0, 2, 3, 1))) if form == "lanes" else scores


def product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
  """`einsum` with a float32 result."""
  return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)

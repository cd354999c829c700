"""Kernels for NVIDIA GPUs of what stands between the products of the fusion: softmaxes, dropout and their gradients.

The same arguments and results as `fusion.weigh` and `fusion.weigh_backward`, in one pass over the scores each (and one
for their maxima); XLA makes several and writes the scores back in between. A program takes ROWS cells and all words of
one head; the sums over cells are of its rows alone and added afterwards. The products stay with cuBLAS. Written in
Pallas for Triton; `interpret` runs them anywhere, for tests. The number of words must be a power of two. One stage of
GLIPv2-T, two pictures of 800x1344, bfloat16, forward and backward on an H100: 2.9 ms (one head after the other: 10.7).
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from glipv2_jax.models.layers import kept, scrambled

ROWS, WARPS = 16, 8
NOWHERE = -9e15  # the score of what is not valid


def weigh(rate, limit, dtype, raw, bias, conditions, interpret=False):
  _, cells_valid, _ = conditions
  by_cells = jnp.clip(raw + bias[:, None], -limit, limit)
  if cells_valid is not None:
    by_cells = jnp.where(cells_valid[..., None, None], by_cells, NOWHERE)
  top = jnp.max(by_cells, 1)
  over_words, over_cells, total, share = _call(
    functools.partial(_weigh, rate=rate, limit=limit, n=raw.shape[1]), raw, [], [top], 2, 2, dtype,
    bias, conditions, interpret,
  )  # fmt: skip
  return over_words, over_cells, (None, None, top, jnp.sum(total, 1)), jnp.sum(share, 1)


def weigh_backward(rate, limit, dtype, raw, bias, conditions, sums, gradients, interpret=False):
  _, _, top, total = sums
  by_words, by_cells, to_share, mean = gradients
  over_words, over_cells, to_raw, to_bias = _call(
    functools.partial(_weigh_backward, rate=rate, limit=limit, n=raw.shape[1]),
    raw, [by_words, by_cells], [top, 1 / total, to_share, mean], 3, 1, dtype,
    bias, conditions, interpret,
  )  # fmt: skip
  return over_words, over_cells, to_raw, jnp.sum(to_bias, 1)


def _weigh(raw, bias, words, cells, seeds, top, over_words, over_cells, total, share, *, rate, limit, n):
  rows, inside, scores, valid_words, valid_cells = _scores(raw, bias, words, cells, limit, n)
  keep_words, keep_cells = _factors(rows, scores.shape, seeds, rate)
  triton.store(over_words, (_softmax(scores, valid_words) * keep_words).astype(over_words.dtype), mask=inside)
  e = jnp.where(inside, jnp.exp(jnp.where(valid_cells, scores, NOWHERE) - top[...][None]), 0.0)
  thinned = e * keep_cells
  triton.store(over_cells, thinned.astype(over_cells.dtype), mask=inside)
  total[...], share[...] = jnp.sum(e, 0), jnp.sum(thinned, 0)


def _weigh_backward(
  raw, by_words, by_cells, bias, words, cells, seeds, top, scale, to_share, mean,
  over_words, over_cells, to_raw, to_bias, *, rate, limit, n,
):  # fmt: skip
  rows, inside, scores, valid_words, valid_cells = _scores(raw, bias, words, cells, limit, n)
  keep_words, keep_cells = _factors(rows, scores.shape, seeds, rate)
  p = _softmax(scores, valid_words)
  kept_words = p * keep_words
  triton.store(over_words, kept_words.astype(over_words.dtype), mask=inside)
  weighted = kept_words * triton.load(by_words, mask=inside, other=0.0)
  to_scores = jnp.where(valid_words, weighted - p * jnp.sum(weighted, 1, keepdims=True), 0.0)

  p = jnp.exp(jnp.where(valid_cells, scores, NOWHERE) - top[...][None]) * scale[...][None]
  kept_cells = p * keep_cells
  triton.store(over_cells, kept_cells.astype(over_cells.dtype), mask=inside)
  weighted = kept_cells * (triton.load(by_cells, mask=inside, other=0.0) + to_share[...][None])
  to_scores += jnp.where(valid_cells, weighted - p * mean[...][None], 0.0)

  to_scores = jnp.where(inside & (jnp.abs(scores) < limit), to_scores, 0.0)
  triton.store(to_raw, to_scores.astype(to_raw.dtype), mask=inside)
  to_bias[...] = jnp.sum(to_scores, 0)


def _scores(raw, bias, words, cells, limit, n):
  """Numbers of the rows, those inside the map, clipped scores, and what is valid; rows m or broadcastable to it."""
  rows = pl.program_id(1) * ROWS + jnp.arange(ROWS)
  inside = (rows < n)[:, None]
  scores = jnp.clip(triton.load(raw, mask=inside, other=0.0) + bias[...][None], -limit, limit)
  return rows, inside, scores, (words[...] != 0)[None], (triton.load(cells, mask=rows < n, other=0) != 0)[:, None]


def _softmax(scores, valid):
  scores = jnp.where(valid, scores, NOWHERE)
  e = jnp.exp(scores - jnp.max(scores, 1, keepdims=True))
  return e / jnp.sum(e, 1, keepdims=True)


def _factors(rows, shape, seeds, rate):
  """Of the dropout, in both directions."""
  if rate == 0:
    return 1.0, 1.0
  places = rows.astype(jnp.uint32)[:, None] * jnp.uint32(shape[1]) + jnp.arange(shape[1]).astype(jnp.uint32)[None]
  words = [scrambled(places, (seeds[2 * way], seeds[2 * way + 1])) for way in range(2)]
  return [jnp.where(kept(x, rate), 1 / (1 - rate), 0.0) for x in words]


def _call(kernel, raw, more, per_word, arrays, sums, dtype, bias, conditions, interpret):
  """`kernel` over the scores: raw and `more` are b n k m, `per_word` b k m; results: so many `arrays` b n k m of
  `dtype` and so many `sums`, b blocks k m float32."""
  b, n, k, m = raw.shape
  words, cells, seeds = conditions
  words = words.astype(jnp.int32)
  cells = jnp.ones((b, n), jnp.int32) if cells is None else cells.astype(jnp.int32)
  seeds = jnp.zeros((b, k, 4), jnp.uint32) if seeds is None else seeds.transpose(3, 0, 1, 2).reshape(b, k, 4)
  blocks = pl.cdiv(n, ROWS)
  tile = pl.BlockSpec((None, ROWS, None, m), lambda b, i, k: (b, i, k, 0))
  word = pl.BlockSpec((None, None, m), lambda b, i, k: (b, k, 0))
  own = pl.BlockSpec((None, None, None, m), lambda b, i, k: (b, i, k, 0))
  given = [
    word,
    pl.BlockSpec((None, m), lambda b, i, k: (b, 0)),
    pl.BlockSpec((None, ROWS), lambda b, i, k: (b, i)),
    pl.BlockSpec((None, None, 4), lambda b, i, k: (b, k, 0)),
  ]
  return pl.pallas_call(
    kernel,
    grid=(b, blocks, k),
    in_specs=[tile] * (1 + len(more)) + given + [word] * len(per_word),
    out_specs=[tile] * arrays + [own] * sums,
    out_shape=[jax.ShapeDtypeStruct(raw.shape, dtype)] * arrays
    + [jax.ShapeDtypeStruct((b, blocks, k, m), jnp.float32)] * sums,
    compiler_params=triton.CompilerParams(num_warps=WARPS),
    interpret=interpret,
  )(raw, *more, bias, words, cells, seeds, *per_word)

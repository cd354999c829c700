"""Small functions of the network against loops or closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from glipv2_jax.models.dyhead import Segments, bilinear
from glipv2_jax.models.fpn import drop_block, nearest
from glipv2_jax.models.layers import (
  Keys,
  LayerNorm,
  Linear,
  Mlp,
  drop_path,
  dropout,
  gelu,
  in_turn,
  l2_normalise,
  loop,
  random_words,
)
from glipv2_jax.models.swin import (
  PatchEmbed,
  Swin,
  WindowAttention,
  parted_by_shift,
  partition,
  relative_position_index,
  unpartition,
)
from glipv2_jax.models.variants import SwinConfig
from glipv2_jax.parallel import hlo, rules
from glipv2_jax.parallel.mesh import batch_sharding, make_mesh


def noise(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_linear_and_norm_keep_leading_axes():
  x = noise(2, 3, 4, 5)
  layer = Linear(5, 7, dtype=jnp.float32, rngs=Keys(jax.random.key(0)))
  np.testing.assert_allclose(layer(x), x @ layer.kernel[...] + layer.bias[...], atol=1e-5)
  assert float(jnp.abs(layer.kernel[...]).max()) <= 1 / math.sqrt(5)
  y = np.asarray(LayerNorm(5, 1e-5, rngs=Keys(jax.random.key(0)))(x), np.float64)
  wide = x.astype(np.float64)
  expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
  np.testing.assert_allclose(y, expected, atol=1e-5)


def test_gelu_is_the_exact_form():
  x = np.linspace(-5, 5, 41, dtype=np.float32)
  expected = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x]
  np.testing.assert_allclose(gelu(x), expected, atol=1e-6)
  slope = jax.vmap(jax.grad(gelu))(x)
  cdf = [0.5 * (1 + math.erf(v / math.sqrt(2))) + v * math.exp(-v * v / 2) / math.sqrt(2 * math.pi) for v in x]
  np.testing.assert_allclose(slope, cdf, atol=1e-6)


def test_l2_normalise_is_finite_at_zero():
  assert np.isfinite(jax.grad(lambda x: l2_normalise(x).sum())(jnp.zeros(4))).all()
  np.testing.assert_allclose(l2_normalise(jnp.array([3.0, 4.0])), [0.6, 0.8], atol=1e-6)


def test_random_layers_keep_the_mean_and_obey_none():
  x, key = jnp.ones((4000, 3)), jax.random.key(0)
  for layer in (dropout, drop_path):
    assert layer(x, 0.3, None) is x and layer(x, 0.0, key) is x
    y = np.asarray(layer(x, 0.3, key))
    assert abs(y.mean() - 1) < 0.05 and np.allclose(np.unique(y.round(4)), [0, 1 / 0.7], atol=1e-3)
  rows = np.asarray(drop_path(x, 0.3, key))
  assert (rows == rows[:, :1]).all()  # whole examples


def test_random_words_are_the_keyed_hash_of_their_place():
  """Against whole numbers of Python, place by place."""
  key, shape, mask = jax.random.key(5), (2, 3, 4, 5), 2**32 - 1
  a, b = np.asarray(jax.random.bits(key, (2, 2), jnp.uint32)).tolist()
  words = np.asarray(random_words(key, shape))
  for example in range(2):
    for place, word in enumerate(words[example].ravel().tolist()):
      x = place ^ a[example]
      x = (x ^ x >> 16) * 0x21F0AAAD & mask ^ b[example]
      x = (x ^ x >> 15) * 0x735A2D97 & mask
      assert word == x ^ x >> 15


def test_random_words_look_random():
  """Shares of every bit, and correlations of masks of other keys, other examples and neighbours, in units of sigma."""
  words = np.concatenate([np.asarray(random_words(jax.random.key(k), (16, 64, 64))) for k in range(8)])
  n = words.size
  for bit in range(32):
    assert abs((words >> bit & 1).mean() - 0.5) < 4.5 * 0.5 / math.sqrt(n)
  for rate in (0.1, 0.5):
    keep = (words >= np.uint32(rate * 2**32)).astype(np.float64)
    assert abs(keep.mean() - (1 - rate)) < 4.5 * math.sqrt(rate * (1 - rate) / n)
    z = (keep - (1 - rate)) / math.sqrt(rate * (1 - rate))
    for near in (z[:, :, 1:] * z[:, :, :-1], z[:, 1:] * z[:, :-1]):
      assert abs(near.mean()) < 4.5 / math.sqrt(n)
    pairs = np.corrcoef(z.reshape(128, -1))[np.triu_indices(128, 1)] * 64
    assert np.abs(pairs).max() < 5.2 and abs(pairs.std() - 1) < 0.05


def test_random_words_are_the_same_on_any_mesh():
  key, shape = jax.random.key(1), (8, 6, 5)
  mesh = jax.make_mesh((8,), ("data",))
  sharded = jax.jit(lambda key: random_words(key, shape), out_shardings=jax.NamedSharding(mesh, jax.P("data")))
  np.testing.assert_array_equal(sharded(key), random_words(key, shape))


def test_drop_block_drops_blocks_of_all_channels():
  x = np.abs(noise(4, 20, 20, 3)) + 1
  y = np.asarray(drop_block(x, 0.3, jax.random.key(1)))
  ratio = y / x
  kept = ratio[ratio > 0]
  np.testing.assert_allclose(kept, kept[0], rtol=1e-5)
  dropped = (ratio == 0).all(-1)
  assert ((ratio == 0).any(-1) == dropped).all() and 0.1 < dropped.mean() < 0.5
  np.testing.assert_allclose(kept[0], dropped.size / (~dropped).sum(), rtol=1e-5)
  for b, i, j in np.argwhere(dropped):  # every dropped cell belongs to a dropped 3x3 block (cut at the border)
    centres = [(i + p, j + q) for p in (-1, 0, 1) for q in (-1, 0, 1) if 0 <= i + p < 20 and 0 <= j + q < 20]
    assert any(dropped[b, max(p - 1, 0) : p + 2, max(q - 1, 0) : q + 2].all() for p, q in centres)


@pytest.mark.parametrize("size", [(3, 4), (5, 7), (6, 8), (13, 21)])
def test_nearest_by_floor(size):
  x = noise(1, (size[0] + 1) // 2, (size[1] + 1) // 2, 2)
  expected = [
    [x[0, i * x.shape[1] // size[0], j * x.shape[2] // size[1]] for j in range(size[1])] for i in range(size[0])
  ]
  np.testing.assert_array_equal(nearest(x, *size)[0], expected)


@pytest.mark.parametrize("shape", [(3, 4, 5, 7), (1, 2, 1, 4), (1, 1, 2, 2)])
def test_bilinear_with_aligned_corners(shape):
  h, w, out_h, out_w = shape
  x = noise(2, h, w, 3)
  expected = np.empty((2, out_h, out_w, 3))
  for i, j in np.ndindex(out_h, out_w):
    y, z = (i * (h - 1) / max(out_h - 1, 1), j * (w - 1) / max(out_w - 1, 1))
    top, left = min(int(y), h - 1), min(int(z), w - 1)
    low, right = min(top + 1, h - 1), min(left + 1, w - 1)
    a, b = y - top, z - left
    upper = x[:, top, left] * (1 - b) + x[:, top, right] * b
    expected[:, i, j] = upper * (1 - a) + (x[:, low, left] * (1 - b) + x[:, low, right] * b) * a
  np.testing.assert_allclose(bilinear(x, out_h, out_w), expected, atol=1e-5)


def test_segments_against_slices():
  x, valid = noise(2, 9, 4), np.array([[1, 1, 0, 1, 1, 1, 0, 0, 1], [1, 0, 0, 1, 1, 1, 1, 1, 1]], bool)
  means = np.stack([[x[b, s][valid[b, s]].mean(0) for s in (slice(0, 3), slice(3, 9))] for b in range(2)])
  segments = Segments([3, 6], valid)
  np.testing.assert_allclose(segments.mean(x), means, atol=1e-5)
  np.testing.assert_allclose(segments.spread(means)[:, 2:4], means, atol=1e-6)
  y = np.asarray(Segments([3, 6]).standardise(x, 2)).reshape(2, 9, 2, 2)
  for part in (y[:, :3], y[:, 3:]):
    np.testing.assert_allclose(part.mean((1, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(part.var((1, 3)), 1, atol=1e-3)


def test_windows():
  x = noise(2, 8, 12, 3)
  windows = partition(x, 4)
  np.testing.assert_array_equal(windows[1, 4].reshape(4, 4, 3), x[1, 4:8, 4:8])
  np.testing.assert_array_equal(unpartition(windows, 4, 8, 12), x)
  index = relative_position_index(3)
  for a, b in np.ndindex(9, 9):
    assert index[a, b] == (a // 3 - b // 3 + 2) * 5 + (a % 3 - b % 3 + 2)


def test_constants_of_the_pyramid_follow_float32_to_float64(monkeypatch):
  """The comparisons with the authors in float64 replace the name (tests/models/golden_float64.py)."""
  x = np.random.default_rng(0).normal(size=(1, 4, 3, 2))
  away = np.abs(np.arange(7)[:, None] * (3 / 6) - np.arange(4)), np.abs(np.arange(6)[:, None] * (2 / 5) - np.arange(3))
  expected = np.einsum("Yy,Xx,byxd->bYXd", *(1 - w.clip(max=1) for w in away), x)
  monkeypatch.setattr(jnp, "float32", jnp.float64)
  with jax.enable_x64(True):
    np.testing.assert_allclose(bilinear(jnp.asarray(x), 7, 6), expected, atol=1e-14)
    mean = Segments([3, 9]).mean(jnp.asarray(x.reshape(1, 12, 2)))
  np.testing.assert_allclose(mean[0, 1], x.reshape(12, 2)[3:].mean(0), atol=1e-14)


@pytest.mark.parametrize("h, w, window", [(8, 12, 4), (7, 7, 7), (21, 7, 7)])
def test_parted_by_shift_against_regions_of_the_map(h, w, window):
  """The authors' way (reference 2.2): three bands each way, numbered, shifted cells compared window by window."""
  regions = shift_regions(h, w, window)
  parts = partition(regions[None], window)[0]
  expected = parts[:, :, None] != parts[:, None]
  np.testing.assert_array_equal(parted_by_shift(h // window, w // window, window), expected)


def shift_regions(h: int, w: int, window: int) -> np.ndarray:
  bands = [np.searchsorted([n - window, n - window // 2], np.arange(n), side="right") for n in (h, w)]
  return bands[0][:, None] * 3 + bands[1]


def test_patches_as_a_product_are_the_convolution():
  embed = PatchEmbed(8, 4, dtype=jnp.float32, rngs=Keys(jax.random.key(0)))
  x = jax.random.normal(jax.random.key(1), (2, 10, 15, 3))
  expected = embed.norm(embed.proj(jnp.pad(x, ((0, 0), (0, 2), (0, 1), (0, 0)))))
  np.testing.assert_allclose(embed(x), expected, atol=1e-5)


@pytest.mark.parametrize("shift", [0, 3])
def test_window_attention_projects_the_padding_too(shift):
  """Against projections of the padded and shifted map, one window and head at a time, in NumPy."""
  layer = WindowAttention(4, 2, 7, dtype=jnp.float32, rngs=Keys(jax.random.key(0)))
  layer.qkv.bias[...] = jax.random.normal(jax.random.key(1), (12,))
  x = np.array(jax.random.normal(jax.random.key(2), (1, 9, 12, 4)))
  padded = np.roll(np.pad(x[0], ((0, 5), (0, 2), (0, 0))), (-shift, -shift), (0, 1))
  regions, found = shift_regions(14, 14, 7), np.zeros((14, 14, 4), np.float32)
  table, index = layer.relative_position_bias_table[...], relative_position_index(7)
  for top in (0, 7):
    for left in (0, 7):
      here = np.s_[top : top + 7, left : left + 7]
      qkv = padded[here].reshape(49, 4) @ layer.qkv.kernel[...] + layer.qkv.bias[...]
      apart = regions[here].reshape(49, 1) != regions[here].reshape(1, 49)
      for head in range(2):
        q, k, v = (qkv[:, part * 4 + head * 2 :][:, :2] for part in range(3))
        scores = q @ k.T / math.sqrt(2) + table[:, head][index] - 100.0 * (apart if shift else 0)
        found[here][..., head * 2 : head * 2 + 2] = (jax.nn.softmax(scores) @ v).reshape(7, 7, 2)
  found = np.roll(found, (shift, shift), (0, 1))[:9, :12] @ layer.proj.kernel[...] + layer.proj.bias[...]
  np.testing.assert_allclose(layer(x, shift, None)[0], found, atol=1e-5)


@pytest.mark.parametrize("together", [in_turn, loop])
def test_equal_modules_are_traced_once(together):
  modules = [Linear(3, 3, dtype=jnp.float32, rngs=Keys(jax.random.key(i))) for i in range(3)]
  x, each, traced = jnp.ones((2, 3)), jnp.array([0.5, 2.0, -1.0]), []

  def run(module, x, i, factor):
    traced.append(i)
    return jnp.sin(module(x)) * factor + i

  expected = x
  for i, module in enumerate(modules):
    expected = run(module, expected, i, each[i])
  del traced[:]
  np.testing.assert_allclose(jax.jit(lambda x: together(modules, run, x, each))(x), expected, rtol=1e-5)
  assert len(traced) == 1


@pytest.mark.parametrize("looped", [False, True])
def test_a_stage_of_an_odd_number_of_blocks_runs(looped):
  cfg = SwinConfig(embed_dim=8, depths=(1, 1, 3, 1), heads=(1, 1, 1, 1), window=7, drop_path=0.1)
  run = lambda x: Swin(cfg, dtype=jnp.float32, looped=looped, rngs=Keys(jax.random.key(0)))(x, None, jax.random.key(1))  # noqa: E731
  shapes = [x.shape for x in jax.eval_shape(run, jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32))]
  assert shapes == [(1, 16, 24, 8), (1, 8, 12, 16), (1, 4, 6, 32), (1, 2, 3, 64)]


def test_on_a_mesh_that_splits_weights_they_travel_and_not_the_activations():
  """128 rows are fewer than the weights have: left alone, the compiler gathers the rows instead."""
  mesh = make_mesh(1, 8)
  definition, params = nnx.split(Mlp(256, 1024, gelu, dtype=jnp.float32, rngs=Keys(jax.random.key(0))))
  params = nnx.to_pure_dict(params)
  places = rules.shardings(params, mesh)

  def loss(params, x):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return jnp.sum(jnp.sin(nnx.merge(definition, params)(x)))

  x = jax.random.normal(jax.random.key(1), (8, 16, 256))
  program = jax.jit(jax.grad(loss), in_shardings=(places, batch_sharding(mesh)), out_shardings=places).lower(params, x)
  text = hlo.Program(program.compile().as_text())
  travels = [use.instruction for outer in text.uses() for use in text.collectives(outer)]
  gathered = [hlo.shapes(i.shape)[0] for i in travels if i.collective == "all-gather"]
  assert sorted(shape for shape in gathered if len(shape) == 2) == [(256, 1024), (1024, 256)]
  assert all((128, 256) not in hlo.shapes(i.shape) for i in travels)

"""The fusion never projects the cells; here the six products of reference 4.2 are written out, in NumPy float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from glipv2_jax.models import fusion, fusion_kernels
from glipv2_jax.models.layers import Keys, fold, kept, random_words
from glipv2_jax.models.variants import HeadConfig
from glipv2_jax.parallel.mesh import batch_sharding, make_mesh, replicated

B, N, M, D, E, HEADS = 2, 23, 7, 8, 10, 3
CFG = HeadConfig(stages=2, channels=D, fusion_dim=12, fusion_heads=HEADS, fusion_dropout=0.5)
WORDS_VALID = np.arange(M) < np.array([[4], [M]])
CELLS_VALID = np.arange(N) < np.array([[N], [15]])


@pytest.fixture(scope="module", params=["heads", "lanes", "kernels"])
def layer(request):
  """Definition and parameters: random everywhere, also the biases, and large enough for peaked attention. The kernels
  are interpreted."""
  module = fusion.BiAttention(CFG, E, dtype=jnp.float32, rngs=Keys(jax.random.key(0)), form=request.param)
  definition, params = nnx.split(module)
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), nnx.to_pure_dict(params))
  with pytest.MonkeyPatch.context() as patch:
    for name in ("weigh", "weigh_backward"):
      patch.setattr(fusion_kernels, name, functools.partial(getattr(fusion_kernels, name), interpret=True))
    yield definition, params


@pytest.fixture(scope="module")
def inputs():
  rng = np.random.default_rng(1)
  return rng.normal(size=(B, N, D)).astype(np.float32), rng.normal(size=(B, M, E)).astype(np.float32)


def call(definition, params, cells, words, cells_valid=None, key=None):
  return nnx.merge(definition, params)(cells, words, WORDS_VALID, cells_valid, key)


def plain(params, cells, words, cells_valid, keep_words=1.0, keep_cells=1.0, xp=np):
  """Reference 4.2, term by term. `keep_*`: b k n m factors of dropout."""

  def norm(p, x):
    x = x - x.mean(-1, keepdims=True)
    return x / xp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]

  def heads(p, x):
    return (x @ p["kernel"] + p["bias"]).reshape(*x.shape[:2], HEADS, -1).swapaxes(1, 2)

  def softmax(x, axis):
    x = xp.exp(x - x.max(axis, keepdims=True))
    return x / x.sum(axis, keepdims=True)

  def join(p, x):
    return x.swapaxes(1, 2).reshape(B, x.shape[2], -1) @ p["kernel"] + p["bias"]

  v, l = norm(params["layer_norm_v"], cells), norm(params["layer_norm_l"], words)
  q, k = heads(params["v_proj"], v), heads(params["l_proj"], l)
  scores = xp.clip((q / np.sqrt(q.shape[-1])) @ k.swapaxes(2, 3), -50000, 50000)
  to_words = softmax(xp.where(WORDS_VALID[:, None, None], scores, -9e15), 3) * keep_words
  if cells_valid is not None:
    scores = xp.where(cells_valid[:, None, :, None], scores, -9e15)
  to_cells = softmax(scores, 2) * keep_cells
  v_delta = join(params["out_v_proj"], to_words @ heads(params["values_l_proj"], l))
  l_delta = join(params["out_l_proj"], to_cells.swapaxes(2, 3) @ heads(params["values_v_proj"], v))
  return v + params["gamma_v"] * v_delta, l + params["gamma_l"] * l_delta


@pytest.mark.parametrize("cells_valid", [None, CELLS_VALID], ids=["all cells", "padded cells"])
def test_equals_the_six_products(layer, inputs, cells_valid):
  definition, params = layer
  exact = jax.tree.map(lambda x: x.astype(np.float64), (params, *inputs))
  for ours, want in zip(call(definition, params, *inputs, cells_valid), plain(*exact, cells_valid), strict=True):
    np.testing.assert_allclose(ours, want, atol=2e-5 * np.abs(want).max())


def test_dropout_drops_probabilities(layer, inputs):
  """Where the authors put it: on the probabilities, after the softmax."""
  definition, params = layer
  key = jax.random.key(3)
  ours = call(definition, params, *inputs, key=key)
  exact = jax.tree.map(lambda x: x.astype(np.float64), (params, *inputs))
  for mine, want in zip(ours, plain(*exact, None, *factors(key)), strict=True):
    np.testing.assert_allclose(mine, want, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize("key", [None, jax.random.key(3)], ids=["evaluation", "dropout"])
def test_gradients_equal_those_of_the_six_products(layer, inputs, key):
  definition, params = layer
  weights = [np.random.default_rng(2).normal(size=x.shape) for x in inputs]
  factor = (1.0, 1.0) if key is None else tuple(factors(key))

  def total(function):
    def loss(params, cells, words):
      return sum(jnp.sum(x * w) for x, w in zip(function(params, cells, words), weights, strict=True))

    return jax.jit(jax.grad(loss, (0, 1, 2)))(params, *inputs)

  ours = total(lambda *args: call(definition, *args, CELLS_VALID, key))
  want = total(lambda *args: plain(*args, CELLS_VALID, *factor, xp=jnp))
  for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, atol=3e-5 * np.abs(b).max(), err_msg=jax.tree_util.keystr(path))


def test_an_example_without_words_or_cells_has_finite_gradients(layer, inputs):
  """Padding rows of a batch: nothing is valid, every softmax is over equal scores, and no score gets a gradient."""
  definition, params = layer

  def loss(params, cells, words):
    nothing = np.zeros((B, M), bool), np.zeros((B, N), bool)
    v, l = nnx.merge(definition, params)(cells, words, *nothing, jax.random.key(0))
    return jnp.sum(v * v) + jnp.sum(l * l)

  to_params, *rest = jax.jit(jax.grad(loss, (0, 1, 2)))(params, *inputs)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((to_params, rest)))
  assert not np.any(to_params["l_proj"]["kernel"]) and not np.any(to_params["v_proj"]["kernel"])


@pytest.mark.parametrize("valid,key", [(CELLS_VALID, jax.random.key(0)), (None, None)], ids=["training", "evaluation"])
def test_on_a_mesh_every_device_runs_its_own_kernels(layer, inputs, valid, key):
  definition, params = layer
  mesh = make_mesh(2, 1, devices=jax.devices()[:2])

  def both(params, cells, words):
    def loss(*args):
      v, l = call(definition, *args, valid, key)
      return jnp.sum(jnp.sin(v)) + jnp.sum(jnp.sin(l))

    return jax.value_and_grad(loss, (0, 1, 2))(params, cells, words)

  alone = jax.jit(both)(params, *inputs)
  with jax.set_mesh(mesh):
    together = jax.jit(both, in_shardings=(replicated(mesh), batch_sharding(mesh), batch_sharding(mesh)))(
      params, *inputs
    )
  for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
    np.testing.assert_allclose(a, b, atol=3e-5 * float(jnp.abs(a).max()) + 1e-7)


def factors(key):
  """b k n m of both directions: 2 where the dropout of rate 0.5 keeps a number, 0 elsewhere."""
  for way in range(2):
    words = [random_words(fold(fold(key, way), head), (B, N, M)) for head in range(HEADS)]
    yield 2.0 * np.stack([np.asarray(kept(x, 0.5)) for x in words], 1).astype(np.float32)


@pytest.mark.parametrize("form", ["heads", "lanes"])
def test_lanes_fix_the_layout_of_all_scores(form):
  """Forward the scores, backward these and both gradients, with cells as the fastest axis of b n k m."""
  module = fusion.BiAttention(CFG, E, dtype=jnp.float32, rngs=Keys(jax.random.key(0)), form=form)
  definition, params = nnx.split(module)

  def loss(params, cells, words):
    v, l = nnx.merge(definition, params)(cells, words, WORDS_VALID)
    return jnp.sum(v) + jnp.sum(l)

  shapes = [jax.ShapeDtypeStruct((B, *shape), jnp.float32) for shape in ((N, D), (M, E))]
  text = jax.jit(jax.grad(loss)).lower(params, *shapes).as_text()
  fixed = [line for line in text.splitlines() if "@LayoutConstraint" in line]
  assert len(fixed) == (4 if form == "lanes" else 0)
  assert all("dense<[1, 3, 2, 0]>" in line and f"tensor<{B}x{N}x1x{M}xf32>" in line for line in fixed)


def test_scores_of_one_head_at_a_time():
  """With 32 heads the plain form keeps at least 67 MB of scores (n m float32 per head) for the backward pass."""
  cfg = HeadConfig(stages=2, channels=64, fusion_dim=512, fusion_heads=32)
  abstract = nnx.eval_shape(lambda: fusion.BiAttention(cfg, 32, dtype=jnp.float32, rngs=Keys(jax.random.key(0))))
  definition, params = nnx.split(abstract)

  def loss(params, cells, words):
    v, l = nnx.merge(definition, params)(cells, words, jnp.ones((1, 256), bool))
    return jnp.sum(v) + jnp.sum(l)

  like = [jax.ShapeDtypeStruct((1, n, d), jnp.float32) for n, d in ((2048, 64), (256, 32))]
  program = jax.jit(jax.grad(loss)).lower(nnx.to_pure_dict(params), *like).compile()
  assert program.memory_analysis().temp_size_in_bytes < 32 * 4 * 2048 * 256 / 2

"""Behaviour of the whole network at toy size: padding, randomness, recomputation, precision, the kinds of text."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from glipv2_jax.models import variants
from glipv2_jax.models.glipv2 import abstract_params, graphdef, init_params, normalise_image, param_paths
from glipv2_jax.models.padding import cells_valid, level_sizes
from tests import tiny

# These tests run each program once: compiling is the cost.
jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


def config(**changes):
  cfg = tiny.model()
  return dataclasses.replace(cfg, swin=dataclasses.replace(cfg.swin, depths=(2, 1, 1, 1)), **changes)  # a shifted block


@functools.cache
def parameters(cfg):
  """Random parameters of sensible sizes, without compiling the initialisation."""
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    name, noise = path[-1].key, rng.normal(size=leaf.shape).astype(np.float32)
    if name == "kernel":
      return noise / np.sqrt(np.prod(leaf.shape[:-1]))
    return 1 + 0.1 * noise if name in ("scale", "scales") else 0.1 * noise

  return jax.tree.map_with_path(draw, abstract_params(cfg))


@functools.cache
def forward(cfg):
  return jit(lambda params, batch, key: nnx.merge(graphdef(cfg), params)(batch, key))


def picture(size, canvas, rows=2):
  """The same pixels whatever the canvas; outside of the picture noise that must not matter."""
  inner = np.random.default_rng(0).integers(0, 256, (rows, *size, 3), np.uint8)
  image = np.random.default_rng(1).integers(0, 256, (rows, *canvas, 3), np.uint8)
  image[:, : size[0], : size[1]] = inner
  batch = tiny.batch(0, rows)
  return dataclasses.replace(batch, image=image, image_size=np.array([size] * rows, np.int32))


def on_picture(outputs, size, canvas, strides):
  """Outputs of the cells of the picture only, in one order for every canvas."""
  sizes = level_sizes(np.array([size]), strides)
  shapes = [tuple(level_sizes(np.array([canvas]), strides)[level][0]) for level in range(len(strides))]
  keep = np.concatenate([np.asarray(cells_valid(s, *shape))[0].ravel() for s, shape in zip(sizes, shapes, strict=True)])
  return [np.asarray(leaf)[:, keep] for leaf in jax.tree.leaves(outputs)]


def test_masked_padding_makes_the_canvas_irrelevant():
  cfg = config(mask_padding=True)
  size, canvases = (88, 72), ((88, 72), (96, 128))
  results = [
    on_picture(forward(cfg)(parameters(cfg), picture(size, canvas), None), size, canvas, cfg.strides)
    for canvas in canvases
  ]
  for a, b in zip(*results, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(a).max())


def test_masked_padding_changes_nothing_without_padding():
  """A canvas full of picture, and a multiple of every window."""
  cfg, batch = config(), tiny.batch(0, 2, (128, 128))
  plain = forward(cfg)(parameters(cfg), batch, None)
  masked = forward(dataclasses.replace(cfg, mask_padding=True))(parameters(cfg), batch, None)
  for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(masked), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(a).max()))


def test_pixels_outside_the_picture_are_zero_after_normalisation():
  cfg = config()
  image = np.full((1, 4, 4, 3), (255, 128, 0), np.uint8)
  pixels = normalise_image(image, np.array([[3, 2]]), cfg)
  expected = (np.array([0, 128, 255]) - cfg.image_mean_bgr) / cfg.image_std_bgr
  np.testing.assert_allclose(pixels[0, :3, :2], np.broadcast_to(expected, (3, 2, 3)), rtol=1e-5)
  assert not np.any(pixels[0, 3:]) and not np.any(pixels[0, :, 2:])


def test_padding_words_touch_no_logit_of_valid_words():
  cfg, batch = config(), tiny.batch(0, 2)
  other = dataclasses.replace(batch, tokens=np.where(batch.tokens_valid, batch.tokens, 63))
  a, b = (forward(cfg)(parameters(cfg), x, None) for x in (batch, other))
  valid = np.broadcast_to(batch.tokens_valid[:, None], a.token_logits.shape)
  np.testing.assert_allclose(a.token_logits[valid], b.token_logits[valid], atol=1e-5)
  np.testing.assert_allclose(a.deltas, b.deltas, atol=1e-6)


def test_dropout_follows_the_key():
  cfg = config(dropblock=0.3)
  cfg = dataclasses.replace(
    cfg,
    swin=dataclasses.replace(cfg.swin, drop_path=0.5),
    text=dataclasses.replace(cfg.text, dropout=0.1),
    head=dataclasses.replace(cfg.head, fusion_dropout=0.1),
  )
  run = functools.partial(forward(cfg), parameters(cfg), tiny.batch(0, 2))
  one, again, two = (run(jax.random.key(seed)).token_logits for seed in (1, 1, 2))
  np.testing.assert_array_equal(one, again)
  assert np.abs(one - two).max() > 1e-3
  plain = forward(config())(parameters(config()), tiny.batch(0, 2), None)
  np.testing.assert_array_equal(run(None).token_logits, plain.token_logits)


def gradient(cfg, batch):
  def loss(params):
    outputs = nnx.merge(graphdef(cfg), params)(batch, jax.random.key(3))
    return sum(jnp.mean(jnp.square(leaf)) for leaf in jax.tree.leaves(outputs))

  return jit(jax.grad(loss))(parameters(cfg))


def test_recomputation_leaves_gradients_alone():
  batch = tiny.batch(0, 2)
  plain = gradient(tiny.model(), batch)
  remat = gradient(dataclasses.replace(tiny.model(), remat=variants.REMAT), batch)
  for (path, a), b in zip(jax.tree.leaves_with_path(plain), jax.tree.leaves(remat), strict=True):
    assert np.isfinite(a).all(), path
    np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(a).max()) + 1e-9, err_msg=str(path))
    if "cls_logits" not in jax.tree_util.keystr(path) and "word" not in jax.tree_util.keystr(path):
      assert np.abs(a).max() > 0, path


def test_bfloat16_stays_close():
  cfg = tiny.model()
  batch = tiny.batch(0, 2)
  exact = forward(cfg)(parameters(cfg), batch, None)
  rough = forward(dataclasses.replace(cfg, compute_dtype="bfloat16"))(parameters(cfg), batch, None)
  for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(rough), strict=True):
    assert b.dtype == jnp.float32
    np.testing.assert_allclose(a, b, atol=0.05 * float(jnp.abs(a).max()))


@pytest.mark.parametrize("kind", ["clip", "none", "no fusion"])
def test_other_kinds_run(kind):
  cfg = tiny.model()
  if kind == "clip":
    cfg = dataclasses.replace(cfg, text=dataclasses.replace(cfg.text, kind="clip"))
  else:
    text = None if kind == "none" else cfg.text
    cfg = dataclasses.replace(cfg, text=text, head=dataclasses.replace(cfg.head, fusion=False))
  outputs = forward(cfg)(parameters(cfg), tiny.batch(0, 2), None)
  assert outputs.token_logits.shape[2] == (cfg.head.classes if kind == "none" else tiny.TOKENS)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(outputs))


def test_fusion_without_text_is_refused():
  with pytest.raises(ValueError, match="fusion"):
    graphdef(dataclasses.replace(variants.get("demo"), text=None))


def test_initial_scales_multiply_what_they_match():
  plain = init_params(dataclasses.replace(variants.get("demo"), init_scale=()), jax.random.key(0))
  scaled = init_params(
    dataclasses.replace(variants.get("demo"), init_scale=((r".*/offset/kernel", 0.5), (r".*", 2.0))), jax.random.key(0)
  )
  for path, a, b in zip(param_paths(plain), jax.tree.leaves(plain), jax.tree.leaves(scaled), strict=True):
    np.testing.assert_array_equal(b, a * (0.5 if path.endswith("offset/kernel") else 2.0), err_msg=path)

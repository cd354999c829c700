"""The objective against loops in NumPy, and what a training step relies on: global counts with microbatches, weights of
0, images without objects, padding that holds NaN."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glipv2_jax import anchors as anchorlib
from glipv2_jax import boxes as boxlib
from glipv2_jax.losses import grounding, intra
from glipv2_jax.parallel.mesh import batch_sharding, make_mesh
from glipv2_jax.schema import Batch, Outputs

CANVAS, STRIDES, TOKENS, BOXES = (64, 96), (8, 16, 32, 64, 128), 12, 6
ANCHORS = anchorlib.anchors(CANVAS, STRIDES, 4.0)
COUNTS = anchorlib.level_counts(CANVAS, STRIDES)
CFG = grounding.LossConfig()


def example(seed=0, boxes=(4, 0, 6, 2)):
  """A batch with NaN in every padded place, the second image without boxes; and outputs of a network."""
  rng = np.random.default_rng(seed)
  b, n = len(boxes), len(ANCHORS)
  corner = rng.uniform(0, 40, (b, BOXES, 2))
  valid = np.arange(BOXES) < np.array(boxes)[:, None]
  xyxy = np.concatenate([corner, corner + rng.uniform(8, 50, (b, BOXES, 2))], axis=-1)
  lengths = np.array([TOKENS, 5, 7, 9])[:b]
  batch = Batch(
    image=np.zeros((b, *CANVAS, 3), np.uint8),
    image_size=np.full((b, 2), CANVAS, np.int32),
    tokens=np.zeros((b, TOKENS), np.int32),
    tokens_valid=np.arange(TOKENS) < lengths[:, None],
    boxes_xyxy_px=np.where(valid[..., None], xyxy, np.nan).astype(np.float32),
    boxes_valid=valid,
    positive_map=rng.random((b, BOXES, TOKENS)) < 0.3,
    box_concept=np.full((b, BOXES), -1, np.int32),
    token_concept=np.full((b, TOKENS), -1, np.int32),
    example_valid=np.ones(b, bool),
  )
  normal = functools.partial(rng.normal, size=(b, n, TOKENS))
  outputs = Outputs(
    token_logits=normal().astype(np.float32),
    deltas=rng.normal(size=(b, n, 4)).astype(np.float32),
    centerness=rng.normal(size=(b, n)).astype(np.float32),
  )
  return jax.tree.map(jnp.asarray, batch), jax.tree.map(jnp.asarray, outputs)


@functools.partial(jax.jit, static_argnums=2)
def run(outputs, batch, cfg=CFG):
  targets = grounding.make_targets(batch, ANCHORS, COUNTS, cfg)
  return grounding.weighted_loss(
    grounding.loss_terms(outputs, batch, targets, cfg), grounding.counts(targets), cfg.weights
  )


targets_of = jax.jit(grounding.make_targets, static_argnums=(2, 3))
gradient = jax.jit(jax.grad(lambda outputs, batch: run(outputs, batch)[0]))


def loop_values(outputs, batch, matched, background_token=True):
  """Reference 5.3 and 5.4, anchor by anchor, in float64: sums and counts of the three terms."""
  intra_sum = box_sum = centre_sum = weight = positives = 0.0
  for b, n in np.ndindex(matched.shape):
    g = matched[b, n]
    for m in np.flatnonzero(batch.tokens_valid[b]):
      t = bool(batch.positive_map[b, g, m]) if g >= 0 else background_token and m == TOKENS - 1
      p = 1 / (1 + np.exp(-float(outputs.token_logits[b, n, m])))
      intra_sum += -0.25 * (1 - p) ** 2 * np.log(p) if t else -0.75 * p**2 * np.log(1 - p)
    if g < 0:
      continue
    anchor, box = np.float64(ANCHORS[n]), np.float64(batch.boxes_xyxy_px[b, g])
    x, y, side = (anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2, anchor[2] - anchor[0] + 1
    left, top, right, bottom = x - box[0], y - box[1], box[2] - x, box[3] - y
    c = np.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom))
    dx, dy, dw, dh = np.float64(outputs.deltas[b, n])
    w, h, x, y = np.exp(dw / 5) * side, np.exp(dh / 5) * side, x + dx / 10 * side, y + dy / 10 * side
    p = (x - (w - 1) / 2, y - (h - 1) / 2, x + (w - 1) / 2, y + (h - 1) / 2)
    wide, high = min(p[2], box[2]) - max(p[0], box[0]), min(p[3], box[3]) - max(p[1], box[1])
    overlap = max(wide, 0) * max(high, 0)
    union = (p[2] - p[0]) * (p[3] - p[1]) + (box[2] - box[0]) * (box[3] - box[1]) - overlap
    hull = (max(p[2], box[2]) - min(p[0], box[0])) * (max(p[3], box[3]) - min(p[1], box[1]))
    box_sum += c * (1 - overlap / union + (hull - union) / hull)
    z = float(outputs.centerness[b, n])
    centre_sum += -c * np.log(1 / (1 + np.exp(-z))) - (1 - c) * np.log(1 / (1 + np.exp(z)))
    weight, positives = weight + c, positives + 1
  return {"intra": (intra_sum, positives), "box": (box_sum, weight), "centerness": (centre_sum, positives)}


@pytest.mark.parametrize("background_token", [True, False])
def test_terms_equal_loops(background_token):
  batch, outputs = example()
  cfg = dataclasses.replace(CFG, background_token=background_token)
  targets = targets_of(batch, ANCHORS, COUNTS, cfg)
  terms = jax.jit(grounding.loss_terms, static_argnums=3)(outputs, batch, targets, cfg)
  expected = loop_values(*jax.tree.map(np.asarray, (outputs, batch, targets.matched)), background_token)
  assert expected["box"][1] > 1
  counts = grounding.counts(targets)
  for name, (total, count) in expected.items():
    np.testing.assert_allclose(terms[name].total, total, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose([terms[name].count, counts[name]], count, rtol=1e-5, err_msg=name)


def test_loss_is_the_weighted_sum_of_the_means():
  batch, outputs = example()
  loss, values = run(outputs, batch)
  expected = loop_values(*jax.tree.map(np.asarray, (outputs, batch, targets_of(batch, ANCHORS, COUNTS, CFG).matched)))
  means = {name: total / count for name, (total, count) in expected.items()}
  np.testing.assert_allclose(loss, means["intra"] + 2 * means["box"] + means["centerness"], rtol=1e-5)
  np.testing.assert_allclose([values[name] for name in means], list(means.values()), rtol=1e-5)


def test_background_token_counts_only_in_full_texts():
  positive_map = jnp.zeros((1, 2, 4), bool).at[0, 1, 2].set(True)
  matched = jnp.int32([[-1, 1, 0]])
  rows = intra.token_targets(positive_map, matched, background_token=True)
  np.testing.assert_array_equal(rows[0], [[0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]])
  assert not intra.token_targets(positive_map, matched, background_token=False)[0, 0].any()
  batch, outputs = example()
  difference = {}
  for shortened in (False, True):  # only the first text fills all tokens
    texts = batch.tokens_valid.at[:, -1].set(False) if shortened else batch.tokens_valid
    values = [
      run(outputs, dataclasses.replace(batch, tokens_valid=texts), dataclasses.replace(CFG, background_token=quirk))[0]
      for quirk in (True, False)
    ]
    difference[shortened] = abs(float(values[0] - values[1]))
  assert difference[True] == 0 and difference[False] > 1e-3


def test_microbatches_add_up_to_the_batch():
  batch, outputs = example()
  whole = targets_of(batch, ANCHORS, COUNTS, CFG)
  counts = grounding.counts(whole)

  @jax.jit
  @jax.value_and_grad
  def loss(outputs, batch, targets):
    return grounding.weighted_loss(grounding.loss_terms(outputs, batch, targets, CFG), counts, CFG.weights)[0]

  one, one_gradient = loss(outputs, batch, whole)
  halves = [jax.tree.map(lambda x, k=k: x[2 * k : 2 * k + 2], (outputs, batch, whole)) for k in (0, 1)]
  parts = [loss(*half) for half in halves]
  np.testing.assert_allclose(sum(value for value, _ in parts), one, rtol=1e-6)
  joined = jax.tree.map(lambda *g: np.concatenate(g), *[g for _, g in parts])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8), joined, one_gradient)


def test_nan_in_masked_places_never_leaks():
  batch, clean = example()
  targets = targets_of(batch, ANCHORS, COUNTS, CFG)
  background, padding = targets.matched < 0, ~batch.tokens_valid[:, None]
  dirty = Outputs(
    token_logits=jnp.where(padding, jnp.nan, clean.token_logits),
    deltas=jnp.where(background[..., None], jnp.nan, clean.deltas),
    centerness=jnp.where(background, jnp.nan, clean.centerness),
  )
  np.testing.assert_array_equal(run(dirty, batch)[0], run(clean, batch)[0])
  jax.tree.map(np.testing.assert_array_equal, gradient(dirty, batch), gradient(clean, batch))
  assert np.isfinite(run(clean, batch)[0])


def test_images_without_objects_train_their_tokens_as_negatives():
  batch, outputs = example(boxes=(0, 0, 0, 0))
  loss, values = run(outputs, batch, dataclasses.replace(CFG, background_token=False))
  p = 1 / (1 + np.exp(-np.float64(outputs.token_logits)))
  mask = np.broadcast_to(np.asarray(batch.tokens_valid)[:, None], p.shape)
  np.testing.assert_allclose(values["intra"], (-0.75 * p**2 * np.log(1 - p))[mask].sum(), rtol=1e-5)
  assert values["box"] == 0 and values["centerness"] == 0 and loss == values["intra"]
  slopes = gradient(outputs, batch)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))
  assert (slopes.token_logits[:, :, 0] > 0).all() and not slopes.deltas.any()


def test_padding_examples_change_nothing():
  batch, outputs = example()
  padded = dataclasses.replace(batch, example_valid=np.array([True, True, False, False]))
  two_batch, two_outputs = jax.tree.map(lambda x: x[:2], (batch, outputs))
  np.testing.assert_allclose(run(outputs, padded)[0], run(two_outputs, two_batch)[0], rtol=1e-6)
  assert not any(x[2:].any() for x in jax.tree.leaves(gradient(outputs, padded)))


def test_weight_zero_removes_the_computation():
  """The outputs of a term that is off are not even touched: None in their place works."""
  batch, outputs = example()
  cfg = grounding.LossConfig(weights=(("intra", 1.0), ("box", 0.0), ("centerness", 0.0)))
  bare = dataclasses.replace(outputs, deltas=None, centerness=None)
  loss, values = run(bare, batch, cfg)
  assert list(values) == ["intra"] and loss == values["intra"]
  np.testing.assert_allclose(loss, run(outputs, batch)[1]["intra"], rtol=1e-6)


def test_unknown_term_is_named():
  with pytest.raises(ValueError, match=r"unknown terms \['gioux'\]; known terms: intra, inter, box"):
    grounding.LossConfig(weights=(("gioux", 1.0),))


def test_a_perfect_network_has_almost_no_loss():
  batch, outputs = example()
  cfg = dataclasses.replace(CFG, background_token=False)
  targets = targets_of(batch, ANCHORS, COUNTS, cfg)
  answers = intra.token_targets(batch.positive_map, targets.matched, False)
  right = Outputs(
    token_logits=jnp.where(answers, 20.0, -20.0),
    deltas=boxlib.encode(targets.boxes, targets.anchors),
    centerness=outputs.centerness,
  )
  _, values = run(right, batch, cfg)
  assert values["intra"] < 1e-6 and values["box"] < 1e-4


def test_every_device_assigns_its_own_pictures():
  """Left to the compiler, `top_k` of a map of this size would collect the distances of all pictures on every device."""
  canvas, mesh = (320, 320), make_mesh(2, 4)
  anchors, counts = anchorlib.anchors(canvas, STRIDES, 4.0), anchorlib.level_counts(canvas, STRIDES)
  batch, _ = example(boxes=(4, 0, 6, 2))
  batch = jax.tree.map(lambda x: jnp.concatenate([x, x]), batch)
  alone = targets_of(batch, anchors, counts, CFG)
  with jax.set_mesh(mesh):
    spread = jax.device_put(batch, batch_sharding(mesh))
    program = targets_of.lower(spread, anchors, counts, CFG).compile()
    together = program(spread, anchors)
  assert "all-gather" not in program.as_text() and "all-reduce" not in program.as_text()
  assert (alone.matched >= 0).any()
  jax.tree.map(np.testing.assert_array_equal, alone, together)

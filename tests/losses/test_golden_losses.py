"""Targets and losses against the authors' code (tests/golden): three images, ten boxes, without ties; two processes."""

import jax
import numpy as np
import pytest

from glipv2_jax import anchors as anchorlib
from glipv2_jax import boxes as boxlib
from glipv2_jax.losses import grounding, intra
from glipv2_jax.schema import Outputs
from tests.authors import channels_last, load, train_batch

CANVAS, STRIDES = (128, 160), (8, 16, 32, 64, 128)
CFG = grounding.LossConfig(weights=(("intra", 0.0), ("box", 2.0), ("centerness", 1.0)))


@pytest.fixture(scope="module")
def numbers():
  return load("train")


@pytest.fixture(scope="module")
def batch(numbers):
  return train_batch(numbers)


@pytest.fixture(scope="module")
def targets(batch):
  anchors, counts = anchorlib.anchors(CANVAS, STRIDES, 8.0), anchorlib.level_counts(CANVAS, STRIDES)
  return jax.tree.map(np.asarray, jax.jit(lambda b: grounding.make_targets(b, anchors, counts, CFG))(batch))


def test_anchors(numbers):
  np.testing.assert_array_equal(anchorlib.anchors(CANVAS, STRIDES, 8.0), numbers["anchors"])


def test_assignment(numbers, targets):
  np.testing.assert_array_equal(targets.matched, numbers["assign/matched_gt"])
  np.testing.assert_array_equal((targets.matched >= 0).sum(1), [32, 26, 26])


def test_targets_of_the_positives(numbers, batch, targets):
  positive = targets.matched >= 0
  np.testing.assert_allclose(targets.centerness[positive], numbers["assign/centerness_targets"], atol=1e-6)
  deltas = boxlib.encode(targets.boxes[positive], targets.anchors[positive])
  np.testing.assert_allclose(deltas, numbers["assign/reg_targets_of_positives"], atol=1e-5)
  tokens = np.asarray(intra.token_targets(batch.positive_map, targets.matched, background_token=True))
  np.testing.assert_array_equal(tokens[positive], numbers["assign/token_labels_of_positives"])


def outputs_of(numbers):
  return Outputs(None, channels_last(numbers, "bbox_reg"), channels_last(numbers, "centerness")[..., 0])


def test_box_and_centerness_losses(numbers, batch, targets):
  terms = jax.jit(grounding.loss_terms, static_argnums=3)(outputs_of(numbers), batch, targets, CFG)
  np.testing.assert_allclose(terms["box"].total, numbers["extra/giou_weighted_sum"], rtol=1e-5)
  loss, values = grounding.weighted_loss(terms, grounding.counts(targets), CFG.weights)
  np.testing.assert_allclose(2 * values["box"], numbers["losses/loss_reg"], rtol=1e-5)
  np.testing.assert_allclose(values["centerness"], numbers["losses/loss_centerness"], rtol=1e-5)
  np.testing.assert_allclose(loss, numbers["losses/loss_reg"] + numbers["losses/loss_centerness"], rtol=1e-5)


def test_parts_of_a_batch_are_normalised_by_the_whole():
  """The authors' two processes divide by the mean of their counts, ours by the sum: twice our part is their loss."""
  numbers = load("ddp2")
  tokens = np.zeros((4, 256), np.int32)
  batch = train_batch(
    numbers | {"image": np.zeros((4, *CANVAS, 3), np.uint8), "tokens": tokens, "tokens_valid": tokens}
  )
  anchors, level_counts = anchorlib.anchors(CANVAS, STRIDES, 8.0), anchorlib.level_counts(CANVAS, STRIDES)
  found = jax.jit(lambda b: grounding.make_targets(b, anchors, level_counts, CFG))(batch)
  np.testing.assert_array_equal(found.matched, numbers["assign/matched_gt"])
  counts, outputs = grounding.counts(found), outputs_of(numbers)
  for rank in (0, 1):
    half = slice(2 * rank, 2 * rank + 2)
    part = jax.tree.map(lambda x, half=half: x[half], (outputs, batch, found))
    terms = jax.jit(grounding.loss_terms, static_argnums=3)(*part, CFG)
    _, values = grounding.weighted_loss(terms, counts, CFG.weights)
    np.testing.assert_allclose(4 * values["box"], numbers[f"losses/{rank}/loss_reg"], rtol=2e-5)
    np.testing.assert_allclose(2 * values["centerness"], numbers[f"losses/{rank}/loss_centerness"], rtol=2e-5)

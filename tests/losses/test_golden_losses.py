"""Targets and losses against the authors' code: three images, ten boxes, without ties (golden/glip, train_base)."""

import json

import jax
import numpy as np
import pytest

from glipv2_jax import anchors as anchorlib
from glipv2_jax import boxes as boxlib
from glipv2_jax.losses import grounding, intra
from glipv2_jax.schema import Batch, Outputs

CANVAS, STRIDES, BOXES = (128, 160), (8, 16, 32, 64, 128), 7
CFG = grounding.LossConfig(weights=(("intra", 0.0), ("box", 2.0), ("centerness", 1.0)))


@pytest.fixture(scope="module")
def numbers(shared):
  folder = shared / "golden" / "glip"
  summary = json.loads((folder / "train_summary.json").read_text())
  return np.load(folder / "train_inputs.npz"), np.load(folder / "train_base.npz"), summary["base"]["losses"]


@pytest.fixture(scope="module")
def batch(numbers):
  inputs, _, _ = numbers
  boxes, valid = np.full((3, BOXES, 4), np.nan, np.float32), np.zeros((3, BOXES), bool)
  positive_map, row = np.zeros((3, BOXES, 256), bool), 0
  for b in range(3):
    of_image = inputs[f"target/{b}/boxes"]
    g = len(of_image)
    boxes[b, :g], valid[b, :g], positive_map[b, :g] = of_image, True, inputs["positive_map"][row : row + g] > 0
    row += g
  return Batch(
    image=np.zeros((3, *CANVAS, 3), np.uint8),
    image_size=inputs["image_sizes"].astype(np.int32),
    tokens=inputs["input_ids"].astype(np.int32),
    tokens_valid=inputs["attention_mask"] > 0,
    boxes_xyxy_px=boxes,
    boxes_valid=valid,
    positive_map=positive_map,
    box_concept=np.full((3, BOXES), -1, np.int32),
    token_concept=np.full((3, 256), -1, np.int32),
    example_valid=np.ones(3, bool),
  )


@pytest.fixture(scope="module")
def targets(batch):
  anchors, counts = anchorlib.anchors(CANVAS, STRIDES, 8.0), anchorlib.level_counts(CANVAS, STRIDES)
  return jax.tree.map(np.asarray, jax.jit(lambda b: grounding.make_targets(b, anchors, counts, CFG))(batch))


def test_anchors(numbers):
  np.testing.assert_array_equal(anchorlib.anchors(CANVAS, STRIDES, 8.0), numbers[1]["anchors"])


def test_assignment(numbers, targets):
  np.testing.assert_array_equal(targets.matched, numbers[1]["assign/matched_gt"])
  np.testing.assert_array_equal((targets.matched >= 0).sum(1), [32, 26, 26])


def test_targets_of_the_positives(numbers, batch, targets):
  positive = targets.matched >= 0
  np.testing.assert_allclose(targets.centerness[positive], numbers[1]["assign/centerness_targets"], atol=1e-6)
  deltas = boxlib.encode(targets.boxes[positive], targets.anchors[positive])
  np.testing.assert_allclose(deltas, numbers[1]["assign/reg_targets_of_positives"], atol=1e-5)
  tokens = np.asarray(intra.token_targets(batch.positive_map, targets.matched, background_token=True))
  np.testing.assert_array_equal(tokens[positive], numbers[1]["assign/token_labels_of_positives"])


def test_box_and_centerness_losses(numbers, batch, targets):
  _, golden, losses = numbers

  def channels_last(name):
    maps = [golden[f"head/{name}_p{level}"] for level in range(3, 8)]
    return np.concatenate([x.reshape(3, x.shape[1], -1).transpose(0, 2, 1) for x in maps], axis=1)

  outputs = Outputs(token_logits=None, deltas=channels_last("bbox_reg"), centerness=channels_last("centerness")[..., 0])
  terms = jax.jit(grounding.loss_terms, static_argnums=3)(outputs, batch, targets, CFG)
  np.testing.assert_allclose(terms["box"].total, golden["extra/giou_weighted_sum"], rtol=1e-5)
  loss, values = grounding.weighted_loss(terms, grounding.counts(targets), CFG.weights)
  np.testing.assert_allclose(2 * values["box"], losses["loss_reg"], rtol=1e-5)
  np.testing.assert_allclose(values["centerness"], losses["loss_centerness"], rtol=1e-5)
  np.testing.assert_allclose(loss, losses["loss_reg"] + losses["loss_centerness"], rtol=1e-5)

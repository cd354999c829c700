"""glipv2_jax/infer.py against a NumPy restatement of the authors' post-processing (reference 7) with a plain loop."""

import dataclasses

import jax
import numpy as np
import pytest

from glipv2_jax import infer
from glipv2_jax.infer import ImageDetections, InferConfig
from glipv2_jax.schema import Outputs

LEVELS = ((8, 10, 8), (4, 5, 16), (2, 3, 32))  # rows, columns, stride: a canvas of 60 x 76
CANVAS = (60, 76)
N = sum(h * w for h, w, _ in LEVELS)
M = 12  # tokens


def level_slices():
  ends = np.cumsum([h * w for h, w, _ in LEVELS]).tolist()
  return tuple(slice(end - h * w, end) for end, (h, w, _) in zip(ends, LEVELS, strict=True))


def grid_anchors():
  """Anchors of side 2 * stride: they overlap, so that suppression has work."""
  rows = []
  for h, w, stride in LEVELS:
    half = (2 * stride - 1) / 2
    for i in range(h):
      for j in range(w):
        x, y = stride * j + (stride - 1) / 2, stride * i + (stride - 1) / 2
        rows.append((x - half, y - half, x + half, y + half))
  return np.array(rows, np.float32)


def random_outputs(seed, b=2, shift=-2.0):
  rng = np.random.default_rng(seed)
  return Outputs(
    token_logits=(rng.normal(size=(b, N, M)) * 1.5 + shift).astype(np.float32),
    deltas=(rng.normal(size=(b, N, 4)) * 1.2).astype(np.float32),
    centerness=rng.normal(size=(b, N)).astype(np.float32),
  )


def phrases(*groups):
  table = np.zeros((len(groups), M), bool)
  for c, tokens in enumerate(groups):
    table[c, list(tokens)] = True
  return table


FIVE = phrases((1, 2), (4,), (), (5, 6, 7), (9,))  # the third phrase has no token


def sigmoid(x):
  return 1 / (1 + np.exp(-x.astype(np.float64)))


def restated(logits, deltas, centerness, size, table, anchors, cfg):
  """Reference 7, steps 3 to 6, for one image: lists of (box, score, label), best first."""
  p = sigmoid(logits)
  pool = {"mean": np.mean, "max": np.max}[cfg.aggregate]
  chosen = []
  for level in level_slices():
    candidates = []
    for n in range(level.start, level.stop):
      for c, tokens in enumerate(table):
        if not tokens.any():
          continue
        score = pool(p[n, tokens])
        if score > cfg.threshold:
          candidates.append((score * sigmoid(centerness[n]), n, c))
    candidates.sort(key=lambda t: -t[0])  # stable
    chosen += candidates[: cfg.pre_nms_top_n]
  found = []
  for score, n, c in chosen:
    x1, y1, x2, y2 = anchors[n].astype(np.float64)
    w, h = x2 - x1 + 1, y2 - y1 + 1
    dx, dy, dw, dh = deltas[n].astype(np.float64) / (10, 10, 5, 5)
    cx, cy = dx * w + (x1 + x2) / 2, dy * h + (y1 + y2) / 2
    bw, bh = (np.exp(min(d, np.log(1000 / 16))) * side for d, side in ((dw, w), (dh, h)))
    box = np.array([cx - (bw - 1) / 2, cy - (bh - 1) / 2, cx + (bw - 1) / 2, cy + (bh - 1) / 2])
    box = np.clip(box, 0, [size[1] - 1, size[0] - 1] * 2)
    found.append((box, np.sqrt(score), c))
  found.sort(key=lambda t: -t[1])
  kept = []
  for box, score, c in found:
    if all(label != c or overlap(box, other) <= cfg.nms_iou for other, _, label in kept):
      kept.append((box, score, c))
  return kept[: cfg.max_detections]


def overlap(a, b):
  side = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]) + 1, 0)
  area = [np.prod(x[2:] - x[:2] + 1) for x in (a, b)]
  return side.prod() / (sum(area) - side.prod())


def run(outputs, sizes, table, cfg):
  @jax.jit
  def go(outputs, sizes, tables):
    return infer.postprocess(outputs, sizes, tables, grid_anchors(), level_slices(), cfg)

  tables = np.broadcast_to(table, (len(sizes), *table.shape))
  return jax.device_get(go(outputs, np.asarray(sizes, np.int32), tables))


def same(found: ImageDetections, expected):
  assert len(found) == len(expected)
  if not expected:
    return
  boxes, scores, labels = (np.array(part) for part in zip(*expected, strict=True))
  np.testing.assert_array_equal(found.labels, labels)
  np.testing.assert_allclose(found.scores, scores, rtol=1e-5)
  np.testing.assert_allclose(found.boxes_xyxy_px, boxes, atol=2e-3)


CASES = {
  "authors' constants": InferConfig(),
  "few per level": InferConfig(pre_nms_top_n=20, max_detections=30),
  "loose": InferConfig(nms_iou=0.2, max_detections=400),
  "maximum": InferConfig(aggregate="max", threshold=0.3),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_restatement(name):
  cfg, outputs, sizes = CASES[name], random_outputs(3), [(60, 76), (41, 70)]
  detections = run(outputs, sizes, FIVE, cfg)
  for b, size in enumerate(sizes):
    arguments = (outputs.token_logits[b], outputs.deltas[b], outputs.centerness[b])
    expected = restated(*arguments, size, FIVE, grid_anchors(), cfg)
    assert len(expected) > 10
    same(infer.of_image(detections, b), expected)


def test_nothing_above_the_threshold():
  detections = run(random_outputs(0, shift=-30.0), [CANVAS, CANVAS], FIVE, InferConfig())
  assert not detections.valid.any()
  assert (detections.labels == -1).all() and (detections.scores == 0).all()
  assert len(infer.of_image(detections, 0)) == 0


def test_threshold_is_before_centerness_and_score_is_the_square_root():
  """One location passes with 0.06 and centerness 0.25: the final score, below 0.05 before the root, stays."""
  outputs = random_outputs(0, b=1, shift=-30.0)
  outputs.token_logits[0, 5, 4] = np.log(0.06 / 0.94)
  outputs.centerness[0, 5] = np.log(0.25 / 0.75)
  found = infer.of_image(run(outputs, [CANVAS], FIVE, InferConfig()), 0)
  assert found.labels.tolist() == [1]
  np.testing.assert_allclose(found.scores, [np.sqrt(0.06 * 0.25)], rtol=1e-5)


def test_phrase_without_tokens_and_padding_columns_are_never_detected():
  detections = run(random_outputs(1, shift=3.0), [CANVAS, CANVAS], FIVE, InferConfig(max_detections=300))
  assert set(detections.labels[detections.valid].tolist()) == {0, 1, 3, 4}


def test_ties_are_broken_by_the_order_of_the_candidates():
  """Equal scores everywhere, same boxes for every phrase: the earliest location of the finest level comes first."""
  outputs = Outputs(
    token_logits=np.zeros((1, N, M), np.float32),
    deltas=np.zeros((1, N, 4), np.float32),
    centerness=np.zeros((1, N), np.float32),
  )
  cfg = InferConfig(max_detections=500)
  found = infer.of_image(run(outputs, [CANVAS], FIVE, cfg), 0)
  arguments = (outputs.token_logits[0], outputs.deltas[0], outputs.centerness[0])
  same(found, restated(*arguments, CANVAS, FIVE, grid_anchors(), cfg))
  assert found.labels[:4].tolist() == [0, 1, 3, 4]


def test_overlap_of_exactly_the_limit_is_kept():
  """Strict >: with the limit set to the very overlap of two boxes both stay, a little below it one goes."""
  anchors, outputs = grid_anchors(), random_outputs(0, b=1, shift=-30.0)
  outputs.deltas[:] = 0
  outputs.token_logits[0, 35, 4], outputs.token_logits[0, 36, 4] = 2.0, 1.0  # neighbours, away from the border
  limit = float(np.float32(overlap(anchors[35], anchors[36])))
  for nms_iou, count in ((limit, 2), (limit - 1e-4, 1)):
    assert len(infer.of_image(run(outputs, [CANVAS], FIVE, InferConfig(nms_iou=nms_iou)), 0)) == count


def test_phrase_map_and_its_errors():
  @dataclasses.dataclass
  class Named:
    tokens: tuple[int, ...]

  table = infer.phrase_map([[Named((1, 2)), Named(())], None], columns=3, tokens=4)
  assert table.shape == (2, 3, 4) and table.sum() == 2 and table[0, 0].tolist() == [False, True, True, False]
  with pytest.raises(ValueError, match=r"2 phrases; give at least as many columns \(now 1\)"):
    infer.phrase_map([[Named((1,)), Named((2,))]], columns=1, tokens=4)
  with pytest.raises(ValueError, match="phrase 0 of image 0 names token 4"):
    infer.phrase_map([[Named((4,))]], columns=1, tokens=4)
  with pytest.raises(ValueError, match="aggregate 'median' is not known; known: mean, max"):
    InferConfig(aggregate="median")


def detections_of(scores, labels):
  boxes = np.arange(4 * len(scores), dtype=np.float32).reshape(-1, 4)
  return ImageDetections(boxes, np.array(scores, np.float32), np.array(labels, np.int32))


def test_merge_of_prompts_and_the_limit():
  parts = [detections_of([0.9, 0.2], [0, 1]), detections_of([0.5], [40]), detections_of([], [])]
  assert infer.merge(parts, None).labels.tolist() == [0, 40, 1]
  limited = infer.merge(parts, 2)
  assert limited.labels.tolist() == [0, 40] and limited.boxes_xyxy_px.shape == (2, 4)
  assert len(infer.merge([], 100)) == 0


def test_boxes_by_phrase_are_ranked_and_complete():
  found = dataclasses.replace(detections_of([0.1, 0.7, 0.3, 0.7], [2, 0, 2, 0]))
  first, second, third = infer.by_phrase(found, 3)
  np.testing.assert_array_equal(first, found.boxes_xyxy_px[[1, 3]])
  assert second.shape == (0, 4)
  np.testing.assert_array_equal(third, found.boxes_xyxy_px[[2, 0]])


def test_original_coordinates():
  back = infer.original_boxes(np.array([[0, 10, 99, 59]], np.float32), image_size=(60, 100), original_size=(120, 300))
  np.testing.assert_allclose(back, [[0, 20, 297, 118]])

"""glipv2_jax/augment.py against the authors' recorded merge and against plain loops."""

import numpy as np
import pytest

from glipv2_jax import augment
from glipv2_jax.infer import ImageDetections, InferConfig, original_boxes

SCALES = ((96 / 110, 0, 10000), (128 / 110, 0, 100))


def recorded(shared):
  """The four passes of the authors' test-time augmentation on one picture of 110 x 150, and their result."""
  file = np.load(shared / "golden/glip_more/tta_flip.npz")

  def detections(name):
    return ImageDetections(*(file[f"{name}/{field}"] for field in ("boxes", "scores", "labels")))

  sizes = [tuple(file[f"pass{k}/image_size_hw"][0].tolist()) for k in range(4)]
  return [detections(f"pass{k}") for k in range(4)], sizes, detections("result")


def test_the_authors_merge(shared):
  cfg = InferConfig(scales=SCALES, mirror=True, nms_iou=0.6, max_detections=40)
  passes, sizes, expected = recorded(shared)
  parts = []
  for found, size, ((_, *bounds), mirrored) in zip(passes, sizes, augment.passes(cfg), strict=True):
    found = augment.of_size(found, *bounds)
    boxes = augment.unmirrored(found.boxes_xyxy_px, size[1]) if mirrored else found.boxes_xyxy_px
    parts.append(ImageDetections(original_boxes(boxes, size, (110, 150)), found.scores, found.labels))
  assert len(parts[2]) < len(passes[2])  # the larger scale leaves large boxes out
  got = augment.together(parts, cfg)
  order = np.argsort(-expected.scores, kind="stable")
  np.testing.assert_array_equal(got.labels, expected.labels[order])
  np.testing.assert_allclose(got.scores, expected.scores[order], rtol=1e-6)
  inside = np.clip(expected.boxes_xyxy_px[order], 0, [149, 109] * 2)  # the authors do not clip after the last resize
  np.testing.assert_allclose(got.boxes_xyxy_px, inside, atol=1e-3)


def random_parts(seed, count=3, k=25):
  rng = np.random.default_rng(seed)
  corner = rng.uniform(0, 30, (count, k, 2))
  boxes = np.concatenate([corner, corner + rng.uniform(3, 25, (count, k, 2))], -1).astype(np.float32)
  scores = rng.uniform(0.06, 1, (count, k)).astype(np.float32)
  return [ImageDetections(*part) for part in zip(boxes, scores, rng.integers(0, 3, (count, k)).astype(np.int32))]


def overlap(a, b, one):
  width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + one for i in (0, 1))
  inter = max(width, 0) * max(height, 0)
  areas = [(x[2] - x[0] + one) * (x[3] - x[1] + one) for x in (a, b)]
  return inter / (sum(areas) - inter)


def by_loop(parts, method, most):
  """Rows (label, score, box), from the definitions."""
  rows = [
    [int(label), float(score), box.astype(float)]
    for p in parts
    for box, score, label in zip(p.boxes_xyxy_px, p.scores, p.labels)
  ]
  out = []
  for label in range(3):
    left = sorted((row for row in rows if row[0] == label), key=lambda row: -row[1])
    while left:
      best, *left = sorted(left, key=lambda row: -row[1])
      if method == "vote":
        near = [best] + [row for row in left if overlap(best[2], row[2], 1) >= most]
        left = [row for row in left if overlap(best[2], row[2], 1) < most]
        weights = [row[1] for row in near]
        best = [label, best[1], sum(w * row[2] for w, row in zip(weights, near)) / sum(weights)]
      elif method == "nms":
        left = [row for row in left if overlap(best[2], row[2], 0) <= most]
      else:
        for row in left:
          row[1] *= 1 - overlap(best[2], row[2], 0) if overlap(best[2], row[2], 0) > most else 1
        left = [row for row in left if row[1] >= augment.LEAST_SCORE]
      out.append(best)
  return sorted(out, key=lambda row: -row[1])


@pytest.mark.parametrize("method", augment.METHODS)
@pytest.mark.parametrize("limit", [7, 1000])
def test_merging_equals_a_loop(method, limit):
  for seed in range(4):
    parts = random_parts(seed)
    got = augment.together(parts, InferConfig(merge=method, mirror=True, nms_iou=0.4, max_detections=limit))
    expected = by_loop(parts, method, 0.4)[:limit]
    assert got.labels.tolist() == [row[0] for row in expected]
    np.testing.assert_allclose(got.scores, [row[1] for row in expected], rtol=1e-5)
    np.testing.assert_allclose(got.boxes_xyxy_px, [row[2] for row in expected], rtol=1e-4, atol=1e-4)


def test_nothing_found_and_boxes_without_area():
  nothing = ImageDetections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))
  points = ImageDetections(np.full((2, 4), 3, np.float32), np.array([0.5, 0.4], np.float32), np.zeros(2, np.int32))
  for method in augment.METHODS:
    cfg = InferConfig(mirror=True, merge=method)
    assert len(augment.together([nothing, nothing], cfg)) == 0
    assert augment.together([nothing, points], cfg).scores[0] == 0.5


def test_a_mean_box_stays_within_its_boxes():
  """Also where float32 rounds the weighted mean of equal sides past them."""
  for seed in range(100):
    scores = np.sort(np.random.default_rng(seed).random(3).astype(np.float32))[::-1]
    boxes, _ = augment.vote(np.tile(np.array([[7, 7, 75, 75]], np.float32), (3, 1)), scores, 0.5, 10)
    assert boxes.tolist() == [[7, 7, 75, 75]]


def test_passes_and_what_cannot_be_one():
  assert augment.passes(InferConfig()) == ((augment.EVERY_SIZE, False),)
  assert [(s[0], m) for s, m in augment.passes(InferConfig(scales=SCALES, mirror=True))] == [
    (SCALES[0][0], False), (SCALES[0][0], True), (SCALES[1][0], False), (SCALES[1][0], True),
  ]  # fmt: skip
  assert not InferConfig().augmented and InferConfig(mirror=True).augmented
  for wrong in ((1.0,), (0.0, 0, 10), (1.0, 10, 10)):
    with pytest.raises(ValueError, match="scales has"):
      InferConfig(scales=(wrong,))
  with pytest.raises(ValueError, match="merge 'mean' is not known; known: nms, soft_nms, vote"):
    InferConfig(merge="mean")

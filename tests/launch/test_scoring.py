"""The bridge from batches to metrics: an oracle in the network's place must score 1.0 everywhere.

The oracle answers with the boxes of its own batch, so whatever gets lost or moved on the way (prompts, labels, category
ids, canvases, padding, the last incomplete batch) costs it points.
"""

import dataclasses

import jax
import numpy as np
import pytest

from glipv2_jax.infer import Detections, InferConfig
from glipv2_jax.parallel.mesh import make_mesh, to_global
from launch import scoring
from launch.predicting import gather, local_rows
from launch.scoring import ScoringConfig
from pipelines.build import DataConfig


@dataclasses.dataclass
class Oracle:
  """Follows `launch.predicting.Predictor`. Counts the rows it saw; `worse` breaks one thing at a time."""

  cfg: InferConfig = InferConfig()
  worse: str = ""
  rows: int = 0

  def __call__(self, params, batch, phrases) -> Detections:
    b, k = len(phrases), 128
    boxes, labels = np.zeros((b, k, 4), np.float32), np.full((b, k), -1, np.int32)
    for i, named in enumerate(phrases):
      if named is None:
        continue
      self.rows += 1
      tokens = [np.isin(np.arange(batch.tokens.shape[1]), phrase.tokens) for phrase in named]
      pairs = [
        (batch.boxes_xyxy_px[i, g], c)
        for g in np.flatnonzero(batch.boxes_valid[i])
        for c, of_phrase in enumerate(tokens)
        if batch.positive_map[i, g][of_phrase].all()
      ]
      for slot, (box, c) in enumerate(pairs):
        boxes[i, slot], labels[i, slot] = box, c
    boxes += 12.0 if self.worse == "shifted" else 0.0
    valid = labels > (0 if self.worse == "first label lost" else -1)
    return jax.device_put(Detections(boxes, np.full((b, k), 0.9, np.float32), labels, valid))


def data_config(*entries, **changes):
  sources = tuple((kind, 1.0, tuple(options.items())) for kind, options in entries)
  values = dict(tokenizer="shapes", max_tokens=64, canvases=((96, 128), (128, 96)), batch=4, max_boxes=100)
  return DataConfig(sources, **{**values, **changes})


def coco_entry(shared, annotations, images):
  return "coco_json", {"annotations": str(shared / "data" / annotations), "images": str(shared / "data" / images)}


ODINW = "odinw_sample/Raccoon/Raccoon.v2-raw.coco/valid"
FILES = {
  "bccd": ("bccd/annotations/val.json", "bccd/images"),
  "raccoon": ("raccoon/annotations/val.json", "raccoon/images"),
  "odinw": (f"{ODINW}/annotations_without_background.json", ODINW),
}


@pytest.mark.parametrize("name", FILES)
def test_oracle_on_coco_files(shared, name):
  report = scoring.evaluate(Oracle(), None, data_config(coco_entry(shared, *FILES[name])), quiet=True)
  assert report["AP"] == pytest.approx(1.0)
  [metrics] = report["sources"].values()
  assert metrics["skipped"] == {}
  assert all(numbers["AP"] == pytest.approx(1.0) for numbers in metrics["per_category"].values() if numbers)


@pytest.mark.parametrize("per_prompt", [None, 1])
def test_oracle_on_shapes_every_row_once(per_prompt):
  """Ten scenes in batches of four: none lost, padding not counted, also with one class per prompt."""
  options = {"split": "val", "length": 10}
  data = data_config(("shapes", {**options, "task": "detection"}), ("shapes", {**options, "task": "grounding"}))
  oracle = Oracle()
  report = scoring.evaluate(oracle, None, data, ScoringConfig(per_prompt=per_prompt), quiet=True)
  detection, grounding = report["sources"]["shapes_val/detection"], report["sources"]["shapes_val/grounding"]
  assert detection["images"] == grounding["images"] == 10
  assert report["AP"] == pytest.approx(1.0)
  assert report["grounding_recall_upper_bound"] == 1.0
  assert grounding["phrases"] > 10
  flat = scoring.numbers(report)
  assert flat["AP"] == flat["shapes_val/detection/AP"] and all(isinstance(v, float) for v in flat.values())
  assert "shapes_val/grounding: 10 images" in scoring.table(report)
  if per_prompt:
    classes = len(scoring.open_for_evaluation(data.sources[0]).classes)
    assert oracle.rows == 10 * classes + 10


@pytest.mark.parametrize("worse", ["shifted", "first label lost"])
def test_a_worse_oracle_scores_less(shared, worse):
  report = scoring.evaluate(Oracle(worse=worse), None, data_config(coco_entry(shared, *FILES["bccd"])), quiet=True)
  assert report["AP"] < 0.75


def test_limit_leaves_the_rest_out_of_the_truth(shared):
  entry = coco_entry(shared, *FILES["bccd"])
  report = scoring.evaluate(Oracle(), None, data_config(entry), ScoringConfig(limit=3), quiet=True)
  assert report["AP"] == pytest.approx(1.0) and report["sources"]["coco_json/detection"]["images"] == 3


def test_unseen_classes_of_the_zero_shot_split_are_reported_apart():
  data = data_config(("shapes", {"split": "zero_shot", "task": "detection", "length": 6}))
  [metrics] = scoring.evaluate(Oracle(), None, data, quiet=True)["sources"].values()
  assert metrics["unseen_AP50"] == pytest.approx(1.0)


def test_local_rows_is_the_inverse_of_sharding_and_gather_keeps_order():
  mesh = make_mesh(data=2, fsdp=2, model=2)
  rows = np.arange(24).reshape(8, 3)
  np.testing.assert_array_equal(local_rows(to_global(rows, mesh)), rows)
  assert gather([3, 1, 2]) == [3, 1, 2]

"""The bridge from batches to metrics: an oracle in the network's place must score 1.0 everywhere.

The oracle answers with the boxes of its own batch, so whatever gets lost or moved on the way (prompts, labels, category
ids, canvases, padding, the last incomplete batch) costs it points.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest

from eval import tasks
from glipv2_jax.infer import Detections, InferConfig
from glipv2_jax.parallel.mesh import make_mesh, to_global
from launch import scoring, shards
from launch.official import Evaluated
from launch.predicting import local_rows
from launch.scoring import ScoringConfig
from pipelines.build import DataConfig
from pipelines.concepts import concept_id


@dataclasses.dataclass
class Oracle:
  """Follows `launch.predicting.Predictor`. Counts the pictures it saw; `worse` breaks one thing at a time."""

  cfg: InferConfig = InferConfig()
  worse: str = ""
  pictures: int = 0

  def prompts(self, params, prompts, words):
    """Class names: a box belongs to a phrase when it carries the concept of its name."""
    return [
      lambda batch, i, prompt=p: [batch.box_concept[i] == concept_id(name) for name, _ in prompt.spans] for p in prompts
    ]

  def texts(self, params, batch, named):
    """Captions: a box belongs to a phrase when all tokens of the phrase name it."""
    return lambda batch, i: [batch.positive_map[i][:, list(phrase.tokens)].all(1) for phrase in named[i]]

  def __call__(self, params, batch, texts):
    self.pictures += int(batch.example_valid.sum())
    return [self._answer(batch, text) for text in texts]

  def _answer(self, batch, text) -> Detections:
    b, k = len(batch.image), 128
    boxes, labels = np.zeros((b, k, 4), np.float32), np.full((b, k), -1, np.int32)
    for i in np.flatnonzero(batch.example_valid):
      pairs = [(g, c) for c, own in enumerate(text(batch, i)) for g in np.flatnonzero(own & batch.boxes_valid[i])]
      for slot, (g, c) in enumerate(pairs):
        boxes[i, slot], labels[i, slot] = batch.boxes_xyxy_px[i, g], c
    boxes += 12.0 if self.worse == "shifted" else 0.0
    valid = labels > (0 if self.worse == "first label lost" else -1)
    return jax.device_put(Detections(boxes, np.full((b, k), 0.9, np.float32), labels, valid))


def evaluate(oracle, *entries, out=None, resume=False, about=None, changes=(), **chosen):
  """Entries: (kind, options), or (kind, options, fields of Evaluated); named a, b, c ..."""
  values = dict(tokenizer="shapes", max_tokens=64, canvases=((96, 128), (128, 96)), batch=4, max_boxes=100)
  values |= dict(changes)
  sources = tuple(
    Evaluated(name, (kind, 1.0, tuple(options.items())), **dict(*scored))
    for name, (kind, options, *scored) in zip("abcdefgh", entries)
  )
  kept = dict(out=out, resume=resume, about=about, quiet=True)
  return scoring.evaluate(oracle, None, DataConfig((), **values), ScoringConfig(sources, **chosen), **kept)


def coco_entry(shared, annotations, images, **scored):
  return (
    "coco_json",
    {"annotations": str(shared / "data" / annotations), "images": str(shared / "data" / images)},
    scored,
  )


ODINW = "odinw_sample/Raccoon/Raccoon.v2-raw.coco/valid"
FILES = {
  "bccd": ("bccd/annotations/val.json", "bccd/images"),
  "raccoon": ("raccoon/annotations/val.json", "raccoon/images"),
  "odinw": (f"{ODINW}/annotations_without_background.json", ODINW),
}


@pytest.mark.parametrize("name", FILES)
def test_oracle_on_coco_files(shared, name):
  report = evaluate(Oracle(), coco_entry(shared, *FILES[name]))
  assert report["AP"] == pytest.approx(1.0)
  [metrics] = report["sources"].values()
  assert metrics["skipped"] == {} and metrics["task"] == "coco"
  assert all(numbers["AP"] == pytest.approx(1.0) for numbers in metrics["per_category"].values() if numbers)


@pytest.mark.parametrize("per_prompt", [None, 1])
def test_oracle_on_shapes_every_picture_once(per_prompt):
  """Ten scenes in batches of four: none lost, padding not counted, also with one class per prompt."""
  options = {"split": "val", "length": 10}
  tasks = (("shapes", {**options, "task": "detection"}), ("shapes", {**options, "task": "grounding"}))
  oracle = Oracle()
  report = evaluate(oracle, *tasks, per_prompt=per_prompt)
  detection, grounding = report["sources"]["a"], report["sources"]["b"]
  assert detection["images"] == grounding["images"] == 10 and oracle.pictures == 20
  assert report["AP"] == pytest.approx(1.0)
  assert report["R@upper_bound"] == 1.0
  assert grounding["phrases"] > 10
  flat = scoring.numbers(report)
  assert flat["AP"] == flat["a/AP"] and all(isinstance(v, float) for v in flat.values())
  assert "b (grounding): 10 images" in scoring.table(report)


@pytest.mark.parametrize("worse", ["shifted", "first label lost"])
def test_a_worse_oracle_scores_less(shared, worse):
  assert evaluate(Oracle(worse=worse), coco_entry(shared, *FILES["bccd"]))["AP"] < 0.75


def test_limit_leaves_the_rest_out_of_the_truth(shared):
  report = evaluate(Oracle(), coco_entry(shared, *FILES["bccd"]), limit=3)
  assert report["AP"] == pytest.approx(1.0) and report["sources"]["a"]["images"] == 3


def test_unseen_classes_of_the_zero_shot_split_are_reported_apart():
  report = evaluate(Oracle(), ("shapes", {"split": "zero_shot", "task": "detection", "length": 6}))
  assert report["sources"]["a"]["unseen_AP50"] == pytest.approx(1.0)


def test_lvis_by_the_rules_of_its_task(shared, tmp_path):
  """1,203 classes in prompts of forty, with no limit over them; widths without + 1, as the authors export LVIS."""
  content = json.loads((shared / "data/lvis_sample/annotations/lvis_v1_style_val_derived.json").read_text())
  for image in content["images"]:
    image["file_name"] = image["coco_url"].rsplit("/")[-1]
  (tmp_path / "lvis.json").write_text(json.dumps(content))
  options = {"annotations": str(tmp_path / "lvis.json"), "images": str(shared / "data/lvis_sample/val2017")}
  oracle = Oracle(InferConfig(max_detections=3))
  report = evaluate(
    oracle,
    ("coco_json", options, {"evaluator": "lvis_fixed"}),
    out=tmp_path,
    per_prompt=40,
    changes=dict(canvases=((640, 640),)),
  )
  metrics = report["sources"]["a"]
  assert oracle.pictures == metrics["images"] == len(content["images"])
  assert metrics["AP50"] > 0.99 and metrics["APf"] > 0.9  # a pixel less costs something at IoU 0.95
  same_numbers(report, tmp_path, {"a": tmp_path / "lvis.json"})
  found = json.loads((tmp_path / "a.json").read_text())
  assert len(found) > 3 * len(content["images"])
  sizes = {(a["image_id"], a["category_id"]): a["bbox"][2] for a in content["annotations"]}
  assert np.median([r["bbox"][2] - sizes[r["image_id"], r["category_id"]] for r in found]) == pytest.approx(-1, abs=0.6)


MDETR = {  # annotations, pictures, official truth, a number that the true boxes reach
  "flickr": (
    "goldg_sample/mdetr_annotations/final_flickr_separateGT_test.json",
    "flickr30k_entities_sample/flickr30k_images",
    "flickr30k_entities_sample/test.txt",
    ("R@1", 1.0),
  ),
  "grounding": (
    "goldg_sample/mdetr_annotations/final_flickr_separateGT_val.json",
    "flickr30k_entities_sample/flickr30k_images",
    "",
    ("R@1", 1.0),
  ),
  "refexp": (
    "refcoco_sample/mdetr_annotations/finetune_refcoco_val.json",
    "refcoco_sample/train2014",
    "",
    ("Pr@0.5", 1.0),
  ),
  "phrasecut": (
    "phrasecut_sample/mdetr_annotations/finetune_phrasecut_val.json",
    "phrasecut_sample/images",
    "phrasecut_sample/refer_val.json",
    ("mIoU", 0.9),
  ),
}


@pytest.mark.parametrize("task", MDETR)
def test_oracle_on_captions_in_the_form_of_every_task(shared, tmp_path, task):
  annotations, images, truth, (key, least) = MDETR[task]
  options = {"annotations": str(shared / "data" / annotations), "images": str(shared / "data" / images)}
  scored = {"evaluator": task, "truth": str(shared / "data" / truth) if truth else ""}
  report = evaluate(Oracle(), ("mdetr_json", options, scored), out=tmp_path, changes=dict(max_tokens=400))
  metrics = report["sources"]["a"]
  assert metrics["skipped"] == {} and metrics[key] >= least
  same_numbers(report, tmp_path, {"a": shared / "data" / (truth or annotations)})
  worse = evaluate(Oracle(worse="shifted"), ("mdetr_json", options, scored), changes=dict(max_tokens=400))
  assert worse[key] < report[key]


def test_flickr_from_its_own_files(shared, tmp_path):
  root = shared / "data/flickr30k_entities_sample"
  options = {"root": str(root), "images": str(root / "flickr30k_images"), "split": "test"}
  scored = {"evaluator": "flickr", "truth": str(root / "test.txt")}
  report = evaluate(Oracle(), ("flickr30k", options, scored), out=tmp_path, changes=dict(max_tokens=400))
  assert report["R@1"] == 1.0 and report["sources"]["a"]["missing_sentences"] == 0
  same_numbers(report, tmp_path, {"a": root / "test.txt"})


def files_of(report, out, truth):
  """What `glipv2 evaluate --task` says about the files of the sources of a report, without what only we add."""
  found = {}
  for name, metrics in report["sources"].items():
    task = {"odinw": "coco"}.get(metrics["task"], metrics["task"])
    shape = "bbox" if task in ("refexp", "phrasecut") else None
    found[name] = tasks.score(task, [truth[name]], [out / f"{name}.json"], shape)
  return found


def same_numbers(report, out, truth):
  for name, numbers in files_of(report, out, truth).items():
    assert {key: report["sources"][name][key] for key in numbers} == numbers, name


def test_the_files_score_the_same(shared, tmp_path):
  """Class names and captions, drawn scenes and files: `--task` on what was kept gives the numbers of the report."""
  scenes = {"split": "val", "length": 7}
  entries = [
    ("shapes", {**scenes, "task": "detection"}),
    ("shapes", {**scenes, "task": "grounding"}),
    coco_entry(shared, *FILES["raccoon"], evaluator="odinw"),
    coco_entry(shared, *FILES["bccd"], evaluator="odinw"),
  ]
  report = evaluate(Oracle(worse="shifted"), *entries, out=tmp_path)
  truth = {k: tmp_path / f"{k}.truth.json" for k in "ab"}
  truth |= {k: shared / "data" / FILES[name][0] for k, name in (("c", "raccoon"), ("d", "bccd"))}
  same_numbers(report, tmp_path, truth)
  assert 0 < report["AP"] < 0.9 and report["odinw"]["sets"] == 2
  assert report["odinw"]["AP"] == pytest.approx(np.mean([report["sources"][k]["AP"] for k in "cd"]))
  assert report["AP"] == report["odinw"]["AP"] and "mean of 2 ODinW sets" in scoring.table(report)

  manifest, folder = tmp_path / "sets.json", tmp_path / "odinw"
  manifest.write_text(json.dumps({k: str(truth[k]) for k in "cd"}))
  folder.mkdir()
  for k in "cd":
    (folder / f"{k}.json").write_bytes((tmp_path / f"{k}.json").read_bytes())
  assert tasks.score("odinw", [manifest], [folder])["AP"] == report["odinw"]["AP"]


def test_what_cannot_be_predicted_is_said_before_the_work(shared):
  scenes = {"split": "val", "length": 2, "task": "grounding"}
  for scored, message in (
    (
      {"evaluator": "vqa"},
      "eval.sources.a: task 'vqa' cannot be predicted; there is no head for it yet; known: coco, lvis",
    ),
    ({"evaluator": "coco"}, "eval.sources.a: task coco does not go with a source of captions"),
    ({"evaluator": "flickr"}, "eval.sources.a: task flickr needs `truth`"),
  ):
    with pytest.raises(ValueError, match=message):
      evaluate(None, ("shapes", scenes, scored))
  with pytest.raises(ValueError, match="task phrasecut is scored as a whole; set eval.limit to None"):
    evaluate(None, ("shapes", scenes, {"evaluator": "phrasecut", "truth": "refer.json"}), limit=1)


def test_a_killed_evaluation_goes_on(shared, tmp_path):
  """An oracle that dies in the second source: the first is not predicted again, and the end is the same."""

  class Dying(Oracle):
    def __call__(self, params, batch, texts):
      if self.pictures >= 30:
        raise KeyboardInterrupt
      return super().__call__(params, batch, texts)

  scenes = {"split": "val", "length": 21}
  entries = [("shapes", {**scenes, "task": task}) for task in ("detection", "grounding")]
  whole = evaluate(Oracle(), *entries, out=tmp_path / "whole")
  kept = dict(out=tmp_path / "parts", resume=True, about={"step": 7})
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(shards, "BATCHES", 1)
    with pytest.raises(KeyboardInterrupt):
      evaluate(Dying(), *entries, **kept)
  again = Oracle()
  report = evaluate(again, *entries, **kept)
  assert 0 < again.pictures < 21
  for name in ("a.json", "b.json"):
    assert (tmp_path / "parts" / name).read_text() == (tmp_path / "whole" / name).read_text()
  assert scoring.numbers(report) == scoring.numbers(whole)
  finished = Oracle()
  assert evaluate(finished, *entries, **kept)["AP"] == whole["AP"] and finished.pictures == 0
  with pytest.raises(ValueError, match="holds predictions with another step .7, now 8.; give another folder"):
    evaluate(again, *entries, **{**kept, "about": {"step": 8}})
  with pytest.raises(ValueError, match="holds predictions with another batch"):
    evaluate(again, *entries, **kept, changes={"batch": 2})
  afresh = Oracle()
  assert evaluate(afresh, *entries, **{**kept, "resume": False})["AP"] == whole["AP"] and afresh.pictures == 42


def test_local_rows_is_the_inverse_of_sharding():
  mesh = make_mesh(data=2, fsdp=2, model=2)
  rows = np.arange(24).reshape(8, 3)
  np.testing.assert_array_equal(local_rows(to_global(rows, mesh)), rows)

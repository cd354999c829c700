"""eval/errors.py: cases counted by hand, an independent loop, pycocotools on mended files, what TIDE itself says."""

import json

import numpy as np
import pytest

from eval import coco, errors, lvis
from eval.files import read_detections
from tests.noisy import noisy

A, B = 1, 2
# What tidecv 1.0 says of the noisy predictions (counts; AP50 gained, in percent). Its curves round differently in the
# last place and it breaks ties of scores in another order: AP50 may differ by 1e-5.
TIDE = {
  "bccd_val_bbox": (
    "bccd/annotations/val.json",
    {"classification": 52, "localisation": 96, "both": 129, "duplicate": 2, "background": 35, "missed": 108},
    {
      "classification": 12.838952,
      "localisation": 3.011995,
      "both": 3.375175,
      "duplicate": 0.049009,
      "background": 0.434026,
      "missed": 8.418633,
    },
  ),
  "raccoon_val_bbox": (
    "raccoon/annotations/val.json",
    {"classification": 0, "localisation": 4, "both": 0, "duplicate": 0, "background": 9, "missed": 5},
    {
      "classification": 0,
      "localisation": 5.740407,
      "both": 0,
      "duplicate": 0,
      "background": 3.688912,
      "missed": 11.072265,
    },
  ),
}
SHORT = {"Cls": "classification", "Loc": "localisation", "Both": "both", "Dupe": "duplicate", "Bkg": "background"}


def data(annotations, detections, width=200):
  """COCO content of one image, and records, from (category, box) and (category, box, score)."""
  truth = {
    "images": [{"id": 1, "width": width, "height": width}],
    "categories": [{"id": A, "name": "a"}, {"id": B, "name": "b"}, {"id": 3, "name": "never"}],
    "annotations": [
      {"image_id": 1, "category_id": c, "bbox": box, "iscrowd": int(bool(crowd))} for c, box, *crowd in annotations
    ],
  }
  records = [{"image_id": 1, "category_id": c, "bbox": box, "score": score} for c, box, score in detections]
  return coco.load_annotations(truth), records


def test_one_of_each_by_hand():
  objects = [(A, [0, 0, 10, 10]), (A, [20, 0, 10, 10]), (B, [40, 0, 10, 10]), (A, [60, 0, 10, 10])]
  detections = [
    (A, [0, 0, 10, 10], 0.9),  # correct
    (A, [0, 0, 10, 9], 0.8),  # the same object again: IoU 0.9
    (A, [24, 0, 10, 10], 0.7),  # IoU 6/14 with the second object
    (A, [40, 0, 10, 10], 0.6),  # on the b
    (A, [0, 50, 10, 10], 0.5),  # on nothing
    (B, [24, 0, 10, 10], 0.4),  # IoU 6/14 with an a
    (A, [85, 5, 5, 5], 0.3),  # in the crowd
  ]
  truth, records = data([*objects, (A, [80, 0, 20, 20], True)], detections)
  found = errors.find(truth, read_detections(records))
  by_score = dict(zip(found.detections.score.tolist(), found.verdict.tolist(), strict=True))
  verdicts = [errors.VERDICTS[by_score[score]] for _, _, score in detections]
  assert verdicts == ["correct", "duplicate", "localisation", "classification", "background", "both", "ignored"]
  assert [errors.OBJECTS[v] for v in found.truth_verdict] == ["found", "covered", "covered", "missed", "crowd"]
  assert found.counts() == dict.fromkeys(errors.TYPES, 1)
  assert found.confusions() == {(A, B): 1}
  # a: 3 objects, one found at precision 1, so 34 of the 101 recalls; b: nothing; 'never' takes no part.
  assert found.ap50() == pytest.approx(34 / 101 / 2)
  assert found.costs() == {
    "classification": pytest.approx(1 / 2),  # the b is found, best of its category
    "localisation": pytest.approx(33 * 2 / 3 / 101 / 2),  # up to recall 2/3 with precision 2/3
    "both": 0.0,
    "duplicate": 0.0,
    "background": 0.0,
    "missed": pytest.approx((51 - 34) / 101 / 2),  # one of two objects
  }


def test_the_best_error_of_an_object_is_mended_the_others_go():
  truth, records = data(
    [(A, [0, 0, 10, 10])],
    [(B, [0, 0, 10, 10], 0.9), (A, [4, 0, 10, 10], 0.8), (A, [0, 4, 10, 10], 0.7)],
  )
  found = errors.find(truth, read_detections(records))
  assert found.counts() == {**dict.fromkeys(errors.TYPES, 0), "classification": 1, "localisation": 2}
  # The classification error is the best one: mended it finds the object; mending the others only removes them.
  assert found.costs()["classification"] == pytest.approx(1.0)
  assert found.costs()["localisation"] == 0.0


def test_nothing_detected_nothing_to_find_nothing_at_all():
  truth, _ = data([(A, [0, 0, 10, 10])], [])
  found = errors.find(truth, read_detections([]))
  assert found.counts()["missed"] == 1 and found.ap50() == 0.0 and found.costs()["missed"] == 0.0
  truth, records = data([], [(A, [0, 0, 10, 10], 0.5)])
  found = errors.find(truth, read_detections(records))
  assert found.counts()["background"] == 1 and found.ap50() is None and set(found.costs().values()) == {None}
  assert errors.find(truth, read_detections([])).counts() == dict.fromkeys(errors.TYPES, 0)


def overlap(a, b, crowd=False):
  w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
  h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
  shared = max(w, 0) * max(h, 0)
  return shared / (a[2] * a[3] if crowd else a[2] * a[3] + b[2] * b[3] - shared)


def judged_one_by_one(truth, records):
  """{score: verdict} and the number of missed objects, written down from the definitions, slowly."""
  verdicts, missed = {}, 0
  for image in truth["images"]:
    objects = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
    crowds, objects = [a for a in objects if a["iscrowd"]], [a for a in objects if not a["iscrowd"]]
    mine = sorted((r for r in records if r["image_id"] == image["id"]), key=lambda r: -r["score"])
    taken, wrong, reached = set(), [], set()
    for r in mine:
      own = [(overlap(r["bbox"], o["bbox"]), o["id"]) for o in objects if o["category_id"] == r["category_id"]]
      free = [(v, i) for v, i in own if i not in taken and v >= 0.5]
      if free:
        taken.add(max(free)[1])
        verdicts[r["score"]] = "correct"
      elif any(overlap(r["bbox"], c["bbox"], True) >= 0.5 and c["category_id"] == r["category_id"] for c in crowds):
        verdicts[r["score"]] = "ignored"
      else:
        wrong.append(r)
    for r in wrong:
      own, other = [], []
      for o in objects:
        (own if o["category_id"] == r["category_id"] else other).append((overlap(r["bbox"], o["bbox"]), o["id"]))
      best, best_other = max(own, default=(0, None)), max(other, default=(0, None))
      if 0.1 <= best[0] <= 0.5:
        verdicts[r["score"]] = "localisation"
        reached.add(best[1])
      elif best_other[0] >= 0.5:
        verdicts[r["score"]] = "classification"
        reached.add(best_other[1])
      elif any(v >= 0.5 and i in taken for v, i in own):
        verdicts[r["score"]] = "duplicate"
      elif max(best[0], best_other[0]) <= 0.1:
        verdicts[r["score"]] = "background"
      else:
        verdicts[r["score"]] = "both"
    missed += len({o["id"] for o in objects} - taken - reached)
  return verdicts, missed


@pytest.mark.parametrize("seed", range(4))
def test_verdicts_of_an_independent_loop(seed):
  truth, records = noisy(seed)
  found = errors.find(truth, read_detections(records))
  verdicts, missed = judged_one_by_one(truth, records)
  ours = {s: errors.VERDICTS[v] for s, v in zip(found.detections.score.tolist(), found.verdict, strict=True)}
  assert ours == verdicts and found.counts()["missed"] == missed
  assert set(verdicts.values()) == set(errors.VERDICTS)  # the data has all of them


@pytest.mark.parametrize("kind", [None, *errors.TYPES])
def test_costs_are_what_pycocotools_gives_for_mended_files(kind):
  """Errors of one type mended in the files themselves: moved, renamed or removed records, removed annotations."""
  truth, records = noisy(11)
  found = errors.find(truth, read_detections(records))
  rows = {score: i for i, score in enumerate(found.detections.score.tolist())}
  best = {}  # object -> score of its best localisation or classification error
  for i in np.flatnonzero(found.is_a("localisation") | found.is_a("classification")):
    j, score = found.target[i], float(found.detections.score[i])
    if found.match[j] < 0 and score > best.get(j, 0):
      best[j] = score
  mended = []
  for record in records:
    i = rows[record["score"]]
    if errors.VERDICTS[found.verdict[i]] != kind:
      mended.append(record)
    elif kind in ("localisation", "classification") and best.get(found.target[i]) == record["score"]:
      right = truth["annotations"][found.target[i]]
      mended.append({**record, "bbox": right["bbox"], "category_id": right["category_id"]})
  if kind == "missed":
    left = [a for a, v in zip(truth["annotations"], found.truth_verdict) if errors.OBJECTS[v] != "missed"]
    truth = {**truth, "annotations": left}
  official = coco.evaluate_boxes(truth, mended, engine="pycocotools")["AP50"]
  assert found.ap50(kind) == pytest.approx(official, abs=1e-12)
  if kind is not None:
    assert found.costs()[kind] == pytest.approx(max(0, official - found.ap50()), abs=1e-12)


@pytest.mark.parametrize("name", TIDE)
def test_numbers_of_tide(shared, name):
  path, counts, costs = TIDE[name]
  truth = coco.load_annotations(shared / "data" / path)
  found = errors.find(truth, read_detections(shared / "golden/metrics" / f"{name}_results.json"))
  assert found.counts() == counts
  assert {kind: 100 * cost for kind, cost in found.costs().items()} == pytest.approx(costs, abs=1e-3)


@pytest.mark.parametrize("name,path", [(n, p) for n, (p, *_) in TIDE.items()] + [
  (f"coco_sample_val2017_{shape}", "coco_sample/annotations/instances_val2017.json") for shape in ("bbox", "segm")
])  # fmt: skip
def test_numbers_of_hotcoco(shared, name, path):
  """Its categories whose objects were all missed differ (it counts them as 0), so `missed` is compared in number."""
  hotcoco = pytest.importorskip("hotcoco")
  results = shared / "golden/metrics" / f"{name}_results.json"
  official = hotcoco.COCO(str(shared / "data" / path))
  evaluation = hotcoco.COCOeval(official, official.load_res(str(results)), name[-4:])
  evaluation.evaluate()
  theirs = evaluation.tide_errors()
  truth = coco.load_annotations(shared / "data" / path, name[-4:])
  found = errors.find(truth, read_detections(results, name[-4:]), name[-4:])
  assert found.counts() == {SHORT.get(k, "missed"): n for k, n in theirs["counts"].items()}
  assert found.ap50() == pytest.approx(theirs["ap_base"], abs=1e-9)
  assert found.ap50() == pytest.approx(coco.evaluate_boxes(truth, json.loads(results.read_text()), name[-4:])["AP50"])
  costs = found.costs()
  assert {k: costs[name] for k, name in SHORT.items()} == pytest.approx(
    {k: theirs["delta_ap"][k] for k in SHORT}, abs=2e-5
  )


def test_lvis_rules(shared):
  """AP50 from the verdicts is lvis-api's: what was not looked for is not judged."""
  path = shared / "data/lvis_sample/annotations/lvis_v0.5_val_100.json"
  results = shared / "golden/metrics/lvis_v05_val_100_bbox_results.json"
  found = errors.find(*lvis.read(path, results), federated=True)
  assert found.ap50() == pytest.approx(lvis.evaluate(path, results)["AP50"], abs=1e-9)
  assert found.is_a("ignored").any()

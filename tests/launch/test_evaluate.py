"""`glipv2 evaluate --task`: files in, metrics.json out, for every task; mistakes end with one line."""

import json
import warnings

import pytest

from eval import tasks
from launch import evaluate

COCO = "coco_sample/annotations/instances_val2017.json"
LVIS = "lvis_sample/annotations/lvis_v0.5_val_100.json"
CAPTIONS = "coco_sample/annotations/captions_val2017.json"
FLICKR = "flickr30k_entities_sample/test.txt"
ANSWERS = "vqa_sample/v2_mscoco_train2014_annotations.json"
# Annotation files under data/, prediction files under golden/metrics/, and a number of expected.json.
CASES = {
  "coco": ([COCO], ["coco_sample_val2017_bbox_results.json"], "AP", 0.36572),
  "lvis": ([LVIS], ["lvis_v05_val_100_bbox_results.json"], "APr", 0.2),
  "lvis_fixed": ([LVIS], ["lvis_v05_val_100_bbox_results.json"], "APf", 0.433613),  # no image has over 300
  "flickr": ([FLICKR], ["flickr_test_results.json"], "merged/R@5", 0.608696),
  "phrasecut": (["phrasecut_sample/refer_val.json"], ["phrasecut_val_pred"], "cIoU", 0.268832),
  "vqa": ([ANSWERS], ["vqa_train2014_sample_results.json"], "accuracy", 78.857143),
  "captions": ([CAPTIONS], ["captions_val2017_results.json"], "CIDEr", 2.090353),
  "grounded_captions": (
    [CAPTIONS, FLICKR],
    ["captions_val2017_results.json", "flickr_test_results.json"],
    "BLEU-4",
    0.784991,
  ),
  "grounded_vqa": (
    [ANSWERS, FLICKR],
    ["vqa_train2014_sample_results.json", "flickr_test_results.json"],
    "R@1",
    0.173913,
  ),
}


@pytest.fixture(autouse=True)
def without_java(monkeypatch):
  monkeypatch.setattr("shutil.which", lambda name: None)  # tests/eval/test_captions.py runs it


def run(shared, out, task, annotations, predictions, *more):
  files = (
    [str(shared / "data" / path) for path in annotations],
    [str(shared / "golden/metrics" / path) for path in predictions],
  )
  return evaluate.main(
    ["--task", task, "--annotations", *files[0], "--predictions", *files[1], "--out", str(out), *more]
  )


@pytest.mark.parametrize("task", CASES)
def test_every_task_writes_flat_metrics(shared, tmp_path, capsys, task):
  annotations, predictions, key, value = CASES[task]
  assert run(shared, tmp_path / "metrics.json", task, annotations, predictions) == 0
  metrics = json.loads((tmp_path / "metrics.json").read_text())
  assert metrics[key] == pytest.approx(value, abs=1e-6)
  assert all(not isinstance(v, dict) or k.startswith("per_") or k == "absent" for k, v in metrics.items())
  printed = capsys.readouterr()
  assert key in printed.out
  assert ("warning: METEOR is not computed" in printed.err) == ("captions" in task)


def test_masks_and_the_tasks_that_are_left(shared, tmp_path):
  out = tmp_path / "metrics.json"
  assert run(shared, out, "coco", [COCO], ["coco_sample_val2017_segm_results.json"], "--iou-type", "segm") == 0
  assert json.loads(out.read_text())["AP"] == pytest.approx(0.297144, abs=1e-6)
  manifest, found = tmp_path / "sets.json", tmp_path / "found"
  manifest.write_text(json.dumps({"raccoon": str(shared / "data/raccoon/annotations/val.json")}))
  found.mkdir()
  (found / "raccoon.json").write_bytes((shared / "golden/metrics/raccoon_val_bbox_results.json").read_bytes())
  assert tasks.score("odinw", [manifest], [found])["AP"] == pytest.approx(0.448927, abs=1e-6)
  refer = shared / "data/refcoco_sample/mdetr_annotations/finetune_refcoco_val.json"
  boxes = [
    {"image_id": a["image_id"], "bbox": a["bbox"], "score": 1} for a in json.loads(refer.read_text())["annotations"]
  ]
  (tmp_path / "boxes.json").write_text(json.dumps(boxes))
  assert tasks.score("refexp", [refer], [tmp_path / "boxes.json"])["Pr@0.5"] == 1.0
  assert set(tasks.TASKS) == {*CASES, "odinw", "refexp", "grounding"}  # the last: test_mdetr.py


def test_what_is_odd_and_what_is_wrong_is_said_in_one_line(shared, tmp_path, capsys):
  truth = json.loads((shared / "data/raccoon/annotations/val.json").read_text())
  corners = [
    {
      "image_id": a["image_id"],
      "category_id": a["category_id"],
      "bbox": [*a["bbox"][:2], a["bbox"][0] + a["bbox"][2], a["bbox"][1] + a["bbox"][3]],
      "score": 1,
    }
    for a in truth["annotations"]
  ]
  (tmp_path / "corners.json").write_text(json.dumps(corners))
  (tmp_path / "short.json").write_text(json.dumps(corners)[:-30])
  arguments = ["--task", "coco", "--annotations", str(shared / "data/raccoon/annotations/val.json"), "--predictions"]
  assert evaluate.main([*arguments, str(tmp_path / "corners.json")]) == 0
  assert "warning: " + str(tmp_path / "corners.json") + ": boxes look like x1, y1, x2, y2" in capsys.readouterr().err
  assert evaluate.main([*arguments, str(tmp_path / "short.json")]) == 1
  assert capsys.readouterr().err == (
    f"glipv2 evaluate: {tmp_path / 'short.json'}: record {len(corners) - 1} breaks off or is not JSON; "
    "write or copy the whole file again\n"
  )


def test_wrong_commands(capsys):
  for arguments, message in (
    (["--task", "vqa", "--annotations", "a.json"], "task vqa takes --predictions <records"),
    (["--task", "vqa", "--annotations", "a", "--predictions", "b", "--iou-type", "segm"], "task vqa has no IoU type"),
    (
      ["--task", "coco", "--annotations", "nowhere.json", "--predictions", "b"],
      "annotation file nowhere.json does not",
    ),
  ):
    assert evaluate.main(arguments) == 1
    assert message in capsys.readouterr().err
  for arguments in ([], ["--task", "coco", "--checkpoint", "runs/x"], ["--task", "counting"]):
    with pytest.raises(SystemExit):
      evaluate.main(arguments)
  with pytest.raises(ValueError, match="task 'counting' is not known; known: coco, lvis"):
    tasks.score("counting", [], [])


def test_no_warning_for_good_files(shared, tmp_path):
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    for task in ("coco", "lvis", "flickr", "vqa"):
      annotations, predictions, *_ = CASES[task]
      assert run(shared, tmp_path / "metrics.json", task, annotations, predictions) == 0

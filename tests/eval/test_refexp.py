"""eval/refexp.py: boxes and masks counted by a loop, and the truth itself."""

import json

import numpy as np
import pytest
from pycocotools import mask as rle

from eval import refexp


@pytest.fixture
def sample(shared):
  return shared / "data/refcoco_sample"


def expressions(truths, datasets=None):
  """One expression per box, on pictures of 100 x 100."""
  images = [{"id": k, "height": 100, "width": 100, "caption": "a thing"} for k in range(len(truths))]
  for image, dataset in zip(images, datasets or []):
    image["dataset_name"] = dataset
  annotations = [{"id": k, "image_id": k, "category_id": 1, "bbox": list(box)} for k, box in enumerate(truths)]
  return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}


def box(image_id, score, *xywh):
  return {"image_id": image_id, "score": score, "bbox": list(xywh)}


def test_truth_of_the_sample_is_found(sample):
  path = sample / "mdetr_annotations/finetune_refcoco_val.json"
  truth = json.loads(path.read_text())["annotations"]
  report = refexp.evaluate(path, [box(a["image_id"], 0.3, *a["bbox"]) for a in truth])
  assert [report[key] for key in ("Pr@0.5", "P@1", "P@5", "P@10")] == [1.0] * 4 and report["missing"] == 0
  assert refexp.evaluate(path, [])["Pr@0.5"] == 0.0


def test_masks_of_the_sample(sample):
  path, instances = sample / "mdetr_annotations/finetune_refcoco_val.json", sample / "refcoco/instances.json"
  source = {a["id"]: a for a in json.loads(instances.read_text())["annotations"]}
  content = json.loads(path.read_text())
  sizes = {i["id"]: (i["height"], i["width"]) for i in content["images"]}
  masks = []
  for a in content["annotations"]:
    parts = rle.frPyObjects(source[a["original_id"]]["segmentation"], *sizes[a["image_id"]])
    masks.append({"image_id": a["image_id"], "score": 0.5, "segmentation": rle.merge(parts)})
  report = refexp.evaluate(path, masks, "segm", instances=instances)
  assert [report[key] for key in ("oIoU", "mIoU", "Pr@0.5", "Pr@0.9")] == [1.0] * 4
  nothing = refexp.evaluate(path, [], "segm", instances=instances)
  assert nothing["oIoU"] == nothing["mIoU"] == nothing["Pr@0.5"] == 0.0 and nothing["missing"] == 4
  with pytest.raises(ValueError, match="has no 'segmentation'"):
    refexp.evaluate(path, masks, "segm")


def test_ranks_and_generalised_iou():
  truth = expressions([(10, 10, 20, 20)] * 4)
  found = [
    *(box(0, 0.9 - k / 100, 70, 70, 9, 9) for k in range(4)),
    box(0, 0.2, 10, 10, 20, 20),  # fifth
    box(1, 0.5, 10, 10, 20, 10),  # IoU 0.5 exactly, inside: generalised IoU 0.5, too
    box(2, 0.5, 17, 10, 20, 20),  # IoU 13/27 = 0.48
    box(3, 0.5, 16, 13, 20, 20),  # IoU 238/562 = 0.42
  ]
  report = refexp.evaluate(truth, found)
  assert (report["Pr@0.5"], report["P@1"], report["P@5"]) == (0.25, 0.25, 0.5)
  diagonal = refexp.evaluate(expressions([(0, 0, 20, 20)]), [box(0, 1, 3, 3, 20, 20)])  # IoU 289/511, hull 529
  assert diagonal["Pr@0.5"] == 1.0 and diagonal["P@1"] == 1.0
  flat = refexp.evaluate(expressions([(0, 0, 20, 20)]), [box(0, 1, 0, 6, 16, 20)])  # IoU 224/496 = 0.45
  assert flat["Pr@0.5"] == flat["P@1"] == 0.0


def test_generalised_iou_is_stricter():
  truth, found = (0.0, 0.0, 20.0, 20.0), (4.0, 4.0, 20.0, 20.0)  # IoU 256/544 = 0.47
  closer = (3.4, 3.4, 20.0, 20.0)  # IoU 0.525; hull 23.4^2, union 524.4: 0.525 - 0.042 = 0.483
  assert refexp.evaluate(expressions([truth]), [box(0, 1, *found)])["Pr@0.5"] == 0.0
  report = refexp.evaluate(expressions([truth]), [box(0, 1, *closer)])
  assert report["Pr@0.5"] == 1.0 and report["P@1"] == 0.0


def test_masks_by_a_loop():
  rng = np.random.default_rng(0)
  truth, found, inter, union = expressions([(0, 0, 1, 1)] * 5), [], [], []
  for k in range(5):
    a, b = rng.random((2, 100, 100)) < (0.5, 0.9)[k % 2]
    truth["annotations"][k]["segmentation"] = rle.encode(np.asfortranarray(a.astype(np.uint8)))
    found.append({"image_id": k, "score": 1, "segmentation": rle.encode(np.asfortranarray(b.astype(np.uint8)))})
    inter.append((a & b).sum())
    union.append((a | b).sum())
  report = refexp.evaluate(truth, found, "segm")
  ious = np.array(inter) / np.array(union)
  assert report["oIoU"] == pytest.approx(sum(inter) / sum(union)) and report["mIoU"] == pytest.approx(ious.mean())
  assert [report[f"Pr@{t}"] for t in (0.5, 0.8, 0.9)] == [np.mean(ious >= t) for t in (0.5, 0.8, 0.9)]


def test_data_sets_apart_and_wrong_files():
  truth = expressions([(0, 0, 9, 9), (0, 0, 9, 9)], ["refcoco", "refcoco+"])
  report = refexp.evaluate(truth, [box(0, 1, 0, 0, 9, 9)])
  assert report["Pr@0.5"] == 0.5 and report["missing"] == 1
  assert {k: v["Pr@0.5"] for k, v in report["per_dataset"].items()} == {"refcoco": 1.0, "refcoco+": 0.0}
  truth["annotations"][1]["image_id"] = 0
  with pytest.raises(ValueError, match="one object.* have the same id 0"):
    refexp.evaluate(truth, [])

"""A small detection data set with predictions that have every kind of error."""

import numpy as np

from eval import coco


def noisy(seed, images=25):
  """Objects of three categories, some crowds, and detections that are right, moved, renamed, repeated or invented."""
  rng = np.random.default_rng(seed)
  truth = {"images": [], "categories": [{"id": k, "name": str(k)} for k in (3, 5, 8)], "annotations": []}
  records = []
  for image_id in range(images):
    truth["images"].append({"id": image_id, "width": 200, "height": 200})
    for _ in range(rng.integers(0, 7)):
      box, category = [*rng.uniform(0, 140, 2), *rng.uniform(10, 60, 2)], int(rng.choice([3, 5, 8]))
      crowd = int(rng.random() < 0.1)
      one = {"image_id": image_id, "category_id": category, "bbox": box, "iscrowd": crowd}
      truth["annotations"].append(one)
      for _ in range(rng.integers(0, 4)):
        moved = (np.array(box) + rng.normal(0, rng.choice([1, 8, 25]), 4)).clip([0, 0, 2, 2]).tolist()
        named = category if rng.random() < 0.7 else int(rng.choice([3, 5, 8]))
        records.append({"image_id": image_id, "category_id": named, "bbox": moved, "score": float(rng.random())})
    for _ in range(rng.integers(0, 3)):
      box = [*rng.uniform(0, 140, 2), *rng.uniform(10, 60, 2)]
      records.append({"image_id": image_id, "category_id": 5, "bbox": box, "score": float(rng.random())})
  return coco.load_annotations(truth), records

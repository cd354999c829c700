"""Few-shot draws: the rule recounted, prepared files, and the option of the source."""

import collections
import json
import random

import pytest

from pipelines import fewshot
from pipelines.sources.coco_json import CocoJson


@pytest.mark.parametrize("seed", [0, 3, 30])
@pytest.mark.parametrize("shots", [1, 3, 10])
def test_every_class_gets_its_shots_and_no_picture_is_superfluous(shots, seed):
  rng = random.Random(1)
  classes = [rng.choices(range(5), weights=(9, 5, 3, 2, 1), k=rng.randint(1, 4)) for _ in range(200)]
  kept = fewshot.draw(classes, shots, seed)
  assert len(set(kept)) == len(kept) and kept == fewshot.draw(classes, shots, seed)
  assert (kept == sorted(kept)) == (seed == 0)
  available = collections.Counter(c for of_picture in classes for c in set(of_picture))
  taken: collections.Counter = collections.Counter()
  for position in kept:  # each was needed when its turn came
    assert any(taken[c] < shots for c in set(classes[position]))
    taken.update(set(classes[position]))
  assert all(taken[c] >= min(shots, available[c]) for c in available)


def test_a_picture_is_one_shot_of_each_of_its_classes():
  assert fewshot.draw([[0, 0, 0], [0, 1], [1], [2]], 1, 0) == [0, 1, 3]
  assert fewshot.draw([[0], [0], [0]], 2, 0) == [0, 1]
  assert fewshot.draw([[], [0]], 5, 0) == [1]


def test_source_with_shots(shared):
  folder = shared / "data/bccd"
  files = str(folder / "annotations/train.json"), str(folder / "images")
  everything = CocoJson(*files)
  few = CocoJson(*files, shots=2, shots_seed=3)
  seen = collections.Counter(label for i in range(len(few)) for label in set(few[i].labels))
  assert 2 <= len(few) <= 6 < len(everything) and min(seen[name] for name in few.classes) >= 2
  assert few.classes == everything.classes
  again = CocoJson(*files, shots=2, shots_seed=3)
  other = CocoJson(*files, shots=2, shots_seed=30)
  ids = [[source[i].image_id for i in range(len(source))] for source in (few, again, other)]
  assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("shots", [1, 3, 5, 10])
@pytest.mark.parametrize("seed", [3, 30, 300])
def test_draws_of_the_sample_files(shared, shots, seed):
  folder = shared / "data/odinw_sample/Raccoon/Raccoon.v2-raw.coco/train"
  full = json.loads((folder / "annotations_without_background.json").read_text())
  drawn = json.loads((folder / f"fewshot_train_shot{shots}_seed{seed}.json").read_text())
  images = sorted(full["images"], key=lambda image: image["id"])
  classes = [[a["category_id"] for a in full["annotations"] if a["image_id"] == image["id"]] for image in images]
  kept = {images[k]["file_name"] for k in fewshot.draw(classes, shots, seed)}
  assert kept == {image["file_name"] for image in drawn["images"]}


def test_prepared_files_are_read(shared):
  folder = shared / "data/odinw_sample/Raccoon/Raccoon.v2-raw.coco/train"
  files = str(folder / "annotations_without_background.json"), str(folder)
  few = CocoJson(*files, shots=3, shots_seed=30)
  direct = CocoJson(str(folder / "fewshot_train_shot3_seed30.json"), str(folder))
  assert [few[i].image_id for i in range(len(few))] == [direct[i].image_id for i in range(len(direct))]
  assert fewshot.prepared_file(folder / "x.json", 3, 31) is None


def test_two_prepared_files_are_one_too_many(tmp_path):
  for part in ("train", "val"):
    (tmp_path / f"fewshot_{part}_shot1_seed3.json").touch()
  with pytest.raises(ValueError, match="1 shots, seed 3: .* all fit; set `annotations` to one"):
    fewshot.prepared_file(tmp_path / "train.json", 1, 3)

"""`glipv2 data check|stats|inspect` on small data sets with known contents."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from launch import data, drawing
from launch.examples import picture_of
from pipelines import images
from pipelines.prepare.check import ALIKE, Hashes, difference_hash
from pipelines.sources import open_source
from pipelines.sources.shapes import Shapes


def coco(folder, pictures, annotations):
  """A COCO-format folder: `pictures` name -> bytes, in the order of their ids from 1."""
  folder.mkdir()
  for name, content in pictures.items():
    (folder / name).write_bytes(content)
  content = {
    "images": [{"id": i, "file_name": name, "height": 96, "width": 96} for i, name in enumerate(pictures, 1)],
    "annotations": [
      {"id": i, "image_id": image, "category_id": 1, "bbox": box} for i, (image, box) in enumerate(annotations)
    ],
    "categories": [{"id": 1, "name": "thing"}],
  }
  (folder / "a.json").write_text(json.dumps(content))
  return ["coco_json", f"annotations={folder / 'a.json'}", f"images={folder}", "name=mine"]


def scene(index, form="PNG", mirror=False, **options):
  pixels = Shapes(split="val", size=(96, 96))[index].image
  stream = io.BytesIO()
  Image.fromarray(pixels[:, ::-1] if mirror else pixels).save(stream, form, **options)
  return stream.getvalue()


def test_check_finds_what_was_planted(tmp_path, capsys):
  evaluation = coco(tmp_path / "val", {"0.png": scene(0), "1.png": scene(1)}, [(1, [0, 0, 9, 9]), (2, [0, 0, 9, 9])])
  pictures = {
    "copy.jpg": scene(0, "JPEG", quality=70),
    "mirrored.png": scene(1, mirror=True),
    "fine.png": scene(2),
    "cut.png": scene(3)[:500],
    "outside.png": scene(4),
  }
  boxes = [(i, [1, 1, 20, 20]) for i in range(1, 5)] + [(5, [90, 90, 20, 20])]
  train = coco(tmp_path / "train", pictures, boxes)
  out = tmp_path / "out"
  assert data.main(["check", "--source", *train, "--evaluation", *evaluation, "--out", str(out)]) == 3
  found = json.loads((out / "check.json").read_text())
  assert (found["records"], found["boxes"]) == (5, 5)
  assert {k: v["count"] for k, v in found["faults"].items()} == {
    "in_evaluation": 2,
    "undecodable_image": 1,
    "box_outside": 1,
  }
  twins = found["faults"]["in_evaluation"]["first"]
  assert twins[0].startswith("mine/1 looks like mine/1 ") and twins[1].startswith("mine/2 looks like mine/2 ")
  assert found["faults"]["box_outside"]["first"][0].startswith("mine/5")
  assert "in_evaluation" in capsys.readouterr().out


def test_check_counts_ids_that_occur_twice():
  """Also when they stand in different parts."""
  source = Repeated()
  found = data.Findings()
  for part in data.ranges.split(len(source), 3):
    found.add(data.check_part(source, part, Hashes()))
  found.count_duplicates("shapes_val")
  assert found.counts == {"duplicate_id": 5} and found.named["duplicate_id"] == [f"shapes_val/{i}" for i in range(5)]
  assert found.records == 10


class Repeated:
  """Five scenes, each twice."""

  def __init__(self):
    self._scenes = Shapes(split="val", size=(64, 64))
    self.name, self.kind, self.classes = self._scenes.name, "detection", self._scenes.classes

  def __len__(self):
    return 10

  def __getitem__(self, index):
    return self._scenes[index % 5]


def test_processes_find_the_same(tmp_path):
  command = ["check", "--source", "shapes", "split=val", "size=(64, 64)", "length=300", "--limit", "260"]
  for processes in (0, 1):
    assert data.main([*command, "--processes", str(processes), "--out", str(tmp_path / str(processes))]) == 0
  contents = [(tmp_path / name / "check.json").read_text() for name in "01"]
  assert contents[0] == contents[1] and json.loads(contents[0])["records"] == 260


def test_photographs_differ_and_copies_do_not(shared):
  """Real pictures: copies at half the size and low quality stay within the limit, different pictures beyond it."""
  files = sorted((shared / "data" / "coco_sample" / "val2017").glob("*.jpg"))[:24]
  assert len(files) > 10
  pixels = [images.decode(path.read_bytes()) for path in files]
  hashes = np.array([difference_hash(p) for p in pixels])
  for own, picture in zip(hashes, pixels):
    stream = io.BytesIO()
    small = Image.fromarray(picture).resize((picture.shape[1] // 2, picture.shape[0] // 2))
    small.save(stream, "JPEG", quality=40)
    copy = difference_hash(images.decode(stream.getvalue()))
    assert sum(bin(int(a) ^ int(b)).count("1") for a, b in zip(own, copy)) <= ALIKE
  bits = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(-1) + 999 * np.eye(len(files), dtype=int)
  assert bits.min() > ALIKE


def test_statistics_equal_a_loop(tmp_path):
  options = ["shapes", "split=val", "task=grounding", "size=(64, 80)", "length=40"]
  assert data.main(["stats", "--source", *options, "--out", str(tmp_path)]) == 0
  numbers = json.loads((tmp_path / "statistics.json").read_text())
  source = open_source("shapes", split="val", task="grounding", size=(64, 80), length=40)
  words, sides = {}, []
  for example in (source[i] for i in range(40)):
    n = len(example.caption.split())
    words[n] = words.get(n, 0) + 1
    sides += [((x2 - x1 + 1) * (y2 - y1 + 1)) ** 0.5 for x1, y1, x2, y2 in example.boxes_xyxy_px.tolist()]
  assert dict(map(tuple, numbers["caption_words"])) == words
  lows = {low: n for low, n in numbers["box_side_px"]}
  assert sum(lows.values()) == len(sides) and lows[16] == sum(16 <= side < 22 for side in sides)
  assert numbers["picture_side_px"] == [[64, 40]]
  assert Image.open(tmp_path / "statistics.png").size[0] > 1000


def test_inspect_draws_boxes_masks_and_texts(tmp_path):
  command = ["inspect", "--source", "shapes", "split=val", "task=grounding", "--count", "3", "--out", str(tmp_path)]
  assert data.main(command) == 0
  assert Image.open(tmp_path / "examples.png").size[0] > 3 * drawing.SHORT_SIDE - 1
  example = next(x for x in map(Shapes(split="val").__getitem__, range(9)) if x.masks)
  drawn, plain = picture_of(example), drawing.annotate(example.image, [], f"{example.record}:")
  assert drawn.width == plain.width
  zoom = drawn.width // example.image.shape[1]
  inside = np.argwhere(example.masks[0].pixels())
  changed = [
    drawn.getpixel((x * zoom + 1, y * zoom + 1)) != plain.getpixel((x * zoom + 1, y * zoom + 1))
    for y, x in inside.tolist()
  ]
  assert np.mean(changed) > 0.9


@pytest.mark.parametrize(
  "words,message",
  [
    (["shapes", "split"], "'split' is no OPTION=VALUE"),
    (["nothing"], "source 'nothing' is not known"),
    (["shapes", "split=test"], "split 'test' is not known"),
    (["coco_json", "annotations=a.json"], "source 'coco_json': "),
  ],
)
def test_mistakes_are_named(tmp_path, capsys, words, message):
  assert data.main(["check", "--source", *words, "--out", str(tmp_path)]) == 1
  assert message in capsys.readouterr().err

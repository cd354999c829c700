"""Broken records of every kind in every dialect: training goes on with the same stream on every host and after a
restart, they are counted by reason, and too many of them stop it. Captions and questions, which are not trained on, are
counted by `glipv2 data`."""

import collections
import io
import json
import pathlib
import re

import numpy as np
import pytest

from glipv2_jax.train import skips
from launch import data
from pipelines.build import DataConfig
from pipelines.masking import MaskingConfig
from pipelines.prompts import PromptConfig
from tests.pipelines.box_dialects import BOX_WRITERS
from tests.pipelines.dialects import WRITERS, picture
from tests.pipelines.test_mixture import read, same

EVERY = WRITERS | BOX_WRITERS
STEPS = 6


def entry(name, kind, options):
  return (kind, 1.0, tuple({**options, "name": name}.items()))


def config(*entries, **changes):
  given = dict(
    sources=entries,
    tokenizer="shapes",
    max_tokens=64,
    canvases=((32, 48), (48, 32)),
    batch=4,
    pixels="fast",
    prompt=PromptConfig(pack=2, pack_none=0.2),
    masking=MaskingConfig(own_caption_only=True),
    box_tolerance_px=2.0,
  )
  return DataConfig(**given | changes)


def counted(batches):
  """What the log tells: the counts by reason."""
  counter = skips.Skips(1.0, {}, {}, lambda note: None)
  for batch in batches:
    counter.add(batch.skipped, batch.reduced, len(batch.info))
  return counter.numbers()


def check_stream(name, cfg, reason):
  """Some records of the source are left out, all for this reason, alike wherever and whenever they are met."""
  batches = read(cfg, STEPS)
  met = [pair for batch in batches for pair in batch.skipped]
  assert met and {r for r, _ in met} == {reason} and all(record.startswith(f"{name}/") for _, record in met)
  assert counted(batches) == {"skipped": {reason: len(met)}, "reduced": {}}
  assert all(len(batch.info) == cfg.batch and None not in batch.info for batch in batches)
  assert all(map(same, batches[3:], read(cfg, STEPS - 3, start_step=3)))
  halves = [read(cfg, STEPS, host=host, hosts=2) for host in range(2)]
  for whole, first, second in zip(batches, *halves, strict=True):
    assert whole.info == first.info + second.info and whole.skipped == first.skipped + second.skipped
  halves = [read(cfg, STEPS - 4, start_step=4, host=host, hosts=2) for host in range(2)]
  for whole, first, second in zip(batches[4:], *halves, strict=True):
    assert whole.info == first.info + second.info and whole.skipped == first.skipped + second.skipped


# Pictures.


def cut_short(path):
  path.write_bytes(path.read_bytes()[:40])


PICTURES = {"missing_image": pathlib.Path.unlink, "undecodable_image": cut_short}
# dialect -> which of its pictures, in order of their names: one that its records show
SHOWN = dict(
  mdetr=1, flickr=1, odvg=1, coco=2, lvis=3, openimages=2, genome=2, voc=1, imagenet=1, phrasecut=2, refcoco=2
)


@pytest.mark.parametrize("reason", PICTURES)
@pytest.mark.parametrize("name", SHOWN)
def test_broken_pictures(tmp_path, name, reason):
  kind, write, options = EVERY[name]
  cfg = config(entry(name, kind, write(tmp_path) | options))
  assert not counted(read(cfg, STEPS))["skipped"]
  pictures = sorted(p for p in tmp_path.rglob("*") if p.suffix in (".png", ".jpg", ".JPEG"))
  PICTURES[reason](pictures[SHOWN[name]])
  check_stream(name, cfg, reason)


# Boxes, captions and the annotation as a whole: (file of the dialect, a text, what stands in its last place instead).


def boxes(file, nan, empty, outside):
  """Each of the three: (text, broken text)."""
  return {"box_nan": (file, *nan), "box_empty": (file, *empty), "box_outside": (file, *outside)}


def corners(file, box):
  """Four numbers x1, y1, x2, y2 of json."""
  x1, y1, x2, y2 = re.findall(r"[\d.]+", box)
  broken = f"[NaN, {y1}, {x2}, {y2}]", f"[{x2}, {y1}, {x1}, {y2}]", f"[{x1}, {y1}, {x2}, 400]"
  return boxes(file, *((box, other) for other in broken))


def sides(file, box):
  """Four numbers x, y, width, height of json."""
  x, y, width, height = re.findall(r"[\d.]+", box)
  broken = f"[{x}, {y}, null, {height}]", f"[{x}, {y}, {width}, 0]", f"[{x}, -40, {width}, {height}]"
  return boxes(file, *((box, other) for other in broken))


def xml(file, side, value):
  """The right or lower edge in xml."""
  broken = "nan", 0, 400
  return boxes(file, *((f"<{side}>{value}</{side}>", f"<{side}>{other}</{side}>") for other in broken))


NOTHING = '" \\n"'
DOGS, LOST = ("a.label.tsv", '"two dogs"'), ("a.label.tsv", "[4, 8]]")
CASES = {
  "mdetr": {
    **sides("a.json", "[3, 4, 10.0, 5]"),
    "empty_caption": ("a.json", '"a dog, a dog and a cat"', NOTHING),
    "span_outside": ("a.json", "[[17, 22]]", "[[17, 23]]"),
    "image_size": ("a.json", '"height": 20', '"height": 21'),
  },
  "flickr": {
    **xml("Annotations/12.xml", "xmax", 30),
    "empty_caption": ("Sentences/12.txt", "[/EN#4/people Two dogs # 8] and [/EN#4/people the dogs]", "[/EN#4/people ]"),
    "broken_annotation": ("Sentences/12.txt", "the dogs]", "the dogs"),
  },
  "tsv_detection": {
    **corners("a.label.tsv", "[1.5, 2, 10, 12]"),
    "broken_annotation": ("a.label.tsv", '"dog"', '"cow"'),
    "image_size": ("a.hw.tsv", '{"height": 20', '{"height": 21'),
  },
  "tsv_v1": {
    **corners("a.label.tsv", "[1, 1, 9, 10]"),
    "empty_caption": (*DOGS, NOTHING),
    "broken_annotation": (*DOGS, "null"),
    "span_outside": ("a.label.tsv", "[[0, 3], [4, 8]]", "[[0, 3], [4, 9]]"),
    "too_few_boxes": ("a.label.tsv", "[0.9, 0.8, 0.3]", "[0.4, 0.5, 0.3]"),
    "image_size": ("a.label.tsv", '"img_h": 20', '"img_h": 21'),
  },
  "tsv_v2": {
    **corners("a.label.tsv", "[1, 1, 9, 10]"),
    "empty_caption": (*DOGS, NOTHING),
    "broken_annotation": (*DOGS, '"two dogs'),
    "span_outside": ("a.label.tsv", "[[0, 3], [4, 8]]", "[[0, 3], [4, 9]]"),
    "too_few_boxes": ("a.label.tsv", "[[0.9, 0.8], [0.3]]", "[[0.4, 0.5], [0.3]]"),
  },
  "odvg": {
    **corners("a.jsonl", "[5, 6, 7, 8]"),
    "empty_caption": ("a.jsonl", '"a dog on a sofa"', NOTHING),
    "broken_annotation": ("a.jsonl", '"phrase": "a sofa"', '"phrase": " "'),
    "span_outside": ("a.jsonl", "[2, 5]]", "[2, 16]]"),
    "image_size": ("a.jsonl", '"height": 20', '"height": 21'),
  },
  "odvg_detection": {
    **corners("d.jsonl", "[1, 2, 11, 12]"),
    "broken_annotation": ("d.jsonl", '"label": 0', '"label": 2'),
    "image_size": ("d.jsonl", '"height": 20', '"height": 21'),
  },
  "coco": {
    **sides("a.json", "[2, 3, 4, 5]"),
    "image_size": ("a.json", '"height": 20', '"height": 21'),
    "broken_mask": ("a.json", "[[2, 3, 6", '[["2", 3, 6'),
  },
  "lvis": {**sides("lvis.json", "[1.5, 2, 8, 8]"), "image_size": ("lvis.json", '"height": 20', '"height": 21')},
  "openimages": boxes(
    "boxes.csv",
    ("/m/3,1,0.5,1,", "/m/3,1,0.5,nan,"),
    ("/m/3,1,0.5,1,", "/m/3,1,0.5,0.5,"),
    ("/m/3,1,0.5,1,", "/m/3,1,0.5,1.5,"),
  ),
  "genome": {
    **boxes(
      "objects.json",
      ('"x": 0', '"x": NaN'),
      ('"x": 0, "y": 2, "w": 10', '"x": 0, "y": 2, "w": 0'),
      ('"x": 0, "y": 2', '"x": 0, "y": 20'),
    ),
    "image_size": ("data.json", '"height": 20', '"height": 21'),
  },
  "genome_regions": {
    **boxes("regions.json", ('"x": 0', '"x": null'), ('"width": 30', '"width": 0'), ('"height": 20', '"height": 40')),
    "empty_caption": ("regions.json", '"grass"', NOTHING),
  },
  "voc": {
    **xml("Annotations/2008_000001.xml", "xmax", 20),
    "broken_annotation": ("Annotations/2008_000001.xml", "</annotation>", ""),
    "image_size": ("Annotations/2008_000001.xml", "<height>20<", "<height>21<"),
  },
  "imagenet": {
    **xml("Annotations/n03126707/n03126707_10041.xml", "ymax", 20),
    "broken_annotation": ("Annotations/n03126707/n03126707_10041.xml", "<name>n03126707<", "<name>n00000001<"),
  },
  "phrasecut": {
    **sides("refer.json", "[0.5, 0, 3, 2]"),
    "empty_caption": ("refer.json", '"phrase": "dog"', f'"phrase": {NOTHING}'),
    "broken_annotation": ("refer.json", "[[2, 3, 4, 5]]", "[[2, 3, 4]]"),
  },
  "refcoco": {
    **sides("a.json", "[1.5, 2, 8, 8]"),
    "empty_caption": ("refs(unc).p", "cat on the left", " " * 15),
    "broken_mask": ("a.json", "[[2, 3, 6", '[["2", 3, 6'),
  },
  "refcoco_json": {"empty_caption": ("refs.json", '"sent": "cat on the left"', f'"sent": {NOTHING}')},
}
TEXTS = {  # the dialects without boxes
  "tsv_inference": {
    "empty_caption": ("a.label.tsv", '"captions": ["b", "c"]', '"captions": [" ", "c"]'),
    "broken_annotation": ("a.label.tsv", '"captions": ["b", "c"]', '"captions": "b"'),
  },
  "coco_captions": {"empty_caption": ("c.json", '"a cat"', NOTHING)},
  "karpathy": {"empty_caption": ("k.json", '" A train \\n"', NOTHING)},
  "tars": {"empty_caption": ("00001.tar", " text 11\n", "        \n")},
  "list": {"empty_caption": ("cc.tsv", " a  bird ", "  ")},
  "vqa": {
    "empty_question": ("q.json", '"How many?"', NOTHING),
    "no_answer": (
      "n.json",
      '[{"answer": "yes", "answer_confidence": "yes", "answer_id": 2}',
      '[], "former": [{"a": 1}',
    ),
  },
}


def flat(cases):
  return [pytest.param(name, reason, id=f"{name}-{reason}") for name, reasons in cases.items() for reason in reasons]


def break_file(folder, file, old, new):
  """Replaces the last `old`; json lines get a broken copy of the line at their end. Offsets of lines are found anew."""
  path = folder / file
  before, found, after = path.read_bytes().rpartition(old.encode())
  assert found, f"{old} is not in {path}"
  broken = before + new.encode() + after
  if path.suffix == ".jsonl":
    (line,) = (line for line in broken.splitlines(True) if line not in path.read_bytes().splitlines(True))
    broken = path.read_bytes().rstrip(b"\n") + b"\n" + line
  path.write_bytes(broken)
  path.with_suffix(".lineidx").unlink(missing_ok=True)


@pytest.mark.parametrize("name, reason", flat(CASES))
def test_broken_annotations(tmp_path, name, reason):
  kind, write, options = EVERY[name]
  cfg = config(entry(name, kind, write(tmp_path) | options))
  assert not counted(read(cfg, STEPS))["skipped"]
  break_file(tmp_path, *CASES[name][reason])
  check_stream(name, cfg, reason)


def test_every_dialect_is_broken_in_every_way_that_it_can_be():
  boxed = {"box_nan", "box_empty", "box_outside"}
  assert EVERY.keys() == CASES.keys() | TEXTS.keys() | {"openimages_known"}  # the same files as openimages, and others
  assert all(boxed <= reasons.keys() for name, reasons in CASES.items() if name != "refcoco_json")
  captioned = {"mdetr", "flickr", "tsv_v1", "tsv_v2", "odvg", "genome_regions", "phrasecut", "refcoco", "refcoco_json"}
  assert captioned == {name for name, reasons in CASES.items() if "empty_caption" in reasons}


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
  """Entries of every dialect with boxes, one record of each broken."""
  found = []
  for name, reasons in CASES.items():
    kind, write, options = EVERY[name]
    folder = tmp_path_factory.mktemp(name)
    found.append(entry(name, kind, write(folder) | options))
    break_file(folder, *reasons["empty_caption" if "empty_caption" in reasons else "box_nan"])
  return found


def test_a_mixture_of_broken_sources_is_one_stream(broken):
  cfg = config(*broken, batch=8)
  batches = read(cfg, 12)
  skipped = collections.Counter(reason for batch in batches for reason, _ in batch.skipped)
  assert counted(batches)["skipped"] == skipped and skipped.keys() == {"empty_caption", "box_nan"}
  assert len({record.split("/")[0] for batch in batches for _, record in batch.skipped}) > 10
  assert all(map(same, batches[6:], read(config(*broken, batch=8, workers=2), 6, start_step=6)))
  halves = [read(cfg, 6, host=host, hosts=2, start_step=6) for host in range(2)]
  for whole, first, second in zip(batches[6:], *halves, strict=True):
    assert whole.info == first.info + second.info and whole.skipped == first.skipped + second.skipped


def test_too_many_broken_records_stop_with_the_worst_of_them(broken):
  """What the message lists is counted again here."""
  cfg = config(*broken, batch=8)
  notes = []
  counter = skips.Skips(0.1, {}, {}, notes.append)
  batches = read(cfg, 30)
  with pytest.raises(skips.TooManySkipped) as caught:
    for batch in batches:
      counter.add(batch.skipped, batch.reduced, len(batch.info))
  message = str(caught.value)
  offences = collections.Counter()
  for batch in batches[: message_batches(message, batches)]:
    offences.update((record.split("/")[0], reason) for reason, record in batch.skipped)
  (worst,) = re.findall(r"\(worst: (.*)\), more than skip_limit = 0\.1; repair the data or raise the limit", message)
  listed = re.findall(r"(\w+): (\w+) (\d+) \((\1/[^)]*)\)", worst)
  assert [(n, r, int(count)) for n, r, count, _ in listed] == [(n, r, c) for (n, r), c in offences.most_common(5)]
  assert len(notes) == 10 and all("skipped record" in note for note in notes)  # five of each reason, then only counts


def message_batches(message, batches):
  """After so many batches the message was written."""
  used = int(re.search(r"of (\d+) records could not be used", message)[1])
  for n in range(len(batches) + 1):
    if used == sum(len(b.info) + len(b.skipped) for b in batches[:n]):
      return n
  raise AssertionError(message)


def test_the_worst_come_first():
  counter = skips.Skips(0.1, {}, {}, lambda note: None)
  with pytest.raises(skips.TooManySkipped) as caught:
    for i in range(400):
      counter.add([("missing_image", f"coco/{i}"), ("empty_caption", "goldg/3#7")][: 1 + (i % 4 == 0)], [], 4)
  message = str(caught.value)
  assert "worst: coco: missing_image" in message and "coco/0, coco/1, coco/2, coco/3, coco/4, ..." in message
  assert message.index("coco: missing_image") < message.index("goldg: empty_caption") and "(goldg/3#7, ...)" in message
  assert "skip_limit = 0.1" in message


# Captions and questions.


@pytest.mark.parametrize("name, reason", flat(TEXTS))
def test_broken_texts_are_counted(tmp_path, capsys, name, reason):
  kind, write, options = EVERY[name]
  words = [kind, *(f"{key}={value!r}" for key, value in (write(tmp_path) | options).items()), "name=mine"]
  assert check([*words, "name=clean"], tmp_path / "clean") == {}
  break_file(tmp_path, *TEXTS[name][reason])
  ((found, fault),) = check(words, tmp_path / "broken").items()
  assert (found, fault["count"]) == (reason, 1) and fault["first"][0].startswith("mine/")
  assert prepare(words, tmp_path / "shards") == 1
  assert reason in capsys.readouterr().err
  assert prepare(words, tmp_path / "shards", "--skip-limit", "0.5") == 0
  assert json.loads((tmp_path / "shards/manifest.json").read_text())["left_out"] == {reason: 1}


def check(words, out):
  data.main(["check", "--source", *words, "--out", str(out)])
  return json.loads((out / "check.json").read_text())["faults"]


def prepare(words, out, *more):
  return data.main(["prepare", "--source", *words, "--out", str(out), *more])


# What other programs wrote.


def test_broken_records_of_shards(tmp_path):
  """`prepare` keeps an annotation as it is, so its faults are met in training; so is a damaged file."""
  (tmp_path / "source").mkdir()
  kind, write, options = EVERY["odvg"]
  options = write(tmp_path / "source") | options
  break_file(tmp_path / "source", *CASES["odvg"]["box_outside"])
  words = [kind, *(f"{key}={value}" for key, value in options.items())]
  assert prepare(words, tmp_path / "shards") == 0
  cfg = config(("array_record", 1.0, (("data", str(tmp_path / "shards")),)))
  check_stream("odvg_jsonl", cfg, "box_outside")
  (file,) = (tmp_path / "shards").glob("*.array_record")
  content = file.read_bytes()
  at = content.rindex(picture(1)[8:40])  # in the two records that show it
  file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
  check_stream("odvg_jsonl", cfg, "broken_record")


FAULTS = {  # reason -> x1, y1, x2, y2 as fractions of 30 x 20 pixels
  "box_nan": (float("nan"), 0.1, 0.5, 0.5),
  "box_empty": (0.5, 0.1, 0.2, 0.5),
  "box_outside": (0.1, 0.1, 0.5, 1.5),
}


@pytest.fixture(scope="module")
def tfds_data(tmp_path_factory):
  """One split for each fault, of three records, one of them broken."""
  tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra `data`")
  folder = tmp_path_factory.mktemp("tfds")

  class Broken(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path, code_path = folder, None  # TFDS would look for the package that this class is in

    def _info(self):
      box = tfds.features.Tensor(shape=(4,), dtype=np.float32)  # BBoxFeature refuses to write such boxes
      label = tfds.features.ClassLabel(names=["cat", "dog"])
      features = {
        "image": tfds.features.Image(encoding_format="png"),
        "objects": tfds.features.Sequence({"bbox": box, "label": label}),
      }
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
      return {reason: self._generate_examples(reason) for reason in (*FAULTS, "broken_annotation")}

    def _generate_examples(self, reason):
      for i in range(3):
        x1, y1, x2, y2 = FAULTS[reason] if reason in FAULTS and i == 1 else (0.1, 0.1, 0.5, 0.5)
        thing = {"bbox": [y1, x1, y2, x2], "label": -1 if reason not in FAULTS and i == 1 else 1}
        yield i, {"image": io.BytesIO(picture(i)), "objects": [thing]}

  Broken(data_dir=str(folder), file_format="array_record").download_and_prepare()
  return str(folder / "broken" / "1.0.0")


@pytest.mark.parametrize("reason", [*FAULTS, "broken_annotation"])
def test_broken_records_of_tfds(tfds_data, reason):
  check_stream("mine", config(entry("mine", "tfds_data", dict(data=tfds_data, split=reason))), reason)


@pytest.mark.parametrize("reason", [*FAULTS, "broken_annotation", "missing_image", "undecodable_image"])
def test_broken_records_of_hf_datasets(tmp_path, reason):
  datasets = pytest.importorskip("datasets", reason="needs the extra `data`")
  x1, y1, x2, y2 = FAULTS.get(reason, (0.1, 0.1, 0.5, 0.5))
  box = [x1 * 30, y1 * 20, x2 * 30, y2 * 20]
  rows = [
    {
      "image": {"bytes": picture(i), "path": None},
      "objects": {
        "bbox": [box if i == 1 else [3, 2, 15, 10]],
        "category": [2 if i == 1 and reason == "broken_annotation" else 1],
      },
    }
    for i in range(3)
  ]
  if reason == "missing_image":
    rows[1]["image"] = None
  elif reason == "undecodable_image":
    rows[1]["image"]["bytes"] = picture(1)[:40]
  number = datasets.Value("float32")
  objects = {"bbox": datasets.List(datasets.List(number)), "category": datasets.List(datasets.Value("int32"))}
  features = datasets.Features({"image": datasets.Image(), "objects": objects})
  datasets.Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "saved"))
  options = dict(data=str(tmp_path / "saved"), class_names=("cat", "dog"), box_format="xyxy")
  check_stream("mine", config(entry("mine", "hf_datasets", options)), reason)

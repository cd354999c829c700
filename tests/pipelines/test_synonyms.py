"""Classes called by their other names in training prompts."""

import collections
import dataclasses
import json

import numpy as np
import pytest

from pipelines import prompts, synonyms
from pipelines.build import DataConfig, open_sources
from pipelines.concepts import clean_name, concept_id, normalised_name
from pipelines.prompts import PromptConfig
from pipelines.sources.coco_json import CocoJson
from tests.pipelines.box_dialects import write_coco, write_lvis
from tests.pipelines.test_mixture import read, same


def test_only_what_names_one_class_is_drawn():
  listed = {
    "bull": ["horned_cow"],  # LVIS' one exception: its own name is not among them
    "bow_(weapon)": ["bow_(weapon)", "longbow"],
    "bow_(ribbon)": ["bow_(ribbon)", "ribbon bow"],
    "mouse_(animal)": ["mouse_(animal)", "Mouse", " ", "(rodent)"],  # nothing that is new
    "cat": ["cat", "kitty", "pet"],
    "dog": ["dog", "pet", "bull"],  # names of others
    "hand": ["left_hand"],  # turns wrong in a mirrored picture
    "car_(automobile)": ["car_(automobile)", "Auto__car", "auto car", "motor_car_(x)"],
  }
  assert synonyms.unambiguous(tuple(listed), tuple(listed.values())) == {
    "bull": ("bull", "horned cow"),
    "bow_(weapon)": ("bow ", "longbow"),
    "bow_(ribbon)": ("bow ", "ribbon bow"),
    "cat": ("cat", "kitty"),
    "car_(automobile)": ("car ", "auto car", "motor car"),
  }


def test_the_names_of_lvis(shared):
  root = shared / "data/lvis_sample"
  path = root / "annotations/lvis_v0.5_val_577932.json"
  source = CocoJson(str(path), str(shared / "data/lvis_sample"))
  categories = {c["name"]: c for c in json.loads(path.read_text())["categories"]}
  assert 300 < len(source.synonyms) < 412 == sum(len(c["synonyms"]) > 1 for c in categories.values())
  owner = collections.Counter(normalised_name(name) for name in source.classes)
  for name, (own, *others) in source.synonyms.items():
    assert own == clean_name(name) and others
    assert set(others) <= set(map(normalised_name, categories[name]["synonyms"]))
    owner.update(others)
  assert not [text for names in source.synonyms.values() for text in names[1:] if owner[text] > 1]


def test_a_class_is_called_by_each_name_as_often_and_stays_the_same_concept(shapes):
  classes, known = ("red", "green", "blue"), {"red": ("red", "purple circle", "pink"), "blue": ("blue", "small square")}
  rng, counts = np.random.default_rng(0), collections.Counter()
  for _ in range(600):
    cfg = PromptConfig(mode="all" if rng.random() < 0.5 else "sample", control_probabilities=(0, 0, 1, 0))
    prompt, kept = prompts.detection_prompt(["red", "green", "red"], classes, rng, shapes, cfg, known)
    assert kept.all() and [name for name, _ in sorted(prompt.spans)] == ["blue", "green", "red"]
    shown = {name: prompt.text[begin:end] for name, (begin, end) in prompt.spans}
    counts.update(shown.items())
    encoding = prompt.encode(shapes)
    named = prompts.name_boxes(prompt, encoding, ["red", "green", "red"])
    for row, label in zip(named.positive_map, ["red", "green", "red"], strict=True):
      first, last = np.flatnonzero(row)[[0, -1]]
      assert prompt.text[encoding.offsets[first, 0] : encoding.offsets[last, 1]] == shown[label]
      assert set(named.token_concept[row]) == {concept_id(label)}
    assert named.box_concept.tolist() == [concept_id(label) for label in ("red", "green", "red")]
  assert counts["green", "green"] == 600
  assert all(abs(counts["red", text] - 200) < 50 for text in known["red"])
  assert all(abs(counts["blue", text] - 300) < 50 for text in known["blue"])


@pytest.mark.parametrize("length", [12, 40, 64])
def test_the_room_is_counted_for_what_is_shown(shared, bert, length):
  path = shared / "data/lvis_sample/annotations/lvis_v0.5_val_577932.json"
  source = CocoJson(str(path), str(shared / "data/lvis_sample"))
  words = dataclasses.replace(bert, max_tokens=length)
  rng = np.random.default_rng(length)
  for _ in range(40):
    labels = rng.choice(list(source.synonyms), 12).tolist()
    cfg = PromptConfig(mode="all" if rng.random() < 0.5 else "sample")
    prompt, kept = prompts.detection_prompt(labels, source.classes, rng, words, cfg, source.synonyms)
    encoding = prompt.encode(words)
    assert not encoding.truncated and kept.any()
    np.testing.assert_array_equal(prompts.name_boxes(prompt, encoding, labels).kept, kept)


def lvis(folder, **changes):
  options = write_lvis(folder)
  path = folder / "lvis.json"
  content = json.loads(path.read_text())
  content["categories"][0]["synonyms"] = ["dog", "large_circle"]
  content["categories"][1]["synonyms"] = ["cat"]
  path.write_text(json.dumps(content))
  given = dict(
    sources=(("coco_json", 1.0, tuple(options.items())),),
    tokenizer="shapes",
    max_tokens=64,
    canvases=((32, 48),),
    batch=6,
    prompt=PromptConfig(synonyms=True),
  )
  return DataConfig(**given | changes)


def test_training_draws_them_on_request(tmp_path):
  cfg = lvis(tmp_path)
  batches = read(cfg, 6)
  texts = {info.text for batch in batches for info in batch.info}
  assert {"dog", "large circle"} <= {part for text in texts for part in text.split(". ")}
  assert all(map(same, batches[3:], read(cfg, 3, start_step=3)))
  names = {phrase.name for batch in batches for info in batch.info for phrase in info.phrases}
  assert names == {"dog", "cat"}
  plain = read(lvis(tmp_path, prompt=PromptConfig()), 6)
  assert not any("circle" in info.text for batch in plain for info in batch.info)


def test_what_cannot_be_stops_at_start(tmp_path, shapes):
  with pytest.raises(ValueError, match=r"none of the sources \['coco_json'\] knows other names"):
    coco = ("coco_json", 1.0, tuple(write_coco(tmp_path).items()))
    open_sources(lvis(tmp_path, sources=(coco,)), shapes)
  with pytest.raises(ValueError, match="drop them or set synonyms=False"):
    PromptConfig(mode="all", wordings=(("a ", "dog", ""),), synonyms=True)
  cfg = lvis(tmp_path)
  path = tmp_path / "lvis.json"
  path.write_text(path.read_text().replace('"large_circle"', "3"))
  with pytest.raises(ValueError, match=r"lvis\.json: categories\[0\] has synonyms that are no texts"):
    open_sources(cfg, shapes)

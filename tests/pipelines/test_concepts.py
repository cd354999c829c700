"""Concept ids and the cleaning of class names."""

import itertools
import json

import pytest

from pipelines.concepts import clean_name, concept_id, normalised_name


def test_clean_name_as_published(golden):
  expected = json.loads((golden / "prompts_queries.json").read_text())["clean_name"]
  assert {name: clean_name(name) for name in expected} == expected


@pytest.mark.parametrize(
  "names",
  [("traffic light", "Traffic_Light", " traffic  light ", "traffic light (signal)"), ("tissue ", "Tissue", "tissue")],
)
def test_spellings_of_one_class_share_an_id(names):
  assert len({concept_id(name) for name in names}) == 1


def test_ids_never_change():
  """Checkpoints do not hold ids, but runs on several hosts and restarts have to agree: the numbers are pinned."""
  assert [concept_id(name) for name in ("person", "dog", "")] == [354622858, 2074032336, 154724242]


def test_ids_fit_into_int32_and_differ():
  names = ["".join(pair) for pair in itertools.product("abcdefghijklmnopqrstuvwxyz", repeat=2)]
  ids = {concept_id(name) for name in names}
  assert len(ids) == len(names)
  assert min(ids) >= 0 and max(ids) < 2**31
  assert max(ids) > 2**30  # the whole range is used


def test_no_two_classes_of_the_data_sets_collide(shared):
  files = ("coco_80", "lvis_v1", "objects365_v1", "objects365_v2", "openimages_challenge500")
  lists = [json.loads((shared / "data" / "class_names" / f"{name}.json").read_text()) for name in files]
  texts = {normalised_name(entry["name"]) for entries in lists for entry in entries}
  assert len({concept_id(text) for text in texts}) == len(texts) > 1500


def test_lvis_names_collide_only_where_they_read_alike(shared):
  entries = json.loads((shared / "data" / "class_names" / "lvis_v1.json").read_text())
  names = [entry["name"] for entry in entries]
  assert len(names) == 1203
  assert len({concept_id(name) for name in names}) == len({normalised_name(name) for name in names}) == 1203 - 5

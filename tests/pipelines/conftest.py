"""Tokenizers and class names that several tests of the pipelines use."""

import json

import pytest

from pipelines.words import load_words


@pytest.fixture(scope="session")
def bert(shared):
  return load_words(str(shared / "data" / "tokenizers" / "bert-base-uncased-vocab.txt"), 256)


@pytest.fixture(scope="session")
def clip(shared):
  return load_words(f"clip:{shared / 'data' / 'tokenizers' / 'bpe_simple_vocab_16e6.txt.gz'}", 256)


@pytest.fixture(scope="session")
def shapes():
  return load_words("shapes", 64)


@pytest.fixture(scope="session")
def vocabularies(shared):
  folder = shared / "data" / "class_names"
  lists = {"coco": "coco_80.json", "lvis": "lvis_v1.json"}
  return {key: [entry["name"] for entry in json.loads((folder / name).read_text())] for key, name in lists.items()}

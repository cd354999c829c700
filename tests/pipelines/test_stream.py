"""A mixture of every dialect with boxes: the same on any number of workers and hosts and after a restart, with mirrored
pictures, packed captions and hidden words."""

import collections
import dataclasses

import numpy as np
import pytest

from pipelines.build import DataConfig, train_batches
from pipelines.masking import MaskingConfig
from pipelines.prompts import PromptConfig
from pipelines.records import GROUNDED
from pipelines.sources import open_source
from pipelines.sources.shapes import Shapes
from pipelines.words import load_words
from tests.pipelines.box_dialects import BOX_WRITERS
from tests.pipelines.dialects import WRITERS
from tests.pipelines.test_mixture import read, same

EVERY = WRITERS | BOX_WRITERS


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
  """name -> entry of DataConfig.sources, every dialect that tells where things are."""
  found = {}
  for name, (kind, write, options) in EVERY.items():
    options = write(tmp_path_factory.mktemp(name)) | options
    if open_source(kind, **options).kind in GROUNDED:
      found[name] = (kind, 1.0, tuple({**options, "name": name}.items()))
  return found


def config(entries, **changes):
  given = dict(
    sources=tuple(entries),
    tokenizer="shapes",
    max_tokens=64,
    canvases=((32, 48), (48, 32), (64, 96)),
    batch=6,
    weighting="repeats",
    temperature=2.0,
    pixels="fast",
    prompt=PromptConfig(pack=3, pack_none=0.2),
    masking=MaskingConfig(own_caption_only=True),
    box_tolerance_px=2.0,
  )
  return DataConfig(**given | changes)


def test_every_dialect_in_one_stream_is_exact(entries):
  assert len(entries) >= 10
  cfg = config(entries.values())
  alone = read(cfg, 12)
  seen = collections.Counter()
  for batch in alone:
    seen.update(batch.rows)
  assert len(seen) >= 5 and sum(seen.values()) == 72
  assert all(map(same, alone, read(dataclasses.replace(cfg, workers=2), 12)))
  assert all(map(same, alone[7:], read(cfg, 5, start_step=7)))
  for host in range(2):
    part = read(cfg, 4, start_step=8, host=host, hosts=2)
    for whole, half in zip(alone[8:], part, strict=True):
      rows = slice(3 * host, 3 * host + 3)
      np.testing.assert_array_equal(half.batch.image, whole.batch.image[rows])
      np.testing.assert_array_equal(half.batch.mlm_labels, whole.batch.mlm_labels[rows])
      assert half.info == whole.info[rows]


def test_captions_are_packed_with_others_of_their_source_and_only_the_own_one_is_predicted():
  source = Shapes(task="grounding", size=(64, 64), length=20)
  captions = [source.caption(i) for i in range(20)]
  entry = ("shapes", 1.0, (("task", "grounding"), ("size", (64, 64)), ("length", 20)))
  cfg = config([entry], batch=8, canvases=((64, 64),), max_tokens=128, flip=0.0)
  cfg = dataclasses.replace(cfg, masking=MaskingConfig(probability=1.0, own_caption_only=True))
  words, packed = load_words("shapes", 128), 0
  for batch in read(cfg, 4):
    for row, info in enumerate(batch.info):
      own = captions[info.image_id]
      begin = info.text.index(own)
      assert info.text.count(own) == 1 and (info.text == own or info.text.endswith(". "))
      packed += info.text != own
      others = info.text[:begin] + info.text[begin + len(own) :]
      assert not set(filter(None, others.split(". "))) - {c.removesuffix(".") for c in captions} - {"."}
      first = 1 + words.count(info.text[:begin])
      predicted = np.flatnonzero(batch.batch.mlm_labels[row] >= 0)
      assert predicted.tolist() == list(range(first, first + words.count(own)))
      assert set(np.flatnonzero(batch.batch.positive_map[row].any(0))) <= set(predicted.tolist())
  assert packed > 10


def test_impossible_packing_stops_at_start(entries):
  class Mute:
    name, kind, classes = "mute", "grounding", ()

    def __len__(self):
      return 3

  cfg = config([("coco_json", 1.0, ())])
  with pytest.raises(ValueError, match="prompt.pack=3: source 'mute' cannot read single captions"):
    train_batches(cfg, sources=(Mute(),))

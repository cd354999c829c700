"""What all sources of texts have in common: random access, pickles, captions without pictures, no byte breaks them."""

import pathlib

import numpy as np
import pytest

from pipelines.records import BadRecord
from pipelines.sources import open_source
from tests.pipelines import fuzz
from tests.pipelines.box_dialects import BOX_WRITERS
from tests.pipelines.dialects import WRITERS, check_example, copied, read_all, same

ANNOTATIONS = {".json", ".jsonl", ".tsv", ".lineidx", ".yaml", ".txt", ".xml", ".tar", ".csv", ".p"}
EVERY = WRITERS | BOX_WRITERS


@pytest.mark.parametrize("name", EVERY)
def test_records_are_complete_and_travel_to_workers(tmp_path, name):
  kind, write, _ = EVERY[name]
  source = open_source(kind, **write(tmp_path))
  found = read_all(source)
  assert found and not [x for x in found if isinstance(x, BadRecord)]
  assert all(same(a, b) for a, b in zip(found, read_all(copied(source)), strict=True))
  for index in (len(source) - 1, 0, np.int64(len(source) // 2)):
    assert same(source[index], found[index])
    if source.kind in ("grounding", "caption"):
      assert source.caption(index) == found[index].caption
  with pytest.raises(IndexError):
    source[len(source)]


@pytest.mark.parametrize("name", EVERY)
def test_no_byte_breaks_a_source(tmp_path, name):
  """A mutated annotation file is refused at start-up with its name, or its records are BadRecords or well-formed:
  nothing hangs and no other exception comes out."""
  kind, write, _ = EVERY[name]
  options = write(tmp_path)
  files = [p for p in sorted(tmp_path.rglob("*")) if p.suffix in ANNOTATIONS and not p.name.startswith("x")]
  originals = {path: path.read_bytes() for path in files}
  rng, refused, noticed = np.random.default_rng(0), 0, 0
  clean = read_all(open_source(kind, **options))
  for _ in range(40):
    path: pathlib.Path = files[rng.integers(len(files))]
    path.write_bytes(fuzz.mutated(originals[path], rng))
    try:
      with fuzz.time_limit():
        source = open_source(kind, **options)
        found = read_all(source)
      noticed += len(found) != len(clean) or not all(map(same, found, clean))
      for example in found:
        if not isinstance(example, BadRecord):
          check_example(example, source)
    except (ValueError, OSError) as error:
      assert str(tmp_path) in str(error)
      refused += 1
    finally:
      path.write_bytes(originals[path])
  assert refused + noticed > 8


@pytest.mark.parametrize("name", [name for name in BOX_WRITERS if name not in ("voc", "imagenet", "openimages")])
def test_no_change_of_structure_passes_unnoticed(tmp_path, name):
  """After any mutation a json file with other keys, lengths or types is refused, gives BadRecords, or reads as before:
  what was changed is nothing that is read."""
  kind, write, _ = EVERY[name]
  options = write(tmp_path)
  originals = {path: path.read_bytes() for path in sorted(tmp_path.glob("*.json"))}
  files, rng, seen = list(originals), np.random.default_rng(1), 0
  clean = read_all(open_source(kind, **options))
  for turn in range(80):
    path = files[rng.integers(len(files))]
    changed = (fuzz.mutated if turn % 3 == 0 else fuzz.misspelt)(originals[path], rng)
    if not fuzz.other_structure(originals[path], changed):
      continue
    path.write_bytes(changed)
    seen += 1
    try:
      with fuzz.time_limit():
        found = read_all(open_source(kind, **options))
    except (ValueError, OSError):
      continue
    finally:
      path.write_bytes(originals[path])
    assert fuzz.any_bad(found) or (len(found) == len(clean) and all(map(same, found, clean))), changed
  assert seen > 30

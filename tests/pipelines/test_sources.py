"""What all sources of texts have in common: random access, pickles, captions without pictures, no byte breaks them."""

import pathlib
import signal

import numpy as np
import pytest

from pipelines.records import BadRecord
from pipelines.sources import open_source
from tests.pipelines.dialects import WRITERS, check_example, copied, open_dialect, read_all, same

ANNOTATIONS = {".json", ".jsonl", ".tsv", ".lineidx", ".yaml", ".txt", ".xml", ".tar"}


@pytest.mark.parametrize("name", WRITERS)
def test_records_are_complete_and_travel_to_workers(tmp_path, name):
  source = open_dialect(name, tmp_path)
  found = read_all(source)
  assert found and not [x for x in found if isinstance(x, BadRecord)]
  assert all(same(a, b) for a, b in zip(found, read_all(copied(source)), strict=True))
  for index in (len(source) - 1, 0, np.int64(len(source) // 2)):
    assert same(source[index], found[index])
    if source.kind in ("grounding", "caption"):
      assert source.caption(index) == found[index].caption
  with pytest.raises(IndexError):
    source[len(source)]


def fuzz(data: bytes, rng: np.random.Generator) -> bytes:
  """One mutation: bytes changed, cut out, doubled or cut off."""
  at, length = int(rng.integers(len(data))), int(rng.integers(1, 9))
  how = rng.integers(4)
  if how == 0:
    return data[:at] + rng.integers(0, 256, length, np.uint8).tobytes() + data[at + length :]
  if how == 1:
    return data[:at] + data[at + length :]
  if how == 2:
    return data[: at + length] + data[at:]
  return data[:at]


@pytest.mark.parametrize("name", WRITERS)
def test_no_byte_breaks_a_source(tmp_path, name):
  """A mutated annotation file is refused at start-up, or its records are BadRecords or well-formed: nothing hangs and
  no other exception comes out."""
  options = WRITERS[name][1](tmp_path)
  files = [p for p in sorted(tmp_path.rglob("*")) if p.suffix in ANNOTATIONS and not p.name.startswith("x")]
  originals = {path: path.read_bytes() for path in files}
  rng, refused, noticed = np.random.default_rng(0), 0, 0

  def alarm(*_):
    raise TimeoutError("a mutated file takes more than 20 seconds")

  signal.signal(signal.SIGALRM, alarm)
  clean = read_all(open_source(WRITERS[name][0], **options))
  for _ in range(60):
    path: pathlib.Path = files[rng.integers(len(files))]
    path.write_bytes(fuzz(originals[path], rng))
    signal.alarm(20)
    try:
      source = open_source(WRITERS[name][0], **options)
      found = read_all(source)
      noticed += len(found) != len(clean) or not all(map(same, found, clean))
      for example in found:
        if not isinstance(example, BadRecord):
          check_example(example, source)
    except (ValueError, OSError) as error:
      assert str(error) and not isinstance(error, TimeoutError)
      refused += 1
    finally:
      signal.alarm(0)
      path.write_bytes(originals[path])
  assert refused + noticed > 12

"""Shards that `glipv2 data prepare` wrote from another source: ArrayRecord files of whole Examples, read at random.

`manifest.json` tells the shards and what the source was, `sizes.npy` how large the pictures are. Few files are open at
a time and their index stays on disk, so memory hardly depends on the size of the data set.
"""

import collections
import pathlib
import threading

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from pipelines.example_bytes import from_bytes
from pipelines.records import KINDS, BadRecord, Example
from pipelines.sources.parts import check_names, items, mapping, read_small_json, side, text

MANIFEST = "manifest.json"
SIZES = "sizes.npy"
VERSION = 1
_OPEN = 64  # files at a time
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0,index_storage_option:offloaded,footer_prefetch_bytes:0"


class ArrayRecords:
  """Random access to the records of a folder of shards, in the order of the source they were made of.

  Attributes: name, kind and classes are those of that source.
  """

  def __init__(self, data: str):
    """Reads the manifest.

    Args:
      data: the folder.

    Raises:
      FileNotFoundError, ValueError: the manifest or a shard is missing, or has another size than the manifest tells.
    """
    self._folder = folder = pathlib.Path(data)
    path = folder / MANIFEST
    content = read_small_json(path, "data", "the folder that `glipv2 data prepare` finished")
    try:
      if mapping(content, "the manifest")["version"] != VERSION:
        raise ValueError(f"version {content['version']!r:.40} is not {VERSION}; prepare the data again")
      if "tfds" in content:
        raise ValueError(f"its records are of TFDS; read its split {content['tfds']!r:.40} with the source tfds_data")
      self.name, self.kind = text(content["name"], "name"), text(content["kind"], "kind")
      self.classes = tuple(items(content["classes"], "classes"))
      check_names(path, self.classes)
      if self.kind not in KINDS:
        raise ValueError(f"kind {self.kind!r:.40} is not one of {KINDS}")
      shards = [mapping(shard, "a shard") for shard in items(content["shards"], "shards")]
      shards = [shard for shard in shards if shard["records"] != 0]
      self._files = tuple(str(folder / pathlib.PurePath(text(shard["file"], "file")).name) for shard in shards)
      self._ends = np.cumsum([0, *(side(shard["records"], "records") for shard in shards)])
      sizes = [shard["bytes"] for shard in shards]
    except (KeyError, TypeError) as error:
      raise ValueError(f"{path} is no manifest of shards ({error!r}); prepare the data again") from error
    except ValueError as error:
      raise ValueError(f"{path}: {error}") from error
    for file, size in zip(self._files, sizes, strict=True):
      found = pathlib.Path(file)
      if not found.is_file() or found.stat().st_size != size:
        raise FileNotFoundError(f"{file} is missing or has not the {size} bytes that {path} tells; prepare it again")
    if not self._files:
      raise ValueError(f"{path} has no record; prepare another part of the data")
    self._readers, self._lock = collections.OrderedDict(), threading.Lock()

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> Example:
    """Raises BadRecord('broken_record') when the file is damaged there."""
    if not 0 <= index < len(self):
      raise IndexError(f"record {index} of {len(self)} in {self.name}")
    shard = int(np.searchsorted(self._ends, index, side="right")) - 1
    row = int(index) - int(self._ends[shard])
    try:
      (data,) = self._reader(shard).read([row])
      return from_bytes(data)
    except (ValueError, RuntimeError, OSError, IndexError) as error:  # array_record raises what absl's status becomes
      place = f"{self._files[shard]}, record {row}: {error}"
      raise BadRecord("broken_record", f"{self.name}/[{index}]", place[:300]) from error

  def sizes(self) -> np.ndarray:
    """n 2 int32: height and width of every picture. Raises FileNotFoundError, ValueError."""
    path = self._folder / SIZES
    if not path.is_file():
      raise FileNotFoundError(f"{path} is missing; run the command that prepared the data again")
    sizes = np.load(path, allow_pickle=False)
    if sizes.shape != (len(self), 2) or sizes.dtype != np.int32:
      raise ValueError(f"{path} holds {sizes.shape} {sizes.dtype}, not {(len(self), 2)} int32; prepare the data again")
    return sizes

  def caption(self, index: int) -> str:
    """The text of a record. Raises BadRecord('broken_record' or 'empty_caption')."""
    example = self[index]
    if not example.caption.strip():
      raise BadRecord("empty_caption", example.record)
    return example.caption

  def _reader(self, shard: int) -> ArrayRecordReader:
    with self._lock:
      if shard not in self._readers:
        self._readers[shard] = ArrayRecordReader(self._files[shard], _OPTIONS, file_reader_buffer_size=1 << 16)
      self._readers.move_to_end(shard)
      while len(self._readers) > _OPEN:
        self._readers.popitem(last=False)  # closed when the last thread that reads in it is done
      return self._readers[shard]

  def __getstate__(self) -> dict:
    return {key: value for key, value in self.__dict__.items() if key not in ("_readers", "_lock")}

  def __setstate__(self, state: dict) -> None:
    self.__dict__ |= state
    self._readers, self._lock = collections.OrderedDict(), threading.Lock()

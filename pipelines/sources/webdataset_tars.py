"""Image-text pairs in webdataset's tar shards: `000012.jpg` and `000012.txt` (or `.json`) side by side.

Where the members lie is found once per shard, by reading its headers, and kept in a small file (`index`); after that a
pair is two reads at known bytes. Nothing is ever unpacked to disk. The pairs have no boxes (kind 'caption').
"""

import glob
import hashlib
import json
import logging
import os
import pathlib
import tarfile
import zipfile

import numpy as np

from pipelines.records import BadRecord, Example, record_name
from pipelines.sources.parts import faults_as_bad_record, mapping, text

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_LARGEST = 1 << 28  # bytes of one member
_LOG = logging.getLogger(__name__)


class WebdatasetTars:
  """Random access to the pairs of all shards; 32 bytes of memory for each. The id of a record is its position.

  Members of one pair share their name up to the first dot of the last part, as in webdataset. Members that are no plain
  file, or without a partner, are left out: `left_out` counts them.

  Attributes:
    kind: 'caption'; classes: ().
  """

  kind, classes = "caption", ()

  def __init__(self, shards: str, *, index: str = "", caption_key: str = "", name: str = "webdataset_tars"):
    """Finds the pairs, or reads where they are from `index`.

    Args:
      shards: the tar files, with * and ?, in order of their names.
      index: the folder of the files that remember where members are; '' for `.index` beside the first shard.
      caption_key: the entry of the `.json` member that is the caption; '' takes the whole `.txt` member.
      name: of this data set, for messages and counts.

    Raises:
      FileNotFoundError, ValueError: no shard, a shard that is cut short or no tar file, or no pair in all of them.
    """
    self.name, self._key, self._file = name, caption_key, (None, -1)
    self._shards = sorted(glob.glob(shards))
    if not self._shards:
      raise FileNotFoundError(f"no file matches {shards}; set `shards` to the tar files, such as 'folder/*.tar'")
    folder = pathlib.Path(index) if index else pathlib.Path(self._shards[0]).parent / ".index"
    tables = [_members(path, ".json" if caption_key else ".txt", folder) for path in self._shards]
    self.left_out = sum(int(left_out) for _, left_out in tables)
    self._places = np.concatenate([places for places, _ in tables])
    self._ends = np.cumsum([len(places) for places, _ in tables])
    self._versions = [_version(path) for path in self._shards]
    if not len(self):
      wanted = f".json (for caption_key={caption_key!r})" if caption_key else ".txt (set `caption_key` to use .json)"
      raise ValueError(f"{shards}: no pair of a picture and a {wanted} in {len(self._shards)} shards")
    if self.left_out:
      _LOG.warning("%s: %d members of the shards have no partner or are no plain files: left out", name, self.left_out)

  def __len__(self) -> int:
    return len(self._places)

  def _read(self, index: int, column: int) -> bytes:
    """One member: `column` 0 the picture, 2 the text."""
    if not 0 <= index < len(self):
      raise IndexError(f"record {index} of {len(self)} in {self.name}")
    shard = int(np.searchsorted(self._ends, index, side="right"))
    begin, size = self._places[index, column : column + 2].tolist()
    file, opened = self._file  # one assignment each way: another thread may open the next shard meanwhile
    if opened != shard:
      file = open(self._shards[shard], "rb", buffering=0)
      if _version(file.fileno()) != self._versions[shard]:
        file.close()
        raise ValueError(f"{self._shards[shard]} was changed since it was indexed; start again")
      self._file = (file, shard)
    return os.pread(file.fileno(), size, begin)

  def caption(self, index: int) -> str:
    """The text of a record, without its picture. Raises BadRecord('broken_annotation' or 'empty_caption')."""
    record = record_name(self.name, index)
    with faults_as_bad_record(record):
      found = self._read(index, 2).decode("utf-8-sig")
      if self._key:
        found = text(mapping(json.loads(found), "the .json member")[self._key], self._key)
    if not found.strip():
      raise BadRecord("empty_caption", record)
    return " ".join(found.split())

  def __getitem__(self, index: int) -> Example:
    """Raises BadRecord('broken_annotation', 'empty_caption' or 'missing_image')."""
    caption = self.caption(index)
    try:
      picture = self._read(index, 0)
    except (OSError, ValueError) as error:
      raise BadRecord("missing_image", record_name(self.name, index), str(error)) from error
    return Example(self.name, index, "caption", picture, np.zeros((0, 4), np.float32), caption=caption)

  def __getstate__(self) -> dict:
    return self.__dict__ | {"_file": (None, -1)}


def _members(path: str, text_suffix: str, folder: pathlib.Path) -> tuple[np.ndarray, int]:
  """Begin and size of picture and text of each pair (n 4 int64), and how many members were left out; remembered in
  `folder` under a name that depends on the shard's path, size and time, so that a new version is read anew."""
  version = f"{os.path.abspath(path)} {_version(path)} {text_suffix}"
  known = folder / f"{pathlib.Path(path).stem}.{hashlib.blake2b(version.encode(), digest_size=8).hexdigest()}.npz"
  try:
    with np.load(known) as kept:
      return kept["places"], int(kept["left_out"])
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    places, left_out = scan(path, text_suffix)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    part = known.with_suffix(f".{os.getpid()}.part.npz")
    np.savez(part, places=places, left_out=left_out)
    part.replace(known)
  except OSError as error:
    _LOG.warning("%s cannot be written (%s): the shard is indexed again next time; set `index`", known, error)
  return places, left_out


def _version(path: str | int) -> tuple[int, int]:
  """Size and time of a file, which change with it."""
  status = os.stat(path)
  return status.st_size, status.st_mtime_ns


def scan(path: str, text_suffix: str) -> tuple[np.ndarray, int]:
  """Reads the headers of a tar file: the pairs' places as in `_members`. Raises ValueError."""
  pictures, texts, members, size = {}, {}, 0, os.path.getsize(path)
  try:
    with tarfile.open(path, "r:") as tar:
      while (member := tar.next()) is not None:
        tar.members = []  # it would keep them all
        if member.isdir():
          continue
        members += 1
        if not member.isreg() or member.issparse() or member.size > _LARGEST:
          continue
        if member.offset_data + member.size > size:
          raise ValueError(f"{path} is cut short inside {member.name!r}; copy it again or leave it out of `shards`")
        folder, _, base = member.name.rpartition("/")
        key, _, suffix = base.partition(".")
        suffix = f".{suffix.lower()}"
        if suffix in PICTURES or suffix == text_suffix:
          known = texts if suffix == text_suffix else pictures
          if (folder, key) in known:
            raise ValueError(f"{path}: {member.name!r} is the second member of its pair with that role; rename it")
          known[folder, key] = (member.offset_data, member.size)
        elif suffix in (".txt", ".json"):
          members -= 1  # more about the pair, not wanted here
  except tarfile.TarError as error:
    raise ValueError(f"{path} is no complete tar file ({error}); copy it again or leave it out of `shards`") from error
  places = [(*place, *texts[key]) for key, place in pictures.items() if key in texts]
  return np.array(places, np.int64).reshape(-1, 4), members - 2 * len(places)

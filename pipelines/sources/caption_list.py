"""Lists of captions and addresses (CC3M, CC12M, SBU) over a folder of pictures that were downloaded from them.

CC3M is `caption <TAB> url`, CC12M `url <TAB> caption`; `columns` says which. How the downloading program named the
files is told by a pattern. Many addresses are dead, so rows without a picture are left out at start-up and counted.
The pairs have no boxes (kind 'caption').
"""

import hashlib
import logging
import os
import zlib

import numpy as np

from pipelines.records import BadRecord, Example, record_name
from pipelines.sources.lines import Lines
from pipelines.sources.parts import faults_as_bad_record
from pipelines.sources.pictures import check_folder, read_picture

_LOG = logging.getLogger(__name__)


class CaptionList:
  """Random access to the rows that have a picture. The id of a record is the number of its line, from 0.

  Attributes:
    kind: 'caption'; classes: ().
    absent: rows without a picture.
  """

  kind, classes = "caption", ()

  def __init__(
    self,
    annotations: str,
    images: str,
    *,
    columns: tuple[str, ...] = ("caption", "url"),
    file_name: str = "{row:09d}.jpg",
    name: str = "caption_list",
  ):
    """Reads the list once and looks which pictures are there.

    Args:
      annotations: the list, columns separated by tabs, without a header.
      images: the folder of the pictures, searched with its folders.
      columns: names of the columns; one is 'caption'.
      file_name: where a picture lies in the folder: a pattern of `row` (number of the line), `md5` and `crc32` (of the
        url), and the names of the columns, such as '{row:09d}.jpg', '{md5}.jpg', '{row}_{crc32}' or '{file}'.
      name: of this data set, for messages and counts.

    Raises:
      FileNotFoundError, ValueError: a file or folder is missing, the options do not fit, or no row has a picture.
    """
    self.name, self.folder, self.columns, self._pattern = name, os.fspath(images), tuple(columns), file_name
    if self.columns.count("caption") != 1 or len(set(self.columns)) < len(self.columns):
      raise ValueError(f"columns {self.columns} need the name 'caption' once and no name twice")
    check_folder(self.folder, "images")
    self._lines = Lines(annotations, "annotations")
    try:
      example = self._file_name(0, self._row(0))
    except (KeyError, IndexError) as error:
      raise ValueError(f"file_name {file_name!r} asks for {error}; known: row, md5, crc32, {self.columns}") from error
    except ValueError as error:
      raise ValueError(f"{annotations}: line 1 {error}; set `columns` and `file_name`") from error
    there = _files(self.folder)
    self._rows = np.array([row for row in range(len(self._lines)) if self._named(row) in there], np.int64)
    self.absent = len(self._lines) - len(self._rows)
    if not len(self):
      raise FileNotFoundError(
        f"none of the {len(self._lines)} pictures of {annotations} is in {self.folder}, for example {example}; "
        "check `images`, `columns` and `file_name`"
      )
    if self.absent:
      _LOG.warning("%s: %d of %d rows have no picture in %s: left out", name, self.absent, len(self._lines), images)

  def _row(self, row: int) -> dict[str, str]:
    """Raises ValueError."""
    fields = self._lines[row].decode("utf-8").split("\t")
    if len(fields) != len(self.columns):
      raise ValueError(f"has {len(fields)} columns instead of {self.columns}")
    return dict(zip(self.columns, fields, strict=True))

  def _file_name(self, row: int, fields: dict[str, str]) -> str:
    url = fields.get("url", "").encode()
    md5 = hashlib.md5(url, usedforsecurity=False).hexdigest()
    return os.path.normpath(self._pattern.format(row=row, md5=md5, crc32=zlib.crc32(url), **fields))

  def _named(self, row: int) -> str | None:
    """The file of a row; None for a row that cannot be read, which is absent too."""
    try:
      return self._file_name(row, self._row(row))
    except ValueError:
      return None

  def __len__(self) -> int:
    return len(self._rows)

  def caption(self, index: int) -> str:
    """The text of a record, without its picture. Raises BadRecord('broken_annotation' or 'empty_caption')."""
    row = int(self._rows[index])
    record = record_name(self.name, row)
    with faults_as_bad_record(record):
      caption = " ".join(self._row(row)["caption"].split())
    if not caption:
      raise BadRecord("empty_caption", record)
    return caption

  def __getitem__(self, index: int) -> Example:
    """Raises BadRecord('missing_image', 'broken_annotation' or 'empty_caption')."""
    caption, row = self.caption(index), int(self._rows[index])
    record = record_name(self.name, row)
    picture = read_picture(os.path.join(self.folder, self._named(row) or ""), record)
    return Example(self.name, row, "caption", picture, np.zeros((0, 4), np.float32), caption=caption)


def _files(folder: str) -> set[str]:
  """All files in a folder and its folders, relative to it."""
  walk = ((os.path.relpath(path, folder), names) for path, _, names in os.walk(folder))
  return {os.path.normpath(os.path.join(path, name)) for path, names in walk for name in names}

"""Picture files whose names are found in a record only when it is used."""

import os

from pipelines.records import BadRecord


def read_picture(path: str, record: str) -> bytes:
  """The encoded picture. Raises BadRecord('missing_image') naming `record`."""
  if not os.path.isfile(path):  # before it is opened: a pipe or a device would never end
    raise BadRecord("missing_image", record, f"{path}: no such file")
  try:
    with open(path, "rb") as stream:
      return stream.read()
  except OSError as error:
    raise BadRecord("missing_image", record, f"{path}: {error.strerror}") from error


def check_folder(folder: str, option: str) -> None:
  """For start-up: raises FileNotFoundError when the folder is missing."""
  if not os.path.isdir(folder):
    raise FileNotFoundError(f"image folder {folder} does not exist; set `{option}` to the folder of the pictures")

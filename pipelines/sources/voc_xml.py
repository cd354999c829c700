"""Detection data in Pascal VOC's xml format, one file per picture: VOC itself, ImageNetBoxes, or one's own folder.

Corners are 1-based and inclusive, so 1 is subtracted from all four. The xml of a picture is read when the picture is:
the index takes the name of the file and 8 bytes per picture.
"""

import os
import pathlib
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence

import numpy as np

from pipelines.records import Example, record_name
from pipelines.sources.index import Strings
from pipelines.sources.parts import check_names, faults_as_bad_record
from pipelines.sources.pictures import Pictures, check_folder

_LARGEST = 1 << 24  # bytes of one annotation file
_IMAGENET = re.compile(r"(?:n(?P<synset>\d{8})_|ILSVRC2012_val_)(?P<number>\d{1,8})")


class _Things:
  """What one xml says: `size` (height, width) or None, and of each object its name, corners and whether it is hard."""

  def __init__(self, data: bytes):
    """Raises ValueError for what is not an annotation."""
    if b"<!" in data.replace(b"<!--", b""):  # entities can blow up, and point to other files
      raise ValueError("it holds a document type or an entity, which no annotation needs")
    try:
      root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # LookupError: an unknown encoding
      raise ValueError(f"it is not valid xml: {error}") from error
    if root.tag != "annotation":
      raise ValueError(f"its root is {root.tag!r:.40}, not 'annotation'")
    if strangers := {part.tag for part in root} & {"objects", "bndbox"}:
      raise ValueError(f"it has {strangers} where objects are expected")
    self.size = self._size(root)
    self.names, self.corners, self.hard = [], [], []
    for thing in root.findall("object"):
      self.names.append(_text(thing, "name"))  # its parts, which have names too, lie deeper
      box = _one(thing, "bndbox")
      self.corners.append([_number(box, side) - 1 for side in ("xmin", "ymin", "xmax", "ymax")])
      self.hard.append(thing.find("difficult") is not None and _number(thing, "difficult") != 0)

  @staticmethod
  def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    if root.find("size") is None:
      return None
    size = tuple(_number(_one(root, "size"), side) for side in ("height", "width"))
    if not all(0 <= side < 2**31 and side == int(side) for side in size):
      raise ValueError(f"its size {size} (height, width) is not whole")
    return (int(size[0]), int(size[1])) if all(size) else None


def _one(parent: ElementTree.Element, tag: str) -> ElementTree.Element:
  found = parent.findall(tag)
  if len(found) != 1:
    raise ValueError(f"its {parent.tag} has {len(found)} {tag}, not one")
  return found[0]


def _text(parent: ElementTree.Element, tag: str) -> str:
  text = (_one(parent, tag).text or "").strip()
  if not text:
    raise ValueError(f"the {tag} of its {parent.tag} is empty")
  return text


def _number(parent: ElementTree.Element, tag: str) -> float:
  text = _text(parent, tag)
  try:
    return float(text)
  except ValueError:
    raise ValueError(f"the {tag} of its {parent.tag} is {text!r:.40}, no number") from None


def _read(path: str) -> bytes:
  if not os.path.isfile(path) or os.path.getsize(path) > _LARGEST:
    raise ValueError(f"{path} is missing or has more than {_LARGEST} bytes")
  with open(path, "rb") as file:
    return file.read()


class VocXml:
  """Random access to the pictures of one folder of xml files, sorted by name.

  Difficult objects are left out; their classes become `unsure`. Attributes: as of every Source; image ids count from 0.
  """

  kind = "detection"

  def __init__(
    self,
    annotations: str,
    images: str,
    *,
    name: str = "voc_xml",
    split: str = "",
    suffix: str = ".jpg",
    class_names: Sequence[str] = (),
  ):
    """Finds the files.

    Args:
      annotations: the folder of {stem}.xml.
      images: the folder of {stem}{suffix}.
      name: of this data set, for messages and counts.
      split: a file with the stems to use, one per line (ImageSets/Main/train.txt); all xml files without it.
      suffix: of the picture files.
      class_names: the vocabulary; without it all xml files are read for it at start-up, sorted by name.

    Raises:
      FileNotFoundError, ValueError: a folder or file is missing, or there is nothing to read.
    """
    self.name = name
    check_folder(images)
    if not os.path.isdir(annotations):
      raise FileNotFoundError(f"{annotations} does not exist; set `annotations` to the folder of the xml files")
    stems = _listed(pathlib.Path(split)) if split else _stems(annotations)
    if not stems:
      raise ValueError(f"{annotations} has no xml file; set `annotations` to the folder of the xml files")
    self._setup(annotations, stems, images, suffix)
    self._ids = np.arange(len(stems))
    if class_names:
      check_names(pathlib.Path(annotations), class_names)
    self.classes = tuple(class_names) or self._found_classes()
    self._names = {label: label for label in self.classes}

  def _setup(self, annotations: str, stems: list[str], images: str, suffix: str) -> None:
    self.folder, self._stems = annotations, Strings(stems)
    self._pictures = Pictures.found(images, [[stem + suffix for stem in stems]], range(len(stems)))

  def _found_classes(self) -> tuple[str, ...]:
    found = set()
    for i in range(len(self)):
      try:
        found.update(_Things(_read(self._path(i))).names)
      except ValueError:
        continue  # a bad record, named and counted when its turn comes
    if not found:
      raise ValueError(f"no xml file in {self.folder} has a readable object; set `annotations` to VOC's xml files")
    return tuple(sorted(found))

  def _path(self, i: int) -> str:
    return os.path.join(self.folder, self._stems[i] + ".xml")

  def __len__(self) -> int:
    return len(self._stems)

  def __getitem__(self, index: int) -> Example:
    """Raises BadRecord('missing_image' | 'broken_annotation')."""
    image_id = int(self._ids[index])
    record = record_name(self.name, image_id)
    path = self._path(index)
    with faults_as_bad_record(record):
      try:
        things = _Things(_read(path))
        labels = [self._label(name) for name in things.names]
      except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    sure = [i for i, hard in enumerate(things.hard) if not hard]
    return Example(
      source=self.name,
      image_id=image_id,
      kind="detection",
      image=self._pictures.read(index, record),
      boxes_xyxy_px=np.array([things.corners[i] for i in sure]).reshape(-1, 4).clip(-1e30, 1e30).astype(np.float32),
      labels=tuple(labels[i] for i in sure),
      unsure=tuple(sorted({label for label, hard in zip(labels, things.hard, strict=True) if hard})),
      image_size=things.size,
    )

  def _label(self, name: str) -> str:
    if name not in self._names:
      raise ValueError(f"the class {name!r:.40} is not in the vocabulary")
    return self._names[name]


class ImageNetBoxes(VocXml):
  """The boxes of ImageNet's classification and localisation task, the train or the val split.

  A picture is annotated with its own class alone. What else is in it is not known, but prompts ask for the other
  classes as negatives all the same, as the authors do. A class is called by the first of its synonyms; the two synsets
  called crane, and the two called maillot, are one class each. Image ids: the digits of the file name, so that
  n01440764_10040 is 144076400010040.
  """

  def __init__(self, annotations: str, images: str, synsets: str, *, name: str = "imagenet_boxes"):
    """Finds the files.

    Args:
      annotations: the folder Annotations/CLS-LOC/train (a folder for each synset) or val.
      images: the folder Data/CLS-LOC/train or val.
      synsets: LOC_synset_mapping.txt.
      name: of this data set, for messages and counts.

    Raises:
      FileNotFoundError, ValueError: as VocXml.
    """
    self.name = name
    check_folder(images)
    self._names = _synsets(pathlib.Path(synsets))
    self.classes = tuple(dict.fromkeys(self._names.values()))
    if not os.path.isdir(annotations):
      raise FileNotFoundError(f"{annotations} does not exist; set `annotations` to the folder CLS-LOC/train or val")
    folders = sorted(entry.name for entry in os.scandir(annotations) if entry.is_dir() and entry.name in self._names)
    stems = [f"{folder}/{stem}" for folder in folders for stem in _stems(os.path.join(annotations, folder))]
    stems += _stems(annotations)
    if not stems:
      raise ValueError(f"{annotations} has no xml file; set `annotations` to the folder CLS-LOC/train or val")
    self._ids = np.array([_imagenet_id(annotations, stem) for stem in stems], np.int64)
    self._setup(annotations, stems, images, ".JPEG")


def _stems(folder: str) -> list[str]:
  return sorted(entry.name.removesuffix(".xml") for entry in os.scandir(folder) if entry.name.endswith(".xml"))


def _lines(path: pathlib.Path, option: str) -> Iterator[str]:
  if not path.is_file():
    raise FileNotFoundError(f"{path} does not exist; check `{option}`")
  try:
    lines = path.read_text(encoding="utf-8").splitlines()
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is no text ({error}); check `{option}`") from error
  return (line.strip() for line in lines if line.strip())


def _listed(path: pathlib.Path) -> list[str]:
  """The first word of each line; lists of one class (aeroplane_train.txt) have a second one, which must not be -1."""
  words = [line.split() for line in _lines(path, "split")]
  stems = [line[0] for line in words if len(line) == 1 or line[1] != "-1"]
  if any("/" in stem or "\0" in stem for stem in stems) or len(set(stems)) < len(stems):
    raise ValueError(f"{path} lists a file twice, or a path; it needs one file name without ending per line")
  return stems


def _synsets(path: pathlib.Path) -> dict[str, str]:
  """WordNet id -> class name."""
  names: dict[str, str] = {}
  for number, line in enumerate(_lines(path, "synsets"), 1):
    synset, _, synonyms = line.partition(" ")
    name = synonyms.split(",")[0].strip()
    if not re.fullmatch(r"n\d{8}", synset) or not name or synset in names:
      raise ValueError(
        f"{path}, line {number} is {line!r:.80}; it needs a new WordNet id and names (n01440764 tench, ...)"
      )
    names[synset] = name
  if not names:
    raise ValueError(f"{path} is empty; set `synsets` to LOC_synset_mapping.txt")
  return names


def _imagenet_id(folder: str, stem: str) -> int:
  found = _IMAGENET.fullmatch(stem.rpartition("/")[2])
  if not found:
    raise ValueError(f"{folder}/{stem}.xml is not named like n01440764_10040 or ILSVRC2012_val_00000001; remove it")
  return int(found["synset"] or 0) * 10**8 + int(found["number"])

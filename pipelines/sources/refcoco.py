"""RefCOCO, RefCOCO+ and RefCOCOg: expressions that refer to one annotated object of COCO each.

The expressions come as a pickle, the form they are published in, or as json of the same shape. Nothing in a pickle is
executed: one that holds anything but lists, dicts, texts and numbers is refused. The index takes 20 bytes and the text
per expression, 32 per object, and 24 and the name of the file per picture; masks stay in the file.
"""

import io
import pathlib
import pickle
from array import array
from collections.abc import Iterator

import numpy as np

from pipelines.masks import from_coco
from pipelines.records import BadRecord, Example, record_name
from pipelines.sources.index import Places, Record, Strings, inclusive, positions, read_json, unique
from pipelines.sources.pictures import Pictures

_LARGEST = 1 << 29  # bytes of a pickle; the published ones have some 40 MB


class RefCoco:
  """Random access to the expressions of one split. Attributes: as of every Source; kind 'grounding'."""

  kind = "grounding"
  classes = ()

  def __init__(self, refs: str, instances: str, images: str, *, split: str, name: str = "refcoco", masks: bool = False):
    """Reads the index.

    Args:
      refs: refs(unc).p, refs(umd).p or refs(google).p, or the same as .json.
      instances: the instances.json beside it.
      images: the folder of COCO's train2014.
      split: train, val, testA, testB or test.
      name: of this data set, for messages and counts.
      masks: give the regions too.

    Raises:
      FileNotFoundError, ValueError: a file or the folder is missing or inconsistent.
    """
    self.name, path = name, pathlib.Path(refs)
    texts, sentence_ids, objects, targets, splits = [], array("q"), array("i"), array("q"), set()
    owners = array("q")
    for record in _refs(path):
      splits.add(record.text("split"))
      if record["split"] != split:
        continue
      for i, sentence in enumerate(record.items("sentences")):
        entry = Record(path, f"[{record.number}].sentences", i, sentence)
        texts.append(entry.text("sent").strip())
        sentence_ids.append(entry.whole("sent_id"))
        objects.append(len(targets))
      targets.append(record.whole("ann_id"))
      owners.append(record.whole("image_id"))
    if not texts:
      raise ValueError(f"{path} has no expression of the split {split!r}; it has {', '.join(sorted(splits))}")
    self._texts, self._objects = Strings(texts), np.array(objects, np.int32)
    self._sentence_ids = np.array(sentence_ids, np.int64)
    unique(path, self._sentence_ids, "sentence")
    self._read_objects(pathlib.Path(instances), path, np.array(targets, np.int64), np.array(owners, np.int64), images)
    self._with_masks = masks

  def _read_objects(
    self, path: pathlib.Path, refs: pathlib.Path, targets: np.ndarray, owners: np.ndarray, images: str
  ) -> None:
    wanted = set(targets.tolist())
    ids, pictures, xywh, begins, ends = array("q"), array("q"), array("d"), array("q"), array("q")
    image_ids, names, sizes = array("q"), [], array("i")
    for record in read_json(path, ("images", "annotations"), "instances", "the instances.json of the expressions"):
      if record.list == "images":
        image_ids.append(record.whole("id"))
        names.append(record.text("file_name"))
        sizes.extend((record.whole("height"), record.whole("width")))
      elif record.whole("id") in wanted:
        ids.append(record["id"])
        pictures.append(record.whole("image_id"))
        xywh.extend(record.numbers("bbox", 4))
        begins.append(record.begin)
        ends.append(record.end)
    known = np.array(ids, np.int64)
    unique(path, known, "annotation")
    lost = wanted.difference(known.tolist())
    if lost:
      raise ValueError(
        f"{path} lacks the annotation {min(lost)} that {refs} refers to; set `instances` to its own file"
      )
    rows = positions(path, targets, known, "annotation")
    self.image_ids, self._sizes = np.array(image_ids, np.int64), np.array(sizes, np.int32).reshape(-1, 2)
    unique(path, self.image_ids, "image")
    pictures = np.array(pictures, np.int64)[rows]
    if (pictures != owners).any():
      bad = int(np.flatnonzero(pictures != owners)[0])
      raise ValueError(f"{refs} has annotation {targets[bad]} on image {owners[bad]}, {path} on {pictures[bad]}")
    self._images = positions(path, pictures, self.image_ids, "image").astype(np.int32)
    self._boxes = inclusive(np.array(xywh, np.float64).reshape(-1, 4)[rows])
    self._places = Places(path, begins, ends).take(rows)
    self._pictures = Pictures.found(images, [names], self._images)

  def __len__(self) -> int:
    return len(self._texts)

  def caption(self, index: int) -> str:
    """The expression."""
    return self._texts[index]

  def __getitem__(self, index: int) -> Example:
    """Raises BadRecord('missing_image' | 'broken_mask')."""
    target, text = int(self._objects[index]), self._texts[index]
    image = int(self._images[target])
    image_id, text_id = int(self.image_ids[image]), int(self._sentence_ids[index])
    record, (height, width) = record_name(self.name, image_id, text_id), self._sizes[image].tolist()
    masks = None
    if self._with_masks:
      try:
        masks = (from_coco(self._places.read([target])[0]["segmentation"], (height, width)),)
      except (ValueError, TypeError, KeyError, RecursionError, OSError) as error:
        raise BadRecord("broken_mask", record, f"{error}") from error
    return Example(
      source=self.name,
      image_id=image_id,
      text_id=text_id,
      kind="grounding",
      image=self._pictures.read(image, record),
      boxes_xyxy_px=self._boxes[target : target + 1],
      caption=text,
      spans=(((0, len(text)),),),
      masks=masks,
      image_size=(height, width),
    )


def _refs(path: pathlib.Path) -> Iterator[Record]:
  what = "refs(unc).p or refs(umd).p, or the same as json"
  if path.suffix == ".json":
    yield from read_json(path, ("",), "refs", what)
    return
  if not path.is_file():
    raise FileNotFoundError(f"{path} does not exist; set `refs` to {what}")
  if path.stat().st_size > _LARGEST:
    raise ValueError(f"{path} has {path.stat().st_size} bytes; set `refs` to {what}")
  content = read_plain_pickle(path.read_bytes(), str(path))
  if not isinstance(content, list):
    raise ValueError(f"{path} holds no list; set `refs` to {what}")
  for number, value in enumerate(content):
    yield Record(path, "", number, value)


class _Plain(pickle._Unpickler):  # the one in Python: the one in C can be made to ask for all memory
  def find_class(self, module: str, name: str):
    raise pickle.UnpicklingError(f"it asks for {module}.{name}; only lists, dicts, texts and numbers are read")

  def get_extension(self, code: int):
    raise pickle.UnpicklingError(f"it asks for the extension {code}")

  def persistent_load(self, pid):
    raise pickle.UnpicklingError("it points outside itself")


def read_plain_pickle(data: bytes, name: str):
  """Lists, dicts, texts and numbers of a pickle; texts of Python 2 are UTF-8. Nothing is imported or called.

  Raises ValueError, calling the file `name`, for anything else.
  """
  try:
    file = io.BytesIO(data)
    content = _Plain(file, encoding="utf-8").load()
    if file.read(1):
      raise pickle.UnpicklingError("something follows its end")
    return content
  except Exception as error:  # broken pickles raise what they like
    raise ValueError(
      f"{name} is not a pickle of plain values ({error!r:.200}); get it again from its authors"
    ) from error

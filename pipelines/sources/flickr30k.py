"""Flickr30k Entities as its authors publish it: one file of marked sentences and one xml of boxes for each picture.

`[/EN#1155/animals A raccoon] climbs on [/EN#1156/other a green barrel] .` marks phrases with the id of what they are
about (a chain). The xml has the boxes of the chains: several for one chain, and several chains for one box. Chain 0 and
chains without a box ground nothing. Boxes are integers, 1-based and inclusive; here 1 is subtracted, as the data set's
own reader does.
"""

import os
import pathlib
import xml.etree.ElementTree as ElementTree
from array import array

import numpy as np

from glipv2_jax.boxes import iou
from pipelines.records import BadRecord, Example, Span, record_name
from pipelines.sources.index import Strings
from pipelines.sources.pictures import Pictures
from pipelines.sources.spans import Spans

SAME = 0.95  # boxes of one sentence that overlap so far are one, which all their phrases name (as MDETR prepares them)
NOT_VISUAL = "0"
_LARGEST = 1 << 20  # bytes of one annotation file

Boxes = dict[str, list[tuple[float, float, float, float]]]  # chain -> its boxes


class Flickr30k:
  """Random access to the sentences of one split. The id of a sentence is its line in the file, from 0.

  Sentences without any box are left out, unless `keep_empty`. Both folders are read at start-up; what is wrong with one
  picture's files is a BadRecord when it is met.

  Attributes:
    kind: 'grounding'; classes: ().
  """

  kind, classes = "grounding", ()

  def __init__(
    self, root: str, images: str, split: str, *, merged: bool = False, name: str = "flickr30k", keep_empty: bool = False
  ):
    """Reads the index.

    Args:
      root: the folder with `Sentences`, `Annotations` and the lists of the splits.
      images: the folder of the pictures, `ID.jpg`, or one with folders for the splits.
      split: `train`, `val` or `test`: the list `split.txt` of ids.
      merged: the boxes of a chain become their hull, as in the merged-box protocol.
      name: of this data set, for messages and counts.
      keep_empty: keep sentences without boxes.

    Raises:
      FileNotFoundError, ValueError: a file or folder is missing, or no sentence can be used.
    """
    self.name, folder = name, pathlib.Path(root)
    for part in (folder / "Sentences", folder / "Annotations", folder / f"{split}.txt"):
      if not part.exists():
        raise FileNotFoundError(f"{part} does not exist; set `root` to the folder of Flickr30k Entities and `split`")
    ids = (folder / f"{split}.txt").read_text(encoding="utf-8", errors="replace").split()  # what is no digit is named
    wrong = [i for i in ids if not (i.isascii() and i.isdigit() and len(i) < 19)]
    if wrong or not ids:
      raise ValueError(f"{folder / split}.txt needs one picture id per line, not {(wrong or ['nothing'])[0]!r:.40}")
    within = os.path.join(images, split)
    self._image_ids, self._broken = np.array(ids, np.int64), {}
    self._read(folder, ids, merged)
    counts = np.diff(self._ends)
    broken = np.isin(np.arange(len(counts)), list(self._broken))
    self._rows = np.arange(len(counts)) if keep_empty else np.flatnonzero((counts > 0) | broken)
    if broken.all():
      raise ValueError(f"no annotation of {folder} can be read; the first: {next(iter(self._broken.values()))}")
    if not len(self):
      raise ValueError(f"{folder}: no sentence of the split {split!r} has a box (keep_empty={keep_empty})")
    names = [f"{i}.jpg" for i in ids]
    self._pictures = Pictures.found(
      within if os.path.isdir(within) else images, (names,), self._places[self._rows, 0].tolist()
    )

  def _read(self, folder: pathlib.Path, ids: list[str], merged: bool) -> None:
    """A row for each sentence: picture, line, caption, boxes _ends[row] : _ends[row + 1] with their spans."""
    places, captions, boxes, ends, self._spans = array("q"), [], array("f"), [0], Spans()
    for picture, identity in enumerate(ids):
      sentences, found, fault = [("", [])], {}, None
      try:
        sentences = read_sentences(_read_text(folder / "Sentences" / f"{identity}.txt"))
        found = read_boxes(_read_text(folder / "Annotations" / f"{identity}.xml"))
      except (OSError, ValueError) as error:
        fault = str(error)
      for line, (caption, phrases) in enumerate(sentences):
        if fault:
          self._broken[len(captions)] = fault
        for box, spans in ground(phrases, found, merged):
          boxes.extend(box)
          self._spans.append(spans)
        places.extend((picture, line))
        captions.append(caption)
        ends.append(len(self._spans))
    self._places, self._captions = np.array(places, np.int64).reshape(-1, 2), Strings(captions)
    self._boxes, self._ends = np.array(boxes, np.float32).reshape(-1, 4), np.array(ends, np.int64)

  def __len__(self) -> int:
    return len(self._rows)

  def caption(self, index: int) -> str:
    """The text of a record, without its picture. Raises BadRecord('broken_annotation')."""
    row = int(self._rows[index])
    if row in self._broken:
      raise BadRecord("broken_annotation", self._record(row), self._broken[row])
    return self._captions[row]

  def _record(self, row: int) -> str:
    picture, line = self._places[row].tolist()
    return record_name(self.name, int(self._image_ids[picture]), line)

  def __getitem__(self, index: int) -> Example:
    """Raises BadRecord('missing_image' or 'broken_annotation')."""
    caption, row = self.caption(index), int(self._rows[index])
    picture, line = self._places[row].tolist()
    boxes = range(self._ends[row], self._ends[row + 1])
    return Example(
      source=self.name,
      image_id=int(self._image_ids[picture]),
      text_id=line,
      kind="grounding",
      image=self._pictures.read(picture, self._record(row)),
      boxes_xyxy_px=self._boxes[boxes.start : boxes.stop],
      caption=caption,
      spans=tuple(self._spans[i] for i in boxes),
    )


def _read_text(path: pathlib.Path) -> str:
  if path.stat().st_size > _LARGEST:
    raise ValueError(f"{path} has {path.stat().st_size} bytes, too many for the annotation of one picture")
  return path.read_text(encoding="utf-8")


def read_sentences(content: str) -> list[tuple[str, list[tuple[str, Span]]]]:
  """The caption of each line with its phrases: (chain, characters). An empty line between others has an empty caption.

  Raises ValueError for marks that do not pair."""
  return [_read_sentence(line) for line in content.rstrip().splitlines()]


def _read_sentence(line: str) -> tuple[str, list[tuple[str, Span]]]:
  caption, phrases, chain, begin = "", [], None, 0
  for word in line.split():
    if word.startswith("[/EN#"):
      if chain is not None:
        raise ValueError(f"a phrase begins inside another one: {line!r:.200}")
      chain = word.removeprefix("[/EN#").split("/")[0]
      begin = len(caption) + (1 if caption else 0)
      continue
    closes = word.endswith("]") and chain is not None
    caption += (" " if caption else "") + (word.removesuffix("]") if closes else word)
    if closes:
      phrases.append((chain, (begin, len(caption))))
      chain = None
  if chain is not None:
    raise ValueError(f"a phrase does not end: {line!r:.200}")
  return caption, phrases


def read_boxes(content: str) -> Boxes:
  """The boxes of each chain, 0-based inclusive. Raises ValueError."""
  found: Boxes = {}
  try:
    for thing in ElementTree.fromstring(content).iter("object"):
      box = thing.find("bndbox")
      if box is None:  # a scene, or a chain without box
        continue
      corners = tuple(float(box.findtext(side, "")) - 1 for side in ("xmin", "ymin", "xmax", "ymax"))
      for chain in thing.iter("name"):
        found.setdefault((chain.text or "").strip(), []).append(corners)
  except ElementTree.ParseError as error:
    raise ValueError(f"it is not valid xml: {error}") from error
  return found


def ground(phrases: list[tuple[str, Span]], boxes: Boxes, merged: bool):
  """The distinct boxes of one sentence, each with the spans of every phrase that it belongs to, in their order."""
  placed: list[tuple[np.ndarray, set[Span]]] = []
  for chain in dict.fromkeys(chain for chain, _ in phrases if chain != NOT_VISUAL):
    spans = {span for other, span in phrases if other == chain}
    for box in _of_chain(boxes.get(chain, []), merged):
      same = [place for place in placed if iou(box[None], place[0][None]).item() >= SAME]
      if same:
        same[0][1].update(spans)
      else:
        placed.append((box, set(spans)))
  return [(box.tolist(), sorted(spans)) for box, spans in placed]


def _of_chain(boxes: list[tuple[float, float, float, float]], merged: bool) -> list[np.ndarray]:
  corners = np.array(boxes, np.float64).reshape(-1, 4)
  if merged and len(corners):
    return [np.concatenate([corners[:, :2].min(0), corners[:, 2:].max(0)])]
  return list(corners)

"""PhraseCut: phrases of Visual Genome pictures, each with boxes and polygons of all the things that it names.

The index takes 28 bytes per phrase; the phrase and its polygons stay in the file. Boxes are x y w h, inclusive
(x2 = x + w - 1). Every polygon of a thing counts, not only its last one.
"""

import pathlib
from array import array

import numpy as np

from pipelines import images as pixels
from pipelines.masks import from_points
from pipelines.records import Example, record_name
from pipelines.sources import parts
from pipelines.sources.index import Places, inclusive, read_json
from pipelines.sources.pictures import Pictures


class PhraseCut:
  """Random access to the phrases of one split. Attributes: as of every Source; kind 'grounding'."""

  kind = "grounding"
  classes = ()

  def __init__(self, annotations: str, images: str, *, name: str = "phrasecut", masks: bool = False):
    """Reads the index.

    Args:
      annotations: refer_{train,val,test,miniv}.json.
      images: the folder of {image_id}.jpg.
      name: of this data set, for messages and counts.
      masks: give the regions too.

    Raises:
      FileNotFoundError, ValueError: the file or folder is missing or inconsistent.
    """
    path, self.name, self._with_masks = pathlib.Path(annotations), name, masks
    image_ids, begins, ends, tasks = array("q"), array("q"), array("q"), set()
    for record in read_json(path, ("",), "annotations", "refer_SPLIT.json of PhraseCut"):
      for key in ("phrase", "instance_boxes", "Polygons"):
        record[key]
      if (task := record.text("task_id")) in tasks:
        raise record.fault(f"has the task_id {task!r:.80} of another one; they must differ")
      tasks.add(task)
      image_ids.append(record.whole("image_id"))
      begins.append(record.begin)
      ends.append(record.end)
    if not image_ids:
      raise ValueError(f"{path} has no phrase; set `annotations` to refer_SPLIT.json of PhraseCut")
    self._image_ids, self._places = np.array(image_ids, np.int64), Places(path, begins, ends)
    known, self._owners = np.unique(self._image_ids, return_inverse=True)
    self._pictures = Pictures.found(images, [[f"{i}.jpg" for i in known.tolist()]], self._owners)

  def __len__(self) -> int:
    return len(self._places)

  def _task(self, index: int, record: str) -> dict:
    with parts.faults_as_bad_record(record):
      try:
        (task,) = self._places.read([index])
      except OSError as error:
        raise ValueError(f"{self._places.path}: {error.strerror}") from error
      if task["image_id"] != self._image_ids[index]:
        raise ValueError(f"{self._places.path} was changed since the start")
      parts.text(task["phrase"], "phrase")
      return task

  def caption(self, index: int) -> str:
    """The phrase. Raises BadRecord('broken_annotation')."""
    return self._task(index, record_name(self.name, int(self._image_ids[index]), index))["phrase"]

  def __getitem__(self, index: int) -> Example:
    """Raises BadRecord('missing_image' | 'broken_annotation')."""
    image_id = int(self._image_ids[index])
    record = record_name(self.name, image_id, index)
    task, data = self._task(index, record), self._pictures.read(self._owners[index], record)
    with parts.faults_as_bad_record(record):
      boxes = [parts.box(box) for box in parts.items(task["instance_boxes"], "instance_boxes")]
      regions = [parts.items(region, "Polygons") for region in parts.items(task["Polygons"], "Polygons")]
      if len(boxes) != len(regions):
        raise ValueError(f"{len(boxes)} instance_boxes, but Polygons for {len(regions)}")
      size = pixels.size_of(data, record) if self._with_masks else (0, 0)
      masks = tuple(from_points(region, size) for region in regions) if self._with_masks else None
    phrase = task["phrase"]
    return Example(
      source=self.name,
      image_id=image_id,
      text_id=index,
      kind="grounding",
      image=data,
      boxes_xyxy_px=inclusive(np.array(boxes, np.float64)),
      caption=phrase,
      spans=(((0, len(phrase)),),) * len(boxes),
      masks=masks,
    )

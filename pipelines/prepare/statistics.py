"""Counts over a data set in bins that are fixed beforehand, so memory depends on the number of classes alone."""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines import images
from pipelines.records import BadRecord, Source

# Lower ends of the bins, the last one open.
SIDES_PX = tuple(int(2 ** (k / 2)) for k in (0, 2, *range(4, 25)))  # 1, 2, 4, 5, 8, 11, 16 ... 4096 pixels
COUNTS = tuple(range(0, 101))


@dataclasses.dataclass
class Statistics:
  """Numbers of a part of a source; parts are added up with `add`."""

  records: int = 0
  unusable: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)  # by reason
  classes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)  # boxes of each class
  histograms: dict[str, np.ndarray] = dataclasses.field(
    default_factory=lambda: {name: np.zeros(len(bins), np.int64) for name, bins in BINS.items()}
  )

  def count(self, histogram: str, values: np.ndarray | list[float]) -> None:
    bins = BINS[histogram]
    places = np.clip(np.searchsorted(bins, np.asarray(values), side="right") - 1, 0, len(bins) - 1)
    self.histograms[histogram] += np.bincount(places.astype(np.int64), minlength=len(bins))

  def add(self, other: "Statistics") -> None:
    self.records += other.records
    self.unusable += other.unusable
    self.classes += other.classes
    for name, numbers in other.histograms.items():
      self.histograms[name] += numbers

  def summary(self) -> Mapping[str, Any]:
    """JSON; a histogram is a list of [lower end of the bin, count] without empty bins."""
    histograms = {
      name: [[low, int(n)] for low, n in zip(BINS[name], numbers, strict=True) if n]
      for name, numbers in self.histograms.items()
    }
    unusable = dict(self.unusable.most_common())
    return {"records": self.records, "unusable": unusable, "classes": dict(self.classes.most_common())} | histograms


BINS: Mapping[str, tuple[int, ...]] = {
  "picture_side_px": SIDES_PX,  # square root of the area
  "box_side_px": SIDES_PX,  # likewise
  "boxes_per_record": COUNTS,
  "caption_words": COUNTS,
}


def count_part(source: Source, part: range) -> Statistics:
  """Reads the records of a part; of pictures only the header. What cannot be read is counted by reason."""
  numbers = Statistics()
  for index in part:
    numbers.records += 1
    try:
      example = source[index]
      size = images.size_of(example.image, example.record)
    except BadRecord as error:
      numbers.unusable[error.reason] += 1
      continue
    boxes = example.boxes_xyxy_px[np.isfinite(example.boxes_xyxy_px).all(axis=1)]
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2] + 1, 0)  # inclusive corners
    numbers.count("picture_side_px", [np.sqrt(size[0] * size[1])])
    numbers.count("box_side_px", np.sqrt(sides.prod(axis=1)))
    numbers.count("boxes_per_record", [len(example.boxes_xyxy_px)])
    if example.caption:
      numbers.count("caption_words", [len(example.caption.split())])
    numbers.classes.update(example.labels)
  return numbers

"""Regions: polygons or run lengths as the annotation gives them, and their place on a canvas.

A `Mask` is small and stays as it was annotated; pixels exist only where somebody asks for them (`Mask.pixels`), at the
size that is asked for. Polygons are drawn by pycocotools, so that training sees the regions that COCO's evaluation
scores; run lengths are checked here before anything is made of them, because pycocotools trusts what it gets.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

if TYPE_CHECKING:
  from pipelines.images import Geometry

MAX_PIXELS = 64_000_000  # of a picture that run lengths may describe
_FAR = 1e9  # whatever lies further away is refused all the same


@dataclasses.dataclass(frozen=True, eq=False)
class Mask:
  """One region of a picture. Make it with `from_coco`, `from_points` or `from_pixels`, which check what they get."""

  size: tuple[int, int]  # height, width of the picture
  polygons: tuple[np.ndarray, ...] = ()  # each n 2 float64: x y, pixel i reaches from i to i + 1; their union is meant
  runs: np.ndarray | None = None  # k int64 run lengths, column by column, the first one outside; then no polygons
  geometry: "Geometry | None" = None  # where it was moved

  def moved(self, geometry: "Geometry") -> "Mask":
    """The region on the canvas of `geometry`, where its picture and boxes are."""
    return dataclasses.replace(self, geometry=geometry)

  def pixels(self) -> np.ndarray:
    """h w bool: of the picture, or of the canvas where it was moved to one. Polygons are drawn at that size; of runs a
    pixel is inside when at least half of it is covered."""
    if self.geometry is None:
      return self._drawn(self.size)
    size, canvas = self.geometry.size, np.zeros(self.geometry.canvas, bool)
    if self.runs is None:
      region = self._drawn(size)
    else:
      grey = Image.fromarray(self._drawn(self.size).astype(np.uint8) * 255)
      region = np.asarray(grey.resize(size[::-1], Image.Resampling.BILINEAR)) >= 128
    canvas[: size[0], : size[1]] = region[:, ::-1] if self.geometry.flipped else region
    return canvas

  def to_coco(self) -> dict[str, Any]:
    """COCO's compressed run lengths {"size": [h, w], "counts": str} of `pixels`."""
    code = rle.encode(np.asfortranarray(self.pixels(), dtype=np.uint8))
    return {"size": list(code["size"]), "counts": code["counts"].decode("ascii")}

  def _drawn(self, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    if self.runs is not None:
      return np.repeat(np.arange(len(self.runs)) % 2 == 1, self.runs).reshape(width, height).T
    if not self.polygons:
      return np.zeros(size, bool)
    scale = np.array([width / self.size[1], height / self.size[0]])
    flat = [(polygon * scale).ravel().tolist() for polygon in self.polygons]
    return rle.decode(rle.merge(rle.frPyObjects(flat, height, width))).astype(bool)


def from_pixels(pixels: np.ndarray) -> Mask:
  """h w bool -> run lengths."""
  flat = np.concatenate([[False], np.asarray(pixels, bool).ravel(order="F")])
  changes = np.flatnonzero(flat[1:] != flat[:-1])
  runs = np.diff(np.concatenate([[0], changes, [flat.size - 1]]))
  return Mask(pixels.shape, runs=runs)


def from_points(polygons: Sequence[Any], size: tuple[int, int]) -> Mask:
  """Polygons, each a list of x y pairs.

  Raises ValueError for fewer than three points, what is no number, and points more than the picture's own size away
  from it (the time and memory of drawing grow with the coordinates).
  """
  arrays = tuple(_points(polygon) for polygon in polygons)
  limit = np.array([size[1], size[0]])
  for points in arrays:
    if not np.isfinite(points).all() or (points < -limit).any() or (points > 2 * limit).any():
      raise ValueError(f"a polygon reaches far outside its picture of {size[1]} x {size[0]} pixels")
  return Mask(size, polygons=arrays)


def _points(polygon: Any) -> np.ndarray:
  if not isinstance(polygon, list) or len(polygon) < 3:
    raise ValueError(f"a polygon needs at least three points, not {polygon!r:.80}")
  if not all(isinstance(p, list) and len(p) == 2 and all(type(x) in (int, float) for x in p) for p in polygon):
    raise ValueError(f"a polygon needs x y pairs of numbers, not {polygon!r:.80}")
  return np.array([[max(-_FAR, min(x, _FAR)) for x in point] for point in polygon], np.float64)


def from_coco(segmentation: Any, size: tuple[int, int]) -> Mask | None:
  """COCO's `segmentation` of a picture of `size` (height, width): flat polygons, or run lengths as a list or a string.
  None where there is none: an empty list, as detection sets write it.

  Raises ValueError saying what is wrong with it.
  """
  if isinstance(segmentation, list):
    if not segmentation:
      return None
    pairs = []
    for flat in segmentation:
      if not isinstance(flat, list) or len(flat) % 2 or len(flat) < 6:  # pycocotools takes four numbers for a box
        raise ValueError(f"a polygon needs an even number of at least six coordinates, not {flat!r:.80}")
      pairs.append([list(point) for point in zip(flat[::2], flat[1::2], strict=True)])
    return from_points(pairs, size)
  if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
    raise ValueError(f"a segmentation is a list of polygons or has size and counts, not {segmentation!r:.80}")
  if segmentation["size"] != list(size):
    raise ValueError(f"run lengths are for the size {segmentation['size']!r:.40}, the picture has {list(size)}")
  counts = segmentation["counts"]
  return from_runs(uncompressed(counts) if isinstance(counts, str) else counts, size)


def from_runs(counts: Any, size: tuple[int, int]) -> Mask:
  """Run lengths that fill the picture exactly. Raises ValueError otherwise."""
  if not isinstance(counts, list) or not all(type(n) is int and 0 <= n <= MAX_PIXELS for n in counts):
    raise ValueError(f"run lengths are whole numbers from 0, not {counts!r:.80}")
  if sum(counts) != size[0] * size[1] or size[0] * size[1] > MAX_PIXELS:
    raise ValueError(f"run lengths add up to {sum(counts)}, the picture has {size[0]} x {size[1]} pixels")
  return Mask(size, runs=np.array(counts, np.int64))


def uncompressed(text: str) -> list[int]:
  """COCO's text form of run lengths: six bits a character, differences from the last but one run. Raises ValueError."""
  runs: list[int] = []
  value = shift = 0
  for character in text:
    bits = ord(character) - 48
    if not 0 <= bits < 64 or shift > 40:
      raise ValueError(f"compressed run lengths are broken after {len(runs)} runs: {text!r:.80}")
    value |= (bits & 0x1F) << shift
    shift += 5
    if not bits & 0x20:
      if bits & 0x10:
        value -= 1 << shift
      runs.append(value + runs[-2] if len(runs) > 2 else value)
      value = shift = 0
  if shift:
    raise ValueError(f"compressed run lengths are cut short after {len(runs)} runs: {text!r:.80}")
  return runs

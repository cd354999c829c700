"""Pixels of the host pipeline: encoded file -> RGB array -> canvas, and the geometry that boxes and masks follow.

EXIF orientation is ignored, as by every reader the data sets were annotated with: boxes refer to the pixels as stored.
Alpha is dropped, not blended, for the same reason (PIL's `convert("RGB")`).
"""

import dataclasses
import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipelines.records import BadRecord

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # no format that starts another program (EPS)
MAX_PIXELS = 64_000_000


def _open(data: bytes, record: str, max_pixels: int) -> Image.Image:
  """Reads the header only, so that a small file that claims to be huge is never unpacked."""
  try:
    picture = Image.open(io.BytesIO(data), formats=FORMATS)
  except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # the warning where it is an error
    raise BadRecord("image_too_large", record, str(error)) from error
  except UnidentifiedImageError as error:
    raise BadRecord("undecodable_image", record, f"{len(data)} bytes, none of {', '.join(FORMATS)}") from error
  except Exception as error:  # PIL's plugins raise what they like on broken headers (struct.error, SyntaxError, ...)
    raise BadRecord("undecodable_image", record, repr(error)) from error
  if picture.width * picture.height > max_pixels:
    raise BadRecord("image_too_large", record, f"{picture.width} x {picture.height} > {max_pixels} pixels")
  return picture


def _to_rgb(picture: Image.Image) -> np.ndarray:
  """Any mode PIL decodes to -> h w 3 uint8. 16-bit grey is scaled (65535 -> 255), not cut off."""
  if picture.mode.startswith("I"):  # 'I;16', 'I;16B', and 'I', which older PIL versions use for 16-bit PNG
    grey = np.clip(np.asarray(picture).astype(np.int64), 0, 65535)
    return np.repeat(((grey * 255 + 32767) // 65535).astype(np.uint8)[..., None], 3, axis=-1)
  if picture.mode == "F":
    raise ValueError("floating-point pixels have no defined range")
  if picture.mode == "P" and "transparency" in picture.info:
    picture = picture.convert("RGBA")  # the step PIL asks for before alpha can be dropped
  return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def decode(data: bytes | np.ndarray, record: str = "image", max_pixels: int = MAX_PIXELS) -> np.ndarray:
  """An encoded image file -> h w 3 uint8 RGB (grey, palette, CMYK, 16-bit and alpha converted); arrays pass through.

  Raises:
    BadRecord: 'undecodable_image' (also when truncated) or 'image_too_large', naming `record`.
  """
  if isinstance(data, np.ndarray):
    if data.ndim != 3 or data.shape[2] != 3 or data.dtype != np.uint8:
      raise BadRecord("undecodable_image", record, f"array {data.shape} {data.dtype}, needs h w 3 uint8")
    return data
  with _open(data, record, max_pixels) as picture:
    try:
      return _to_rgb(picture)
    except Exception as error:  # as above: decoders raise OSError, ValueError, IndexError, ... on broken data
      raise BadRecord("undecodable_image", record, repr(error)) from error


def size_of(data: bytes | np.ndarray, record: str = "image", max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
  """Height and width without decoding the pixels. Raises as `decode`."""
  if isinstance(data, np.ndarray):
    return data.shape[0], data.shape[1]
  with _open(data, record, max_pixels) as picture:
    return picture.height, picture.width


@dataclasses.dataclass(frozen=True)
class Geometry:
  """How an image came onto its canvas: resize (aspect ratio kept), then perhaps a mirror, then padding.

  Boxes scale by the ratio of the sides without rounding, a mirrored x becomes W - x - 1 (reference 6.8).
  """

  original: tuple[int, int]  # height, width of the decoded image
  size: tuple[int, int]  # valid height, width on the canvas
  canvas: tuple[int, int]
  flipped: bool = False

  def _scale(self) -> np.ndarray:
    y, x = self.size[0] / self.original[0], self.size[1] / self.original[1]
    return np.array([x, y, x, y], np.float32)

  def _mirror(self, boxes: np.ndarray) -> np.ndarray:
    if not self.flipped:
      return boxes
    x1, y1, x2, y2 = np.moveaxis(boxes, -1, 0)
    return np.stack([self.size[1] - x2 - 1, y1, self.size[1] - x1 - 1, y2], axis=-1)

  def to_canvas(self, boxes_xyxy_px: np.ndarray) -> np.ndarray:
    """Boxes ... 4 float32 of the original image -> of the canvas."""
    return self._mirror(np.asarray(boxes_xyxy_px, np.float32) * self._scale())

  def to_original(self, boxes_xyxy_px: np.ndarray) -> np.ndarray:
    """The inverse of `to_canvas`."""
    return self._mirror(np.asarray(boxes_xyxy_px, np.float32)) / self._scale()

  def pixels(self, image: np.ndarray) -> np.ndarray:
    """h w 3 uint8 -> canvas 3 uint8: bilinear (antialiased when it shrinks), zeros at the bottom and right."""
    if self.size != self.original:
      image = np.asarray(Image.fromarray(image).resize(self.size[::-1], Image.Resampling.BILINEAR))
    if self.flipped:
      image = image[:, ::-1]
    if self.size == self.canvas:
      return np.ascontiguousarray(image)
    out = np.zeros((*self.canvas, 3), np.uint8)
    out[: self.size[0], : self.size[1]] = image
    return out


def scaled(canvas: tuple[int, int], factor: float) -> tuple[int, int]:
  """A canvas (height, width) times a factor, in multiples of the coarsest Swin stride (32)."""
  return canvas if factor == 1 else tuple(max(1, round(side * factor / 32)) * 32 for side in canvas)


def fit(original: tuple[int, int], canvas: tuple[int, int], flipped: bool = False) -> Geometry:
  """The largest size (height, width) with the aspect ratio of `original` that fits into `canvas`."""
  scale = min(canvas[0] / original[0], canvas[1] / original[1])
  size = tuple(min(limit, max(1, round(side * scale))) for side, limit in zip(original, canvas, strict=True))
  return Geometry(original, size, canvas, flipped)

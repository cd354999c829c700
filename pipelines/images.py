"""Pixels of the host pipeline: encoded file -> RGB array -> canvas, and the geometry that boxes and masks follow.

EXIF orientation is ignored, as by every reader the data sets were annotated with: boxes refer to the pixels as stored.
Alpha is dropped, not blended, for the same reason (PIL's `convert("RGB")`).

Plain JPEGs are decoded by simplejpeg (libjpeg-turbo without detours: half the time of Pillow, the same pixels), all
else by Pillow. Resizing is Pillow's antialiased bilinear filter, or, where `fast` is asked for, OpenCV's bilinear one
of a picture that was decoded at 1/2, 1/4 or 1/8 of its size where that suffices: a sixth of the time, pixels within one
level of Pillow's where a picture grows and a little sharper where it shrinks.
"""

import dataclasses
import io

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from pipelines.records import BadRecord

cv2.setNumThreads(1)  # worker processes share the cores

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


def _plain_jpeg(data: bytes) -> tuple[int, int] | None:
  """Height and width of a grey or YCbCr JPEG, None for everything that Pillow has to look at."""
  if data[:2] != b"\xff\xd8":
    return None
  try:
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
  except ValueError:
    return None
  return (height, width) if colours in ("YCbCr", "Gray") else None


def decode(
  data: bytes | np.ndarray,
  record: str = "image",
  max_pixels: int = MAX_PIXELS,
  at_least: tuple[int, int] | None = None,
) -> np.ndarray:
  """An encoded image file -> h w 3 uint8 RGB (grey, palette, CMYK, 16-bit and alpha converted); arrays pass through.

  `at_least`: height and width that are enough; a JPEG may come in 1/2, 1/4 or 1/8 of its size then (rounded up), but
  not smaller than that.

  Raises:
    BadRecord: 'undecodable_image' (also when truncated) or 'image_too_large', naming `record`.
  """
  if isinstance(data, np.ndarray):
    if data.ndim != 3 or data.shape[2] != 3 or data.dtype != np.uint8:
      raise BadRecord("undecodable_image", record, f"array {data.shape} {data.dtype}, needs h w 3 uint8")
    return data
  size = _plain_jpeg(data)
  if size and size[0] * size[1] <= max_pixels:
    enough = dict(min_height=at_least[0], min_width=at_least[1], min_factor=2) if at_least else {}
    try:
      return simplejpeg.decode_jpeg(data, "RGB", **enough)
    except ValueError:  # libjpeg has a warning or an error: Pillow decides what is bearable
      pass
  with _open(data, record, max_pixels) as picture:
    try:
      return _to_rgb(picture)
    except Exception as error:  # as above: decoders raise OSError, ValueError, IndexError, ... on broken data
      raise BadRecord("undecodable_image", record, repr(error)) from error


def size_of(data: bytes | np.ndarray, record: str = "image", max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
  """Height and width without decoding the pixels. Raises as `decode`."""
  if isinstance(data, np.ndarray):
    return data.shape[0], data.shape[1]
  size = _plain_jpeg(data)
  if size and size[0] * size[1] <= max_pixels:
    return size
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
    mirrored = boxes.copy()
    mirrored[..., 0], mirrored[..., 2] = self.size[1] - boxes[..., 2] - 1, self.size[1] - boxes[..., 0] - 1
    return mirrored

  def to_canvas(self, boxes_xyxy_px: np.ndarray) -> np.ndarray:
    """Boxes ... 4 float32 of the original image -> of the canvas."""
    return self._mirror(np.asarray(boxes_xyxy_px, np.float32) * self._scale())

  def to_original(self, boxes_xyxy_px: np.ndarray) -> np.ndarray:
    """The inverse of `to_canvas`."""
    return self._mirror(np.asarray(boxes_xyxy_px, np.float32)) / self._scale()

  def pixels(self, image: np.ndarray, fast: bool = False) -> np.ndarray:
    """h w 3 uint8 -> canvas 3 uint8: see `draw`."""
    out = np.empty((*self.canvas, 3), np.uint8)
    self.draw(image, out, fast)
    return out

  def draw(self, image: np.ndarray, out: np.ndarray, fast: bool = False) -> None:
    """h w 3 uint8 onto the canvas `out`: bilinear (antialiased when it shrinks), zeros at the bottom and right.

    `fast`: by OpenCV; the image may then be smaller than `original` (see `decode`).
    """
    height, width = self.size
    target = out[:height, :width]
    out[height:], out[:height, width:] = 0, 0
    if image.shape[:2] != self.size and not fast:
      image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    if image.shape[:2] == self.size:
      if self.flipped:
        cv2.flip(image, 1, dst=target)
      else:
        target[...] = image
      return
    # A shrink by more than two is left to area averaging; JPEGs come decoded at a scale that makes it rare.
    coarse = 2 * height < image.shape[0]
    image = cv2.flip(image, 1) if self.flipped else image
    cv2.resize(image, (width, height), dst=target, interpolation=cv2.INTER_AREA if coarse else cv2.INTER_LINEAR)


def scaled(canvas: tuple[int, int], factor: float) -> tuple[int, int]:
  """A canvas (height, width) times a factor, in multiples of the coarsest Swin stride (32)."""
  return canvas if factor == 1 else tuple(max(1, round(side * factor / 32)) * 32 for side in canvas)


def fit(original: tuple[int, int], canvas: tuple[int, int], flipped: bool = False) -> Geometry:
  """The largest size (height, width) with the aspect ratio of `original` that fits into `canvas`."""
  scale = min(canvas[0] / original[0], canvas[1] / original[1])
  size = tuple(min(limit, max(1, round(side * scale))) for side, limit in zip(original, canvas, strict=True))
  return Geometry(original, size, canvas, flipped)

"""Decoding every kind of picture, and boxes that follow their pixels."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipelines import images
from pipelines.masks import from_pixels
from pipelines.records import BadRecord

SHADES = np.array([[0, 40, 80], [120, 200, 255]], np.uint8)  # 2 3


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
  stream = io.BytesIO()
  picture.save(stream, kind, **options)
  return stream.getvalue()


def colourful(height: int = 40, width: int = 60) -> np.ndarray:
  y, x = np.mgrid[:height, :width]
  return np.stack([x * 4, y * 6, 255 - x * 4], -1).astype(np.uint8)


def png(height: int, width: int, depth: int, colour: int, rows: bytes) -> bytes:
  """A PNG written by hand: PIL cannot write 16-bit colour, nor a header that lies."""

  def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

  header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def refused(data, **options) -> str:
  with pytest.raises(BadRecord, match="set/7") as caught:
    images.decode(data, "set/7", **options)
  return caught.value.reason


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "1"])
def test_modes_become_rgb(mode):
  grey = (SHADES > 100).astype(np.uint8) * 255 if mode == "1" else SHADES
  out = images.decode(encoded(Image.fromarray(grey).convert(mode)))
  assert out.shape == (2, 3, 3) and out.dtype == np.uint8
  np.testing.assert_array_equal(out, np.repeat(grey[..., None], 3, -1))


def test_palette_with_and_without_transparency():
  picture = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
  picture.putpalette([10, 20, 30, 200, 100, 50, 0, 0, 255])
  expected = np.array([[[10, 20, 30], [200, 100, 50]], [[0, 0, 255], [200, 100, 50]]], np.uint8)
  for transparency in ({}, {"transparency": 1}, {"transparency": bytes([255, 0, 128])}):
    np.testing.assert_array_equal(images.decode(encoded(picture, **transparency)), expected)
  np.testing.assert_array_equal(images.decode(encoded(picture, "GIF")), expected)


def test_alpha_is_dropped_and_not_blended():
  rgba = np.dstack([colourful(), np.zeros((40, 60), np.uint8)])
  np.testing.assert_array_equal(images.decode(encoded(Image.fromarray(rgba))), colourful())


def test_cmyk_jpeg_keeps_its_colours():
  picture = Image.fromarray(colourful()).convert("CMYK")
  out = images.decode(encoded(picture, "JPEG", quality=95))
  assert np.abs(out.astype(int) - colourful()).mean() < 4


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True, "quality": 30}, {"restart": 1}])
def test_jpegs_decode_to_the_pixels_of_pillow(subsampling, options):
  rng = np.random.default_rng(0)
  picture = Image.fromarray(rng.integers(0, 255, (9, 13, 3), np.uint8)).resize((203, 149), Image.Resampling.BICUBIC)
  options = {"restart_marker_rows": 1} if "restart" in options else options
  for kind in (picture, picture.convert("L")):
    data = encoded(kind, "JPEG", subsampling=subsampling, **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(images.decode(data), expected)
    assert images.size_of(data) == (149, 203)
    for enough, size in (((149, 203), (149, 203)), ((75, 102), (75, 102)), ((30, 30), (38, 51)), ((1, 1), (19, 26))):
      assert images.decode(data, at_least=enough).shape[:2] == size
    half = expected[:148, :202].reshape(74, 2, 101, 2, 3).mean((1, 3))
    assert np.abs(images.decode(data, at_least=(75, 102))[:74, :101] - half).mean() < 4  # another picture: 60


def test_what_libjpeg_warns_about_is_left_to_pillow():
  data = encoded(Image.fromarray(colourful(80, 80)), "JPEG")
  odd = data[:-2] + b"\0" * 9 + data[-2:]  # bytes that belong to nothing
  np.testing.assert_array_equal(images.decode(odd), np.asarray(Image.open(io.BytesIO(odd))))
  assert refused(data[: len(data) // 2]) == "undecodable_image"


def test_sixteen_bits_are_scaled():
  values = np.array([[0, 257, 32896], [65535, 65278, 200]], np.uint16)
  expected = np.array([[0, 1, 128], [255, 254, 1]], np.uint8)
  out = images.decode(encoded(Image.fromarray(values)))
  np.testing.assert_array_equal(out, np.repeat(expected[..., None], 3, -1))
  rows = b"\0" + np.array([[0, 257 * 9, 65535]], ">u2").tobytes()  # one pixel of 16-bit RGB
  assert images.decode(png(1, 1, 16, 2, rows)).tolist() == [[[0, 9, 255]]]


def test_exif_orientation_is_ignored():
  exif = Image.Exif()
  exif[0x0112] = 6  # "rotate by 90 degrees to view"
  data = encoded(Image.fromarray(colourful(40, 60)), "JPEG", exif=exif, quality=100)
  assert Image.open(io.BytesIO(data)).getexif()[0x0112] == 6
  out = images.decode(data)
  assert out.shape == (40, 60, 3)
  assert np.abs(out.astype(int) - colourful(40, 60)).mean() < 4


def test_truncated_and_foreign_files_are_refused():
  picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8))
  jpeg, flat = encoded(picture, "JPEG"), encoded(picture)
  cut = [data[:n] for data in (jpeg, flat) for n in (30, len(data) // 2)]
  for data in (*cut, b"", b"no picture", b"%!PS-Adobe-3.0 EPSF-3.0\n"):
    assert refused(data) == "undecodable_image"
  assert refused(np.zeros((4, 4), np.uint8)) == "undecodable_image"
  tiff = encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF")
  assert refused(tiff) == "undecodable_image"


def test_decompression_bombs_are_refused_by_their_header():
  assert refused(png(60_000, 60_000, 8, 0, b"")) == "image_too_large"  # beyond PIL's own limit
  for side in (10_000, 9_000):  # beyond where PIL warns, beyond ours
    assert refused(png(side, side, 8, 0, b"")) == "image_too_large"
  fine = encoded(Image.fromarray(colourful(40, 60)))
  assert images.decode(fine, max_pixels=2400).shape == (40, 60, 3)
  assert refused(fine, max_pixels=2399) == "image_too_large"
  assert images.size_of(fine) == images.size_of(colourful(40, 60)) == (40, 60)


def test_fit_is_the_largest_size_inside_the_canvas():
  for original, canvas, size in (
    ((480, 640), (240, 320), (240, 320)),
    ((640, 480), (240, 320), (240, 180)),
    ((50, 100), (200, 200), (100, 200)),
    ((1, 4000), (64, 64), (1, 64)),
    ((417, 650), (320, 320), (205, 320)),
  ):
    assert images.fit(original, canvas).size == size


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("original, canvas", [((60, 90), (60, 90)), ((100, 160), (64, 96)), ((70, 50), (96, 160))])
def test_boxes_and_masks_follow_the_pixels(original, canvas, flipped):
  """Draws a rectangle, transforms the picture, and finds the rectangle again without any box arithmetic."""
  geometry = images.fit(original, canvas, flipped)
  scale = geometry.size[0] / original[0]
  for box in ([12, 20, 30, 44], [0, 0, 15, 20], [original[1] - 20, original[0] - 30, original[1] - 1, original[0] - 1]):
    picture, mask = np.zeros((*original, 3), np.uint8), np.zeros(original, bool)
    picture[box[1] : box[3] + 1, box[0] : box[2] + 1] = 255
    mask[box[1] : box[3] + 1, box[0] : box[2] + 1] = True
    found = geometry.pixels(picture)
    assert found.shape == (*canvas, 3) and found.flags.c_contiguous
    assert not found[geometry.size[0] :].any() and not found[:, geometry.size[1] :].any()
    moved = geometry.to_canvas(np.array([box]))
    for inside in (found[..., 0] >= 128, from_pixels(mask).moved(geometry).pixels()):
      y, x = np.nonzero(inside)
      extent = [x.min(), y.min(), x.max(), y.max()]
      # an inclusive right edge scales as x2 * s where the pixels end at (x2 + 1) * s - 1
      np.testing.assert_allclose(moved[0], extent, atol=0.51 + abs(1 - scale))
    np.testing.assert_allclose(geometry.to_original(moved)[0], box, atol=1e-3)


def test_flip_without_resize_is_exact():
  geometry = images.fit((8, 10), (8, 10), flipped=True)
  picture = colourful(8, 10)
  np.testing.assert_array_equal(geometry.pixels(picture), picture[:, ::-1])
  assert geometry.to_canvas([[2, 1, 5, 7]]).tolist() == [[4, 1, 7, 7]]


def test_shrinking_is_antialiased():
  stripes = np.zeros((64, 64, 3), np.uint8)
  stripes[:, ::2] = 255
  small = images.fit((64, 64), (16, 16)).pixels(stripes)
  assert np.abs(small[:, 1:-1].astype(int) - 127).max() <= 16  # point sampling would give 0 or 255


@pytest.mark.parametrize("flipped", [False, True])
def test_fast_pixels(flipped):
  """Growing: Pillow's pixels within rounding. Shrinking: close to them, and stripes do not turn into false ones."""
  rng = np.random.default_rng(0)
  smooth = np.asarray(Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8)).resize((96, 72), Image.BICUBIC))
  for canvas, most, mean in (((144, 200), 1, 0.5), ((72, 96), 0, 0), ((50, 70), 30, 2), ((20, 30), 40, 4)):
    geometry = images.fit((72, 96), canvas, flipped)
    exact, fast = (geometry.pixels(smooth, fast).astype(int) for fast in (False, True))
    assert fast.shape == (*canvas, 3) and np.abs(exact - fast).max() <= most and np.abs(exact - fast).mean() <= mean
  data = encoded(Image.fromarray(smooth), "JPEG", quality=95)
  geometry = images.fit((72, 96), (30, 40), flipped)
  small = images.decode(data, at_least=geometry.size)
  assert small.shape == (36, 48, 3)
  assert np.abs(geometry.pixels(small, fast=True).astype(int) - geometry.pixels(smooth)).mean() < 4
  stripes = np.zeros((64, 64, 3), np.uint8)
  stripes[:, ::2] = 255
  assert np.abs(images.fit((64, 64), (16, 16)).pixels(stripes, fast=True).astype(int) - 127).max() <= 16

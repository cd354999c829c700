"""Regions: COCO's three forms against pycocotools and against plain geometry."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as rle

from pipelines import images, masks

pixels = arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def code(region):
  return rle.encode(np.asfortranarray(region, dtype=np.uint8))


@given(pixels)
def test_run_lengths_give_the_pixels_back(region):
  mask = masks.from_pixels(region)
  assert mask.runs.sum() == region.size and (mask.runs[1:] > 0).all()
  np.testing.assert_array_equal(mask.pixels(), region)


@given(pixels)
def test_compressed_run_lengths_are_pycocotools(region):
  mask = masks.from_pixels(region)
  theirs = code(region)
  assert mask.to_coco() == {"size": list(region.shape), "counts": theirs["counts"].decode()}
  assert masks.uncompressed(theirs["counts"].decode()) == mask.runs.tolist()
  for counts in (theirs["counts"].decode(), mask.runs.tolist()):
    again = masks.from_coco({"size": list(region.shape), "counts": counts}, region.shape)
    np.testing.assert_array_equal(again.pixels(), region)


def test_long_runs_compress():
  region = np.zeros((700, 900), bool)
  region[13:600, 100:700] = region[::3, ::7] = True
  assert masks.uncompressed(code(region)["counts"].decode()) == masks.from_pixels(region).runs.tolist()


def corners(box):
  x1, y1, x2, y2 = box
  return [x1, y1, x2, y1, x2, y2, x1, y2]


rectangle = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 10), st.integers(1, 10)).map(
  lambda b: (b[0], b[1], min(b[0] + b[2], 20), min(b[1] + b[3], 15))
)


@given(st.lists(rectangle, min_size=1, max_size=3), st.integers(1, 3), st.booleans())
def test_polygons_are_drawn_where_their_pixels_are(boxes, scale, flipped):
  """Rectangles with whole corners cover whole pixels, also scaled and mirrored; several are united."""
  mask = masks.from_coco([corners(box) for box in boxes], (15, 20))
  wanted = np.zeros((15, 20), bool)
  for x1, y1, x2, y2 in boxes:
    wanted[y1:y2, x1:x2] = True
  np.testing.assert_array_equal(mask.pixels(), wanted)
  geometry = images.fit((15, 20), (15 * scale, 20 * scale + 3), flipped)
  large = np.zeros(geometry.canvas, bool)
  grown = wanted.repeat(scale, 0).repeat(scale, 1)
  large[:, : 20 * scale] = grown[:, ::-1] if flipped else grown
  np.testing.assert_array_equal(mask.moved(geometry).pixels(), large)
  if scale == 1:
    np.testing.assert_array_equal(masks.from_pixels(wanted).moved(geometry).pixels(), large)


@given(st.lists(st.tuples(st.floats(0, 40, width=32), st.floats(0, 30, width=32)), min_size=3, max_size=3))
def test_a_triangle_covers_its_area(points):
  mask = masks.from_points([[list(p) for p in points]], (30, 40))
  x, y = np.array(points).T
  area = abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2
  around = sum(np.hypot(*np.subtract(points[i], points[i - 1])) for i in range(3))
  assert abs(mask.pixels().sum() - area) <= around + 2  # the border takes or gives a pixel


def test_polygons_are_pycocotools_at_the_size_of_the_picture():
  rng = np.random.default_rng(0)
  for _ in range(20):
    flat = (rng.random((2, 14)) * np.array([64, 48] * 7)).round(2).tolist()
    theirs = rle.decode(rle.merge(rle.frPyObjects(flat, 48, 64)))
    np.testing.assert_array_equal(masks.from_coco(flat, (48, 64)).pixels(), theirs)


@pytest.mark.parametrize("flipped", [False, True])
def test_polygons_and_run_lengths_agree_on_a_smaller_canvas(flipped):
  y, x = np.mgrid[:96, :128]
  disc = np.hypot(x + 0.5 - 50, y + 0.5 - 40) < 30
  angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
  outline = np.stack([50 + 30 * np.cos(angle), 40 + 30 * np.sin(angle)], 1).tolist()
  geometry = images.fit((96, 128), (48, 70), flipped)
  runs = masks.from_pixels(disc).moved(geometry).pixels()
  drawn = masks.from_points([outline], (96, 128)).moved(geometry).pixels()
  assert runs.shape == drawn.shape == (48, 70)
  assert (runs ^ drawn).sum() <= 0.03 * runs.sum() and runs.sum() == pytest.approx(np.pi * 15**2, rel=0.02)


def test_no_segmentation_is_no_mask():
  assert masks.from_coco([], (4, 5)) is None
  empty = masks.from_runs([20], (4, 5))
  assert not empty.pixels().any() and empty.pixels().shape == (4, 5)


@pytest.mark.parametrize(
  "segmentation, message",
  [
    ([[1, 2, 3, 4]], "at least six coordinates"),  # pycocotools would read a box
    ([[1, 2, 3, 4, 5]], "even number"),
    ([[1, 2, 3, 4, 5, 6, 7]], "even number"),
    ([[1, 2, 3, 4, 5, "6"]], "pairs of numbers"),
    ([[1, 2, 3, 4, 5, None]], "pairs of numbers"),
    ([[1, 2, 3, 4, 5, True]], "pairs of numbers"),
    ([[0, 0, 1e300, 0, 1, 1]], "far outside"),  # pycocotools would ask for all memory
    ([[0, 0, -1e9, 0, 1, 1]], "far outside"),
    ([[0, 0, float("nan"), 0, 1, 1]], "far outside"),
    ([[0, 0, 10**400, 0, 1, 1]], "far outside|pairs of numbers"),
    ([1, 2, 3, 4, 5, 6], "even number"),
    ("abc", "is a list of polygons or has size and counts"),
    ({"counts": [20]}, "is a list of polygons or has size and counts"),
    ({"size": [5, 4], "counts": [20]}, r"for the size \[5, 4\], the picture has \[4, 5\]"),
    ({"size": [4, 5], "counts": [19]}, "add up to 19, the picture has 4 x 5"),
    ({"size": [4, 5], "counts": [25, -5]}, "whole numbers from 0"),
    ({"size": [4, 5], "counts": [20.0]}, "whole numbers from 0"),
    ({"size": [4, 5], "counts": [2**70]}, "whole numbers from 0"),
    ({"size": [4, 5], "counts": {}}, "whole numbers from 0"),
    ({"size": [4, 5], "counts": "d0 "}, "broken after 1 runs"),
    ({"size": [4, 5], "counts": "é"}, "broken after 0 runs"),
    ({"size": [4, 5], "counts": "o"}, "cut short after 0 runs"),
    ({"size": [4, 5], "counts": "o" * 99}, "broken after 0 runs"),
    ({"size": [4, 5], "counts": ""}, "add up to 0"),
  ],
)
def test_broken_regions_are_refused(segmentation, message):
  with pytest.raises(ValueError, match=message):
    masks.from_coco(segmentation, (4, 5))


@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12))
def test_any_text_is_refused_or_fills_the_picture(text):
  try:
    mask = masks.from_coco({"size": [6, 7], "counts": text}, (6, 7))
  except ValueError:
    return
  assert mask.pixels().shape == (6, 7)

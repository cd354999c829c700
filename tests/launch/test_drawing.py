"""launch/drawing.py: geometry of labels, and what is really on the picture."""

import itertools

import numpy as np
import pytest
from PIL import Image

from launch import drawing
from launch.drawing import Mark


def overlap(a, b):
  return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def test_labels_lie_inside_the_picture():
  rng = np.random.default_rng(0)
  corners = np.sort(rng.integers(0, [640, 480], size=(60, 2, 2)), axis=1).reshape(60, 4)
  boxes = [tuple(int(v) for v in box) for box in corners]
  sizes = [(int(w), 20) for w in rng.integers(20, 300, size=60)]
  for (x1, y1, x2, y2), (w, h) in zip(drawing.place_labels(boxes, sizes, (640, 480)), sizes, strict=True):
    assert 0 <= x1 and x2 <= 640 and 0 <= y1 and y2 <= 480
    assert (x2 - x1, y2 - y1) == (w, h)


def test_labels_of_crowded_boxes_do_not_cover_each_other():
  boxes = [(100, 100, 300, 300)] * 6  # the same box six times
  places = drawing.place_labels(boxes, [(80, 20)] * 6, (640, 480))
  assert all(overlap(a, b) == 0 for a, b in itertools.combinations(places, 2))


def test_first_choice_is_above_the_box_and_touches_it():
  assert drawing.place_labels([(50, 100, 90, 140)], [(30, 20)], (640, 480)) == [(50, 80, 80, 100)]
  [(_, y1, _, _)] = drawing.place_labels([(50, 5, 90, 140)], [(30, 20)], (640, 480))
  assert y1 == 0  # no room above: pushed inside


def test_annotate_draws_box_and_readable_label():
  picture = np.full((500, 600, 3), 100, np.uint8)
  drawn = np.asarray(drawing.annotate(picture, [Mark((200, 200, 399, 349), "dog 0.87", colour=1)]))
  assert drawn.shape == picture.shape
  colour = drawing.COLOURS[1]
  assert tuple(drawn[275, 200]) == colour and tuple(drawn[275, 399]) == colour  # left and right edge
  assert tuple(drawn[349, 300]) == colour and tuple(drawn[275, 300]) == (100, 100, 100)  # bottom edge, inside
  font = drawing.font_for((600, 500))
  w, h = drawing.label_size("dog 0.87", font)
  label = drawn[200 - h : 200, 200 : 200 + w].reshape(-1, 3)
  assert (label == colour).all(-1).mean() > 0.5  # filled background
  assert drawing.text_colour(colour) == (0, 0, 0)
  assert (label.sum(-1) < sum(colour) / 2).mean() > 0.03  # letters on it
  assert (picture == 100).all()  # the input is not touched


def test_small_pictures_are_enlarged_and_large_ones_are_not():
  assert drawing.annotate(np.zeros((96, 128, 3), np.uint8), []).size == (640, 480)
  assert drawing.annotate(Image.new("L", (1200, 900)), []).size == (1200, 900)


def test_boxes_partly_outside_and_texts_too_long():
  mark = Mark((-50, -20, 5000, 3000), "a very long phrase " * 20)
  drawn = drawing.annotate(Image.new("RGB", (480, 500)), [mark], title="what was asked " * 10)
  assert drawn.width == 480 and drawn.height > 500
  font = drawing.font_for((480, 500))
  cut = drawing.shorten(mark.text, font, 200)
  assert cut.endswith("…") and font.getlength(cut) <= 200
  assert drawing.shorten("short", font, 200) == "short"


def test_colours_differ_and_text_stands_out():
  assert len(set(drawing.COLOURS)) == len(drawing.COLOURS)
  assert drawing.text_colour((255, 225, 25)) == (0, 0, 0)
  assert drawing.text_colour((0, 0, 128)) == (255, 255, 255)


def test_sheet_holds_every_picture():
  colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
  pictures = [Image.new("RGB", (100, 50 + 10 * i), colour) for i, colour in enumerate(colours)]
  whole = np.asarray(drawing.sheet(pictures, columns=2, gap=10))
  assert whole.shape[:2] == (10 + 60 + 10 + 70 + 10, 10 + 100 + 10 + 100 + 10)
  for i, colour in enumerate(colours):
    assert (whole == colour).all(-1).sum() == 100 * (50 + 10 * i)
  with pytest.raises(ValueError, match="0 pictures in 2 columns"):
    drawing.sheet([], columns=2)

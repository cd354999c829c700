"""One example on its way to the network: boxes, words, mirroring, and everything that is refused or left out."""

import dataclasses
import io
import re

import numpy as np
import pytest
from PIL import Image

from pipelines import mirror
from pipelines.concepts import concept_id
from pipelines.masks import from_pixels
from pipelines.prepare_example import PrepareConfig, blank, evaluation_example, train_example, usable_boxes
from pipelines.prompts import PromptConfig
from pipelines.records import BadRecord, Example
from pipelines.sources.coco_json import CocoJson
from pipelines.sources.shapes import Shapes
from pipelines.words import load_words

CLASSES = ("red circle", "blue square", "green star")
CANVAS = (32, 48)
CFG = PrepareConfig(canvases=(CANVAS,), batch=2, max_boxes=8, flip=0.0, prompt=PromptConfig(mode="all"))


@pytest.fixture(scope="module")
def words():
  return load_words("shapes", 32)


def picture(height=64, width=80):
  return np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)


def detection(**fields) -> Example:
  given = dict(
    source="set",
    image_id=7,
    kind="detection",
    image=picture(),
    boxes_xyxy_px=np.array([[0, 0, 39, 31], [40, 8, 79, 63]], np.float32),
    labels=("red circle", "green star"),
  )
  return Example(**given | fields)


def grounding(caption="a red circle left of a blue square", spans=(((0, 12),), ((21, 34),)), **fields) -> Example:
  return dataclasses.replace(detection(labels=(), **fields), kind="grounding", caption=caption, spans=spans)


def train(example, words, seed=0, classes=CLASSES, **options):
  cfg = dataclasses.replace(CFG, **options)
  return train_example(example, classes, words, cfg, CANVAS, np.random.default_rng(seed))


def named_text(prepared, words, row):
  """What the positive tokens of a box say, from the tokenizer's vocabulary alone."""
  ids = prepared.tokens[prepared.positive_map[row]]
  return " ".join(words.tokenizer.id_to_token(int(i)) for i in ids).replace(" ##", "")


def test_detection_boxes_move_and_are_named(words):
  out = train(detection(), words)
  assert out.image.shape == (32, 48, 3) and out.image_size == (32, 40) and out.original_size == (64, 80)
  np.testing.assert_allclose(out.boxes_xyxy_px, [[0, 0, 19.5, 15.5], [20, 4, 39.5, 31.5]])
  assert [named_text(out, words, i) for i in range(2)] == ["red circle", "green star"]
  assert out.box_concept.tolist() == [concept_id("red circle"), concept_id("green star")]
  assert sorted(p.name for p in out.phrases) == sorted(CLASSES)
  for phrase in out.phrases:
    assert (np.flatnonzero(out.token_concept == concept_id(phrase.name)) == phrase.tokens).all()
  assert (out.token_concept >= 0).sum() == 6 and out.skipped == out.reduced == ()


def test_caption_boxes_are_named_by_their_spans(words):
  out = train(grounding(), words)
  assert [named_text(out, words, i) for i in range(2)] == ["a red circle", "a blue square"]
  assert (out.box_concept == -1).all() and (out.token_concept == -1).all()
  assert out.text == "a red circle left of a blue square"


def test_image_without_objects(words):
  for example in (
    detection(boxes_xyxy_px=np.zeros((0, 4), np.float32), labels=()),
    grounding(spans=(), boxes_xyxy_px=np.zeros((0, 4), np.float32)),
  ):
    out = train(example, words, flip=1.0)
    assert out.boxes_xyxy_px.shape == (0, 4) and out.positive_map.shape == (0, 32) and out.box_concept.shape == (0,)
    assert out.boxes_xyxy_px.dtype == np.float32 and out.reduced == ()


@pytest.mark.parametrize(
  "box, reason",
  [
    ([np.nan, 0, 5, 5], "box_nan"),
    ([0, 0, np.inf, 5], "box_nan"),
    ([10, 10, 9, 20], "box_empty"),
    ([10, 10, 20, 5], "box_empty"),
    ([90, 10, 99, 20], "box_outside"),
    ([70, 10, 80.5, 20], "box_outside"),  # the last pixel is 79
    ([-1.5, 10, 9, 20], "box_outside"),
  ],
)
def test_a_broken_box_makes_the_record_unusable(words, box, reason):
  broken = detection(boxes_xyxy_px=np.array([[0, 0, 9, 9], box], np.float32))
  with pytest.raises(BadRecord, match=f"set/7: {reason}") as caught:
    train(broken, words)
  assert caught.value.reason == reason
  out = evaluation_example(broken, words, CFG, CANVAS)  # but it is predicted all the same
  assert 1 <= len(out.boxes_xyxy_px) <= 2 and np.isfinite(out.boxes_xyxy_px).all()


def test_rounding_beyond_the_edge_is_clipped_and_nothing_else_is_touched():
  boxes = np.array([[-0.9, 0.2, 79.9, 63.5], [3.3, 4.4, 5.5, 6.6], [5, 5, 5, 5]], np.float32)
  out = usable_boxes(detection(boxes_xyxy_px=boxes), (64, 80), 1.0)
  np.testing.assert_array_equal(out, np.array([[0, 0.2, 79, 63], [3.3, 4.4, 5.5, 6.6], [5, 5, 5, 5]], np.float32))
  with pytest.raises(BadRecord, match="box_outside"):
    usable_boxes(detection(boxes_xyxy_px=boxes), (64, 80), 0.5)


def test_other_size_than_annotated_is_refused(words):
  stream = io.BytesIO()
  Image.fromarray(picture(64, 80)).save(stream, "PNG")
  assert train(detection(image=stream.getvalue(), image_size=(64, 80)), words).original_size == (64, 80)
  with pytest.raises(BadRecord, match=r"image_size \(annotated \(80, 64\), decoded \(64, 80\)\)"):
    train(detection(image=stream.getvalue(), image_size=(80, 64)), words)


def test_bad_captions_are_refused(words):
  for caption in ("", " \n"):
    with pytest.raises(BadRecord, match="set/7: empty_caption"):
      train(grounding(caption, ((), ())), words)
  for span in ((-1, 3), (4, 4), (30, 60)):
    with pytest.raises(BadRecord, match="set/7: span_outside"):
      train(grounding(spans=((span,), ((0, 5),))), words)


def test_boxes_of_a_truncated_caption_are_left_out_and_counted(words):
  caption = "a red circle " + "and a ring " * 12 + "and a blue square"
  spans = (((0, 12),), ((caption.index("blue"), len(caption)),))
  out = train(grounding(caption, spans), words)
  assert out.boxes_xyxy_px.tolist() == [[0, 0, 19.5, 15.5]] and out.positive_map.shape == (1, 32)
  assert out.reduced == (("caption_truncated", "set/7"),)
  assert named_text(out, words, 0) == "a red circle"


def test_classes_beyond_the_prompt_are_left_out_and_counted(words):
  classes = tuple(f"class number {i}" for i in range(40))
  labels = tuple(classes[i] for i in range(20))
  boxes = np.tile(np.array([[0, 0, 9, 9]], np.float32), (20, 1)) + np.arange(20, dtype=np.float32)[:, None]
  out = train(detection(labels=labels, boxes_xyxy_px=boxes), words, classes=classes, max_boxes=20)
  assert 0 < len(out.boxes_xyxy_px) < 20 and out.reduced == (("box_not_named", "set/7"),)
  for row, box in enumerate(out.boxes_xyxy_px):  # the boxes that stay are still the ones of their class
    assert named_text(out, words, row) == f"class number {round(float(box[0]) * 2)}"


def test_too_many_boxes_are_a_random_subset_and_counted(words):
  boxes = np.stack([np.arange(20), np.zeros(20), np.arange(20) + 5, np.full(20, 9)], 1).astype(np.float32)
  example = detection(boxes_xyxy_px=boxes, labels=("red circle", "green star") * 10)
  kept = [train(example, words, seed=seed) for seed in range(2)]
  for out in kept:
    assert len(out.boxes_xyxy_px) == len(out.positive_map) == len(out.box_concept) == 8
    assert out.reduced == (("too_many_boxes", "set/7"),)
    for i, box in enumerate(out.boxes_xyxy_px):
      assert named_text(out, words, i) == example.labels[round(box[0] * 2)]
  assert (kept[0].boxes_xyxy_px != kept[1].boxes_xyxy_px).any()


def test_the_same_draws_give_the_same_example(words):
  one, two, other = (train(detection(), words, seed=seed, flip=0.5) for seed in (3, 3, 4))
  assert one.text == two.text and (one.image == two.image).all() and (one.tokens == two.tokens).all()
  assert one.text != other.text or (one.image != other.image).any()


def test_mirroring_draws_with_its_probability(words):
  plain = train(detection(), words).image
  flipped = [(train(detection(), words, seed=s, flip=0.25).image != plain).any() for s in range(100)]
  assert 12 <= sum(flipped) <= 40


def test_mirrored_captions_exchange_left_and_right(words):
  out = train(grounding(), words, flip=1.0)
  assert out.text == "a red circle right of a blue square"
  assert [named_text(out, words, i) for i in range(2)] == ["a red circle", "a blue square"]
  np.testing.assert_allclose(out.boxes_xyxy_px[0], [40 - 19.5 - 1, 0, 39, 15.5])
  authors = train(grounding(), words, flip=1.0, swap_sides=False)
  assert authors.text == "a red circle left of a blue square"
  assert (authors.image == out.image).all()


def test_a_vocabulary_with_sides_is_not_mirrored(words):
  sides = ("left hand", "right hand")
  example = detection(labels=sides)
  plain = train(example, words, classes=sides).image
  assert (train(example, words, classes=sides, flip=1.0).image == plain).all()
  assert (train(example, words, classes=sides, flip=1.0, swap_sides=False).image != plain).any()


@pytest.mark.parametrize(
  "text, other",
  [
    ("left", "right"),
    ("The LEFT one, Right?", "The RIGHT one, Left?"),
    ("leftmost rightwards left-handed righthand", "rightmost leftwards right-handed lefthand"),
    ("bright copyright lefty", "bright copyright lefty"),
  ],
)
def test_swap_sides(text, other):
  assert mirror.swap_sides(text)[0] == other and mirror.swap_sides(other)[0] == text
  assert mirror.names_a_side(text) == (text != other)


def test_swap_sides_moves_spans_with_their_words():
  text = "the left dog, the man right of the left, red car and a right turn"
  pieces = ["the left dog", "left", "man right of", "red car", "a right turn", "turn"]
  begins = [text.index(piece) for piece in pieces]
  swapped, spans = mirror.swap_sides(text, [((b, b + len(p)),) for b, p in zip(begins, pieces, strict=True)])
  expected = ["the right dog", "right", "man left of", "red car", "a left turn", "turn"]
  assert [swapped[b:e] for ((b, e),) in spans] == expected


def side_claims(out):
  """[(box row of the first thing, side, box row of the second)] that the prompt's text claims about single boxes."""
  tokens_of = [set(np.flatnonzero(row)) for row in out.positive_map]
  named = sorted((out.text.index(p.name), p) for p in out.phrases if out.text.count(p.name) == 1)
  for (begin, first), (other, second) in zip(named, named[1:], strict=False):
    between = re.fullmatch(
      r"(?: is)?(?: to the)? (left|right) of (?:an?|the) ", out.text[begin + len(first.name) : other]
    )
    rows = [[i for i, tokens in enumerate(tokens_of) if tokens == set(p.tokens)] for p in (first, second)]
    if between and all(len(row) == 1 for row in rows):
      yield rows[0][0], between[1], rows[1][0]


def test_mirrored_shapes_captions_stay_true(words):
  """ "'X left of Y' must hold for the boxes on the canvas, mirrored or not."""
  source, checked = Shapes(split="train", task="grounding"), 0
  for index in range(120):
    for flip in (0.0, 1.0):
      out = train(source[index], words, flip=flip)
      centre = (out.boxes_xyxy_px[:, 0] + out.boxes_xyxy_px[:, 2]) / 2
      for first, side, second in side_claims(out):
        assert (centre[first] < centre[second]) == (side == "left"), out.text
        checked += 1
  assert checked >= 20


def test_evaluation_of_class_names_has_no_text_but_all_boxes_with_their_concepts(words):
  out = evaluation_example(detection(), words, CFG, CANVAS)
  assert out.text == "" and out.phrases == () and out.tokens_valid.sum() == 2 and not out.positive_map.any()
  assert out.box_concept.tolist() == [concept_id("red circle"), concept_id("green star")] and out.reduced == ()


def test_evaluation_of_a_mirrored_picture(words):
  caption = "a red circle left of a blue square"
  spans = (((0, 12),), ((21, 34),))
  there, back = (evaluation_example(grounding(caption, spans), words, CFG, CANVAS, side) for side in (False, True))
  assert (there.text, back.text) == (caption, caption.replace("left", "right"))
  assert [p.name for p in there.phrases] == [p.name for p in back.phrases] and (there.mirrored, back.mirrored) == (0, 1)
  assert there.phrases[1].span == (21, 34) and back.phrases[1].span == (22, 35)
  width = there.image_size[1]
  np.testing.assert_array_equal(there.image[:, :width], back.image[:, :width][:, ::-1])
  np.testing.assert_allclose(there.boxes_xyxy_px[:, 0], width - 1 - back.boxes_xyxy_px[:, 2], atol=1e-4)


def test_evaluation_phrases_of_a_caption_are_its_spans(words):
  example = grounding(spans=(((0, 12), (21, 34)), ((21, 34),)))
  out = evaluation_example(example, words, CFG, CANVAS)
  assert [phrase.name for phrase in out.phrases] == ["a red circle", "a blue square"]
  assert [len(phrase.tokens) for phrase in out.phrases] == [3, 3]
  assert out.positive_map.sum(1).tolist() == [6, 3]


def test_blank_has_words_to_attend_to(words):
  out = blank(words, CANVAS)
  assert out.tokens_valid.sum() == 2 and not out.valid and min(out.image_size) > 0


def test_real_pictures(shared, words):
  """Every raccoon (three are grey) and the boxes of the annotation, scaled."""
  root = shared / "data/raccoon"
  source = CocoJson(str(root / "annotations/train.json"), str(root / "images"))
  for index in range(0, len(source), 9):
    example = source[index]
    out = train(example, words, classes=source.classes)
    scale = min(CANVAS[0] / example.image_size[0], CANVAS[1] / example.image_size[1])
    np.testing.assert_allclose(out.boxes_xyxy_px, example.boxes_xyxy_px * scale, atol=1.0)
    assert out.image[: out.image_size[0], : out.image_size[1]].std() > 5
    assert named_text(out, words, 0) == "raccoon"


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_masks_stay_with_their_boxes(words, flip):
  """Every box that is kept has its own region, at the same place; a box without one has None."""
  left, right = np.zeros((64, 80), bool), np.zeros((64, 80), bool)
  left[:32, :40], right[8:, 40:] = True, True
  masks = (from_pixels(left), None, from_pixels(right))
  boxes = np.array([[0, 0, 39, 31], [0, 0, 79, 63], [40, 8, 79, 63]], np.float32)
  labels = ("red circle", "no such class", "green star")
  out = train(detection(boxes_xyxy_px=boxes, labels=labels, masks=masks), words, flip=flip)
  assert out.reduced == (("box_not_named", "set/7"),) and len(out.masks) == 2
  for mask, box in zip(out.masks, out.boxes_xyxy_px, strict=True):
    y, x = np.nonzero(mask.pixels())
    assert mask.pixels().shape == CANVAS
    np.testing.assert_allclose([x.min(), y.min(), x.max(), y.max()], box, atol=0.51)
  assert train(detection(), words).masks is None


def test_a_prompt_names_other_classes_only_where_they_are_known_to_be_absent(words):
  one = dict(boxes_xyxy_px=np.array([[0, 0, 39, 31]], np.float32), labels=("red circle",))

  def named(mode, **fields):
    prompt = PromptConfig(mode=mode, control_probabilities=(0, 0, 1, 0))
    return {phrase.name for phrase in train(detection(**one, **fields), words, prompt=prompt).phrases}

  for mode in ("all", "sample"):
    assert named(mode) == set(CLASSES)
    assert named(mode, absent=("green star",)) == {"red circle", "green star"}
    assert named(mode, absent=()) == {"red circle"}
    assert named(mode, unsure=("blue square", "red circle")) == {"red circle", "green star"}

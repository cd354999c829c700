"""The embedded data set: its words are read back by a small parser of their own and compared with the objects."""

import colorsys
import contextlib
import io
import pathlib
import pickle
import re

import numpy as np
import pytest

from pipelines.sources import shapes_draw, shapes_scene, shapes_text
from pipelines.sources.shapes import Shapes, ShapesConfig, coco_dataset, phrase_boxes

KINDS = "circle square triangle star cross ring diamond heart".split()
COLOURS = "red orange yellow green cyan blue purple pink".split()
WORD_OF = {w: "size" for w in ("small", "large")}
WORD_OF |= {w: "texture" for w in ("solid", "striped", "dotted", "checkered")} | {w: "colour" for w in COLOURS}
NUMBERS = "zero one two three four five six seven eight".split()
RELATION = r"(?:to the )?(left of|right of)|(above)|(below|under)"


@pytest.fixture(scope="module")
def scenes():
  """(scene, grounding example) of some hundred pictures of every split."""
  found = {}
  for split, count in (("train", 200), ("val", 60), ("zero_shot", 80)):
    source = Shapes(split=split, task="grounding", size=(96, 128))
    found[split] = [(source.scene(i), source[i]) for i in range(count)]
  return found


def read(phrase):
  """Words of a phrase -> (wanted attributes, is it plural)."""
  *adjectives, noun = phrase.split()
  plural = noun.endswith("s") and noun != "cross"
  noun = re.sub("(?<=cross)es$|(?<!s)s$", "", noun)
  wanted = {WORD_OF[word]: word for word in adjectives}
  if noun not in ("shape", "object", "thing"):
    assert noun in KINDS
    wanted["kind"] = noun
  return wanted, plural


def fitting(things, phrase):
  wanted, _ = read(phrase)
  return {i for i, t in enumerate(things) if all(getattr(t, name) == word for name, word in wanted.items())}


def clear(words, a, b, side):
  """True, False or None (people could disagree), from the boxes alone."""
  x = (b.box[0] + b.box[2]) / 2 - (a.box[0] + a.box[2]) / 2
  y = (b.box[1] + b.box[3]) / 2 - (a.box[1] + a.box[3]) / 2
  direction = words.removeprefix("to the ")
  ahead, aside = {"left of": (x, y), "right of": (-x, y), "above": (y, x), "below": (-y, x), "under": (-y, x)}[
    direction
  ]
  if ahead >= 0.12 * side and abs(aside) <= ahead:
    return True
  return False if ahead < 0.03 * side else None


def drawn(example):
  """The masks of an example, g h w bool."""
  return np.array([mask.pixels() for mask in example.masks])


def test_a_scene_depends_on_split_and_index_only():
  first, again = Shapes(task="grounding"), pickle.loads(pickle.dumps(Shapes(ShapesConfig(task="grounding"))))
  again[3]  # another order of reading
  for index in (7, 0, 999_999):
    a, b, detection = first[index], again[index], Shapes()[index]
    for picture in (b.image, detection.image):
      np.testing.assert_array_equal(a.image, picture)
    np.testing.assert_array_equal(a.boxes_xyxy_px, b.boxes_xyxy_px)
    np.testing.assert_array_equal(drawn(a), drawn(b))
    assert (a.caption, a.spans, a.questions) == (b.caption, b.spans, b.questions)
    assert a.questions == detection.questions


def test_splits_show_different_scenes(scenes):
  pictures = [scene.image.tobytes() for split in scenes.values() for scene, _ in split]
  assert len(set(pictures)) == len(pictures) == 340
  assert (len(Shapes()), len(Shapes(split="val")), len(Shapes(length=5))) == (1_000_000, 512, 5)


def test_boxes_are_the_extents_of_the_visible_pixels(scenes):
  for scene, example in scenes["train"]:
    assert scene.masks.sum(0).max(initial=0) <= 1  # a pixel shows one thing
    for thing, mask, full in zip(scene.things, scene.masks, scene.full_px, strict=True):
      rows, columns = np.nonzero(mask)
      assert thing.box == (columns.min(), rows.min(), columns.max(), rows.max())
      assert 0.5 * full <= len(rows) <= full
    assert example.boxes_xyxy_px.dtype == np.float32
    for box, mask in zip(example.boxes_xyxy_px, drawn(example), strict=True):
      rows, columns = np.nonzero(mask)
      np.testing.assert_array_equal(box, [columns.min(), rows.min(), columns.max(), rows.max()])


def test_masks_are_what_painting_in_order_leaves_visible(monkeypatch):
  layers = []
  paint = shapes_draw.paint

  def watched(canvas, window, cut, alpha, *rest):
    layer = np.zeros(canvas.shape[:2], bool)
    layer[window] = alpha[cut] >= 0.5
    layers.append((layer, int((alpha >= 0.5).sum())))
    paint(canvas, window, cut, alpha, *rest)

  monkeypatch.setattr(shapes_draw, "paint", watched)
  hidden = 0
  for index in range(40):
    layers.clear()
    scene = Shapes().scene(index)
    assert len(layers) == len(scene.things)
    for i, (layer, total) in enumerate(layers):
      visible = layer.copy()
      for later, _ in layers[i + 1 :]:
        visible &= ~later
      hidden += int((layer & ~visible).sum())
      np.testing.assert_array_equal(scene.masks[i], visible)
      assert scene.full_px[i] == total
  assert hidden > 1000  # the check has seen occlusion


def test_colours_and_sizes_can_be_seen(scenes):
  seen = set()
  for scene, _ in scenes["train"] + scenes["zero_shot"]:
    side = min(scene.image.shape[:2])
    for thing, mask, full in zip(scene.things, scene.masks, scene.full_px, strict=True):
      if thing.texture == "solid" and mask.sum() > 60:
        red, green, blue = np.median(scene.image[mask], axis=0) / 255
        hue = 360 * colorsys.rgb_to_hls(red, green, blue)[0]
        distance = {c: abs((hue - shapes_draw.COLOUR_HLS[c][0] + 180) % 360 - 180) for c in COLOURS}
        assert min(distance, key=distance.get) == thing.colour
      if mask.sum() == full:
        longest = max(thing.box[2] - thing.box[0], thing.box[3] - thing.box[1]) + 1
        assert (longest > 0.235 * side) == (thing.size == "large")
      seen |= {thing.size, thing.texture, thing.colour, thing.kind}
  assert seen == {*WORD_OF, *KINDS}


def test_training_never_shows_or_names_the_held_out_pairs(scenes):
  held_out = {(c, k) for c, k in shapes_scene.HELD_OUT}
  assert sorted(c for c, _ in held_out) == sorted(COLOURS) and sorted(k for _, k in held_out) == sorted(KINDS)
  for split in ("train", "val"):
    source = Shapes(split=split)
    assert len(source.classes) == 56 and not source.unseen_classes
    assert not held_out.intersection(tuple(name.split()) for name in source.classes)
    for scene, example in scenes[split]:
      assert not held_out.intersection((t.colour, t.kind) for t in scene.things)
      for line in (example.caption, *(line for q in example.questions for line in (q.text, *q.answers))):
        assert not any(re.search(rf"\b{colour} {kind}", line) for colour, kind in held_out), line
  source = Shapes(split="zero_shot")
  assert set(source.unseen_classes) == {f"{c} {k}" for c, k in held_out} and len(set(source.classes)) == 64
  pairs = [{(t.colour, t.kind) for t in scene.things} for scene, _ in scenes["zero_shot"]]
  assert all(held_out & found for found in pairs) and any(found - held_out for found in pairs)
  assert any(f"{c} {k}" in example.caption for _, example in scenes["zero_shot"] for c, k in held_out)


def test_every_phrase_names_exactly_its_boxes(scenes):
  """Reads each caption again: phrases, numbers and relations against all objects of the scene."""
  by_relation = related = repeated = 0
  for scene, example in (pair for split in scenes.values() for pair in split):
    things, side, caption = scene.things, min(scene.image.shape[:2]), example.caption
    row = {mask.tobytes(): i for i, mask in enumerate(scene.masks)}
    of_row = [row[mask.tobytes()] for mask in drawn(example)]
    spans = sorted({span for spans in example.spans for span in spans})
    assert all(example.spans) and len(caption.split()) <= 36
    repeated += any(len(found) > 1 for found in example.spans)
    named = [{of_row[j] for j, found in enumerate(example.spans) if span in found} for span in spans]
    for (begin, end), boxed, follower in zip(spans, named, [*range(1, len(spans)), None][: len(spans)], strict=True):
      phrase, before = caption[begin:end], caption[:begin].split()
      wanted, plural = read(phrase)
      assert plural == (len(boxed) > 1), caption
      if before[-1] in NUMBERS:
        assert NUMBERS.index(before[-1]) == len(boxed), caption
      else:
        assert before[-1] in (("the", "all") if plural else ("the", "an" if phrase[0] in "aeiou" else "a")), caption
      candidates = fitting(things, phrase)
      gap = caption[end : spans[follower][0]] if follower else ""
      relation = re.fullmatch(rf" (?:is |are )?({RELATION}) (?:\w+ )+", gap)
      if relation:
        related += 1
        anchors = named[follower]
        assert all(clear(relation[1], things[a], things[b], side) for a in boxed for b in anchors), caption
      if boxed == candidates:
        continue
      by_relation += 1
      assert relation and before[-1] != "all" and len(anchors) == 1, caption
      (anchor,) = anchors
      truth = {i: clear(relation[1], things[i], things[anchor], side) for i in candidates}
      assert None not in truth.values() and boxed == {i for i, true in truth.items() if true}, caption
  assert by_relation > 15 and related > 100 and repeated > 5


def test_every_caption_phrase_has_a_span(scenes):
  """What remains of a caption without its spans holds no noun, colour, size or texture."""
  for _, example in scenes["train"]:
    rest, last = "", 0
    for words, (begin, end), boxes in phrase_boxes(example):
      assert example.caption[begin:end] == words and len(boxes) >= 1
      rest, last = rest + example.caption[last:begin], end
    rest += example.caption[last:]
    if example.spans:
      assert not re.search("|".join([*WORD_OF, *KINDS, "shape", "object", "thing"]), rest), example.caption


def test_phrase_boxes_gives_all_boxes_of_a_phrase(scenes):
  for _, example in scenes["train"]:
    pairs = {(span, tuple(box)) for _, span, boxes in phrase_boxes(example) for box in boxes.tolist()}
    wanted = {
      (span, tuple(box))
      for found, box in zip(example.spans, example.boxes_xyxy_px.tolist(), strict=True)
      for span in found
    }
    assert pairs == wanted


def test_answers_are_true(scenes):
  forms = dict.fromkeys(("count", "existence", "relation", "attribute"), 0)
  for scene, example in (pair for split in scenes.values() for pair in split):
    things, side = scene.things, min(scene.image.shape[:2])
    for question, (answer,) in ((q.text, q.answers) for q in example.questions):
      assert answer in shapes_text.ANSWERS
      if match := re.fullmatch(r"how many (.+) are there\?", question):
        forms["count"] += 1
        assert NUMBERS[len(fitting(things, match[1]))] == answer, question
      elif match := re.fullmatch(r"is there (an?) (.+)\?", question):
        forms["existence"] += 1
        assert (match[1] == "an") == (match[2][0] in "aeiou")
        assert ("yes" if fitting(things, match[2]) else "no") == answer, question
      elif match := re.fullmatch(rf"is the (.+?) ({RELATION}) the (.+)\?", question):
        forms["relation"] += 1
        (a,), (b,) = fitting(things, match[1]), fitting(things, match[6])
        assert clear(match[2], things[a], things[b], side) is (answer == "yes"), question
      else:
        forms["attribute"] += 1
        match = re.fullmatch(r"what (kind of shape|size|texture|colour) is the (.+)\?", question)
        (i,) = fitting(things, match[2])
        assert getattr(things[i], "kind" if " " in match[1] else match[1]) == answer, question
        assert answer not in match[2].split()
  assert min(forms.values()) > 30


def test_words_are_in_the_vocabulary(scenes):
  words = set(shapes_text.vocabulary())
  used = {" ".join(Shapes(split="zero_shot").classes)}
  for _, example in (pair for split in scenes.values() for pair in split):
    used |= {example.caption, *(line for q in example.questions for line in (q.text, *q.answers))}
  assert {word for line in used for word in re.findall(r"\w+|[^\w\s]", line)} <= words
  path = pathlib.Path(shapes_text.__file__).parents[1] / "vocab" / "shapes.txt"
  assert words <= set(path.read_text().split())
  assert list(shapes_text.vocabulary()) == sorted(words)


def test_some_pictures_are_empty(scenes):
  empty = [example for scene, example in scenes["train"] if not scene.things]
  assert 1 <= len(empty) <= 20
  for example in empty:
    assert example.boxes_xyxy_px.shape == (0, 4) and example.masks == ()
    assert example.caption and example.spans == ()
  assert not any(len(scene.things) == 0 for scene, _ in scenes["zero_shot"])


def test_size_is_fixed_or_drawn_from_a_range():
  source = Shapes(split="val", size=(64, 80), max_size=(96, 144))
  sizes = {source[i].image.shape for i in range(12)}
  assert len(sizes) > 5 and all(64 <= h <= 96 and 80 <= w <= 144 for h, w, _ in sizes)
  example = Shapes(size=(100, 70))[1]
  assert example.image.shape == (100, 70, 3) and example.image.dtype == np.uint8
  assert drawn(example).shape == (len(example.labels), 100, 70)


def test_ground_truth_as_predictions_scores_one():
  pytest.importorskip("pycocotools")
  from pycocotools import mask as rle
  from pycocotools.coco import COCO
  from pycocotools.cocoeval import COCOeval

  source = Shapes(split="val")
  content = coco_dataset(source, 40)
  example = source[1]
  first = [a for a in content["annotations"] if a["image_id"] == 1]
  for annotation, mask, label in zip(first, drawn(example), example.labels, strict=True):
    np.testing.assert_array_equal(rle.decode(annotation["segmentation"]), mask)
    assert annotation["area"] == mask.sum()
    assert content["categories"][annotation["category_id"] - 1]["name"] == label
  assert [a["id"] for a in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
  with contextlib.redirect_stdout(io.StringIO()):
    truth = COCO()
    truth.dataset = content
    truth.createIndex()
    for kind in ("bbox", "segm"):
      keep = ("image_id", "category_id", "bbox" if kind == "bbox" else "segmentation")
      found = truth.loadRes([{**{k: a[k] for k in keep}, "score": 1.0} for a in content["annotations"]])
      scores = COCOeval(truth, found, kind)
      scores.evaluate()
      scores.accumulate()
      scores.summarize()
      assert scores.stats[0] == pytest.approx(1.0)


@pytest.mark.parametrize(
  "options, message",
  [
    ({"split": "test"}, "split 'test' is not known; known: train, val, zero_shot"),
    ({"task": "masks"}, "task 'masks' is not known"),
    ({"size": (32, 128)}, "at least 64"),
    ({"size": (128, 128), "max_size": (96, 256)}, "not below size"),
    ({"length": 0}, "length 0 must be at least 1"),
  ],
)
def test_wrong_options_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    Shapes(**options)


def test_wrong_use_is_named():
  with pytest.raises(IndexError, match=r"0\.\.511, not 512"):
    Shapes(split="val")[512]
  with pytest.raises(ValueError, match="task='detection'"):
    coco_dataset(Shapes(task="grounding"), 1)
  with pytest.raises(ValueError, match="not both"):
    Shapes(ShapesConfig(), split="val")

"""Properties that hold for any text, box and vocabulary (hypothesis)."""

import dataclasses

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines import images, prompts
from pipelines.prompts import PromptConfig
from pipelines.words import load_words, span_to_tokens

WORDS = load_words("shapes", 64)
FEW = settings(max_examples=60, deadline=None)
# Words as captions have them: letters of several scripts, combining marks, emoji of several code points, signs.
FLAG, ASTRONAUT = "\U0001f1eb\U0001f1f7", "\U0001f9d1\u200d\U0001f680"
PARTS = (
  "red",
  "circle",
  "left",
  "\u00e9tude",
  "e\u0301t\u00e9",
  "\u6f22\u5b57",
  FLAG,
  ASTRONAUT,
  "n't",
  "--",
  "\u0645\u0631",
)
texts = st.lists(st.one_of(st.sampled_from(PARTS), st.text(min_size=1, max_size=6)), min_size=1, max_size=40).map(
  " ".join
)
KNOWN = ("red circle", "bow_(weapon)", "bow_(ribbon)", "traffic light", "Red  Circle")
names = st.one_of(st.sampled_from(KNOWN), st.text("abc _()", min_size=1, max_size=12))


def visible(name):
  return bool(prompts.normalised_name(name))


@FEW
@given(texts, st.data())
def test_spans_become_the_tokens_that_cover_them(text, data):
  begin = data.draw(st.integers(0, len(text) - 1))
  end = data.draw(st.integers(begin + 1, len(text)))
  encoding = WORDS.encode(text)
  found = span_to_tokens(encoding, ((begin, end),))
  assert list(found) == sorted(set(found)) and all(0 < i < 63 for i in found)  # never [CLS], [SEP] or padding
  covering = [i for i, (a, b) in enumerate(encoding.offsets.tolist()) if a < b and a < end and b > begin]
  if found:  # no hole; at most what touches the span, which white space at its ends may have shortened
    assert list(found) == list(range(found[0], found[-1] + 1)) and set(found) <= set(covering)
  inner = text[begin:end].strip()
  if inner and inner in PARTS and covering and not encoding.truncated:
    first, last = encoding.char_to_token(begin), encoding.char_to_token(end - 1)
    if first is not None and last is not None:
      assert found == tuple(range(first, last + 1))


@FEW
@given(st.lists(st.sampled_from(PARTS[:4]), min_size=2, max_size=60), st.data())
def test_a_repeated_word_is_named_where_it_stands(parts, data):
  """Of equal words only the one in the span, and none beyond the tokens that fit."""
  which = data.draw(st.integers(0, len(parts) - 1))
  begin = len(" ".join(parts[:which])) + (which > 0)
  encoding = WORDS.encode(" ".join(parts))
  found = span_to_tokens(encoding, ((begin, begin + len(parts[which])),))
  before = WORDS.count(" ".join(parts[:which]))
  expected = range(1 + before, 1 + before + WORDS.count(parts[which]))
  assert found == (tuple(expected) if expected[-1] < 63 else ())


@FEW
@given(texts)
def test_pieces_encode_as_the_text(text):
  pieces = [part + " " for part in text.split(" ")]
  whole, joined = WORDS.encode("".join(pieces)), WORDS.encode_names(pieces)
  for field in ("tokens", "tokens_valid", "offsets", "truncated"):
    np.testing.assert_array_equal(getattr(joined, field), getattr(whole, field), field)


@FEW
@given(
  st.lists(names.filter(visible), min_size=1, max_size=40, unique=True),
  st.lists(st.integers(0, 39), max_size=30),
  st.integers(0, 99),
  st.sampled_from(("sample", "all")),
  st.integers(12, 64),
)
@example(classes=["_____)"], picks=[0], seed=0, mode="sample", tokens=12)  # three spaces before its only token
def test_prompts_stay_in_the_budget_and_lose_no_positive_uncounted(classes, picks, seed, mode, tokens):
  words = dataclasses.replace(WORDS, max_tokens=tokens)
  labels = [classes[i % len(classes)] for i in picks]
  rng = np.random.default_rng(seed)
  prompt, kept = prompts.detection_prompt(labels, classes, rng, words, PromptConfig(mode=mode))
  encoding = prompt.encode(words)
  assert not encoding.truncated and words.count(prompt.text) + 2 <= tokens
  named = prompts.name_boxes(prompt, encoding, labels)
  np.testing.assert_array_equal(named.kept, kept)  # what is left out is known: _assemble reports it
  spans = dict(prompt.spans)
  for label, keep in zip(labels, kept, strict=True):
    assert keep == (label in spans)
  lengths = sum(words.count(prompts.clean_name(name) + ". ") for name in dict.fromkeys(labels))
  if lengths + 2 <= tokens:
    assert kept.all()


sides = st.integers(1, 3000)


@FEW
@given(st.tuples(sides, sides), st.tuples(st.integers(16, 1400), st.integers(16, 1400)), st.booleans(), st.data())
def test_boxes_come_back_from_any_canvas(original, canvas, flipped, data):
  """Within 1e-3 pixels, or the rounding of float32 where a picture shrinks to a few pixels."""
  geometry = images.fit(original, canvas, flipped)
  assert geometry.size[0] <= canvas[0] and geometry.size[1] <= canvas[1]
  corners = st.tuples(*(st.floats(0, side - 1, width=32) for side in original[::-1] * 2))
  boxes = np.array(data.draw(st.lists(corners, min_size=1, max_size=5)), np.float32)
  boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)
  moved = geometry.to_canvas(boxes)
  shrink = max(o / s for o, s in zip(original, geometry.size, strict=True))
  np.testing.assert_allclose(geometry.to_original(moved), boxes, atol=1e-3 * max(1, shrink / 8))
  limit = np.array(geometry.size[::-1] * 2)
  assert (moved >= -1 - 1e-3).all() and (moved <= limit).all()
  assert (moved[:, 2:] >= moved[:, :2]).all()


@pytest.mark.parametrize("flipped", [False, True])
def test_boxes_come_back_from_the_canvases_of_training(flipped):
  rng = np.random.default_rng(0)
  for original in ((480, 640), (640, 427), (1536, 2048)):
    for canvas in ((480, 672), (1120, 800)):
      geometry = images.fit(original, canvas, flipped)
      boxes = np.sort(rng.random((200, 2, 2)), axis=1).reshape(-1, 4) * (np.array(original[::-1] * 2) - 1)
      back = geometry.to_original(geometry.to_canvas(boxes))
      np.testing.assert_allclose(back, boxes, atol=1e-3)

"""Hidden words: which, how often, by kind of text; and that everything else of a batch stays."""

import dataclasses

import numpy as np
import pytest

from pipelines import masking
from pipelines.build import DataConfig, train_batches
from pipelines.prompts import Named
from pipelines.words import load_words

WORDS = load_words("shapes", 64)
CFG = masking.MaskingConfig()


def named(*boxes):
  positive_map = np.zeros((len(boxes), 64), bool)
  for row, tokens in zip(positive_map, boxes, strict=True):
    row[list(tokens)] = True
  none = np.full(len(boxes), -1, np.int32)
  return Named(np.ones(len(boxes), bool), (), positive_map, none, np.full(64, -1, np.int32))


TEXT = WORDS.encode("a red circle left of a blue square")
LENGTH = int(TEXT.tokens_valid.sum())


def many(kind, boxes, cfg=CFG, count=4000):
  rng = np.random.default_rng(0)
  drawn = [masking.mask_words(kind, TEXT, boxes, WORDS, cfg, rng) for _ in range(count)]
  return (np.stack(x) for x in zip(*drawn, strict=True))


def test_rates_and_fates():
  tokens, labels = many("grounding", named())
  assert tokens.dtype == labels.dtype == np.int32
  words = slice(1, LENGTH - 1)
  hit = labels[:, words] >= 0
  np.testing.assert_allclose(hit.mean(), 0.15, atol=0.005)
  np.testing.assert_array_equal(labels[:, words][hit], np.broadcast_to(TEXT.tokens[words], hit.shape)[hit])
  fate = tokens[:, words][hit]
  same = np.broadcast_to(TEXT.tokens[words], hit.shape)[hit] == fate
  np.testing.assert_allclose((fate == WORDS.mask_id).mean(), 0.8, atol=0.02)
  np.testing.assert_allclose(same.mean(), 0.1, atol=0.02)
  others = fate[(fate != WORDS.mask_id) & ~same]
  assert len(set(others.tolist())) > 100 and others.max() < WORDS.vocab_size
  np.testing.assert_array_equal(tokens[:, words][~hit], np.broadcast_to(TEXT.tokens[words], hit.shape)[~hit])


def test_special_tokens_are_hit_but_not_predicted_and_padding_never():
  tokens, labels = many("grounding", named())
  ends = [0, LENGTH - 1]
  assert (labels[:, ends] == -100).all() and (labels[:, LENGTH:] == -100).all()
  np.testing.assert_allclose((tokens[:, ends] != TEXT.tokens[ends]).mean(), 0.135, atol=0.02)  # 10 % of hits stay
  np.testing.assert_array_equal(tokens[:, LENGTH:], WORDS.pad_id)


def test_detection_predicts_names_that_have_boxes():
  tokens, labels = many("detection", named((2, 3), (3, 7)))
  predicted = (labels >= 0).any(0)
  np.testing.assert_array_equal(np.flatnonzero(predicted), [2, 3, 7])
  assert (tokens != TEXT.tokens)[:, 5].any()  # others are hidden all the same


def test_an_unlisted_kind_stays_and_draws_nothing():
  rng = np.random.default_rng(0)
  tokens, labels = masking.mask_words(
    "detection", TEXT, named((2,)), WORDS, dataclasses.replace(CFG, kinds=("grounding",)), rng
  )
  np.testing.assert_array_equal(tokens, TEXT.tokens)
  assert (labels == -100).all() and rng.random() == np.random.default_rng(0).random()


def test_of_packed_captions_only_the_own_one_is_predicted_where_asked():
  text = WORDS.encode("two circles. a red star. no ring. ")
  own, cfg = (13, 23), dataclasses.replace(CFG, probability=1.0)  # "a red star"
  for only, expected in ((False, range(1, int(text.tokens_valid.sum()) - 1)), (True, (4, 5, 6))):
    options = dataclasses.replace(cfg, own_caption_only=only)
    _, labels = masking.mask_words("grounding", text, named(), WORDS, options, np.random.default_rng(0), own)
    assert np.flatnonzero(labels >= 0).tolist() == list(expected)


@pytest.mark.parametrize("task", ["detection", "grounding"])
def test_batches_hide_words_and_keep_the_rest(task):
  options = (("split", "train"), ("task", task), ("names", "kind"), ("size", (64, 64)))
  plain = DataConfig((("shapes", 1.0, options),), "shapes", 64, ((64, 64),), batch=4, max_boxes=8)
  with train_batches(plain) as a, train_batches(dataclasses.replace(plain, masking=CFG)) as b:
    without, hidden = next(a).batch, next(b).batch
  with train_batches(dataclasses.replace(plain, masking=CFG)) as again:
    np.testing.assert_array_equal(next(again).batch.tokens, hidden.tokens)
  assert without.mlm_labels is None
  for field in dataclasses.fields(without):
    if field.name not in ("tokens", "mlm_labels"):
      np.testing.assert_array_equal(getattr(without, field.name), getattr(hidden, field.name), field.name)
  predicted = hidden.mlm_labels >= 0
  assert predicted.any() and (hidden.tokens != without.tokens).any()
  np.testing.assert_array_equal(hidden.mlm_labels[predicted], without.tokens[predicted])

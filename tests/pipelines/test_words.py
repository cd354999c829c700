"""Tokenizers against recorded ids, and the way from characters to tokens."""

import dataclasses
import json
import pickle
import string

import numpy as np
import pytest

from glipv2_jax.models.variants import get
from pipelines.sources.shapes import SPLITS, TASKS, Shapes
from pipelines.sources.shapes_text import vocabulary
from pipelines.words import load_words, span_to_tokens


@pytest.fixture(scope="module")
def expected(golden):
  return json.loads((golden / "tokenizers_expected.json").read_text())


def tokens_of(encoding):
  return encoding.tokens[encoding.tokens_valid].tolist()


def pieces(words, text):
  return [words.tokenizer.id_to_token(number) for number in tokens_of(words.encode(text))[1:-1]]


def test_bert_ids_and_offsets(bert, expected):
  assert len(expected["texts"]) == 31
  for case in expected["texts"]:
    encoding = bert.encode(case["text"])
    assert tokens_of(encoding) == case["bert_ids"], case["text"]
    assert encoding.offsets[encoding.tokens_valid].tolist() == case["bert_offsets"], case["text"]
    assert bert.count(case["text"]) == len(case["bert_ids"]) - 2


def test_clip_ids(clip, expected):
  for case in expected["texts"]:
    assert tokens_of(clip.encode(case["text"])) == case["clip_ids"], case["text"]


def test_special_ids(bert, clip):
  assert (bert.kind, bert.vocab_size, bert.pad_id, bert.cls_id, bert.sep_id, bert.mask_id) == (
    "bert", 30522, 0, 101, 102, 103,
  )  # fmt: skip
  assert (clip.kind, clip.vocab_size, clip.pad_id, clip.cls_id, clip.sep_id, clip.mask_id) == (
    "clip", 49408, 49407, 49406, 49407, 49404,
  )  # fmt: skip
  assert tokens_of(bert.encode("a [MASK]")) == [101, 1037, 103, 102]


def test_clip_spans_point_at_their_characters(clip):
  text = "Two raccoons,  naïve café — 3 shops"
  encoding = clip.encode(text)
  for word in ("Two", "raccoons", "naïve", "café", "3", "shops"):
    begin = text.index(word)
    positions = span_to_tokens(encoding, ((begin, begin + len(word)),))
    shown = "".join(clip.tokenizer.id_to_token(int(encoding.tokens[i])) for i in positions).replace("</w>", "")
    if word.isascii():
      assert shown == word.lower()
    assert encoding.offsets[positions[0], 0] == begin and encoding.offsets[positions[-1], 1] == begin + len(word)


def test_flickr_positive_maps(bert, shared, expected):
  folder = shared / "data" / "goldg_sample" / "mdetr_annotations"
  content = json.loads((folder / "final_flickr_separateGT_val.json").read_text())
  captions = {image["id"]: image["caption"] for image in content["images"]}
  annotations = {annotation["id"]: annotation for annotation in content["annotations"]}
  assert len(expected["flickr_val_positive_maps"]) == 21
  for case in expected["flickr_val_positive_maps"]:
    encoding = bert.encode(captions[case["image_id"]])
    for number, positions in zip(case["ann_ids"], case["positive_token_indices"], strict=True):
      assert span_to_tokens(encoding, annotations[number]["tokens_positive"]) == tuple(positions)


def test_char_to_token_is_the_engines_own(bert):
  text = "Snow-covered  mountains, behind a wooden cabin . "
  encoding, own = bert.encode(text), bert.tokenizer.encode(text)
  assert [encoding.char_to_token(i) for i in range(len(text))] == [own.char_to_token(i) for i in range(len(text))]
  assert encoding.char_to_token(len(text)) is None and encoding.char_to_token(-1) is None


@pytest.mark.parametrize(
  ("span", "positions"),
  [
    ((0, 3), (1,)),
    ((0, 4), (1,)),  # a space at the end
    ((0, 5), (1,)),  # two spaces at the end
    ((0, 6), ()),  # three: given up
    ((4, 9), (2,)),  # two spaces at the begin
    ((3, 9), ()),  # three: given up
    ((0, 9), (1, 2)),
    ((3, 5), ()),  # only spaces
    ((20, 30), ()),  # beyond the text
  ],
)
def test_spans_on_white_space(shapes, span, positions):
  text = "two   red"
  assert span_to_tokens(shapes.encode(text), (span,)) == positions


def test_several_spans_are_united_and_lost_ones_left_out(shapes):
  encoding = shapes.encode("a red star and a blue moon")
  assert span_to_tokens(encoding, ((17, 26), (2, 10), (2, 5), (90, 95))) == (2, 3, 6, 7)
  assert span_to_tokens(encoding, ()) == ()


def test_truncation_keeps_the_last_sep(bert):
  short = dataclasses.replace(bert, max_tokens=8)
  text = "a person walks a small dog under a red umbrella"
  full, cut = bert.encode(text), short.encode(text)
  assert cut.truncated and not full.truncated
  assert cut.tokens.tolist() == [*full.tokens[:7].tolist(), bert.sep_id]
  assert cut.tokens_valid.all() and len(cut.tokens) == 8
  assert span_to_tokens(cut, ((15, 26),)) == (4, 5, 6)  # a small dog: the last words that fit
  assert span_to_tokens(cut, ((33, 47),)) == ()  # a red umbrella: cut off
  assert span_to_tokens(cut, ((15, 47),)) == ()  # its end is cut off


def test_empty_caption(bert, clip, shapes):
  for words in (bert, clip, shapes):
    for text in ("", "   "):
      encoding = words.encode(text)
      assert tokens_of(encoding) == [words.cls_id, words.sep_id]
      assert (encoding.tokens[2:] == words.pad_id).all() and not encoding.truncated
      assert encoding.char_to_token(0) is None
      assert words.count(text) == 0


def test_types(shapes):
  encoding = shapes.encode("a red star.")
  assert encoding.tokens.dtype == np.int32 and encoding.tokens_valid.dtype == bool
  assert encoding.tokens.shape == encoding.tokens_valid.shape == (64,)


def test_pickles_for_worker_processes(clip, shapes):
  for words in (clip, shapes):
    copy = pickle.loads(pickle.dumps(words))
    np.testing.assert_array_equal(copy.encode("a red star").tokens, words.encode("a red star").tokens)
    assert (copy.pad_id, copy.mask_id, copy.max_tokens) == (words.pad_id, words.mask_id, words.max_tokens)


def test_shapes_vocabulary_fits_the_demo_network(shapes):
  assert shapes.vocab_size <= get("demo").text.vocab_size
  assert get("demo").max_tokens <= 64
  assert [shapes.tokenizer.token_to_id(t) for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [0, 1, 2, 3, 4]
  vocabulary = shapes.tokenizer.get_vocab()
  assert sorted(vocabulary.values()) == list(range(shapes.vocab_size))  # no line twice


def test_shapes_vocabulary_writes_any_ascii_text(shapes):
  text = string.printable + " Zebra42 x86-64 quick_brown Éclair"
  assert "[UNK]" not in pieces(shapes, text)
  assert pieces(shapes, "zebra") == ["z", "##e", "##b", "##r", "##a"]


@pytest.mark.parametrize(
  "text",
  [
    "The small red striped circle is left of the large blue star, above two dotted moons.",
    "What color are the checkered hexagons between the pentagon and the arrow?",
    "How many purple rings touching the tiny black diamond are there?",
    "Is the gray cross inside the big white heart? Yes, no object is near it.",
    "Where is the solid brown triangle? It is to the right of a cyan square, next to three pink things.",
    "A picture with seven shapes beside each other: four yellow, five orange, six green, eight, nine and ten.",
    "colour shape size in on image background below which one",
  ],
)
def test_shapes_sentences_are_whole_words(shapes, text):
  assert not [piece for piece in pieces(shapes, text) if piece == "[UNK]" or piece.startswith("##")]
  assert pieces(shapes, text) == [w.strip() for w in "".join(
    f" {c} " if c in string.punctuation else c for c in text.lower()
  ).split()]  # fmt: skip


def test_shapes_data_set_is_written_in_whole_words(shapes):
  """Every word that the embedded data set can say, and its sentences as they are."""
  assert [word for word in vocabulary() if shapes.count(word) != 1] == []
  scenes = [Shapes(split=split, task=task) for split in SPLITS for task in TASKS]
  texts = [name for source in scenes for name in source.classes]
  for source in scenes:
    for example in map(source.__getitem__, range(20)):
      texts += [example.caption, *example.labels, *(part for q in example.questions for part in (q.text, *q.answers))]
  used = {piece for text in texts for piece in pieces(shapes, text)}
  assert len(used) > 60
  assert not [piece for piece in used if piece == "[UNK]" or piece.startswith("##")]


def test_hugging_face_folder_gives_the_same_words(shapes, tmp_path):
  from transformers import BertTokenizerFast

  BertTokenizerFast(vocab=shapes.tokenizer.get_vocab()).save_pretrained(tmp_path)
  loaded = load_words(str(tmp_path), 64)
  special = ("kind", "vocab_size", "max_tokens", "pad_id", "cls_id", "sep_id", "mask_id")
  assert [getattr(loaded, name) for name in special] == [getattr(shapes, name) for name in special]
  for text in ("A red star; two zebras [MASK].", "", "moon " * 100):
    ours, theirs = shapes.encode(text), loaded.encode(text)
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    np.testing.assert_array_equal(ours.offsets, theirs.offsets)


def test_errors_name_the_remedy(tmp_path):
  with pytest.raises(FileNotFoundError, match="nowhere.txt.*a tokenizer is one of: 'shapes'"):
    load_words(str(tmp_path / "nowhere.txt"), 256)
  with pytest.raises(FileNotFoundError, match="bpe.gz"):
    load_words("clip:bpe.gz", 256)
  (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n")
  with pytest.raises(ValueError, match=r"lacks \[MASK\]"):
    load_words(str(tmp_path / "vocab.txt"), 256)
  with pytest.raises(ValueError, match="max_tokens=2"):
    load_words("shapes", 2)

"""Prompts beyond the published cases: what fits, what is dropped, what is random, what is refused."""

import collections
import dataclasses
import math

import numpy as np
import pytest

from pipelines import prompts
from pipelines.concepts import clean_name, concept_id, normalised_name
from pipelines.prompts import PromptConfig
from pipelines.records import Example
from pipelines.words import span_to_tokens

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink")


def positions(positive_map):
  return [np.flatnonzero(row).tolist() for row in positive_map]


@pytest.mark.parametrize("length", [16, 64, 256])
def test_chunks_cover_the_vocabulary_once_and_fit(bert, vocabularies, length):
  words = dataclasses.replace(bert, max_tokens=length)
  chunks = prompts.all_classes_prompts(vocabularies["lvis"], words)
  assert [name for prompt in chunks for name, _ in prompt.spans] == vocabularies["lvis"]
  for prompt, following in zip(chunks, [*chunks[1:], None], strict=True):
    encoding = words.encode(prompt.text)
    assert not encoding.truncated
    assert all(phrase.tokens for phrase in prompts.phrases(prompt, encoding))
    if following:  # greedy: the next class would not have fitted
      assert words.encode(prompt.text + ". " + clean_name(following.spans[0][0])).truncated


def test_counts_of_the_names_add_up(bert, clip, vocabularies):
  """The room for a prompt is counted name by name."""
  for words in (bert, clip):
    for name in vocabularies["lvis"]:
      text = clean_name(name) + ". "
      assert words.count("dog. " + text + "cat") == words.count("dog. ") + words.count(text) + words.count("cat")


@pytest.mark.parametrize("seed", range(20))
def test_sampled_prompts_fit_and_name_every_kept_box(bert, vocabularies, seed):
  rng = np.random.default_rng(seed)
  classes = vocabularies["lvis"]
  labels = rng.choice(classes, size=int(rng.integers(0, 150))).tolist()
  words = dataclasses.replace(bert, max_tokens=int(rng.choice([32, 100, 256])))
  cfg = PromptConfig(prefix="object detection : " if seed % 2 else "")
  prompt, kept = prompts.detection_prompt(labels, classes, rng, words, cfg)
  encoding = words.encode(prompt.text)
  assert not encoding.truncated
  named = prompts.name_boxes(prompt, encoding, labels)
  np.testing.assert_array_equal(named.kept, kept)
  assert kept.any() == bool(labels)
  texts = [prompt.text[begin:end] for begin, end in {span for _, span in prompt.spans}]
  assert len({normalised_name(text) for text in texts}) == len(texts)  # distinct
  assert {normalised_name(name) for name, _ in prompt.spans}.isdisjoint(
    {normalised_name(label) for label, keep in zip(labels, kept, strict=True) if not keep}
  )
  for row, label in zip(named.positive_map, np.array(labels, object)[kept], strict=True):
    first, last = np.flatnonzero(row)[[0, -1]]
    shown = prompt.text[encoding.offsets[first, 0] : encoding.offsets[last, 1]]
    assert shown == clean_name(label).strip()
    assert set(named.token_concept[row]) == {concept_id(label)}


def test_names_that_read_alike_share_their_tokens(bert):
  labels = ["bow_(weapon)", "dog", "bow_(decorative_ribbons)"]
  prompt, kept = prompts.detection_prompt(labels, labels, np.random.default_rng(0), bert, PromptConfig())
  named = prompts.name_boxes(prompt, bert.encode(prompt.text), labels)
  assert kept.all() and prompt.text.count("bow") == 1
  np.testing.assert_array_equal(named.positive_map[0], named.positive_map[2])
  assert named.box_concept[0] == named.box_concept[2] != named.box_concept[1]


def test_control_probabilities_in_distribution(shapes):
  """Without positives the number of classes in the prompt is the number of negatives drawn."""
  words = dataclasses.replace(shapes, max_tokens=256)
  cfg = PromptConfig(random_negatives=4, control_probabilities=(0.1, 0.2, 0.3, 0.0))
  rng, n = np.random.default_rng(0), 4000
  counts = collections.Counter(len(prompts.detection_prompt([], COLOURS, rng, words, cfg)[0].spans) for _ in range(n))
  rest = 0.4 / 4
  expected = {0: 0.2, 1: 0.1 + rest, 2: rest, 3: rest, 4: 0.3 + rest}
  assert set(counts) == set(expected)
  for number, p in expected.items():
    assert abs(counts[number] / n - p) < 4 * math.sqrt(p * (1 - p) / n)


def test_negatives_leave_one_token_free(shapes):
  """Strictly more than nothing has to be left after each negative (reference 6.3, 5)."""
  cfg = PromptConfig(control_probabilities=(0, 0, 1, 0))
  for length, names in ((8, 2), (9, 3), (10, 3), (11, 4)):
    words = dataclasses.replace(shapes, max_tokens=length)
    prompt, _ = prompts.detection_prompt(["red"], COLOURS, np.random.default_rng(0), words, cfg)
    assert len(prompt.spans) == names


def test_positives_and_negatives_are_mixed(shapes):
  rng = np.random.default_rng(0)
  places = collections.Counter()
  cfg = PromptConfig(control_probabilities=(0, 0, 1, 0))
  for _ in range(800):
    prompt, _ = prompts.detection_prompt(["red"], COLOURS, rng, shapes, cfg)
    assert len(prompt.spans) == 8
    places[[name for name, _ in prompt.spans].index("red")] += 1
  assert min(places[i] for i in range(8)) > 60  # 100 expected, standard deviation 9.4


def test_background_is_drawn_only_on_request(shapes):
  def ever(cfg):
    rng = np.random.default_rng(0)
    texts = [prompts.detection_prompt(["red"], COLOURS, rng, shapes, cfg)[0].text for _ in range(50)]
    return any("background" in text for text in texts)

  assert not ever(PromptConfig())
  assert ever(PromptConfig(draw_background=True))


def test_where_not_all_classes_fit_those_of_the_boxes_come_first(shapes):
  words = dataclasses.replace(shapes, max_tokens=8)  # room for three names and two full stops, one token stays free
  cfg = PromptConfig(mode="all", shuffle=False)
  for labels, text in (
    (["blue", "pink", "blue"], "red. blue. pink"),
    ([], "red. green. blue"),
    (["pink", "red", "green", "blue"], "red. green. blue"),
  ):
    prompt, kept = prompts.detection_prompt(labels, COLOURS, np.random.default_rng(0), words, cfg)
    assert prompt.text == text and kept.tolist() == [label in text for label in labels]
    named = prompts.name_boxes(prompt, words.encode(prompt.text), labels)
    assert named.kept.tolist() == kept.tolist() and len(named.box_concept) == kept.sum()
  (chunk, *_), drawn = prompts.all_classes_prompts(COLOURS, words), set()
  assert chunk.text == "red. green. blue"
  for seed in range(40):  # shuffled: always the class of the box, and in time every other one
    prompt, _ = prompts.detection_prompt(
      ["pink"], COLOURS, np.random.default_rng(seed), words, dataclasses.replace(cfg, shuffle=True)
    )
    assert "pink" in prompt.text and prompt.text.count(".") == 2
    drawn.update(name for name, _ in prompt.spans)
  assert drawn == set(COLOURS)


def test_a_background_class_is_no_negative(shapes):
  classes = ("__background__", "red", "Background", "green")
  cfg = PromptConfig(control_probabilities=(0, 0, 1.0, 0))
  for seed in range(20):
    prompt, _ = prompts.detection_prompt(["red"], classes, np.random.default_rng(seed), shapes, cfg)
    assert sorted(prompt.text.split(". ")) == ["green", "red"]


def test_remembered_names_are_encoded_as_the_whole_text(bert, clip, vocabularies):
  for words in (bert, clip, dataclasses.replace(bert, max_tokens=40)):
    for classes in vocabularies.values():
      for cfg in (PromptConfig(), PromptConfig(mode="all", prefix="object detection : ")):
        for seed in range(5):
          rng = np.random.default_rng(seed)
          prompt, _ = prompts.detection_prompt(classes[3:9], classes, rng, words, cfg)
          fast, slow = prompt.encode(words), words.encode(prompt.text)
          for field in ("tokens", "tokens_valid", "offsets", "truncated"):
            np.testing.assert_array_equal(getattr(fast, field), getattr(slow, field), field)


def test_tokens_of_names_are_those_of_their_characters(bert, clip, vocabularies):
  """The tokens that a prompt knows of its names, against a search by characters."""
  for words in (bert, clip):
    for classes in vocabularies.values():
      for seed, prefix in enumerate(["", "object detection : "]):
        rng, synonyms = np.random.default_rng(seed), {name: ("a (b) c", f"{name} thing") for name in classes[::3]}
        cfg = PromptConfig(prefix=prefix)
        prompt, _ = prompts.detection_prompt(classes[3:9], classes, rng, words, cfg, synonyms)
        encoding, named = prompt.encode(words), prompts.phrases(prompt, prompt.encode(words))
        assert [phrase.tokens for phrase in named] == [span_to_tokens(encoding, (span,)) for _, span in prompt.spans]
        assert any(phrase.tokens for phrase in named)
        short = dataclasses.replace(words, max_tokens=12)  # than the prompt: what is cut off has no tokens
        cut = prompt.encode(short)
        assert [phrase.tokens for phrase in prompts.phrases(prompt, cut)] == [
          span_to_tokens(cut, (span,)) for _, span in prompt.spans
        ]


def test_tokens_that_were_cut_off_drop_the_box(shapes):
  words = dataclasses.replace(shapes, max_tokens=6)
  text = "a red star and a blue moon"
  named = prompts.name_boxes_by_spans(text, words.encode(text), [[(15, 26)], [(0, 10)], [(0, 10), (15, 26)], []])
  assert named.kept.tolist() == [False, True, True, False]
  assert positions(named.positive_map) == [[1, 2, 3], [1, 2, 3]]
  assert [(phrase.name, phrase.tokens) for phrase in named.phrases] == [
    ("a red star", (1, 2, 3)), ("a red star a blue moon", (1, 2, 3)), ("a blue moon", ()),
  ]  # fmt: skip


def test_prompt_of_an_example(shapes):
  boxes, image = np.zeros((2, 4), np.float32), np.zeros((4, 4, 3), np.uint8)
  example = Example("s", 1, "detection", image, boxes, labels=("red", "pink"))
  cfg = PromptConfig(mode="all", shuffle=False)
  _, encoding, named = prompts.prompt_example(example, COLOURS, np.random.default_rng(0), shapes, cfg)
  assert named.positive_map.shape == (2, 64) and named.kept.all() and len(named.phrases) == 8
  assert encoding.tokens[named.positive_map[1]].tolist() == [shapes.tokenizer.token_to_id("pink")]

  spans = (((0, 10),), ((15, 26), (0, 10)))
  example = Example("s", 1, "grounding", image, boxes, caption="a red star and a blue moon", spans=spans)
  prompt, encoding, named = prompts.prompt_example(example, (), np.random.default_rng(0), shapes, cfg)
  assert prompt.text == example.caption and [text for text, _ in prompt.spans] == ["a red star", "a blue moon"]
  assert positions(named.positive_map) == [[1, 2, 3], [1, 2, 3, 5, 6, 7]]

  with pytest.raises(ValueError, match="'mosaic'"):
    prompts.prompt_example(dataclasses.replace(example, kind="mosaic"), (), np.random.default_rng(0), shapes, cfg)


def test_packing_never_adds_the_own_caption_and_fits(shapes):
  captions = ["a red star and a blue moon", "two circles.", "no object here", "a large ring above a small cross"]
  own = captions[0]
  spans = (((0, 10),), ((15, 26),))
  example = Example("s", 1, "grounding", np.zeros((4, 4, 3), np.uint8), np.zeros((2, 4), np.float32), (), own, spans)
  cfg = PromptConfig(pack=20, pack_none=0.3)
  alone, places = 0, set()
  for seed in range(60):
    rng = np.random.default_rng(seed)
    prompt, encoding, named = prompts.prompt_example(example, (), rng, shapes, cfg, captions)
    assert prompt.text.count(own) == 1 and not encoding.truncated and named.kept.all()
    assert [phrase.name for phrase in named.phrases] == ["a red star", "a blue moon"]
    tokens = [shapes.tokenizer.id_to_token(int(i)) for i in encoding.tokens[named.positive_map[1]]]
    assert tokens == ["a", "blue", "moon"]
    assert [prompt.text[begin:end] for _, (begin, end) in prompt.spans] == ["a red star", "a blue moon"]
    alone += prompt.text == own
    places.add(prompt.text.index(own))
  assert 8 <= alone <= 32 and len(places) > 5


def test_phrase_map(shapes):
  (prompt,) = prompts.all_classes_prompts(["red star", "moon"], shapes)
  named = prompts.phrases(prompt, shapes.encode(prompt.text))
  assert [phrase.name for phrase in named] == ["red star", "moon"]
  assert positions(prompts.phrase_map(named, 64)) == [[1, 2], [4]]
  assert prompts.phrase_map((), 64).shape == (0, 64)


def test_spans_of_a_chunk_survive_trailing_spaces(bert):
  (prompt,) = prompts.all_classes_prompts(["bow_(weapon)", "traffic light"], bert)
  assert prompt.text == "bow . traffic light"
  assert [span_to_tokens(bert.encode(prompt.text), (span,)) for _, span in prompt.spans] == [(1,), (3, 4)]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"mode": "some"}, "'some'"),
    ({"separator": "."}, "separator"),
    ({"prefix": "find:"}, "prefix"),
    ({"control_probabilities": (0.5, 0.5, 0.5, 0.0)}, "control_probabilities"),
    ({"control_probabilities": (0.0, 0.0, 0.5, 0.1)}, "never dropped"),
    ({"wordings": (("a ", "dog", ""),)}, "mode='all'"),
  ],
)
def test_wrong_settings_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    PromptConfig(**change)


def test_wrong_classes_are_refused(shapes):
  with pytest.raises(ValueError, match=r"'\(all\)'.*give it a name"):
    prompts.check_classes(["red", "(all)"], shapes)
  with pytest.raises(ValueError, match="shorten"):
    prompts.all_classes_prompts(["red", "zzzzzzzz" * 9], shapes)
  cfg = PromptConfig(mode="all", wordings=(("a ", "dog", ""),))
  with pytest.raises(ValueError, match="1 wordings for 8 classes"):
    prompts.detection_prompt([], COLOURS, np.random.default_rng(0), shapes, cfg)

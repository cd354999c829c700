"""pipelines/noun_phrases.py: brackets are taken at their word, the chunker cuts everyday captions as a reader would."""

import pytest

from pipelines import noun_phrases


def texts(caption):
  return [caption[begin:end] for begin, end in noun_phrases.find(caption)]


@pytest.mark.parametrize(
  ("caption", "phrases"),
  [
    ("a dog on a sofa", ["a dog", "a sofa"]),
    ("A small red circle above two green squares.", ["A small red circle", "two green squares"]),
    ("Two people are talking near the old wooden door", ["Two people", "the old wooden door"]),
    ("a man riding a brown horse, and his dog", ["a man", "a brown horse", "his dog"]),
    ("a photo of a running dog", ["a running dog"]),
    ("person, bicycle and traffic light", ["person", "bicycle", "traffic light"]),
    ("the building with the tall ceiling", ["the building", "the tall ceiling"]),
    ("a woman's hat on the left", ["a woman's hat"]),
    ("the cat the dog", ["the cat", "the dog"]),
    ("un café près", ["un café près"]),
    ("", []),
    ("is it there?", []),
  ],
)
def test_chunks(caption, phrases):
  assert texts(caption) == phrases


def test_brackets_are_removed_and_spans_follow():
  caption, spans = noun_phrases.mark("[a dog] sleeps on [ a very long sofa ], [it]")
  assert caption == "a dog sleeps on  a very long sofa , it"
  assert [caption[b:e] for b, e in spans] == ["a dog", "a very long sofa", "it"]


def test_without_brackets_the_caption_is_untouched():
  caption, spans = noun_phrases.mark("a dog on a sofa")
  assert caption == "a dog on a sofa" and spans == ((0, 5), (9, 15))


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("[a dog on a sofa", "without its partner"),
    ("a dog] on a sofa", "without its partner"),
    ("[[a dog]]", "nested"),
    ("[ ] on a sofa", "empty brackets at character 0"),
    ("it is there", "mark what to ground"),
  ],
)
def test_captions_that_cannot_be_used(text, message):
  with pytest.raises(ValueError, match=message):
    noun_phrases.mark(text)

"""Noun phrases by a library's tagger, compared with the phrases that people marked in Flickr30k's sentences."""

import pytest

from pipelines import taggers
from pipelines.sources.flickr30k import NOT_VISUAL, read_sentences

pytest.importorskip("HanTa", reason="needs the extra `data`")


@pytest.fixture(scope="module")
def hanta():
  return taggers.phrase_finder("hanta")[1]


@pytest.mark.parametrize(
  ("caption", "phrases"),
  [
    ("A black and white cat rests on the wooden desk.", ["A black and white cat", "the wooden desk"]),
    ("Two young men are playing in a photo of the park", ["Two young men", "the park"]),
    ("the man's hat, a red stop sign", ["the man's hat", "a red stop sign"]),
    ("It is raining", []),
    ("", []),
    ("!? … 🐈", []),
    ("a small red circle above two green squares", ["a small red circle", "two green squares"]),
  ],
)
def test_phrases(hanta, caption, phrases):
  assert [caption[begin:end] for begin, end in hanta(caption)] == phrases


def test_against_marked_phrases(hanta, shared):
  """Exact phrases of 110 sentences: the tagger finds more of them than the list-based chunker, and fewer others."""
  folder = shared / "data/flickr30k_entities_sample/Sentences"
  lines = [line for path in sorted(folder.glob("*.txt")) for line in read_sentences(path.read_text())]
  wanted = {(i, span) for i, (_, phrases) in enumerate(lines) for chain, span in phrases if chain != NOT_VISUAL}

  def score(find):
    found = {(i, span) for i, (caption, _) in enumerate(lines) for span in find(caption)}
    return len(found & wanted) / len(found), len(found & wanted) / len(wanted)

  tagger, rules = score(hanta), score(taggers.phrase_finder("rules")[1])
  assert len(lines) == 110 and tagger[0] > rules[0] + 0.05 and tagger[1] > rules[1] + 0.02, (tagger, rules)
  assert tagger[0] > 0.76 and tagger[1] > 0.85, tagger


def test_names(monkeypatch):
  with pytest.raises(ValueError, match="tagger 'nltk' is not known; known: auto, hanta"):
    taggers.phrase_finder("nltk")
  monkeypatch.setitem(__import__("sys").modules, "spacy", None)
  assert taggers.phrase_finder("auto")[0] == "hanta"
  with pytest.raises(ImportError, match="needs spacy and its model"):
    taggers.phrase_finder("spacy")
  monkeypatch.setitem(__import__("sys").modules, "HanTa", None)
  with pytest.raises(ImportError, match=r'pip install "glipv2_jax\[data\]"; or use .rules.'):
    taggers.phrase_finder("auto")

"""Noun phrases of web captions, for pseudo-labels: which characters of a caption name something that can be seen.

`hanta` (HanTa, a tagger that carries its model in the package) with a small grammar over its tags; `spacy` where its
English model is installed; `rules`, the list-based chunker of `glipv2 predict`. tests/pipelines/test_taggers.py
compares them with the phrases that people marked.
"""

import re
from collections.abc import Callable, Iterator

from pipelines import noun_phrases
from pipelines.records import Span

Finder = Callable[[str], tuple[Span, ...]]
NAMES = ("auto", "hanta", "spacy", "rules")
SPACY_MODEL = "en_core_web_sm"
# HanTa's tags (CLAWS 5) as letters: determiner, cardinal, adverb, adjective, participle, noun, genitive, "and".
_LETTERS = {
  "AT0": "D", "DT0": "D", "DPS": "D", "CRD": "C", "ORD": "C", "AV0": "R", "AJ0": "J", "AJC": "J", "AJS": "J",
  "VVN": "V", "VVG": "V", "VVB": "V", "NN0": "N", "NN1": "N", "NN2": "N", "NP0": "N", "POS": "S",
}  # fmt: skip
# "a very big dog", "two parked cars", "the man's hat", "a black and white cat", "the stop sign".
_PHRASE = re.compile("D*C*(?:JAJ)?(?:R?[JC]|N|S|V(?=[NJ]))*N")
_WORD = re.compile(r"['’]s\b|[^\W_]+(?:['’-](?!s\b)[^\W_]+)*|[^\w\s]")


def phrase_finder(name: str = "auto") -> tuple[str, Finder]:
  """The name of the finder and the finder: caption -> spans of its noun phrases, in order, determiners included.

  'auto' is spaCy where its English model is installed and HanTa otherwise.
  Raises ValueError for an unknown name, ImportError where the library or model is missing.
  """
  if name not in NAMES:
    raise ValueError(f"tagger {name!r} is not known; known: {', '.join(NAMES)}")
  if name == "rules":
    return name, noun_phrases.find
  if name in ("auto", "spacy"):
    try:
      return "spacy", _spacy()
    except (ImportError, OSError) as error:
      if name == "spacy":
        raise ImportError(f"tagger 'spacy' needs spacy and its model {SPACY_MODEL} ({error}); use 'hanta'") from error
  try:
    from HanTa import HanoverTagger  # only where captions are tagged
  except ImportError as error:
    raise ImportError("tagger 'hanta' needs HanTa: pip install \"glipv2_jax[data]\"; or use 'rules'") from error
  return "hanta", _Hanta(HanoverTagger.HanoverTagger("morphmodel_en.pgz"))


class _Hanta:
  def __init__(self, tagger):
    self._tagger = tagger

  def __call__(self, caption: str) -> tuple[Span, ...]:
    words = [(match[0], match.span()) for match in _WORD.finditer(caption)]
    if not words:
      return ()
    tags = [tag for _, _, tag in self._tagger.tag_sent([word for word, _ in words])]
    letters = "".join(
      "A" if word == "and" else _LETTERS.get(tag, "O") for (word, _), tag in zip(words, tags, strict=True)
    )
    return tuple(_objects(caption, (_around(words, match.span()) for match in _PHRASE.finditer(letters))))


def _around(words: list[tuple[str, Span]], places: Span) -> Span:
  return words[places[0]][1][0], words[places[1] - 1][1][1]


def _objects(caption: str, spans: Iterator[Span]) -> Iterator[Span]:
  """Without phrases for the picture itself or a place in it ("a photo", "the left")."""
  for begin, end in spans:
    if caption[begin:end].split()[-1].lower() not in noun_phrases.NOT_OBJECTS:
      yield begin, end


def _spacy() -> Finder:
  import spacy

  model = spacy.load(SPACY_MODEL, exclude=["ner", "lemmatizer"])

  def find(caption: str) -> tuple[Span, ...]:
    chunks = (chunk for chunk in model(caption).noun_chunks if chunk.root.pos_ in ("NOUN", "PROPN"))
    return tuple(_objects(caption, ((chunk.start_char, chunk.end_char) for chunk in chunks)))

  return find

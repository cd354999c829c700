"""Which parts of a free caption to ground: marked by the writer in square brackets, or found by a small chunker.

"[a dog] on [a sofa]" grounds exactly what is marked. Without brackets the caption is cut at punctuation, prepositions,
conjunctions, pronouns and a list of common verbs; what remains between the cuts, from a determiner on, is a phrase.
This needs no tagger and no download; it knows nothing of grammar, so write brackets where it cuts wrongly.
"""

import re

from pipelines.records import Span

DETERMINERS = frozenset(
  "a an the this that these those some any each every another both all several many few no his her its their my our "
  "your one two three four five six seven eight nine ten".split()
)
# Words that end a phrase and belong to none.
BREAKS = frozenset(
  # prepositions
  "about above across after against along alongside amid among around as at atop before behind below beneath beside "
  "between beyond by down during for from in inside into like near next of off on onto out outside over past per "
  "through throughout to toward towards under underneath up upon via with within without "
  # conjunctions and pronouns
  "and but or nor so yet while when where whereas because if than then though although who whom whose which what "
  "there here he him she it they them we us you i me himself herself itself themselves someone something "
  # verbs and adverbs
  "is are was were be been being am has have had having do does did can could will would may might must should "
  "sit sits sat stand stands stood lie lies lay laid lean leans hold holds held wear wears wore worn carry carries "
  "carried ride rides rode look looks looked walk walks walked run runs ran jump jumps jumped eat eats ate play plays "
  "played use uses used make makes made take takes took get gets got go goes went put puts show shows showed shown "
  "see sees saw seen contain contains contained hang hangs hung fly flies flew cover covers covered fill fills filled "
  "surround surrounds surrounded park parked pose poses posed watch watches watched throw throws threw hit hits "
  "catch catches caught drive drives drove cross crosses crossed touch touches touched "
  "not very just only also still away together apart right-side upside".split()
)
# Words in -ing are verbs after a noun ("a man riding") and after these ("are talking"), unless they name things.
BEFORE_VERBS = frozenset("is are was were be been being am and while".split())
THINGS_IN_ING = frozenset(
  "building ceiling clothing painting drawing ring king wing string thing earring railing awning swing icing topping "
  "pudding dumpling duckling wedding bedding lightning evening morning spring sibling crossing".split()
)
# A phrase that ends in one of these names a place in the picture or the picture itself, not an object.
NOT_OBJECTS = frozenset(
  "image photo photograph picture view scene shot closeup close-up left right top bottom front back middle center "
  "centre side background foreground distance corner edge lot bunch group pair piece part kind type".split()
)
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_MARKED = re.compile(r"\[([^\[\]]*)\]")


def mark(text: str) -> tuple[str, tuple[Span, ...]]:
  """The caption without its brackets and the spans to ground, in order of the text.

  Raises ValueError on unpaired or empty brackets, and when no phrase is marked or found.
  """
  if "[" in text or "]" in text:
    caption, spans = _unbracket(text)
  else:
    caption, spans = text, find(text)
  if not spans:
    raise ValueError(f"no noun phrase found in caption {text!r}; mark what to ground: '[a dog] on [a sofa]'")
  return caption, spans


def _unbracket(text: str) -> tuple[str, tuple[Span, ...]]:
  if "[" in (rest := _MARKED.sub("", text)) or "]" in rest:
    raise ValueError(f"caption {text!r} has a square bracket without its partner (or nested ones); write '[a dog]'")
  spans, removed = [], 0
  for match in _MARKED.finditer(text):
    begin = match.start() - removed
    if not match[1].strip():
      raise ValueError(f"caption {text!r} has empty brackets at character {match.start()}; write '[a dog]'")
    left, right = len(match[1]) - len(match[1].lstrip()), len(match[1].rstrip())
    spans.append((begin + left, begin + right))
    removed += 2
  return _MARKED.sub(r"\1", text), tuple(spans)


def find(caption: str) -> tuple[Span, ...]:
  """Character spans of the noun phrases of a caption, determiners included."""
  words = [(match[0].lower(), match.span()) for match in _WORD.finditer(caption)]
  phrases, current = [], []
  for i, (word, (begin, _)) in enumerate(words):
    punctuated = i > 0 and caption[words[i - 1][1][1] : begin].strip() != ""
    opens = word in DETERMINERS and any(w not in DETERMINERS for w, _ in current)
    if punctuated or opens:
      phrases, current = _closed(phrases, current), []
    if word in BREAKS or _is_verb_in_ing(word, words[i - 1][0] if i else "", current):
      phrases, current = _closed(phrases, current), []
    else:
      current.append(words[i])
  return tuple((phrase[0][1][0], phrase[-1][1][1]) for phrase in _closed(phrases, current))


def _is_verb_in_ing(word: str, previous: str, current) -> bool:
  if len(word) < 5 or not word.endswith("ing") or word in THINGS_IN_ING:
    return False
  return previous in BEFORE_VERBS or any(w not in DETERMINERS for w, _ in current)


def _closed(phrases, current):
  """`phrases` with `current` when it names an object."""
  if any(word not in DETERMINERS for word, _ in current) and current[-1][0] not in NOT_OBJECTS:
    return [*phrases, current]
  return phrases

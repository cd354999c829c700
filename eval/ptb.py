"""Words of a caption as the caption metrics count them: Stanford's PTB rules in lower case, punctuation dropped.

pycocoevalcap runs the Java tool for this. These rules stand in where Java is absent; they cover the English that
captions are written in (tests/eval/test_captions.py compares them with the Java tool), not all of its grammar.
"""

import re

_CHARACTERS = str.maketrans(
  {"’": "'", "‘": "'", "“": '"', "”": '"', "–": " -- ", "—": " -- ", "…": " ... ", "½": "1/2", "¼": "1/4", "¾": "3/4"}
)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_ASSIMILATED = {
  "cannot": "can not",
  "gonna": "gon na",
  "gotta": "got ta",
  "wanna": "wan na",
  "gimme": "gim me",
  "lemme": "lem me",
  "'tis": "'t is",
  "'twas": "'t was",
}
_ABBREVIATIONS = """
  mr mrs ms dr prof jr sr gen sgt capt st ave blvd rd ft mt inc co corp ltd etc vs
  jan feb mar apr jun jul aug sep sept oct nov dec
""".split()
_TOKEN = re.compile(
  r"\S+@\S+\.\w+|www\.\S+|https?://\S+"  # addresses
  r"|(?:[a-z]\.)+[a-z]\.|(?:" + "|".join(_ABBREVIATIONS) + r")\.|no\.(?=\s*\d)"  # u.s., mr., no. 5
  r"|\d+(?::\d+)+(?=[ap]m\b)"  # 8:30 am
  r"|\.?\d+(?:[.,:/]\d+)+|\.\d+"  # 1,000  3:00  1/2  .5
  r"|'(?:em|tis|twas|\d0s|s|m|re|ve|ll)\b"
  r"|@?\w+(?:[-'./&]\w+)*"  # words, also joined: half-eaten, o'clock, cat/dog, b&w
  r"|[!?]{2,}"
  r"|[^\w\s]"
)
_ENDING = re.compile(r"(.+)(n't|'(?:s|m|d|re|ve|ll))")
_DROPPED = frozenset("'`.?!,:-;\"")


def tokenize(caption: str) -> list[str]:
  """The tokens of one caption."""
  tokens = []
  for token in _TOKEN.findall(caption.lower().translate(_CHARACTERS)):
    if token in _ASSIMILATED:
      tokens += _ASSIMILATED[token].split()
    elif token in _BRACKETS:
      tokens.append(_BRACKETS[token])
    elif token not in _DROPPED:
      tokens += _contractions(token)
  return tokens


def _contractions(word: str) -> list[str]:
  """do n't, dog 's, could n't 've."""
  match = _ENDING.fullmatch(word)
  return [*_contractions(match[1]), match[2]] if match else [word]

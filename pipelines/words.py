"""Text to token ids and character spans to token positions, for BERT, CLIP and the shipped shapes vocabulary.

Every tokenizer is a Rust `tokenizers.Tokenizer` (the engine of Hugging Face's "fast" tokenizers), so `Words` pickles
into worker processes and imports quickly. `span_to_tokens` is the one place where characters become tokens.
"""

import dataclasses
import functools
import gzip
import importlib.resources
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import implementations, models, normalizers, pre_tokenizers, processors

from pipelines.records import Span

CLIP_MASK_ID = 49404  # a rare entry that the authors declare to be the mask token (reference 3.3)
CLIP_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # how CLIP cuts text into words
CLIP_MERGES = 49152 - 256 - 2  # the rest of the merges file is not part of the vocabulary
REMEMBERED = 1 << 17  # names whose tokens are kept
SPECIAL_TOKENS = 2  # [CLS] and [SEP]
FORMS = "'shapes', the path of a BERT vocab.txt, 'clip:PATH of bpe_simple_vocab_16e6.txt.gz' or a Hugging Face name"


@dataclasses.dataclass(frozen=True)
class Encoding:
  """One tokenised text, padded to `max_tokens`."""

  tokens: np.ndarray  # m int32
  tokens_valid: np.ndarray  # m bool, [CLS] and [SEP] included
  find_offsets: Callable[[], np.ndarray]  # gives `offsets`: who knows where the tokens are need not ask
  truncated: bool  # the text had more tokens than fit

  @functools.cached_property
  def offsets(self) -> np.ndarray:
    """m 2 int32: characters [begin, end) of each token; empty ranges at special tokens and padding."""
    return self.find_offsets()

  def char_to_token(self, char: int) -> int | None:
    """Position of the first token that covers this character; None on white space, beyond the text or when cut off."""
    return self.first_tokens[char] if 0 <= char < len(self.first_tokens) else None

  @functools.cached_property
  def first_tokens(self) -> list[int | None]:
    """For every character; captions with many phrases are asked for all of them."""
    first: list[int | None] = [None] * int(self.offsets.max(initial=0))
    spans = self.offsets.tolist()
    for token in range(len(spans) - 1, -1, -1):  # tokens may share a character (pieces of an emoji): the first one wins
      begin, end = spans[token]
      first[begin:end] = [token] * (end - begin)
    return first


@dataclasses.dataclass(frozen=True)
class Words:
  """A tokenizer with a fixed length. Made by `load_words`."""

  tokenizer: tokenizers.Tokenizer
  kind: str  # 'bert' | 'clip'
  max_tokens: int
  pad_id: int
  cls_id: int
  sep_id: int
  mask_id: int

  @property
  def vocab_size(self) -> int:
    """Rows that an embedding table needs: the largest id + 1."""
    return self.tokenizer.get_vocab_size(with_added_tokens=True)

  def encode(self, text: str) -> Encoding:
    """Token ids with [CLS] and [SEP], cut to `max_tokens` (the last one stays [SEP]) and padded."""
    encoded = self.tokenizer.encode(text, add_special_tokens=False)
    return self._framed(encoded.ids, lambda: encoded.offsets)

  def encode_names(self, pieces: Sequence[str]) -> Encoding:
    """What `encode` gives for the joined pieces, provided that all but the last end in white space: no token reaches
    over it. A tenth of the time, because pieces (class names with their separators) are remembered."""
    found = list(map(self._pieces.__getitem__, pieces))

    def offsets() -> list[tuple[int, int]]:
      shifts = itertools.accumulate(map(len, pieces), initial=0)
      return [(b + shift, e + shift) for shift, (_, own) in zip(shifts, found, strict=False) for b, e in own]

    return self._framed(list(itertools.chain.from_iterable([ids for ids, _ in found])), offsets)

  def count(self, text: str) -> int:
    """Number of tokens of `text` alone: no special tokens, no truncation."""
    return len(self.tokenizer.encode(text, add_special_tokens=False).ids)

  def count_name(self, piece: str) -> int:
    """The same for a class name, remembered."""
    return len(self._pieces[piece][0])

  def _framed(self, ids: list[int], offsets: Callable[[], list[tuple[int, int]]]) -> Encoding:
    kept = min(len(ids) + SPECIAL_TOKENS, self.max_tokens)
    padding = [self.pad_id] * (self.max_tokens - kept)
    tokens = np.array([self.cls_id, *ids[: kept - SPECIAL_TOKENS], self.sep_id, *padding], np.int32)

    def framed() -> np.ndarray:
      out = np.zeros((self.max_tokens, 2), np.int32)
      out[1 : kept - 1] = np.array(offsets(), np.int32).reshape(-1, 2)[: kept - SPECIAL_TOKENS]
      return out

    return Encoding(tokens, self._valid[kept], framed, truncated=len(ids) + SPECIAL_TOKENS > kept)

  @functools.cached_property
  def _valid(self) -> np.ndarray:
    """`tokens_valid` by the number of tokens, m + 1 m bool."""
    return np.tri(self.max_tokens + 1, self.max_tokens, -1, bool)

  @functools.cached_property
  def _pieces(self) -> "_Pieces":
    return _Pieces(self.tokenizer)

  @functools.cached_property
  def remembered(self) -> dict[Any, Any]:
    """What others keep with this tokenizer (prompts.py: the names of classes)."""
    return {}

  def __getstate__(self) -> dict[str, Any]:
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # nothing remembered


class _Pieces(dict):
  """Text -> its token ids and their characters, without special tokens."""

  def __init__(self, tokenizer: tokenizers.Tokenizer):
    super().__init__()
    self._tokenizer = tokenizer

  def __missing__(self, piece: str) -> tuple[list[int], list[tuple[int, int]]]:
    encoded = self._tokenizer.encode(piece, add_special_tokens=False)
    if len(self) >= REMEMBERED:
      self.clear()
    self[piece] = found = encoded.ids, encoded.offsets
    return found


def span_to_tokens(encoding: Encoding, spans: tuple[Span, ...]) -> tuple[int, ...]:
  """Token positions of character spans [begin, end), ascending; () when no span has a token.

  A begin or end on white space is moved inwards by at most two characters, a span that still has no first or last
  token is left out (reference 6.1).
  """
  ranges = []
  for begin, end in spans:
    first, last = _first_token(encoding, begin, 1), _first_token(encoding, end - 1, -1)
    if first is not None and last is not None:
      ranges.append(range(first, last + 1))
  return tuple(ranges[0]) if len(ranges) == 1 else tuple(sorted(set().union(*ranges)))


def load_words(tokenizer: str, max_tokens: int) -> Words:
  """The tokenizer named by `tokenizer`: 'shapes' | path of a BERT vocab.txt | 'clip:PATH' of the gzipped merges |
  Hugging Face name (needs `transformers` and, the first time, the network).

  Raises FileNotFoundError for a missing file, ValueError for a vocabulary without the special tokens or a length < 3.
  """
  if max_tokens < 3:
    raise ValueError(f"max_tokens={max_tokens} leaves no room for a word between [CLS] and [SEP]; use 3 or more")
  if tokenizer == "shapes":
    with importlib.resources.as_file(importlib.resources.files("pipelines") / "vocab" / "shapes.txt") as path:
      return _bert(path, max_tokens)
  if tokenizer.startswith("clip:"):
    return _clip(_existing(tokenizer.removeprefix("clip:")), max_tokens)
  if tokenizer.endswith(".txt") or pathlib.Path(tokenizer).is_file():
    return _bert(_existing(tokenizer), max_tokens)
  return _hugging_face(tokenizer, max_tokens)


def _first_token(encoding: Encoding, char: int, step: int) -> int | None:
  """The token at `char`, or at one of the next two characters in this direction."""
  for place in (char, char + step, char + 2 * step):
    if (token := encoding.char_to_token(place)) is not None:
      return token
  return None


def _existing(path: str) -> pathlib.Path:
  if not pathlib.Path(path).is_file():
    raise FileNotFoundError(f"vocabulary file {path!r} does not exist; a tokenizer is one of: {FORMS}")
  return pathlib.Path(path)


def _words(tokenizer: tokenizers.Tokenizer, kind: str, max_tokens: int, special: dict[str, str | int]) -> Words:
  """`special`: field of Words -> token string or id."""
  ids = {field: token if isinstance(token, int) else tokenizer.token_to_id(token) for field, token in special.items()}
  missing = [str(special[field]) for field, number in ids.items() if number is None]
  if missing:
    raise ValueError(f"the {kind} vocabulary lacks {', '.join(missing)}; pass the complete vocabulary file")
  return Words(tokenizer, kind, max_tokens, **ids)


def _bert(path: pathlib.Path, max_tokens: int) -> Words:
  """Lower-casing WordPiece; line number = id."""
  lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
  vocabulary = {token: number for number, token in enumerate(lines)}
  special = {"pad_id": "[PAD]", "cls_id": "[CLS]", "sep_id": "[SEP]", "mask_id": "[MASK]"}
  lacking = [token for token in ("[UNK]", *special.values()) if token not in vocabulary]
  if lacking:
    raise ValueError(f"{path} lacks {', '.join(lacking)}; a BERT vocabulary has one token per line, these included")
  engine = implementations.BertWordPieceTokenizer(vocab=vocabulary, lowercase=True)
  return _words(tokenizers.Tokenizer.from_str(engine.to_str()), "bert", max_tokens, special)


def _clip(path: pathlib.Path, max_tokens: int) -> Words:
  """CLIP's byte-level BPE; padded with <|endoftext|> (reference 3.3)."""
  lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1 : CLIP_MERGES + 1]
  merges = [tuple(line.split()) for line in lines]
  characters = list(_byte_characters())
  start, end = "<|startoftext|>", "<|endoftext|>"
  entries = [*characters, *(c + "</w>" for c in characters), *("".join(pair) for pair in merges), start, end]
  vocabulary = {token: number for number, token in enumerate(entries)}
  engine = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", unk_token=end))
  engine.normalizer = normalizers.Sequence(
    [normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Lowercase()]
  )
  engine.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(CLIP_PATTERN), behavior="removed", invert=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  engine.post_processor = processors.RobertaProcessing(
    (end, vocabulary[end]), (start, vocabulary[start]), trim_offsets=False, add_prefix_space=False
  )
  engine.add_special_tokens([start, end])
  special = {"pad_id": end, "cls_id": start, "sep_id": end, "mask_id": CLIP_MASK_ID}
  return _words(engine, "clip", max_tokens, special)


def _byte_characters():
  """The printable characters that stand for the 256 bytes, in the order of CLIP's vocabulary: printable bytes first."""
  printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
  yield from map(chr, printable)
  yield from (chr(256 + i) for i in range(256 - len(printable)))


def _hugging_face(name: str, max_tokens: int) -> Words:
  """A fast tokenizer of the Hugging Face hub, BERT-like ([CLS]) or CLIP-like (<|startoftext|>)."""
  from transformers import AutoTokenizer  # slow to import and needed only here

  try:
    loaded = AutoTokenizer.from_pretrained(name)
  except (OSError, ValueError) as error:
    raise ValueError(f"tokenizer {name!r} could not be loaded ({error}); a tokenizer is one of: {FORMS}") from error
  engine = loaded.backend_tokenizer
  engine.no_truncation()
  engine.no_padding()
  if engine.token_to_id("<|startoftext|>") is not None:
    end = "<|endoftext|>"
    return _words(
      engine, "clip", max_tokens, {"pad_id": end, "cls_id": "<|startoftext|>", "sep_id": end, "mask_id": CLIP_MASK_ID}
    )
  special = {"pad_id": "[PAD]", "cls_id": "[CLS]", "sep_id": "[SEP]", "mask_id": "[MASK]"}
  return _words(engine, "bert", max_tokens, special)

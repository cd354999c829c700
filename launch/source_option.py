"""A data set on the command line, in every command alike: `--source KIND OPTION=VALUE ...`.

Kinds and their options: `pipelines/sources`. Values are written as in Python or as plain text, lists become tuples.
"""

import argparse
import ast
from collections.abc import Sequence

from pipelines.prepare.ranges import SourceSpec


def add_source(parser: argparse.ArgumentParser, text: str) -> None:
  """The option --source; `text` says what the data set is for."""
  parser.add_argument("--source", nargs="+", required=True, metavar=("KIND", "OPTION=VALUE"), help=text)


def parse_source(words: Sequence[str]) -> SourceSpec:
  """['coco_json', 'annotations=a.json', 'masks=True'] -> a SourceSpec. Raises ValueError."""
  kind, *pairs = words
  options = []
  for pair in pairs:
    name, equals, value = pair.partition("=")
    if not equals or not name.isidentifier():
      raise ValueError(f"{pair!r} is no OPTION=VALUE; write for example annotations=instances.json")
    try:
      literal = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      literal = value
    options.append((name, tuple(literal) if isinstance(literal, list) else literal))
  return SourceSpec(kind, tuple(options))

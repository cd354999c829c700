"""Concept ids: a stable number for a class name, so that equal names agree across data sets and hosts.

The inter-image loss compares the concept of a box with the concepts of the tokens of other images. Numbers that count
within one data set go wrong there (reference 5.6); a hash of the name needs no registry.
"""

import functools
import hashlib
import re

NO_CONCEPT = -1  # boxes and tokens without a class name
PARENTHESES = re.compile(r"\(.*\)")  # greedy, as published


@functools.lru_cache(maxsize=1 << 16)
def clean_name(name: str) -> str:
  """A class name as it is written in a prompt (reference 6.2): no parentheses, underscores become spaces, one pass of
  double space -> single space. Does not strip: 'bow_(weapon)' becomes 'bow '."""
  return PARENTHESES.sub("", name).replace("_", " ").replace("  ", " ")


@functools.lru_cache(maxsize=1 << 16)
def normalised_name(name: str) -> str:
  """What two spellings of one class have in common: cleaned, lower case, single spaces, none at the ends."""
  return " ".join(clean_name(name).lower().split())


@functools.lru_cache(maxsize=1 << 16)
def concept_id(name: str) -> int:
  """A number in [0, 2^31) that depends on the normalised class name alone (blake2b, the same on every machine)."""
  digest = hashlib.blake2b(normalised_name(name).encode("utf-8"), digest_size=4).digest()
  return int.from_bytes(digest, "big") >> 1

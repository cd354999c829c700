"""What prompts need of an `np.random.Generator`, so that a recorded list of draws can stand in for it."""

from collections.abc import Sequence
from typing import Any, Protocol


class Draws(Protocol):
  """The part of np.random.Generator that prompts need."""

  def random(self) -> float: ...

  def integers(self, high: int) -> int: ...

  def choice(self, a: Sequence[str], size: int, replace: bool) -> Any: ...

  def permutation(self, x: Sequence[str]) -> Any: ...

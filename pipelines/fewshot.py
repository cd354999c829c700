"""Few-shot subsets of detection data: the prepared file where there is one, else the authors' rule (reference 8)."""

import pathlib
import random
from collections.abc import Collection, Sequence


def prepared_file(annotations: pathlib.Path, shots: int, seed: int) -> pathlib.Path | None:
  """fewshot_*_shot{shots}_seed{seed}.json beside the annotation file, as ODinW ships them; None without."""
  found = sorted(annotations.parent.glob(f"fewshot_*_shot{shots}_seed{seed}.json"))
  if len(found) > 1:
    raise ValueError(f"{shots} shots, seed {seed}: {', '.join(map(str, found))} all fit; set `annotations` to one")
  return found[0] if found else None


def draw(classes: Sequence[Collection[int]], shots: int, seed: int) -> list[int]:
  """Positions of the pictures that are kept, given the classes in each picture (sorted by image id).

  The pictures are shuffled (seed 0: not) and taken one after the other while one of their classes still needs shots;
  a picture counts as one shot for each of its classes, however many boxes it has.
  """
  order = list(range(len(classes)))
  if seed:
    random.Random(seed).shuffle(order)
  left: dict[int, int] = {}
  kept = []
  for position in order:
    of_picture = set(classes[position])
    if any(left.setdefault(c, shots) > 0 for c in of_picture):
      kept.append(position)
      for c in of_picture:
        left[c] = left.setdefault(c, shots) - 1
  return kept

"""Scenes of the embedded data set `shapes`: which things there are, where they stand, what of them can be seen.

Things are placed in order and later ones cover earlier ones. A map of owners (which thing each pixel shows) gives the
masks, the boxes and the visible fractions exactly; a placement that would hide too much of anything is refused.
"""

import dataclasses

import numpy as np

from pipelines.sources import shapes_draw

KINDS = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "large")
TEXTURES = ("solid", "striped", "dotted", "checkered")

# Diameter as a fraction of the picture's shorter side; the gap between the ranges decides the word.
DIAMETER = {"small": (0.13, 0.18), "large": (0.29, 0.42)}
MIN_VISIBLE = 0.5  # of a thing's pixels, after everything that covers it and the picture's border
MAX_THINGS = 8
EMPTY = 0.03  # fraction of pictures without things

Pair = tuple[str, str]  # colour, kind

# A Latin diagonal: every colour and every kind is held out exactly once, so each stays known from other pairs.
HELD_OUT: tuple[Pair, ...] = tuple((COLOURS[i], KINDS[(i + 3) % 8]) for i in range(8))
SEEN: tuple[Pair, ...] = tuple((c, k) for c in COLOURS for k in KINDS if (c, k) not in HELD_OUT)


@dataclasses.dataclass(frozen=True)
class Thing:
  """One object with the words that are true of it."""

  size: str
  texture: str
  colour: str
  kind: str
  box: tuple[int, int, int, int]  # x1 y1 x2 y2 of the visible pixels, inclusive


@dataclasses.dataclass(frozen=True)
class Scene:
  """A picture with everything that is known about it; things in drawing order, back to front."""

  image: np.ndarray  # h w 3 uint8
  things: tuple[Thing, ...]
  masks: np.ndarray  # g h w bool, visible pixels
  full_px: np.ndarray  # g int64, pixels each thing would show if nothing hid it


def make_scene(rng: np.random.Generator, size: tuple[int, int], held_out: bool) -> Scene:
  """Draws one scene.

  Args: rng: consumed. size: height and width in pixels. held_out: True puts held-out pairs among the things (at least
    one, and then the scene is never empty); False uses the pairs of SEEN only.
  """
  canvas = shapes_draw.background(*size, rng)
  owner = np.full(size, -1, np.int8)
  count = 0 if rng.random() < EMPTY and not held_out else int(rng.integers(1, MAX_THINGS + 1))
  words: list[tuple[str, str, str, str]] = []
  visible, full = np.zeros(MAX_THINGS, np.int64), np.zeros(MAX_THINGS, np.int64)
  windows = []
  for _ in range(count):
    pair = _draw_pair([w[2:] for w in words], rng, held_out)
    scale, texture = _draw_look(pair[1], rng)
    placed = _place((scale, texture, *pair), canvas, owner, visible, full, len(words), rng)
    if placed is not None:
      words.append((scale, texture, *pair))
      windows.append(placed)
  masks = np.stack([owner == i for i in range(len(words))]) if words else np.zeros((0, *size), bool)
  boxes = [_box(mask, window) for mask, window in zip(masks, windows, strict=True)]
  things = tuple(Thing(*w, box) for w, box in zip(words, boxes, strict=True))
  return Scene(shapes_draw.finish(canvas, rng), things, masks, full[: len(words)].copy())


def _draw_pair(pairs: list[Pair], rng: np.random.Generator, held_out: bool) -> Pair:
  """A pair for the next thing: often one that repeats or shares a word with an earlier thing.

  Repeats make plurals; shared words make phrases that need every attribute to be read.
  """
  plan = rng.random()
  if pairs and plan < 0.28:
    return pairs[rng.integers(len(pairs))]
  pool = HELD_OUT if held_out and (not pairs or rng.random() < 0.45) else SEEN
  if pairs and plan < 0.58:
    earlier, word = pairs[rng.integers(len(pairs))], int(plan < 0.43)
    pool = tuple(pair for pair in pool if pair[word] == earlier[word])
  return pool[rng.integers(len(pool))]


def _draw_look(kind: str, rng: np.random.Generator) -> tuple[str, str]:
  """Size and texture. Small things are solid or striped: other textures need more pixels to be told apart."""
  size = SIZES[rng.integers(2)]
  texture = TEXTURES[rng.integers(4)] if rng.random() < 0.6 else "solid"
  narrow = size == "small" and (kind in ("ring", "cross", "star") or texture in ("dotted", "checkered"))
  return size, "solid" if narrow else texture


def _place(words, canvas, owner, visible, full, index, rng):
  """Finds room for a thing and draws it. Returns its window on the canvas, None when no place was found."""
  size, texture, colour, kind = words
  height, width = owner.shape
  radius = 0.5 * min(height, width) * rng.uniform(*DIAMETER[size])
  turn = rng.uniform(-1, 1) * shapes_draw.TURN[kind]
  alpha, rim = shapes_draw.stencil(kind, radius, turn)
  shape = alpha >= 0.5
  total = int(shape.sum())
  half = alpha.shape[0] // 2
  margin = 0.75 * radius
  for _ in range(8):
    y, x = int(rng.uniform(margin, height - margin)), int(rng.uniform(margin, width - margin))
    top, left = max(0, half - y), max(0, half - x)
    window = slice(y - half + top, min(height, y + half + 1)), slice(x - half + left, min(width, x + half + 1))
    cut = (
      slice(top, top + window[0].stop - window[0].start),
      slice(left, left + window[1].stop - window[1].start),
    )
    inside = shape[cut]
    covered = np.bincount(owner[window][inside] + 1, minlength=MAX_THINGS + 1)[1:]
    if covered.any() and (visible[:index] - covered[:index] < MIN_VISIBLE * full[:index]).any():
      continue
    if (own := int(inside.sum())) < MIN_VISIBLE * total:
      continue
    visible -= covered
    visible[index], full[index] = own, total
    owner[window][inside] = index
    tones = shapes_draw.pattern(texture, alpha.shape[0], radius, rng)
    shapes_draw.paint(canvas, window, cut, alpha, rim, shapes_draw.colour_rgb(colour, rng), tones)
    return window
  return None


def _box(mask: np.ndarray, window: tuple[slice, slice]) -> tuple[int, int, int, int]:
  """Tight inclusive box of a mask, which lies inside `window`."""
  part = mask[window]
  rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
  y, x = window[0].start, window[1].start
  return int(x + columns[0]), int(y + rows[0]), int(x + columns[-1]), int(y + rows[-1])


def offset(a: Thing, b: Thing) -> tuple[float, float]:
  """From the centre of a's box to the centre of b's, pixels, (x, y)."""
  return (b.box[0] + b.box[2] - a.box[0] - a.box[2]) / 2, (b.box[1] + b.box[3] - a.box[1] - a.box[3]) / 2


def relation(name: str, a: Thing, b: Thing, side: float) -> bool | None:
  """Whether 'a NAME b' is true; None where people could disagree.

  Args: name: 'left of' | 'right of' | 'above' | 'below'. side: the picture's shorter side in pixels.
  True: the centre of a's box lies at least 0.12 side in that direction, and more in it than across it.
  False: it lies less than 0.03 side in that direction, or on the other side.
  """
  x, y = offset(a, b)
  along, across = {"left of": (x, y), "right of": (-x, y), "above": (y, x), "below": (-y, x)}[name]
  if along >= 0.12 * side and abs(across) <= along:
    return True
  return False if along < 0.03 * side else None

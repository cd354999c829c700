"""Rasterising for the embedded data set `shapes`: stencils of the kinds, fills, backgrounds. NumPy and Pillow only.

`shapes_scene.py` places what is drawn here. Everything works on the patch of one object, anti-aliased by drawing the
patch at two or three times its size; the whole picture is touched only for the background and the final noise.
"""

import colorsys
import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageDraw

RIM = 0.08  # width of the dark edge, as a fraction of the radius; it keeps overlapping objects of one colour apart

# Hue in degrees, lightness, saturation, and the hue jitter that leaves the name of the colour beyond doubt.
COLOUR_HLS = MappingProxyType(
  {
    "red": (358, 0.45, 0.85, 4),
    "orange": (28, 0.53, 0.95, 3),
    "yellow": (54, 0.56, 0.92, 4),
    "green": (125, 0.36, 0.68, 12),
    "cyan": (183, 0.56, 0.80, 5),
    "blue": (224, 0.44, 0.80, 7),
    "purple": (277, 0.40, 0.62, 7),
    "pink": (332, 0.76, 0.88, 6),
  }
)

# Largest rotation in degrees, either way. A square stays upright and a diamond is a slim upright rhombus, so that one
# is never taken for the other; a heart stays the right way up.
TURN = MappingProxyType(
  {
    "circle": 180,
    "square": 14,
    "triangle": 180,
    "star": 180,
    "cross": 180,
    "ring": 180,
    "diamond": 14,
    "heart": 30,
  }
)


def _polar(radii: np.ndarray, angles: np.ndarray) -> np.ndarray:
  return np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)


def _outlines() -> dict[str, np.ndarray]:
  """Outline of every kind, p 2 float64 (x right, y down), about one unit in radius around the origin."""
  turn = np.linspace(0, 2 * np.pi, 72, endpoint=False)
  arm = 0.30
  side = np.linspace(0.4, np.pi - 0.4, 20)  # the curve's points crowd around its notch (0) and its tip (pi)
  t = np.concatenate([[0], side, [np.pi], 2 * np.pi - side[::-1]])
  heart = np.stack([16 * np.sin(t) ** 3, -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))], 1)
  star = np.where(np.arange(10) % 2, 0.46, 1.08)
  corners = [(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm)]
  return {
    "circle": _polar(np.full(72, 0.94), turn),
    "square": 0.82 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]),
    "triangle": _polar(np.full(3, 1.10), np.radians([-90, 30, 150])),
    "star": _polar(star, np.radians(np.arange(10) * 36.0 - 90)),
    "cross": np.array(corners + [(-x, -y) for x, y in corners]),
    "ring": _polar(np.full(72, 1.0), turn),
    "diamond": np.array([(0, -1.12), (0.62, 0), (0, 1.12), (-0.62, 0)]),
    "heart": (heart + (0, -2.5)) / 15.5,
  }


def _inset(points: np.ndarray, width: float) -> np.ndarray:
  """The polygon with every edge moved inwards by `width` (mitred corners); outwards where width is negative."""
  ahead = np.roll(points, -1, 0) - points
  normal = np.stack([-ahead[:, 1], ahead[:, 0]], 1) / np.linalg.norm(ahead, axis=1, keepdims=True)  # inwards: y is down
  before = np.roll(normal, 1, 0)
  corner = np.maximum(1 + (normal * before).sum(1, keepdims=True), 0.3)  # the notch of a heart would reach very far
  return points + width * (normal + before) / corner


def _layers() -> Mapping[str, tuple[tuple[np.ndarray, tuple[int, int, int]], ...]]:
  """Per kind, the polygons to draw over one another; channel 0 collects the coverage, channel 1 the rim."""
  inside, edge, outside = (255, 0, 0), (255, 255, 0), (0, 0, 0)
  layers = {kind: ((line, edge), (_inset(line, RIM), inside)) for kind, line in _outlines().items()}
  hole = 0.52 * _outlines()["ring"]
  layers["ring"] += ((_inset(hole, -RIM), edge), (hole, outside))
  return MappingProxyType(layers)


LAYERS = _layers()


def stencil(kind: str, radius: float, turn: float) -> tuple[np.ndarray, np.ndarray]:
  """Coverage and rim of one object.

  Args: kind: a key of TURN. radius: pixels. turn: degrees.
  Returns: two s s float32 arrays in [0, 1]; the object's centre is the centre of the (odd-sized) patch.
  """
  half = math.ceil(1.13 * radius) + 1
  side = 2 * half + 1
  scale = 3 if radius < 40 else 2  # supersampling
  picture = Image.new("RGB", (side * scale,) * 2)
  draw = ImageDraw.Draw(picture)
  cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
  matrix = radius * scale * np.array([[cos, sin], [-sin, cos]])
  centre = side * scale / 2 - 0.5
  for points, fill in LAYERS[kind]:
    draw.polygon((points @ matrix + centre).ravel().tolist(), fill=fill)
  patch = np.asarray(picture.reduce(scale))
  return np.multiply(patch[..., 0], 1 / 255, dtype=np.float32), np.multiply(patch[..., 1], 1 / 255, dtype=np.float32)


def colour_rgb(colour: str, rng: np.random.Generator) -> np.ndarray:
  """One jittered sample of a named colour: 3 float32 in [0, 255]."""
  hue, lightness, saturation, spread = COLOUR_HLS[colour]
  a, b, c = rng.uniform(-1, 1, 3).tolist()
  return _rgb((hue + spread * a) / 360 % 1, lightness + 0.045 * b, min(1.0, saturation + 0.07 * c))


def _rgb(hue: float, lightness: float, saturation: float) -> np.ndarray:
  return 255 * np.array(colorsys.hls_to_rgb(hue, lightness, saturation), np.float32)


def pattern(texture: str, side: int, radius: float, rng: np.random.Generator) -> np.ndarray | None:
  """Where the second tone of a texture shows: side side float32 in [0, 1]; None for 'solid'.

  The period grows with the object and never falls below what a few pixels can show.
  """
  angle, *phase, stretch = rng.random(4).tolist()
  if texture == "solid":
    return None
  period = max(0.40 * radius, 4.5) * (0.9 + 0.2 * stretch)
  line = np.arange(side, dtype=np.float32) - side // 2
  cos, sin = math.cos(math.pi * angle) / period, math.sin(math.pi * angle) / period
  u = cos * line + sin * line[:, None] + phase[0]
  if texture == "striped":
    return _soft(np.abs(u % 1 - 0.5) - 0.25, period)
  v = cos * line[:, None] - sin * line + phase[1]
  if texture == "dotted":
    return _soft(0.33 - np.hypot(u % 1 - 0.5, v % 1 - 0.5), period)
  return _soft(2 * np.sin(math.pi * u) * np.sin(math.pi * v) / math.pi, period)  # checkered


def _soft(distance: np.ndarray, period: float) -> np.ndarray:
  """A signed distance in periods as coverage with an edge one pixel wide."""
  return np.clip(distance * period + 0.5, 0, 1)


def paint(
  canvas: np.ndarray,
  window: tuple[slice, slice],
  cut: tuple[slice, slice],
  alpha: np.ndarray,
  rim: np.ndarray,
  rgb: np.ndarray,
  tones: np.ndarray | None,
) -> None:
  """Draws one object into `canvas` (h w 3 float32), in place. `cut` is the part of the patch that `window` shows.

  The second tone is near white on dark colours and near black on light ones, so that the hue keeps its name.
  """
  alpha, rim = alpha[cut], rim[cut]
  lit = 1.08 - np.arange(len(alpha), dtype=np.float32)[:, None] * (0.18 / len(alpha))  # light falls from above
  gain = lit * (1 - 0.55 * rim)
  value = gain[..., None] * rgb
  if tones is not None:
    light = rgb @ np.array([0.299, 0.587, 0.114], np.float32) > 140
    second = 0.28 * rgb if light else 0.2 * rgb + np.float32(0.8 * 245)
    value += (gain * tones[cut])[..., None] * (second - rgb)
  value -= canvas[window]
  value *= alpha[..., None]
  canvas[window] += value


def background(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
  """A smooth gradient of muted colours, sometimes with distractor strokes: h w 3 float32 in [0, 255]."""
  base = _rgb(rng.random(), rng.uniform(0.18, 0.80), rng.uniform(0, 0.22))
  drift = rng.uniform(12, 45)
  grid = base + rng.normal(0, drift, (3, 3, 1)) + rng.normal(0, 7, (3, 3, 3))
  small = Image.fromarray(np.clip(grid, 0, 255).astype(np.uint8))
  picture = small.resize((width, height), Image.Resampling.BICUBIC)
  strokes = int(rng.integers(-3, 5))
  if strokes > 0:
    _strokes(picture, strokes, base, rng)
  return np.asarray(picture).astype(np.float32)


def _strokes(picture: Image.Image, count: int, base: np.ndarray, rng: np.random.Generator) -> None:
  """Thin open lines and arcs in a tone close to the background: they look like no kind, but have edges."""
  draw = ImageDraw.Draw(picture)
  width, height = picture.size
  for _ in range(count):
    tone = tuple(int(v) for v in np.clip(base + rng.uniform(-60, 60), 0, 255))
    thick = max(1, round(min(picture.size) * rng.uniform(0.006, 0.018)))
    x, y = rng.uniform(0, width), rng.uniform(0, height)
    length, angle = rng.uniform(0.15, 0.6) * min(picture.size), rng.uniform(0, 360)
    if rng.random() < 0.5:
      end = x + length * math.cos(math.radians(angle)), y + length * math.sin(math.radians(angle))
      draw.line((x, y, *end), fill=tone, width=thick)
    else:
      draw.arc((x - length, y - length, x + length, y + length), angle, angle + 70, fill=tone, width=thick)


def finish(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Adds sensor noise to the whole picture and rounds: h w 3 uint8."""
  spread = np.float32(rng.uniform(4, 36))
  noise = rng.random(canvas.shape, dtype=np.float32)
  noise -= 0.5
  noise *= spread
  noise += canvas
  return np.clip(noise, 0, 255, out=noise).astype(np.uint8)

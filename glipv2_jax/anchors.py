"""The anchor boxes of a canvas: one square per cell of every pyramid level P3..P7 (reference 5.1).

Everything here is NumPy and depends on static sizes only, so jitted code sees constants.
"""

import itertools

import numpy as np


def level_sizes(canvas: tuple[int, int], strides: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
  """Cells (h, w) of each level. Every downsampling rounds up (reference 2.2), so a level has ceil(side / stride)."""
  return tuple((-(-canvas[0] // stride), -(-canvas[1] // stride)) for stride in strides)


def level_counts(canvas: tuple[int, int], strides: tuple[int, ...]) -> tuple[int, ...]:
  """Number of cells of each level."""
  return tuple(h * w for h, w in level_sizes(canvas, strides))


def level_slices(canvas: tuple[int, int], strides: tuple[int, ...]) -> tuple[slice, ...]:
  """Where each level lies on the axis n of all locations."""
  ends = list(itertools.accumulate(level_counts(canvas, strides), initial=0))
  return tuple(slice(begin, end) for begin, end in itertools.pairwise(ends))


def anchors(canvas: tuple[int, int], strides: tuple[int, ...], scale: float) -> np.ndarray:
  """Anchor boxes n 4 float32, inclusive x1, y1, x2, y2 in pixels; row-major within a level, finest level first.

  Cell (i, j) of stride s is centred at (s j + (s - 1) / 2, s i + (s - 1) / 2); the side is scale * s pixels.
  """
  levels = []
  for stride, (h, w) in zip(strides, level_sizes(canvas, strides), strict=True):
    y, x = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
    centre = np.stack([x, y], axis=-1).reshape(-1, 2) * stride + (stride - 1) / 2
    half = (scale * stride - 1) / 2
    levels.append(np.concatenate([centre - half, centre + half], axis=-1))
  return np.concatenate(levels).astype(np.float32)

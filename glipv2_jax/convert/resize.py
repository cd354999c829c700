"""Tables that depend on a size, for another size: Swin's relative position biases, positions of words.

Both are interpolated with half-pixel centres and repeated edges, as PyTorch's `F.interpolate(align_corners=False)`.
"""

import numpy as np


def cubic(x: np.ndarray) -> np.ndarray:
  """The convolution kernel of bicubic interpolation with a = -0.75."""
  x, a = np.abs(x), -0.75
  near = ((a + 2) * x - (a + 3)) * x * x + 1
  far = a * (((x - 5) * x + 8) * x - 4)
  return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def linear(x: np.ndarray) -> np.ndarray:
  return np.maximum(0.0, 1.0 - np.abs(x))


def weights(old: int, new: int, kernel) -> np.ndarray:
  """[new, old] matrix that interpolates a row of `old` values at `new` places."""
  place = (np.arange(new) + 0.5) * old / new - 0.5
  matrix = np.zeros((new, old))
  for step in range(-1, 3):
    source = np.floor(place).astype(int) + step
    np.add.at(matrix, (np.arange(new), np.clip(source, 0, old - 1)), kernel(place - source))
  return matrix


def bias_table(table: np.ndarray, window: int) -> np.ndarray:
  """[(2v - 1)^2, heads] of window v -> [(2 window - 1)^2, heads], bicubic over the two offsets, per head."""
  side, new = int(np.sqrt(len(table))), 2 * window - 1
  matrix = weights(side, new, cubic)
  plane = table.reshape(side, side, -1).astype(np.float64)
  return np.einsum("Yy,Xx,yxk->YXk", matrix, matrix, plane).reshape(new * new, -1).astype(np.float32)


def positions(table: np.ndarray, length: int) -> np.ndarray:
  """[n, d] -> [length, d], linear along the sentence (reference 3.3: 77 -> 256)."""
  return (weights(len(table), length, linear) @ table.astype(np.float64)).astype(np.float32)

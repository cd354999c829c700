"""Line charts as inline SVG: no library needed, and colours from the page's style sheet, which knows light and dark."""

import html
import math
from collections.abc import Sequence

import numpy as np

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 44  # margins
POINTS = 400  # of a line at most
Series = tuple[str, Sequence[float], Sequence[float]]  # name, x, y


def line_chart(
  title: str, x_label: str, y_label: str, series: Sequence[Series], y_range=None, log: bool = False
) -> str:
  """An SVG of the lines, and a legend below; `title` is read out and shown.

  `y_range`: (low, high), None: that of the numbers; `log`: logarithmic y. Numbers that are not finite (or, with
  `log`, not positive) leave gaps.
  """
  lines = [(name, *_usable(np.asarray(x, float), np.asarray(y, float), log)) for name, x, y in series]
  lines = [(name, x, y) for name, x, y in lines if np.isfinite(y).any()]
  if not lines:
    return f'<p class="nothing">{html.escape(title)}: there are no numbers to draw.</p>'
  every_x, every_y = (np.concatenate([line[k] for line in lines]) for k in (1, 2))
  every_y = every_y[np.isfinite(every_y)]
  x_range = (float(every_x.min()), float(every_x.max()))
  if y_range is None:
    y_range = (float(every_y.min()), float(every_y.max()))
  elif log:
    y_range = tuple(math.log10(v) for v in y_range)
  x_range, y_range = _widened(x_range), _widened(y_range)
  parts = [_axis_x(x_range, x_label), _axis_y(y_range, y_label, log)]
  for i, (_, x, y) in enumerate(lines):
    parts += [f'<polyline class="line s{i % 8}" points="{points}"/>' for points in _polylines(x, y, x_range, y_range)]
  about = "; ".join(f"{name} from {_last(y, 0, log)} to {_last(y, -1, log)}" for name, _, y in lines)
  label = html.escape(f"{title}. {y_label} over {x_label}: {about}", quote=True)
  legend = "".join(
    f'<li><svg viewBox="0 0 28 8" aria-hidden="true"><line class="line s{i % 8}" x1="1" y1="4" x2="27" y2="4"/></svg>'
    f"{html.escape(name)}</li>"
    for i, (name, _, _) in enumerate(lines)
  )
  return (
    f'<figure class="chart"><figcaption>{html.escape(title)}</figcaption>'
    f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    f'<ul class="legend">{legend}</ul></figure>'
  )


def _usable(x: np.ndarray, y: np.ndarray, log: bool) -> tuple[np.ndarray, np.ndarray]:
  """The points to draw, y as it is drawn (its logarithm), NaN for gaps, thinned to POINTS by means of neighbours."""
  y = np.where(np.isfinite(y), y, np.nan)
  if log:
    y = np.log10(y, out=np.full(len(y), np.nan), where=y > 0)
  if len(x) > POINTS:
    groups = np.array_split(np.arange(len(x)), POINTS)
    x = np.array([x[g].mean() for g in groups])
    y = np.array([np.nan if np.isnan(y[g]).all() else np.nanmean(y[g]) for g in groups])
  return x, y


def _widened(limits: tuple[float, float]) -> tuple[float, float]:
  low, high = limits
  return (low, high) if high > low else (low - 0.5, high + 0.5)


def _polylines(x: np.ndarray, y: np.ndarray, x_range, y_range) -> list[str]:
  parts: list[list[str]] = [[]]
  for u, v in zip(_across(x, x_range), _up(y, y_range), strict=True):
    if math.isnan(v):
      parts.append([])
    else:
      parts[-1].append(f"{u:.1f},{v:.1f}")
  return [" ".join(part if len(part) > 1 else part * 2) for part in parts if part]


def _across(x, limits):
  return LEFT + (x - limits[0]) / (limits[1] - limits[0]) * (WIDTH - LEFT - RIGHT)


def _up(y, limits):
  return HEIGHT - BOTTOM - (y - limits[0]) / (limits[1] - limits[0]) * (HEIGHT - TOP - BOTTOM)


def _axis_x(limits, label: str) -> str:
  marks = []
  for tick in ticks(*limits):
    u = _across(tick, limits)
    marks.append(f'<line class="grid" x1="{u:.1f}" x2="{u:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    marks.append(f'<text x="{u:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:g}</text>')
  middle = (LEFT + WIDTH - RIGHT) / 2
  marks.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{html.escape(label)}</text>')
  return "".join(marks)


def _axis_y(limits, label: str, log: bool) -> str:
  marks = []
  for tick, text in _log_ticks(*limits) if log else [(t, f"{t:g}") for t in ticks(*limits)]:
    v = _up(tick, limits)
    marks.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{v:.1f}" y2="{v:.1f}"/>')
    marks.append(f'<text x="{LEFT - 6}" y="{v + 4:.1f}" text-anchor="end">{text}</text>')
  middle = (TOP + HEIGHT - BOTTOM) / 2
  place = f'x="14" y="{middle}" transform="rotate(-90 14 {middle})"'
  marks.append(f'<text {place} text-anchor="middle">{html.escape(label)}</text>')
  return "".join(marks)


def ticks(low: float, high: float, count: int = 6) -> list[float]:
  """Round numbers between two limits, about `count` of them."""
  raw = (high - low) / count
  power = 10.0 ** math.floor(math.log10(raw))
  step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
  first = math.ceil(low / step - 1e-9)
  return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
  """Places on a logarithmic axis: 1, 2, 5 of every power of ten, of long axes the powers only."""
  steps = (1, 2, 5) if high - low < 3 else (1,)
  numbers = [m * 10.0**p for p in range(math.floor(low), math.ceil(high) + 1) for m in steps]
  return [(math.log10(n), f"{n:g}") for n in numbers if low - 1e-9 <= math.log10(n) <= high + 1e-9]


def _last(y: np.ndarray, at: int, log: bool) -> str:
  y = y[np.isfinite(y)]
  return f"{10 ** y[at] if log else y[at]:.3g}"

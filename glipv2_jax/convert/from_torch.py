"""Weights of PyTorch files -> our parameters, by exact names, nothing skipped in silence.

A file is read in the one naming (dialects.py) that names most of its entries: a whole network, an image encoder, a text
encoder, or both encoders. Everything is checked before the first tensor is touched; then `Weights.arrays` converts one
tensor after the other and lets it go, so that memory never holds the network twice.
"""

import collections
import dataclasses
import difflib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from glipv2_jax.convert import files, names, resize
from glipv2_jax.convert.dialects import Dialect, readable
from glipv2_jax.convert.files import BadWeights
from glipv2_jax.convert.names import Entry
from glipv2_jax.models.glipv2 import abstract_params
from glipv2_jax.models.swin import relative_position_index
from glipv2_jax.models.variants import ModelConfig

BIAS_TABLE = "relative_position_bias_table"
POSITIONS = "text/position/embedding"  # of the pre-LN text transformer
COMPARED = 50  # names of a kind that are compared with all others: the search is quadratic
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Options:
  """What may differ. Patterns match whole names of the file's naming; excused parameters keep their initial value."""

  allow_missing: str | None = None  # also excuses a wrong shape
  allow_surplus: str | None = None
  resize_window: bool = False  # bias tables of another window size are interpolated


@dataclasses.dataclass(frozen=True)
class Weights:
  """Checked weights: `found` holds parameters with their tensors, `fresh` the paths that no file has."""

  found: collections.deque[tuple[Entry, tuple[np.ndarray, ...]]]
  fresh: tuple[str, ...]
  window: int

  def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
    """(path, float32 array) for each parameter found, in the order of `param_paths`; logs casts and counts NaN.

    Once only: `found` is emptied, for a file's tensors must not stay in memory beside the parameters.
    """
    cast, broken = {}, {}
    while self.found:
      entry, tensors = self.found.popleft()
      for tensor in tensors:
        if tensor.dtype != np.float32:
          cast[tensor.dtype.name] = cast.get(tensor.dtype.name, 0) + 1
      value = entry.from_torch([_fit(entry, tensor, self.window) for tensor in tensors])
      broken[entry.path] = files.not_finite(value)
      yield entry.path, value
    for dtype, count in cast.items():
      log.info("%d tensors cast from %s to float32", count, dtype)
    files.warn_of_not_finite(broken)


def load(paths: Sequence[str], cfg: ModelConfig, options: Options = Options(), *, variant: str | None = None,
         ema: bool = False) -> Weights:  # fmt: skip
  """Opens and checks weight files: one of the whole network, or of encoders, together or one each.

  `variant`: a file that names another one is refused. Raises FileNotFoundError, and BadWeights listing what does not
  fit. PyTorch is imported only where a file needs it.
  """
  opened = [files.read(path, ema) for path in paths]
  for file in opened:
    if variant is not None and file.variant is not None and file.variant != variant:
      raise BadWeights(f"{file.path} holds variant {file.variant!r}, not {variant!r}")
  return check({str(file.path): file.state for file in opened}, cfg, options)


def check(states: Mapping[str, Mapping[str, np.ndarray]], cfg: ModelConfig, options: Options = Options()) -> Weights:
  """State_dicts by the name of their source -> checked `Weights`. Raises BadWeights listing all that does not fit."""
  found, owner = {}, {}
  for source, state in states.items():
    dialects = spoken(state, cfg, source)
    for dialect in dialects:
      if dialect.part in owner or "network" in owner:
        raise BadWeights(f"{source} and {next(iter(owner.values()))} both hold weights of the {dialect.part}; give one")
    owner |= {dialect.part: source for dialect in dialects}
    found |= {entry.path: (entry, tensors) for entry, tensors in _compare(source, state, dialects, cfg, options)}
  paths = names.shapes(cfg)
  fresh = tuple(path for path in paths if path not in found)
  return Weights(collections.deque(found[path] for path in paths if path in found), fresh, cfg.swin.window)


def parameters(state: Mapping[str, np.ndarray], cfg: ModelConfig, options: Options = Options()) -> dict:
  """A state_dict of the whole network -> our nested parameters. Raises BadWeights, also where parameters are left."""
  weights = check({"the state_dict": files.stripped(state)}, cfg, options)
  if weights.fresh:
    raise BadWeights(f"the state_dict leaves parameters of this network without value: {', '.join(weights.fresh)}")
  return jax.tree.unflatten(jax.tree.structure(abstract_params(cfg)), [value for _, value in weights.arrays()])


def spoken(state: Mapping[str, np.ndarray], cfg: ModelConfig, source: str) -> list[Dialect]:
  """The naming of a file: that of a network, or of one or both encoders. Raises BadWeights where none has its names."""
  best = {}
  for dialect in readable(cfg):
    count = sum(name in state for entry in names.expand(dialect.rows, cfg) for name in entry.names)
    if count > best.get(dialect.part, (None, 0))[1]:
      best[dialect.part] = dialect, count
  if not best:
    known = "; ".join(dialect.name for dialect in readable(cfg))
    raise BadWeights(f"{source} has no name that this network knows (its first: {list(state)[:3]}); known: {known}")
  chosen = [best["network"][0]] if "network" in best else [dialect for dialect, _ in best.values()]
  log.info("%s: %s", source, " and ".join(dialect.name for dialect in chosen))
  return chosen


def _compare(source: str, state: Mapping[str, np.ndarray], dialects: list[Dialect], cfg: ModelConfig, options: Options):
  """(entry, tensors) for the parameters that the file holds; raises BadWeights with the whole list of differences."""
  wanted = [entry for dialect in dialects for entry in names.expand(dialect.rows, cfg)]
  computed = {name: value for d in dialects for name, value in names.buffers(cfg, d.buffers).items()}
  unused = [pattern for dialect in dialects for pattern in dialect.ignored]
  known = {name for entry in wanted for name in entry.names}
  missing = sorted(known - state.keys())
  surplus = sorted(state.keys() - known - computed.keys())
  passed = [name for name in surplus if any(re.fullmatch(pattern, name) for pattern in unused)]
  excused = [name for name in missing if _matches(options.allow_missing, name)]
  dropped = [name for name in surplus if _matches(options.allow_surplus, name) and name not in passed]
  missing = [name for name in missing if name not in excused]
  surplus = [name for name in surplus if name not in passed and name not in dropped]

  lines = [f"missing {name}{_nearest(name, surplus, k)}" for k, name in enumerate(missing)]
  lines += [f"surplus {name}{_nearest(name, missing, k)}" for k, name in enumerate(surplus)]
  held, grows = [], all(dialect.part != "network" for dialect in dialects)
  for entry in wanted:
    present = [name for name in entry.names if name in state]
    shapes = {name: _misfit(entry, name, state[name].shape, options, cfg, grows) for name in present}
    wrong = {name: problem for name, problem in shapes.items() if problem}
    excused += [name for name in wrong if _matches(options.allow_missing, name)]
    lines += [problem for name, problem in wrong.items() if name not in excused]
    if len(shapes) == len(entry.names) and not wrong:
      held.append((entry, tuple(state[name] for name in entry.names)))
  for name, value in computed.items():
    if name in state and not _same_buffer(name, np.asarray(state[name]), value, options):
      lines.append(f"buffer  {name} does not hold the values that this network computes")
  if lines:
    raise BadWeights("\n  ".join([f"{source} does not fit this network ({len(lines)} differences):", *lines]))
  for what, listed in (("unused here", passed), ("surplus, allowed", dropped), ("missing, allowed", excused)):
    if listed:
      log.info("%s: %d entries %s: %s", source, len(listed), what, ", ".join(listed))
  return held


def _matches(pattern: str | None, name: str) -> bool:
  return pattern is not None and re.fullmatch(pattern, name) is not None


def _nearest(name: str, others: Sequence[str], position: int) -> str:
  near = difflib.get_close_matches(name, others, 1) if position < COMPARED else []
  return f" (nearest: {near[0]})" if near else ""


def _misfit(entry: Entry, name: str, shape: tuple[int, ...], options: Options, cfg: ModelConfig, grows: bool):
  """What is wrong with the shape of their tensor, or None. `grows`: an encoder alone may know fewer positions."""
  shape, wanted = tuple(shape), entry.torch_shape()
  if shape == wanted or (grows and entry.path == POSITIONS and len(shape) == 2 and shape[1] == wanted[1]):
    return None
  line = f"shape   {name} is {shape}, this network has {wanted}"
  if entry.path.endswith(BIAS_TABLE) and len(shape) == 2 and shape[1] == wanted[1] and _window(shape[0]):
    if options.resize_window:
      return None
    line += f": a window of {_window(shape[0])} for one of {cfg.swin.window}; --resize-window interpolates such tables"
  return line


def _window(rows: int) -> int | None:
  """The window whose bias table has so many rows, or None."""
  side = round(rows**0.5)
  return (side + 1) // 2 if side * side == rows and side % 2 else None


def _same_buffer(name: str, theirs: np.ndarray, ours: np.ndarray, options: Options) -> bool:
  if options.resize_window and theirs.ndim == 2 and theirs.shape != ours.shape and name.endswith("position_index"):
    ours = relative_position_index(round(len(theirs) ** 0.5))
  return theirs.shape == ours.shape and np.array_equal(theirs, ours)


def _fit(entry: Entry, tensor: np.ndarray, window: int) -> np.ndarray:
  """Tables of another window or another number of positions, interpolated; everything else as it is."""
  if tuple(tensor.shape) == entry.torch_shape():
    return tensor
  log.info("%s resized from %s to %s", entry.path, tuple(tensor.shape), entry.torch_shape())
  if entry.path == POSITIONS:
    return resize.positions(tensor.astype(np.float32), entry.shape[0])
  return resize.bias_table(tensor.astype(np.float32), window)

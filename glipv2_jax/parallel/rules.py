"""Path-regex sharding rules: which parameter lives where on the mesh.

A rule is (pattern, action); the first rule that matches wins and every path must match one. A pattern has to match the
'/'-joined path or a tail of it that begins at a '/', so that the moments of the optimizer
(`opt_state/.../mu/text/embed/kernel`) follow their parameter (`text/embed/kernel`) without rules of their own.

Actions: 'replicate'; 'fsdp' = split the largest dimension that the axis size divides, small arrays stay whole;
or one mesh axis (or None) per dimension, such as ('fsdp', None).
"""

import math
import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Action = str | tuple[str | None, ...]
Rules = tuple[tuple[str, Action], ...]

FSDP: Rules = ((r".*", "fsdp"),)
MIN_SIZE = 2**16  # elements; below that splitting costs more in messages than it saves in memory


def path_name(path: tuple) -> str:
  """A jax key path as 'a/0/b'."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def shardings(abstract: Any, mesh: Mesh, rules: Rules = FSDP, min_size: int = MIN_SIZE) -> Any:
  """A tree of shapes -> the same tree of NamedSharding. Raises ValueError naming the path that does not fit."""

  def one(path, x):
    name = path_name(path)
    return NamedSharding(mesh, _spec(name, x.shape, _action(name, rules), mesh, min_size))

  return jax.tree_util.tree_map_with_path(one, abstract)


def unused(abstract: Any, rules: Rules) -> tuple[str, ...]:
  """Patterns that decide nothing in this tree: usually a typing mistake."""
  names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(abstract)]
  used = {next((pattern for pattern, _ in rules if _matches(pattern, name)), None) for name in names}
  return tuple(pattern for pattern, _ in rules if pattern not in used)


def _matches(pattern: str, name: str) -> bool:
  return re.fullmatch(f"(?:.*/)?(?:{pattern})", name) is not None


def _action(name: str, rules: Rules) -> Action:
  for pattern, action in rules:
    if _matches(pattern, name):
      return action
  raise ValueError(f"no sharding rule matches {name!r}; add one (the last rule is usually ('.*', 'fsdp'))")


def _spec(name: str, shape: tuple[int, ...], action: Action, mesh: Mesh, min_size: int) -> PartitionSpec:
  if action == "replicate":
    return PartitionSpec()
  if action == "fsdp":
    return _fsdp_spec(shape, mesh.shape["fsdp"], min_size)
  if isinstance(action, str):
    raise ValueError(f"{name}: {action!r} is no sharding action; known: 'replicate', 'fsdp' or a tuple of mesh axes")
  if len(action) != len(shape):
    raise ValueError(f"{name}: the rule gives {len(action)} axes {action}, the array has {len(shape)} {shape}")
  for size, axis in zip(shape, action, strict=True):
    if axis is not None and axis not in mesh.shape:
      raise ValueError(f"{name}: {axis!r} is no axis of the mesh; its axes: {', '.join(mesh.shape)}")
    if axis is not None and size % mesh.shape[axis]:
      raise ValueError(f"{name}: size {size} of {shape} cannot be split over {axis}={mesh.shape[axis]}")
  return PartitionSpec(*action)


def _fsdp_spec(shape: tuple[int, ...], parts: int, min_size: int) -> PartitionSpec:
  divisible = [i for i, size in enumerate(shape) if size % parts == 0]
  if parts == 1 or math.prod(shape) < min_size or not divisible:
    return PartitionSpec()
  largest = max(divisible, key=lambda i: shape[i])
  return PartitionSpec(*("fsdp" if i == largest else None for i in range(len(shape))))

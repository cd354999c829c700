"""The two cross-entropies of L_inter on every device: tiles of the similarity matrix, and what travels between devices.

The similarities exist tile by tile only. One sweep over the tiles collects log-sum-exps and target counts of rows and
columns; with them every tile's gradient has a closed form, and a second sweep adds it up. So nothing is stored for the
backward pass but the gradient of the embeddings themselves, and no derivative is taken through a collective.

A device holds its own rows (regions) all the time. Columns (words) are collected from all devices (`gathered`) or go
from device to device (`ring`). All functions run under `jax.shard_map`; `axis` is () on a single device without a mesh.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from glipv2_jax.schema import Embeddings

NEVER = -1e9  # the logit of padding
NO_CONCEPT = -1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Labels:
  """All that targets are made of; small, and known before the network runs."""

  region_concept: Any  # b r int32, -1 none
  region_named: Any  # b r m bool, the tokens of its own text that name the region
  region_valid: Any  # b r bool
  word_concept: Any  # b m int32, -1 none and in sentences
  word_valid: Any  # b m bool


class Rows(NamedTuple):
  embedding: Any  # b r d
  concept: Any  # b r
  named: Any  # b r m
  valid: Any  # b r
  image: Any  # b, index in the global batch


class Columns(NamedTuple):
  embedding: Any  # b m d
  concept: Any  # b m
  valid: Any  # b m
  image: Any  # b


class Stats(NamedTuple):
  """Of one row or column, over the tiles seen so far."""

  peak: Any  # largest logit
  mass: Any  # sum of exp(logit - peak)
  named: Any  # sum of the logits of its targets
  count: Any  # number of its targets

  def merge(self, other):
    peak = jnp.maximum(self.peak, other.peak)
    mass = self.mass * jnp.exp(self.peak - peak) + other.mass * jnp.exp(other.peak - peak)
    return Stats(peak, mass, self.named + other.named, self.count + other.count)

  def log_mass(self):
    return self.peak + jnp.log(self.mass)

  def cross_entropy(self):
    """Sum over the rows or columns that have a target."""
    share = jnp.where(self.count > 0, self.log_mass() - self.named / jnp.maximum(self.count, 1.0), 0.0)
    return share.sum()


def cross_entropies(
  form: str, pairs: int, detach: bool, gradient: bool, axis: tuple[str, ...], embeddings: Embeddings, known: Labels
):
  """Half the sum of both cross-entropies over the global batch, with `gradient` also its gradient by the embeddings.

  The arguments but for the last two are those of `inter.InterConfig`; `axis` names the mesh axes that share the batch.
  """
  images = embeddings.regions.shape[0]
  device = lax.axis_index(axis) if axis else 0
  image = device * images + jnp.arange(images)
  rows = Rows(embeddings.regions, known.region_concept, known.region_named, known.region_valid, image)
  columns = Columns(embeddings.words, known.word_concept, known.word_valid, image)
  visit = functools.partial(FORMS[form], axis, pairs)
  inverse = jnp.exp(-embeddings.log_scale.reshape(()))  # of the temperature

  def count(row, row_stats, column, column_stats):
    logits, target = _tile(inverse, row, column)
    return row_stats.merge(_stats(logits, target, (2, 3))), column_stats.merge(_stats(logits, target, (0, 1)))

  row_stats, column_stats = visit(
    count, _merge_home, rows, _empty(rows.valid.shape, axis), columns, _empty(columns.valid.shape, axis)
  )
  value = (row_stats.cross_entropy() + column_stats.cross_entropy()) / 2
  value = lax.psum(value, axis) if axis else value
  if not gradient:
    return value

  def pull(row, row_gradient, column, column_gradient):
    (row, row_stats), (column, column_stats) = row, column
    logits, target = _tile(inverse, row, column)
    along_row = _slope(logits, target, jax.tree.map(lambda x: x[:, :, None, None], row_stats))
    along_column = _slope(logits, target, column_stats)
    to_row = to_column = along_row + along_column
    if detach:  # of another device's words only what the own row says, and the other way round
      mine = (column.image // images == device)[:, None]
      to_row, to_column = (jnp.where(mine, to_row, x) for x in (along_row, along_column))
    row_gradient = (
      row_gradient[0] + inverse * _product("crkm,kmd->crd", to_row, column.embedding),
      row_gradient[1] - ((along_row + along_column) * logits).sum((2, 3)),
    )
    return row_gradient, column_gradient + inverse * _product("crkm,crd->kmd", to_column, row.embedding)

  zero = _varying((jnp.zeros(embeddings.regions.shape), jnp.zeros(rows.valid.shape)), axis)
  (to_regions, to_scale), to_words = visit(
    pull,
    _add_home,
    (rows, row_stats),
    zero,
    (columns, column_stats),
    _varying(jnp.zeros(embeddings.words.shape), axis),
  )
  to_scale = lax.psum(to_scale.sum(), axis) if axis else to_scale.sum()
  return value, Embeddings(to_regions, to_words, to_scale.reshape(embeddings.log_scale.shape))


def _tile(inverse, row: Rows, column: Columns):
  """Logits and targets (0 or 1) of c images' regions and k images' words: c r k m float32 each."""
  logits = inverse * _product("crd,kmd->crkm", row.embedding, column.embedding)
  own = (row.image[:, None] == column.image)[:, None, :, None]
  concept = row.concept[..., None, None]
  same = (concept == column.concept) & (concept != NO_CONCEPT)
  live = row.valid[..., None, None] & column.valid
  target = jnp.where(own, row.named[:, :, None], same) & live
  return jnp.where(live, logits, NEVER), target.astype(jnp.float32)


def _product(axes, a, b):
  return jnp.einsum(axes, a, b, precision=lax.Precision.HIGH, preferred_element_type=jnp.float32)


def _stats(logits, target, over) -> Stats:
  peak = logits.max(over, keepdims=True)
  mass = jnp.exp(logits - peak).sum(over)
  return Stats(peak.squeeze(over), mass, (target * logits).sum(over), target.sum(over))


def _slope(logits, target, stats: Stats):
  """Derivative of half the cross-entropy by the logits; 0 where a row or column has no target."""
  slope = jnp.exp(logits - stats.log_mass()) - target / jnp.maximum(stats.count, 1.0)
  return jnp.where(stats.count > 0, slope / 2, 0.0)


def _varying(tree, axis):
  """Constants that will differ between devices."""
  return jax.tree.map(lambda x: lax.pcast(x, axis, to="varying"), tree) if axis else tree


def _empty(shape, axis) -> Stats:
  zeros = jnp.zeros(shape)
  return _varying(Stats(jnp.full(shape, NEVER), zeros, zeros, zeros), axis)


def _sweep(pairs, step, rows, row_state, columns, column_state):
  """`step(row, its state, column, its state)` -> new states, over all tiles of up to `pairs` pairs of images."""
  count = lambda tree: jax.tree.leaves(tree)[0].shape[0]  # noqa: E731
  c = math.gcd(count(rows), math.isqrt(pairs))
  k = math.gcd(count(columns), pairs // c)
  cut = lambda tree, size: jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), tree)  # noqa: E731
  join = functools.partial(jax.tree.map, lambda x: x.reshape(-1, *x.shape[2:]))
  rows = cut(rows, c)

  def one_column(row_states, column):
    def one_row(state, row):
      row_state, state = step(*row, column[0], state)
      return state, row_state

    state, row_states = lax.scan(one_row, column[1], (rows, row_states))
    return row_states, state

  row_states, column_states = lax.scan(one_column, cut(row_state, c), cut((columns, column_state), k))
  return join(row_states), join(column_states)


def _gathered(axis, pairs, step, home, rows, row_state, columns, column_state):
  """Every device sees all columns at once; their states, partial sums over its own rows, then go home."""
  if not axis:
    return _sweep(pairs, step, rows, row_state, columns, column_state)
  columns = jax.tree.map(lambda x: lax.all_gather(x, axis, tiled=True), columns)
  everywhere = lax.axis_size(axis)
  column_state = jax.tree.map(lambda x: jnp.tile(x, (everywhere,) + (1,) * (x.ndim - 1)), column_state)
  row_state, column_state = _sweep(pairs, step, rows, row_state, columns, column_state)
  return row_state, home(column_state, axis)


def _ring(axis, pairs, step, home, rows, row_state, columns, column_state):
  """Columns travel round the devices with their states; after one round they are home and complete."""
  del home
  if not axis:
    return _sweep(pairs, step, rows, row_state, columns, column_state)
  size = lax.axis_size(axis)
  following = [(i, (i + 1) % size) for i in range(size)]

  def hop(carry, _):
    row_state, (columns, column_state) = carry
    row_state, column_state = _sweep(pairs, step, rows, row_state, columns, column_state)
    moved = jax.tree.map(lambda x: lax.ppermute(x, axis, following), (columns, column_state))
    return (row_state, moved), None

  (row_state, (_, column_state)), _ = lax.scan(hop, (row_state, (columns, column_state)), length=size)
  return row_state, column_state


def _add_home(state, axis):
  return jax.tree.map(lambda x: lax.psum_scatter(x, axis, tiled=True), state)


def _merge_home(stats: Stats, axis) -> Stats:
  peak = lax.pmax(stats.peak, axis)
  rest = _add_home((stats.mass * jnp.exp(stats.peak - peak), stats.named, stats.count), axis)
  own = rest[0].shape[0]
  return Stats(lax.dynamic_slice_in_dim(peak, lax.axis_index(axis) * own, own), *rest)


FORMS = {"gathered": _gathered, "ring": _ring}

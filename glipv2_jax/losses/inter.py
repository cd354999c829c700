"""L_inter: every region of the global batch against every word of the global batch (paper equations 4 and 5).

Rows are up to K regions per image, columns the tokens of all texts. A region and a word belong together when a span of
the region's own text says so, and across images when a detection prompt names the region's class (label propagation by
concept id; sentences take no part). Both softmaxes go over the whole global batch: words from all devices, regions from
all devices.

The similarities exist tile by tile only. One sweep over the tiles collects log-sum-exps and target counts of rows and
columns; with them every tile's gradient has a closed form, and a second sweep adds it up. So nothing is stored for the
backward pass but the gradient of the embeddings themselves, and no derivative is taken through a collective.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from glipv2_jax.losses import terms
from glipv2_jax.parallel.mesh import BATCH
from glipv2_jax.schema import Batch, Embeddings

NEVER = -1e9  # the logit of padding
NO_CONCEPT = -1


@dataclasses.dataclass(frozen=True)
class InterConfig:
  """Which regions take part and how the sums are computed; the last three reproduce the published code.

  Raises ValueError for an unknown form.
  """

  regions: int = 100  # K per image; an image with more assigned anchors gives a random K of them
  negatives: bool = False  # fill up to K with random background anchors, negatives of the words; else with nothing
  form: str = "gathered"  # every device collects all words; 'ring': words travel, nothing grows with the mesh
  pairs: int = 64  # image pairs in a tile; a pair takes 4 bytes x regions x tokens, a few times
  drop_first_box: bool = False  # the first box of every image gives no regions (reference 5.6)
  detach_remote: bool = False  # no gradient through the collectives: to embeddings of other devices

  def __post_init__(self):
    if self.form not in FORMS:
      raise ValueError(f"loss.inter.form is {self.form!r}; known: {', '.join(FORMS)}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Regions:
  """The rows: K locations of the pyramid per image."""

  location: Any  # b r int32, index among the n anchors
  box: Any  # b r int32, the ground-truth box that the anchor is assigned to, -1 for background
  valid: Any  # b r bool, False where an image has fewer than K


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Labels:
  """All that targets are made of; small, and known before the network runs."""

  region_concept: Any  # b r int32, -1 none
  region_named: Any  # b r m bool, the tokens of its own text that name the region
  region_valid: Any  # b r bool
  word_concept: Any  # b m int32, -1 none and in sentences
  word_valid: Any  # b m bool


def choose(matched, example_valid, cfg: InterConfig, key: jax.Array | None) -> Regions:
  """Up to `cfg.regions` assigned anchors per image: matched b n int32 (-1 background), example_valid b bool.

  Without key the first ones in the order of the anchors.
  """
  assigned = (matched > 0 if cfg.drop_first_box else matched >= 0) & example_valid[:, None]
  score = assigned.astype(jnp.float32)
  if key is not None:
    score += jax.random.uniform(key, matched.shape)
  k = min(cfg.regions, matched.shape[1])
  # Every device looks at its own images: left alone, the compiler collects the scores of all of them first.
  location = _on_mesh(lambda axis, score: lax.top_k(score, k)[1], BATCH, BATCH)(score)
  box = jnp.take_along_axis(jnp.where(assigned, matched, -1), location, axis=1)
  valid = jnp.broadcast_to(example_valid[:, None], box.shape) if cfg.negatives else box >= 0
  return Regions(location, box, valid)


def labels(batch: Batch, regions: Regions) -> Labels:
  """What the batch says of the chosen regions and of its tokens."""
  box, object_ = jnp.maximum(regions.box, 0), regions.box >= 0
  concept = jnp.take_along_axis(batch.box_concept, box, axis=1)
  named = jnp.take_along_axis(batch.positive_map, box[..., None], axis=1)
  return Labels(
    region_concept=jnp.where(object_, concept, NO_CONCEPT),
    region_named=named & object_[..., None],
    region_valid=regions.valid,
    word_concept=batch.token_concept,
    word_valid=batch.tokens_valid & batch.example_valid[:, None],
  )


def inter_term(embeddings: Embeddings, batch: Batch, regions: Regions, matched, cfg: InterConfig) -> terms.Term:
  """Half the sum of both cross-entropies over all regions and all words, counted by the assigned anchors.

  That is the published normalisation (reference 5.6; the paper writes the sum of two means): the sums of microbatches
  add up. Negatives are those of the batch or microbatch that this is called with (see `pull`).
  """
  positive = matched >= 0
  return terms.Term(cross_entropies(cfg, embeddings, labels(batch, regions)), terms.masked_sum(positive, positive))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pull:
  """What L_inter of a whole batch asks of every image's embeddings: its value and gradient, cut along the images."""

  value: Any  # b, equal shares
  regions: Any  # b r d
  words: Any  # b m d
  log_scale: Any  # b, equal shares


def pull(cfg: InterConfig, embeddings: Embeddings, known: Labels) -> Pull:
  """Value and gradient of `cross_entropies`, for embeddings of a whole batch that passes the network in parts."""
  value, gradient = jax.value_and_grad(functools.partial(cross_entropies, cfg))(embeddings, known)
  images = known.word_valid.shape[0]
  share = lambda x: jnp.broadcast_to(x.reshape(()) / images, images)  # noqa: E731
  return Pull(share(value), gradient.regions, gradient.words, share(gradient.log_scale))


def pulled_term(embeddings: Embeddings, asked: Pull, matched) -> terms.Term:
  """`inter_term` of one part, with the negatives of the whole batch: the shares of all parts add up to the whole."""
  linear = (embeddings.regions * asked.regions).sum() + (embeddings.words * asked.words).sum()
  linear += embeddings.log_scale.reshape(()) * asked.log_scale.sum()
  positive = matched >= 0
  total = asked.value.sum() + linear - lax.stop_gradient(linear)
  return terms.Term(total, terms.masked_sum(positive, positive))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def cross_entropies(cfg: InterConfig, embeddings: Embeddings, known: Labels):
  """(rows + columns) / 2: sums of -T/|T| log softmax over rows, and over columns, that have a target.

  Arrays are those of the global batch. Under a mesh (`jax.set_mesh`) the batch axis is divided among the devices of
  ('data', 'fsdp'); without one it runs as if on one device.
  """
  return _both_ways(cfg, embeddings, known, gradient=False)


def _forward(cfg, embeddings, known):
  return _both_ways(cfg, embeddings, known, gradient=True)


def _backward(cfg, gradients, cotangent):
  del cfg
  return jax.tree.map(lambda x: cotangent * x, gradients), None


cross_entropies.defvjp(_forward, _backward)


def _both_ways(cfg, embeddings, known, gradient):
  """The loss, with `gradient` also its gradient by the embeddings."""
  spread = Embeddings(regions=BATCH, words=BATCH, log_scale=jax.P())
  body = functools.partial(_device, cfg, gradient)
  return _on_mesh(body, (spread, BATCH), (jax.P(), spread) if gradient else jax.P())(embeddings, known)


def _on_mesh(body, in_specs, out_specs):
  """`body(axis, ...)` on every device of the mesh with its part of the arrays; without a mesh on the whole arrays."""
  if jax.sharding.get_abstract_mesh().empty:
    return functools.partial(body, ())
  return jax.shard_map(functools.partial(body, BATCH[0]), in_specs=in_specs, out_specs=out_specs)


# What follows runs on every device with its own rows and columns. `axis`: names of the mesh axes, () without a mesh.


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


def _device(cfg: InterConfig, gradient: bool, axis, embeddings: Embeddings, known: Labels):
  images = embeddings.regions.shape[0]
  device = lax.axis_index(axis) if axis else 0
  image = device * images + jnp.arange(images)
  rows = Rows(embeddings.regions, known.region_concept, known.region_named, known.region_valid, image)
  columns = Columns(embeddings.words, known.word_concept, known.word_valid, image)
  visit = functools.partial(FORMS[cfg.form], axis, cfg.pairs)
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
    if cfg.detach_remote:  # of another device's words only what the own row says, and the other way round
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
  """`step(row, its state, column, its state)` -> new states, over all tiles of about `pairs` x `pairs` images."""
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

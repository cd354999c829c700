"""L_inter: every region of the global batch against every word of the global batch (paper equations 4 and 5).

Rows are up to K regions per image, columns the tokens of all texts. A region and a word belong together when a span of
the region's own text says so, and across images when a detection prompt names the region's class (label propagation by
concept id; sentences take no part). Both softmaxes go over the whole global batch: words from all devices, regions from
all devices.

How the two cross-entropies are computed without ever storing the matrix: pairs.py.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from glipv2_jax.losses import pairs, terms
from glipv2_jax.losses.pairs import NO_CONCEPT, Labels
from glipv2_jax.parallel.mesh import BATCH, on_each_device
from glipv2_jax.schema import Batch, Embeddings


@dataclasses.dataclass(frozen=True)
class InterConfig:
  """Which regions take part and how the sums are computed; the last two reproduce the published code.

  Raises ValueError for an unknown form.
  """

  regions: int = 100  # K per image; an image with more assigned anchors gives a random K of them
  negatives: bool = False  # fill up to K with random background anchors, negatives of the words; else with nothing
  form: str = "gathered"  # every device collects all words; 'ring': words travel, nothing grows with the mesh
  pairs: int = 64  # image pairs in a tile; a pair takes 4 bytes x regions x tokens, a few times
  drop_first_box: bool = False  # the first box of every image gives no regions (reference 5.6)
  detach_remote: bool = False  # no gradient through the collectives: to embeddings of other devices

  def __post_init__(self):
    if self.form not in pairs.FORMS:
      raise ValueError(f"loss.inter.form is {self.form!r}; known: {', '.join(pairs.FORMS)}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Regions:
  """The rows: K locations of the pyramid per image."""

  location: Any  # b r int32, index among the n anchors
  box: Any  # b r int32, the ground-truth box that the anchor is assigned to, -1 for background
  valid: Any  # b r bool, False where an image has fewer than K


def choose(matched, example_valid, cfg: InterConfig, key: jax.Array | None) -> Regions:
  """Up to `cfg.regions` assigned anchors per image: matched b n int32 (-1 background), example_valid b bool.

  Without key the first ones in the order of the anchors.
  """
  assigned = (matched > 0 if cfg.drop_first_box else matched >= 0) & example_valid[:, None]
  score = assigned.astype(jnp.float32)
  if key is not None:
    score += jax.random.uniform(key, matched.shape)
  k = min(cfg.regions, matched.shape[1])
  location = on_each_device(lambda score: lax.top_k(score, k)[1])(score)
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
  regions = terms.masked(embeddings.regions, known.region_valid[..., None])
  embeddings = Embeddings(regions, terms.masked(embeddings.words, known.word_valid[..., None]), embeddings.log_scale)
  spread = Embeddings(regions=BATCH, words=BATCH, log_scale=jax.P())
  body = functools.partial(pairs.cross_entropies, cfg.form, cfg.pairs, cfg.detach_remote, gradient)
  return _on_mesh(body, (spread, BATCH), (jax.P(), spread) if gradient else jax.P())(embeddings, known)


def _on_mesh(body, in_specs, out_specs):
  """`body(axis, ...)` on every device of the mesh with its part of the arrays; without a mesh on the whole arrays."""
  if jax.sharding.get_abstract_mesh().empty:
    return functools.partial(body, ())
  return jax.shard_map(functools.partial(body, BATCH[0]), in_specs=in_specs, out_specs=out_specs)

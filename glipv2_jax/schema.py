"""What crosses the border between the host pipeline and the network: `Batch` in, `Outputs` out.

Axis letters, the same in every file: b images · h w pixels or cells · n locations of all pyramid levels ·
g ground-truth boxes · m text tokens · d channels. Every padded axis has a `*_valid` mask beside it.

Boxes are float32 x1, y1, x2, y2 in pixels of the canvas with GLIP's inclusive convention: a box that covers pixels
x1..x2 has width x2 - x1 + 1 (reference 5.1, 6.4).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

Array = Any  # numpy on the host, jax on the device


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
  """One global batch with static shapes."""

  image: Array  # b h w 3 uint8, RGB, padded at the bottom and right with zeros
  image_size: Array  # b 2 int32, valid height and width on the canvas
  tokens: Array  # b m int32, token ids
  tokens_valid: Array  # b m bool, attention mask ([CLS] and [SEP] included)
  boxes_xyxy_px: Array  # b g 4 float32
  boxes_valid: Array  # b g bool
  positive_map: Array  # b g m bool, box <-> the tokens that name it
  box_concept: Array  # b g int32, concept id of a detection label, -1 none
  token_concept: Array  # b m int32, concept id of the class name that a token is part of, -1 none
  example_valid: Array  # b bool, False for the padding at the end of an evaluation
  mlm_labels: Array | None = None  # b m int32, original id of a hidden word, -100 elsewhere; None: no word is hidden


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Embeddings:
  """Regions and words before they meet in the fusion, as unit vectors of one space, for the inter-image loss."""

  regions: Array  # b r d float32
  words: Array  # b m d float32
  log_scale: Array  # 1 float32, logarithm of the learned temperature


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outputs:
  """What the heads predict for every location of the pyramid, levels P3..P7 concatenated row-major."""

  token_logits: Array  # b n m float32
  deltas: Array  # b n 4 float32, see boxes.decode
  centerness: Array  # b n float32, logits
  embeddings: Embeddings | None = None  # of regions that were asked for
  word_logits: Array | None = None  # b m v float32, in batches with hidden words


def abstract_batch(batch: int, canvas: tuple[int, int], tokens: int, boxes: int, hidden: bool = False) -> Batch:
  """A `Batch` of `jax.ShapeDtypeStruct`: for `jax.eval_shape`, initialisation and ahead-of-time compilation.

  `hidden`: with labels of hidden words.
  """
  s = jax.ShapeDtypeStruct
  return Batch(
    image=s((batch, *canvas, 3), jnp.uint8),
    image_size=s((batch, 2), jnp.int32),
    tokens=s((batch, tokens), jnp.int32),
    tokens_valid=s((batch, tokens), jnp.bool_),
    boxes_xyxy_px=s((batch, boxes, 4), jnp.float32),
    boxes_valid=s((batch, boxes), jnp.bool_),
    positive_map=s((batch, boxes, tokens), jnp.bool_),
    box_concept=s((batch, boxes), jnp.int32),
    token_concept=s((batch, tokens), jnp.int32),
    example_valid=s((batch,), jnp.bool_),
    mlm_labels=s((batch, tokens), jnp.int32) if hidden else None,
  )

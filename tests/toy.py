"""A linear model behind the trainer's interface: compiles in a second, for tests of the trainer itself.

It predicts the boxes from mean colours of the image and mean token embeddings. Imported as `tests.toy`, also by the
programs that tests start.
"""

import jax
import jax.numpy as jnp

from glipv2_jax.train.objective import Objective
from tests import tiny


def init(key):
  a, b, c = jax.random.split(key, 3)
  return {
    "text": {"embedding": jax.random.normal(a, (64, 32))},
    "layers": {0: {"kernel": 0.1 * jax.random.normal(b, (96, 64))}, 1: {"kernel": 0.1 * jax.random.normal(c, (64, 4))}},
    "head": {"bias": jnp.zeros(4), "cls_logits": {"kernel": jnp.ones((4, 8))}},
  }


def targets(batch):
  want = batch.boxes_xyxy_px / batch.image.shape[1]
  counts = {"box": batch.boxes_valid.sum(dtype=jnp.float32)}
  return want, counts, {"num_pos": counts["box"]}


def loss(params, batch, want, counts, key):
  del key
  b, h, w, _ = batch.image.shape
  cells = batch.image.reshape(b, 8, h // 8, 8, w // 8, 3).mean((2, 4, 5)).reshape(b, 64) / 128 - 1
  words = params["text"]["embedding"][batch.tokens].mean(1)
  hidden = jnp.tanh(jnp.concatenate([cells, words], -1) @ params["layers"][0]["kernel"])
  boxes = hidden @ params["layers"][1]["kernel"] + params["head"]["bias"]
  error = jnp.abs(boxes[:, None] - want).sum(-1)
  value = jnp.where(batch.boxes_valid, error, 0.0).sum() / jnp.maximum(counts["box"], 1.0)
  unused = 0.0 * params["head"]["cls_logits"]["kernel"].sum()
  return value + unused, {"box": value}


OBJECTIVE = Objective(init, targets, loss, frozen=(r".*cls_logits/.*",))
CONFIG = tiny.optimizer_config

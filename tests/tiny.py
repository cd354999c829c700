"""The demo variant shrunk until it compiles in seconds, with random data: for tests of everything around the network.

Imported as `tests.tiny`, also by the programs that tests start.
"""

import dataclasses
import types

import numpy as np

from glipv2_jax.losses.grounding import LossConfig
from glipv2_jax.models import variants
from glipv2_jax.schema import Batch
from glipv2_jax.train import objective, optim

CANVAS = (64, 64)
TOKENS, BOXES = 8, 3


def model() -> variants.ModelConfig:
  demo = variants.get("demo")
  return dataclasses.replace(
    demo,
    swin=dataclasses.replace(demo.swin, embed_dim=8, depths=(1, 1, 1, 1), heads=(1, 1, 2, 2)),
    text=dataclasses.replace(demo.text, vocab_size=64, width=16, layers=1, heads=2, mlp_dim=32, positions=16),
    head=dataclasses.replace(demo.head, stages=1, channels=16, groups=4, fusion_dim=16, fusion_heads=2),
    max_tokens=TOKENS,
  )


def grounding() -> objective.Objective:
  """The objective with all its terms."""
  weights = (("intra", 1.0), ("inter", 1.0), ("box", 2.0), ("centerness", 1.0), ("mlm", 1.0))
  return objective.grounding(dataclasses.replace(model(), inter_dim=8, mlm=True), LossConfig(weights))


def optimizer_config(**changes) -> optim.OptimConfig:
  return dataclasses.replace(optim.OptimConfig(lr=1e-3, warmup_steps=2, warmup_factor=0.1), **changes)


def batch(step: int, rows: int = 8, canvas: tuple[int, int] = CANVAS) -> Batch:
  """Batch number `step`: noise, so that no layer sees a constant image; every row has one to BOXES boxes."""
  rng = np.random.default_rng((7, step))
  corner = rng.uniform(0, canvas[0] / 2, (rows, BOXES, 2))
  boxes = np.concatenate([corner, corner + rng.uniform(8, canvas[0] / 2 - 1, (rows, BOXES, 2))], -1)
  return Batch(
    image=rng.integers(0, 256, (rows, *canvas, 3), np.uint8),
    image_size=np.tile(np.asarray(canvas, np.int32), (rows, 1)),
    tokens=rng.integers(1, 64, (rows, TOKENS), np.int32),
    tokens_valid=np.arange(TOKENS) < rng.integers(4, TOKENS, (rows, 1)),
    boxes_xyxy_px=boxes.astype(np.float32),
    boxes_valid=np.arange(BOXES) < rng.integers(1, BOXES + 1, (rows, 1)),
    positive_map=rng.random((rows, BOXES, TOKENS)) < 0.3,
    box_concept=rng.integers(-1, 3, (rows, BOXES), np.int32),
    token_concept=rng.integers(-1, 3, (rows, TOKENS), np.int32),
    example_valid=np.ones(rows, bool),
    mlm_labels=rng.choice([-100, -100, 5, 17], (rows, TOKENS)).astype(np.int32),
  )


def data(start: int, rows: int = 8, skipped: tuple = (), reduced: tuple = ()):
  """Endless batches from step `start` on, as the loop wants them."""
  while True:
    yield types.SimpleNamespace(batch=batch(start, rows), skipped=skipped, reduced=reduced, rows={"toy": rows})
    start += 1

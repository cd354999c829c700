"""What the parity tests share: the authors' test weights, made from names alone, and recorded arrays with their keys.

Imported as `tests.authors`. The recordings (tests/golden/glip, README there) come from the authors' code run with these
weights. Keys: `name[slice]@sN` holds every N-th value of the C-order slice of an array in the authors' layout.
"""

import dataclasses
import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from glipv2_jax.convert import from_torch, names
from glipv2_jax.models.glipv2 import graphdef, normalise_image
from glipv2_jax.models.variants import ModelConfig
from glipv2_jax.schema import Batch

FOLDER = pathlib.Path(__file__).parent / "golden" / "glip"
LEVELS = ("p3", "p4", "p5", "p6", "p7")

# What a tensor is made of: shift + scale * (standard normals); the first matching pattern of its whole name decides.
SPECIAL = (
  (r".*shallow_log_scale", -1.0, 0.1),
  (r".*log_scale", 0.3, 0.1),
  (r".*\.bias0", -2.0, 0.1),
  (r".*\.bias_lang", 0.0, 1.0),
  (r".*\.scale", 1.0, 0.1),
  (r".*\.(gamma|gamma_v|gamma_l)", 0.4, 0.2),
  (r".*relative_position_bias.*", 0.0, 0.1),
  (r".*token_type_embeddings\.weight", 0.0, 0.01),
  (r".*(word|position)_embeddings\.weight", 0.0, 0.02),
  (r".*token_embedding\.weight", 0.0, 1.0),
  (r".*positional_embedding", 0.0, 0.3),
  (r".*tunable_linear\.weight", 0.0, 0.3),
)
VECTORS = ((r".*\.weight", 1.0, 0.1), (r".*\.AttnConv\..*", 1.0, 0.1), (r".*", 0.0, 0.02))
# Matrices and filters have scale gain / sqrt(inputs). Sharper attention and quieter text branches keep words apart.
GAINS = (
  (r".*\.relu\.fc\..*", 2.0),
  (r".*dot_product_projection_text\.weight", 10.0),
  (r".*\.(query|key|attn\.v_proj|attn\.l_proj)\.weight", 2.0),
  (r".*attn\.in_proj_weight", 1.5),
  (r".*\.(attn\.out_proj|mlp\.c_proj)\.weight", 0.5),
  (r".*attention\.output\.dense\.weight", 0.3),
  (r".*\.output\.dense\.weight", 0.5),
  (r".*", 1.0),
)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """The authors' test tensor of this name: normals of a generator that is keyed by the name's checksum, float32."""
  rules = SPECIAL + (VECTORS if len(shape) < 2 else ())
  found = next(((shift, scale) for pattern, shift, scale in rules if re.fullmatch(pattern, name)), None)
  if found is None:
    gain = next(gain for pattern, gain in GAINS if re.fullmatch(pattern, name))
    found = 0.0, gain / np.sqrt(float(np.prod(shape[1:])))
  normals = np.random.Generator(np.random.Philox(zlib.crc32(name.encode()))).standard_normal(shape)
  normals *= found[1]
  normals += found[0]
  return normals.astype(np.float32)


@functools.lru_cache(maxsize=1)
def params(cfg: ModelConfig) -> dict:
  """Our nested parameters with the authors' test weights, through the name table. Only the last network is kept."""
  state = {name: weight(name, entry.torch_shape()) for entry in names.entries(cfg) for name in entry.names}
  return from_torch.parameters(state, cfg)


def network(cfg: ModelConfig) -> nnx.Module:
  """With weights of the compute dtype: float32, in the float64 tests float64."""
  return nnx.merge(graphdef(cfg), jax.tree.map(lambda x: jnp.asarray(x, cfg.compute_dtype), params(cfg)))


@functools.partial(jax.jit, static_argnums=0)
def _run(definition, params, args):
  return nnx.merge(definition, params)(*args)


def run(module, *args):
  """Jitted call; layers of equal shape share one compilation."""
  definition, params = nnx.split(module)
  return _run(definition, nnx.to_pure_dict(params), args)


def in_float64(program: str) -> dict:
  """What a module of the tests prints in its last line, JSON, in a process of its own with 64-bit types on."""
  environment = os.environ | {"JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
  done = subprocess.run([sys.executable, "-m", program], env=environment, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])


def load(case: str) -> dict[str, np.ndarray]:
  with np.load(FOLDER / f"{case}.npz") as file:
    return dict(file)


def pixels(golden: dict, cfg: ModelConfig) -> jax.Array:
  return normalise_image(jnp.asarray(golden["image"]), jnp.asarray(golden["image_size"]), cfg)


def nchw(x):
  return np.moveaxis(np.asarray(x), 3, 1)


def cut(value: np.ndarray, window: str | None, step: str | None) -> np.ndarray:
  """The part of an array that a key names."""
  if window:
    value = value[tuple(slice(int(part[1:]) if part[1:] else None) for part in window[1:-1].split(", "))]
  return value.reshape(-1)[:: int(step)] if step else value


def check(ours: dict, golden: dict, tolerance: float, pattern: str = ".*") -> dict[str, float]:
  """Largest difference over the largest value of every golden array whose name (without slice and stride) matches.

  Fails where one is above `tolerance`, where shapes differ, or where nothing was compared.
  """
  differences = {}
  for key, theirs in golden.items():
    name, window, step = re.fullmatch(r"(.*?)(\[.*\])?(?:@s(\d+))?", key).groups()
    if name in ours and re.fullmatch(pattern, name):
      value = cut(np.asarray(ours[name], np.float64), window, step)
      assert value.shape == theirs.shape, key
      differences[key] = float(np.abs(value - theirs).max() / np.abs(theirs).max())
  assert differences, f"no golden array is named {pattern}"
  bad = {key: value for key, value in differences.items() if not value <= tolerance}
  assert not bad, bad
  return differences


def channels_last(golden: dict, name: str) -> np.ndarray:
  """A recorded head output of all levels, b n c."""
  maps = [golden[f"head/{name}_{p}"] for p in LEVELS]
  return np.concatenate([x.reshape(*x.shape[:2], -1).transpose(0, 2, 1) for x in maps], 1)


def train_batch(golden: dict, boxes: int = 7) -> Batch:
  """The recorded training batch: three images, ten boxes, without ties in the assignment."""
  images, tokens = golden["tokens"].shape
  found, valid = np.full((images, boxes, 4), np.nan, np.float32), np.zeros((images, boxes), bool)
  positive_map, row = np.zeros((images, boxes, tokens), bool), 0
  for b in range(images):
    of_image = golden[f"boxes/{b}"]
    g = len(of_image)
    found[b, :g], valid[b, :g], positive_map[b, :g] = of_image, True, golden["positive_map"][row : row + g]
    row += g
  return Batch(
    image=golden["image"],
    image_size=golden["image_size"],
    tokens=golden["tokens"],
    tokens_valid=golden["tokens_valid"],
    boxes_xyxy_px=found,
    boxes_valid=valid,
    positive_map=positive_map,
    box_concept=np.full((images, boxes), -1, np.int32),
    token_concept=np.full((images, tokens), -1, np.int32),
    example_valid=np.ones(images, bool),
  )


def without_dropout(cfg: ModelConfig) -> ModelConfig:
  """Nothing is dropped in training, as when the training numbers were recorded."""
  return dataclasses.replace(
    cfg,
    dropblock=0.0,
    swin=dataclasses.replace(cfg.swin, drop_path=0.0),
    text=dataclasses.replace(cfg.text, dropout=0.0),
    head=dataclasses.replace(cfg.head, fusion_dropout=0.0),
  )


class Recorded:
  """The recorded training step: eight values of every trained tensor, one long array per quantity (`step.npz`)."""

  def __init__(self):
    self.values = load("step")
    self.names = str(self.values["names"]).split("\n")

  def __getitem__(self, quantity: str) -> np.ndarray:
    return self.values[quantity]

  def pick(self, tensors: dict[str, np.ndarray]) -> np.ndarray:
    """The recorded elements of whole tensors, by their names."""
    steps, counts = self.values["strides"], self.values["counts"]
    found = zip(self.names, steps, counts, strict=True)
    return np.concatenate([np.asarray(tensors[name]).reshape(-1)[::step][:count] for name, step, count in found])

"""`glipv2 import-torch`: a run folder out of weights of PyTorch.

  glipv2 import-torch --weights glip_tiny_model_o365_goldg.pth --variant glip_t --out runs/glip_t
  glipv2 import-torch --weights swin_tiny_patch4_window7_224.pth bert.safetensors --variant glipv2_t --out runs/start

The first makes a checkpoint for `glipv2 predict`, `evaluate` and `--config.train.init_from=`; the second one to train
from: what the encoders' files do not hold is random. Files: .safetensors, or .pth, .pt, .bin (these need PyTorch).
Names and shapes must fit exactly; the options below excuse differences, by patterns for whole names in the file.
"""

import argparse
import logging
import pathlib
import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from configs import demo, pretrain
from glipv2_jax.convert import from_torch
from glipv2_jax.models import glipv2, variants
from glipv2_jax.train import checkpoint
from glipv2_jax.train.initialise import replace
from glipv2_jax.train.state import RUN_ONCE, TrainState

WRITING_GB = 0.2  # a whole network written at once would take its memory a second time


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; mistakes of the user end with a message and status 1."""
  options = _parser().parse_args(argv)
  logging.basicConfig(format="%(message)s")
  logging.getLogger("glipv2_jax").setLevel(logging.INFO)
  try:
    run(options)
  except (OSError, ValueError) as error:
    print(f"glipv2 import-torch: {error}", file=sys.stderr)
    return 1
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="glipv2 import-torch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--weights", required=True, nargs="+", metavar="FILE", help="one file, or one per encoder")
  parser.add_argument("--variant", required=True, metavar="NAME", help=", ".join(variants.VARIANTS))
  parser.add_argument("--out", required=True, metavar="DIR", help="run folder to make")
  parser.add_argument("--ema", action="store_true", help="the file's running average (model_ema)")
  parser.add_argument(
    "--allow-missing", metavar="REGEX", help="names that may lack or have another shape: values stay random"
  )
  parser.add_argument("--allow-surplus", metavar="REGEX", help="names in the file to pass over")
  parser.add_argument("--resize-window", action="store_true", help="interpolate bias tables of another window size")
  parser.add_argument("--tokenizer", help="vocab.txt or name of a tokenizer (default: that of the variant)")
  return parser


def run(options: argparse.Namespace) -> None:
  """Reads, checks, converts, writes. Raises what `main` reports."""
  began = time.monotonic()
  cfg = variants.get(options.variant)
  out = pathlib.Path(options.out)
  if (out / checkpoint.FOLDER).exists():
    raise ValueError(f"{out} holds a run already; give another --out")
  allowed = from_torch.Options(options.allow_missing, options.allow_surplus, options.resize_window)
  weights = from_torch.load(options.weights, cfg, allowed, variant=options.variant, ema=options.ema)
  config = configuration(options.variant, options.tokenizer)
  params = replace(initial(cfg, weights.fresh), weights)
  state = TrainState(step=jnp.int32(0), params=params, opt_state={}, ema=None)
  meta = checkpoint.Meta(0, 0, 0.0, options.variant, config, checkpoint.git_revision(), {}, {})
  writing = max(WRITING_GB, *(leaf.nbytes / 1e9 for leaf in jax.tree.leaves(params)))
  with checkpoint.manager(out / checkpoint.FOLDER, writing_gb=writing) as checkpoints:
    checkpoint.save(checkpoints, state, meta)
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  print(f"{options.variant}, {count:,} parameters, {time.monotonic() - began:.0f} s -> {out}")


def configuration(variant: str, tokenizer: str | None = None) -> dict:
  """The configuration that goes into the checkpoint: that of pre-training, in float32 as the weights are."""
  cfg = variants.get(variant)
  if variant == "demo":
    c = demo.get_config()
  else:
    c = pretrain.get_config("b" if cfg.text is not None and cfg.text.kind == "clip" else "t")
  c.model.variant = variant
  c.model.compute_dtype = "float32"
  c.model.mlm, c.model.inter_dim = cfg.mlm, cfg.inter_dim  # heads of training that no released file has
  c.loss.weights.mlm = c.loss.weights.inter = 0.0
  c.data.max_tokens = cfg.max_tokens
  c.train.evaluate_ema = False
  if tokenizer is not None:
    c.data.tokenizer = tokenizer
  return c.to_dict()


def initial(cfg: variants.ModelConfig, fresh: Sequence[str]) -> dict:
  """Random values on the first device of the parameters that no file holds; of all others only the shapes."""
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  shapes = glipv2.abstract_params(cfg)
  paths = glipv2.param_paths(shapes)
  leaves = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device) for x in jax.tree.leaves(shapes)]
  places = [paths.index(path) for path in fresh]

  def draw(key):
    values = jax.tree.leaves(glipv2.init_params(cfg, key))
    return [values[k] for k in places]

  options = RUN_ONCE if jax.default_backend() == "cpu" else None
  for k, value in zip(places, jax.jit(draw, out_shardings=device, compiler_options=options)(jax.random.key(0))):
    leaves[k] = value
  return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


if __name__ == "__main__":
  sys.exit(main())

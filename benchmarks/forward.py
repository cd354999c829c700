"""The forward pass of a detector beside a PyTorch model of its class, on this machine, as JSON.

  python -m benchmarks.forward [--canvas 480 640] [--canvas 800 1344] [--variant glipv2_t] [--repeat 5] [--rounds 2]
                               [--parts] [--no-peer] [--out forward.json]

The peer is Grounding DINO tiny of Hugging Face transformers (Swin-T, BERT-base, deformable attention, 256 tokens) with
random weights: it needs `pip install "glipv2_jax[torch]"`. Both see one picture of the canvas's size and 256 tokens in
float32. They take turns in processes of their own, `rounds` times each, so that memory is their own and a change of the
machine's speed meets both; the fastest call counts. Every process of ours also measures the rate of a 4096x4096 float32
matrix product, and gives two shares of it: `executed` counts the products that our program runs, `published` those of
the network as its authors wrote it (the fusion runs half of them, models/fusion.py). `--parts` times the parts of the
network one by one (each compiled alone, so their sum is not exactly the whole).
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import time

TOKENS = 256


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--canvas", nargs=2, type=int, action="append")
  parser.add_argument("--variant", default="glipv2_t")
  parser.add_argument("--repeat", type=int, default=5)
  parser.add_argument("--rounds", type=int, default=2)
  parser.add_argument("--parts", action="store_true")
  parser.add_argument("--no-peer", action="store_true")
  parser.add_argument("--out", type=pathlib.Path)
  parser.add_argument("--only", choices=("ours", "peer"), help=argparse.SUPPRESS)
  options = parser.parse_args(argv)
  canvases = options.canvas or [[480, 640], [800, 1344]]
  if options.only == "ours":
    report = ours(options.variant, tuple(canvases[0]), options.repeat, options.parts)
  elif options.only == "peer":
    report = peer(tuple(canvases[0]), options.repeat)
  else:
    report = [compare(canvas, options) for canvas in canvases]
  text = json.dumps(report, indent=2)
  print(text)
  if options.out:
    options.out.write_text(text + "\n")
  return 0


def compare(canvas: list[int], options: argparse.Namespace) -> dict:
  """Both models at one size, in turns."""
  command = [sys.executable, "-m", "benchmarks.forward", "--canvas", *map(str, canvas), "--variant", options.variant]
  command += ["--repeat", str(options.repeat)]
  found = {"ours": [], "peer": []}
  for turn in range(options.rounds):
    for who in ("ours",) if options.no_peer else ("ours", "peer"):
      parts = ["--parts"] if options.parts and who == "ours" and turn == 0 else []
      print(f"{canvas[0]}x{canvas[1]}: {who}", file=sys.stderr, flush=True)
      done = subprocess.run([*command, *parts, "--only", who], check=True, stdout=subprocess.PIPE, text=True)
      found[who].append(json.loads(done.stdout))
  best = {who: min(runs, key=lambda run: run["seconds"]) for who, runs in found.items() if runs}
  report = {
    "canvas": canvas,
    **best,
    "all_seconds": {who: [run["seconds"] for run in runs] for who, runs in found.items()},
  }
  if options.parts:
    report["ours"]["part_seconds"] = found["ours"][0]["part_seconds"]
  if "peer" in best:
    report["ratio"] = round(best["ours"]["seconds"] / best["peer"]["seconds"], 3)
  return report


def ours(variant: str, canvas: tuple[int, int], repeat: int, with_parts: bool) -> dict:
  import jax
  import numpy as np
  from flax import nnx

  from glipv2_jax.models import glipv2, variants
  from glipv2_jax.train import flops
  from glipv2_jax.train.state import RUN_ONCE

  cfg = variants.get(variant)
  make = jax.jit(lambda key: glipv2.init_params(cfg, key), compiler_options=RUN_ONCE)
  params = jax.block_until_ready(make(jax.random.key(0)))
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (1, *canvas, 3), np.uint8)
  tokens = rng.integers(1000, 2000, (1, TOKENS), np.int32)

  def forward(params, image, tokens):
    model = nnx.merge(glipv2.graphdef(cfg), params)
    size, valid = np.array([canvas], np.int32), np.ones((1, TOKENS), bool)
    levels, text = model.encode_image(image, size), model.encode_text(tokens, valid)
    return model.predict(*model.fuse(levels, text, valid, size))

  began = time.perf_counter()
  program = jax.jit(forward).lower(params, image, tokens).compile()
  compile_seconds = time.perf_counter() - began
  rates = [matmul_rate()]
  seconds = fastest(lambda: jax.block_until_ready(program(params, image, tokens)), repeat)
  rates.append(matmul_rate())
  executed = flops.count(forward, params, image, tokens)
  gflop = {"executed": executed / 1e9, "published": (executed + saved_by_fusion(cfg, canvas)) / 1e9}
  report = {
    "model": variant,
    "jax": jax.__version__,
    "seconds": round(seconds, 3),
    "compile_seconds": round(compile_seconds, 1),
    "temporaries_gb": round(program.memory_analysis().temp_size_in_bytes / 1e9, 3),
    "peak_process_gb": peak_gb(),
    "gflop": {name: round(value, 1) for name, value in gflop.items()},
    "matmul_gflop_per_second": round(max(rates) / 1e9, 1),
    "share_of_matmul_rate": {name: round(1e9 * value / seconds / max(rates), 3) for name, value in gflop.items()},
  }
  return report | ({"part_seconds": parts(cfg, params, canvas, repeat)} if with_parts else {})


def saved_by_fusion(cfg, canvas: tuple[int, int]) -> int:
  """FLOPs of the authors' fusion less ours: three projections of all cells, less three products with words only."""
  d, wide = cfg.head.channels, cfg.head.fusion_dim
  cells = sum(-(-canvas[0] // stride) * -(-canvas[1] // stride) for stride in cfg.strides)
  bias = wide * TOKENS  # of the queries, with the keys
  return cfg.head.stages * 2 * (3 * (cells - TOKENS) * d * wide - bias) if cfg.head.fusion else 0


def parts(cfg, params, canvas, repeat: int) -> dict:
  """Seconds of the parts of the network, each compiled and run alone; the tower's are summed over its stages."""
  import jax
  import jax.numpy as jnp
  from flax import nnx

  from glipv2_jax.models.glipv2 import graphdef
  from glipv2_jax.models.padding import level_sizes

  model = nnx.merge(graphdef(cfg), params)
  size = jnp.array([canvas], jnp.int32)
  key = jax.random.key(0)

  def noise(*shape):
    return jax.random.normal(key, shape, jnp.float32)

  def timed(module, *args, method=None):
    definition, state = nnx.split(module)
    run = jax.jit(lambda state, args: (method or (lambda m, *a: m(*a)))(nnx.merge(definition, state), *args))
    return round(fastest(lambda: jax.block_until_ready(run(state, args)), repeat), 4)

  shapes = [tuple(int(n) for n in s[0]) for s in level_sizes(size, cfg.strides)]
  swin = [tuple(int(n) for n in s[0]) for s in level_sizes(size, (8, 16, 32))]
  levels = [noise(1, *shape, cfg.head.channels) for shape in shapes]
  cells = noise(1, sum(h * w for h, w in shapes), cfg.head.channels)
  words, valid = noise(1, TOKENS, cfg.text.width), jnp.ones((1, TOKENS), bool)
  stage, stages = model.tower[0], cfg.head.stages
  widths = [cfg.swin.embed_dim * 2**i for i in (1, 2, 3)]
  return {
    "swin": timed(model.swin, noise(1, *canvas, 3)),
    "fpn": timed(model.fpn, [noise(1, *shape, d) for shape, d in zip(swin, widths, strict=True)]),
    "text": timed(model.text, jnp.ones((1, TOKENS), jnp.int32), valid),
    "fusion": round(stages * timed(stage.fusion, cells, words, valid), 4),
    "text_layers": round(stages * timed(stage.text_layer, words, valid), 4),
    "dyconv": round(stages * timed(stage.dyconv, levels), 4),
    "head": timed(model.head, levels, words),
  }


def peer(canvas: tuple[int, int], repeat: int) -> dict:
  import torch
  import transformers

  torch.manual_seed(0)
  network = transformers.GroundingDinoForObjectDetection(transformers.GroundingDinoConfig()).eval()
  tokens = torch.randint(1999, 2999, (1, TOKENS))
  tokens[:, 0], tokens[:, -1] = 101, 102
  inputs = {
    "pixel_values": torch.randn(1, 3, *canvas),
    "pixel_mask": torch.ones(1, *canvas, dtype=torch.long),
    "input_ids": tokens,
    "attention_mask": torch.ones(1, TOKENS, dtype=torch.long),
    "token_type_ids": torch.zeros(1, TOKENS, dtype=torch.long),
  }
  with torch.inference_mode():
    seconds = fastest(lambda: network(**inputs), repeat)
  return {
    "model": "Grounding DINO tiny",
    "torch": torch.__version__,
    "transformers": transformers.__version__,
    "parameters": sum(p.numel() for p in network.parameters()),
    "seconds": round(seconds, 3),
    "peak_process_gb": peak_gb(),
  }


def matmul_rate(n: int = 4096) -> float:
  """FLOP/s of a float32 n x n matrix product."""
  import jax

  a = jax.random.normal(jax.random.key(0), (n, n))
  product = jax.jit(lambda a: a @ a)
  return 2 * n**3 / fastest(lambda: jax.block_until_ready(product(a)), 3)


def fastest(function, repeat: int) -> float:
  """Seconds of the fastest of `repeat` calls, after one that does not count."""
  times = []
  for _ in range(repeat + 1):
    began = time.perf_counter()
    function()
    times.append(time.perf_counter() - began)
  return min(times[1:])


def peak_gb() -> float:
  return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)


if __name__ == "__main__":
  sys.exit(main())

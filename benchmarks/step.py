"""Time of a training step by part, peak memory and compile time, as JSON.

  python -m benchmarks.step --variant demo glipv2_t [--canvas 480 640] [--batch 1] [--repeat 3] [--out step.json]

Parts: data (one batch from the pipeline in this process), forward (targets and loss), backward (loss and gradient minus
forward), update (clipping, AdamW, running average); `step` is the real jitted step that fuses them. The reference of
the same run is the machine's own speed on a large matrix product, so that figures of different machines compare:
`fraction_of_matmul_peak` = FLOPs of the step as the compiler counts them / time / that speed. Each variant runs in a
process of its own, so that peak memory is its own.
"""

import argparse
import dataclasses
import json
import pathlib
import resource
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from configs import demo, pretrain
from glipv2_jax.parallel.mesh import make_mesh, to_global
from glipv2_jax.train import objective, optim
from glipv2_jax.train.state import abstract_state, create_state
from glipv2_jax.train.step import make_train_step
from launch import experiment
from pipelines.build import train_batches

DEFAULTS = {"demo": ((128, 128), 16), "glipv2_t": ((480, 640), 1)}  # canvas, batch


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--variant", nargs="+", default=["demo"], choices=sorted(DEFAULTS))
  parser.add_argument("--canvas", nargs=2, type=int)
  parser.add_argument("--batch", type=int)
  parser.add_argument("--repeat", type=int, default=3)
  parser.add_argument("--out", type=pathlib.Path)
  options = parser.parse_args(argv)
  if len(options.variant) > 1:
    report = [_in_own_process(name, options) for name in options.variant]
  else:
    canvas, batch = DEFAULTS[options.variant[0]]
    report = measure(options.variant[0], tuple(options.canvas or canvas), options.batch or batch, options.repeat)
  text = json.dumps(report, indent=2)
  print(text)
  if options.out:
    options.out.write_text(text + "\n")
  return 0


def measure(variant: str, canvas: tuple[int, int], batch: int, repeat: int) -> dict:
  """The report of one variant; times are medians in seconds."""
  flags.FLAGS.mark_as_parsed()  # grain reads absl's global flags
  run = experiment_of(variant, canvas, batch)
  task = objective.grounding(run.model, run.loss)
  mesh = make_mesh(devices=jax.devices()[:1])
  optimizer = optim.make_optimizer(
    run.optim, jax.eval_shape(task.init, jax.random.key(0)), run.train.total_steps, task.frozen
  )
  report = {
    "variant": variant,
    "device": jax.devices()[0].device_kind,
    "jax": jax.__version__,
    "canvas": canvas,
    "batch": batch,
    "tokens": run.model.max_tokens,
    "compute_dtype": run.model.compute_dtype,
    "remat": run.model.remat,
  }
  with jax.set_mesh(mesh), train_batches(run.data) as feed:
    abstract = abstract_state(task.init, optimizer, mesh)
    state = create_state(task.init, optimizer, abstract, jax.random.key(0))
    report["parameters"] = sum(x.size for x in jax.tree.leaves(state.params))
    seconds = {"data": _median(lambda: next(feed), repeat)}
    data = to_global(next(feed).batch, mesh)
    key = jax.random.key(1)

    def loss(params, data):
      targets, counts, _ = task.targets(data)
      return task.loss(params, data, targets, counts, key)[0]

    def update(state, grads):
      clipped, _ = optimizer.clip(grads)
      updates, opt_state = optimizer.tx.update(clipped, state.opt_state, state.params)
      params = jax.tree.map(jnp.add, state.params, updates)
      return dataclasses.replace(state, params=params, opt_state=opt_state, ema=optimizer.average(state.ema, params))

    compile_seconds = {}

    def compiled(name, function, *args):
      print(f"{variant}: compiling {name}", file=sys.stderr, flush=True)
      began = time.perf_counter()
      program = function.lower(*args).compile()
      compile_seconds[name] = time.perf_counter() - began
      return program

    forward = compiled("forward", jax.jit(loss), state.params, data)
    seconds["forward"] = _median(lambda: forward(state.params, data), repeat)
    both = compiled("forward_backward", jax.jit(jax.grad(loss)), state.params, data)
    seconds["backward"] = _median(lambda: both(state.params, data), repeat) - seconds["forward"]
    grads = both(state.params, data)
    # The state is donated, as in training: a copy of a large one would not fit beside it.
    apply = compiled("update", jax.jit(update, donate_argnums=0), state, grads)
    state, seconds["update"] = _chain(apply, state, grads, repeat)
    del grads

    train_step = make_train_step(task, optimizer, mesh, abstract, 0, 1)
    program = compiled("step", train_step, state, data)
    memory = program.memory_analysis()
    flops = (program.cost_analysis() or {}).get("flops", float("nan"))
    state, seconds["step"] = _chain(lambda *a: program(*a, train_step.seed)[0], state, data, repeat)

  peak = matmul_speed()
  return report | {
    "seconds": {name: round(value, 4) for name, value in seconds.items()},
    "compile_seconds": {name: round(value, 2) for name, value in compile_seconds.items()},
    "images_per_second": round(batch / seconds["step"], 3),
    "step_gflop": round(flops / 1e9, 1),
    "matmul_gflop_per_second": round(peak / 1e9, 1),
    "fraction_of_matmul_peak": round(flops / seconds["step"] / peak, 3),
    "step_temporary_gib": round(memory.temp_size_in_bytes / 2**30, 3),
    "peak_process_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
  }


def experiment_of(variant: str, canvas: tuple[int, int], batch: int, **model) -> experiment.Experiment:
  """Training on embedded pictures of one canvas, in float32; `model`: other fields of ModelConfig."""
  config = demo.get_config() if variant == "demo" else pretrain.get_config("t,debug")
  config.model.update({"compute_dtype": "float32", **model})
  config.data.canvases = (canvas,)
  config.data.batch = batch
  for source in config.data.sources.values():
    source.size = canvas
  return experiment.from_tree(config.to_dict())


def matmul_speed(n: int = 2048, repeat: int = 5) -> float:
  """FLOP/s of a float32 n x n matrix product."""
  a = jax.random.normal(jax.random.key(0), (n, n))
  product = jax.jit(lambda a: a @ a)
  return 2 * n**3 / _median(lambda: product(a), repeat)


def _median(function, repeat: int) -> float:
  """Seconds of one call, the median of `repeat` after one that does not count."""
  times = []
  for _ in range(repeat + 1):
    began = time.perf_counter()
    jax.block_until_ready(function())
    times.append(time.perf_counter() - began)
  return float(np.median(times[1:]))


def _chain(function, state, extra, repeat: int):
  """(last state, seconds of one call of (state, extra) -> state: the median of `repeat`, after one that warms up)."""
  times = []
  for _ in range(repeat + 1):
    began = time.perf_counter()
    state = jax.block_until_ready(function(state, extra))
    times.append(time.perf_counter() - began)
  return state, float(np.median(times[1:]))


def _in_own_process(variant: str, options: argparse.Namespace) -> dict:
  command = [sys.executable, "-m", "benchmarks.step", "--variant", variant, "--repeat", str(options.repeat)]
  if options.canvas:
    command += ["--canvas", *map(str, options.canvas)]
  if options.batch:
    command += ["--batch", str(options.batch)]
  return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


if __name__ == "__main__":
  sys.exit(main())

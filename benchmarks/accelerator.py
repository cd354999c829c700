"""The training step of GLIPv2-T on the accelerator at hand: images/s, MFU, memory, and where the time goes, as JSON.

  python -m benchmarks.accelerator [--canvas 800 1344] [--batch 4 8] [--model loop=true 'deform="columns"'] [--out FILE]

The step is that of `glipv2 train`: bfloat16, all four losses, optimizer and running average, on the embedded data. Its
reference is the machine's own rate in a large bfloat16 matrix product, measured in the same run:
  mfu        FLOPs of the model (three times the products of a forward pass) / time / that rate
  hfu        the same with the FLOPs that the program does, recomputation included
  parts      seconds of a step by part of the model, from the profiler: what ran on the device, by the source lines that
             its instructions come from (glipv2_jax/train/profile.py). 'idle' is the rest of the profiled step
A batch that does not fit is reported as such, with what the compiler or the allocator says. Parts are read from GPUs'
profiles only, and CUDA graphs hide them: XLA_FLAGS=--xla_gpu_enable_command_buffer= turns those off.
"""

import argparse
import collections
import json
import pathlib
import statistics
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks.step import experiment_of
from glipv2_jax.parallel import hlo
from glipv2_jax.parallel.mesh import make_mesh, to_global
from glipv2_jax.train import objective, optim, profile
from glipv2_jax.train.state import abstract_state, create_state
from glipv2_jax.train.step import make_train_step
from launch.compile_tpu import NO_MEMORY, model_flops
from pipelines.build import train_batches

PROFILED = 3  # steps


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--variant", default="glipv2_t", choices=("demo", "glipv2_t"))
  parser.add_argument("--canvas", nargs=2, type=int, default=(800, 1344))
  parser.add_argument("--batch", nargs="+", type=int, default=[1])
  parser.add_argument("--model", nargs="*", default=[], metavar="FIELD=VALUE", help="fields of ModelConfig")
  parser.add_argument("--repeat", type=int, default=10)
  parser.add_argument("--out", type=pathlib.Path)
  parser.add_argument("--save", type=pathlib.Path, help="folder for the program and its times")
  options = parser.parse_args(argv)
  fields = {name: json.loads(value) for name, value in (field.split("=", 1) for field in options.model)}
  flags.FLAGS.mark_as_parsed()  # grain reads absl's global flags
  rate = matmul_rate(8192 if jax.default_backend() == "gpu" else 1024)
  device = jax.devices()[0]
  report = {
    "device": device.device_kind,
    "jax": jax.__version__,
    "variant": options.variant,
    "canvas": list(options.canvas),
    "model": fields,
    "matmul_tflop_per_second": round(rate / 1e12, 1),
    "batches": {},
  }
  for batch in options.batch:
    try:
      found = measure(options.variant, tuple(options.canvas), batch, fields, options.repeat, rate, options.save)
    except jax.errors.JaxRuntimeError as error:
      if NO_MEMORY not in str(error):
        raise
      found = {"fits": False, "why": str(error).splitlines()[0][:300]}
    report["batches"][batch] = found
    print(json.dumps({batch: found}), file=sys.stderr, flush=True)
    if options.out:
      options.out.write_text(json.dumps(report, indent=2) + "\n")
  print(json.dumps(report, indent=2))
  return 0


def measure(variant, canvas, batch, fields, repeat, rate, save) -> dict:
  """The report of one batch size. Raises JaxRuntimeError where the memory does not suffice."""
  run = experiment_of(variant, canvas, batch, **{"compute_dtype": "bfloat16", **fields})
  task = objective.grounding(run.model, run.loss)
  mesh = make_mesh(devices=jax.devices()[:1])
  optimizer = optim.make_optimizer(
    run.optim, jax.eval_shape(task.init, jax.random.key(0)), run.train.total_steps, task.frozen
  )
  with jax.set_mesh(mesh), train_batches(run.data) as feed:
    abstract = abstract_state(task.init, optimizer, mesh)
    # Threefry for 700 arrays takes a minute to compile.
    state = jax.block_until_ready(create_state(task.init, optimizer, abstract, jax.random.key(0, impl="rbg")))
    data = to_global(next(feed).batch, mesh)
    step = make_train_step(task, optimizer, mesh, abstract)
    began = time.perf_counter()
    program = step.lower(state, data).compile()
    compile_seconds = time.perf_counter() - began
    text, analysis = program.as_text(), program.memory_analysis()

    def steps(state, count):
      """(state, seconds of each of `count` steps): one is handed over while the one before it runs."""
      jax.block_until_ready(state)
      began = time.perf_counter()
      for _ in range(count):
        state, metrics = program(state, data, step.seed)
      loss = float(metrics["loss"])
      return jax.block_until_ready(state), (time.perf_counter() - began) / count, loss

    state, _, _ = steps(state, 2)
    times = []
    for _ in range(3):
      state, seconds, loss = steps(state, repeat)
      times.append(seconds)
    with tempfile.TemporaryDirectory() as folder:
      with jax.profiler.trace(folder):
        state, profiled, _ = steps(state, PROFILED)
      instructions = device_times(pathlib.Path(folder))
  parsed = hlo.Program(text)
  if save:
    save.mkdir(parents=True, exist_ok=True)
    (save / f"{batch}.txt").write_text(text)
    (save / f"{batch}.json").write_text(json.dumps(instructions))
  stats = jax.devices()[0].memory_stats()  # CPUs have none
  seconds, useful = statistics.median(times), model_flops(run) * batch
  flops = sum(use.times * parsed.flops(use) for use in parsed.uses())
  parts = by_part(parsed, instructions)
  parts["idle"] = profiled - sum(parts.values())
  return {
    "fits": True,
    "loss": loss,
    "seconds": round(seconds, 5),
    "images_per_second": round(batch / seconds, 3),
    "mfu": round(useful / seconds / rate, 4),
    "hfu": round(flops / seconds / rate, 4),
    "model_tflop": round(useful / 1e12, 3),
    "compiled_tflop": round(flops / 1e12, 3),
    "compile_seconds": round(compile_seconds, 1),
    "temporary_gib": round(analysis.temp_size_in_bytes / 2**30, 3),
    "argument_gib": round(analysis.argument_size_in_bytes / 2**30, 3),
    "peak_gib": round(stats["peak_bytes_in_use"] / 2**30, 3) if stats else None,
    "parts": {name: round(part, 5) for name, part in parts.items()},
  }


def device_times(folder: pathlib.Path) -> dict[str, float]:
  """Seconds per step of every instruction of the compiled program that ran, from the profile in `folder`."""
  (file,) = folder.rglob("*.xplane.pb")
  found: dict[str, float] = collections.defaultdict(float)
  for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
    if not plane.name.startswith("/device:GPU"):
      continue
    for line in plane.lines:
      if not line.name.startswith("Stream"):
        continue
      for event in line.events:
        stats = dict(event.stats)
        found[str(stats["hlo_op"]) if "hlo_op" in stats else f"({event.name})"] += event.duration_ns / 1e9 / PROFILED
  return dict(found)


def by_part(program: hlo.Program, times: dict[str, float]) -> dict[str, float]:
  """Seconds by part of the model, the largest first."""
  where = {
    name: hlo.Use(instruction, 1, computation)
    for computation, known in program.computations.items()
    for name, instruction in known.items()
  }
  found = collections.Counter()
  for name, seconds in times.items():
    use = where.get(f"%{name}")
    found[profile.part_of(program.source(use)) if use else profile.OTHER] += seconds
  return dict(found.most_common())


def matmul_rate(n: int, repeat: int = 20) -> float:
  """FLOP/s of a bfloat16 n x n matrix product, one handed over while another runs (benchmarks.step waits for each)."""
  a = jax.random.normal(jax.random.key(0), (n, n), jnp.bfloat16)
  product = jax.jit(lambda a, b: a @ b)
  for _ in range(2):
    began = time.perf_counter()
    b = a
    for _ in range(repeat):
      b = product(a, a)
    jax.block_until_ready(b)
  return 2 * n**3 * repeat / (time.perf_counter() - began)


if __name__ == "__main__":
  sys.exit(main())

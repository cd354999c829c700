"""`glipv2 compile-tpu`: what the training step needs and costs on a TPU slice, found out on a machine without a TPU.

  glipv2 compile-tpu --config=configs/pretrain.py:h --topology=v5p:4x4x4 --out report.json
  glipv2 compile-tpu --config=configs/pretrain.py:t --topology=v5e:16x16 --out sweep.json --sweep

The step is that of `glipv2 train`: all losses, optimizer, running average, the sharding of the configuration
(--config.train.fsdp=16), its compute dtype and remat, its largest canvas. --images=N is the batch of every chip, 1 by
default; --config.data.batch is not used. --sweep doubles it until the memory does not suffice, then finds the largest
that does in between; every size that is done is kept in --out, and the same command goes on from there.
--save=step.txt also writes the compiled program. Needs the extra `tpu` (libtpu); one compilation takes half an hour of
a core and 13 GB, with --config.model.loop=True. --effort=-1 (of -1 to 1) lets the compiler off its search for good
kernels: 12 minutes for B, and the cycles are those of slow kernels (two to nine times as slow in one MLP).

The report, JSON:
  memory             bytes per chip: arguments, outputs, temporaries, peak, and the limit of the chip
  flops              per chip: 'model' (three times the products of a forward pass), 'compiled' (what the program does,
                     recomputation included)
  parts              per part of the model: the compiler's cycles, loops multiplied by their length, and FLOPs
  not_estimated      what the compiler gives no cycles for; it counts with the time its bytes need ('floor_cycles')
  estimated_seconds, mfu   of a step, collectives and copies running beside the computation; mfu = model / (time x peak)
  collectives        number and bytes per chip by kind; all_gathers: every one, with the part it belongs to
GPUs: --topology=h100:8, or hosts x GPUs, h100:4x8, with the extra `cuda` and without a GPU: memory, FLOPs and
collectives. That compiler estimates no cycles, so there are no seconds and no MFU; nor does it try variants of
kernels on the GPU that is not there, so the figures are those of its defaults. Other GPUs are not described yet.
"""

import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
from absl import app, flags
from jax.sharding import Mesh

from glipv2_jax.parallel import slices
from glipv2_jax.parallel.mesh import batch_sharding
from glipv2_jax.schema import abstract_batch
from glipv2_jax.train import flops, objective, profile
from glipv2_jax.train.optim import make_optimizer
from glipv2_jax.train.state import abstract_state
from glipv2_jax.train.step import make_train_step
from launch import settings
from launch.experiment import Experiment, from_tree
from launch.train import write_json

NO_MEMORY = "RESOURCE_EXHAUSTED"


def compile_step(experiment: Experiment, mesh: Mesh, images: int) -> jax.stages.Compiled:
  """The step for `images` pictures per chip on the largest canvas. Raises JaxRuntimeError when memory is short."""
  config = experiment.train
  task = objective.grounding(experiment.model, experiment.loss)
  optimizer = make_optimizer(
    experiment.optim, jax.eval_shape(task.init, jax.random.key(0)), config.total_steps, task.frozen
  )
  state = abstract_state(task.init, optimizer, mesh, config.sharding, config.shard_min_size)
  with jax.set_mesh(mesh):
    step = make_train_step(task, optimizer, mesh, state, config.seed, config.accumulate, config.global_negatives)
    return step.lower(state, _batch(experiment, images * mesh.devices.size, batch_sharding(mesh))).compile()


def _batch(experiment: Experiment, rows: int, sharding=None):
  data = experiment.data
  batch = abstract_batch(rows, canvas(experiment), data.max_tokens, data.max_boxes, hidden=data.masking is not None)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), batch)


def canvas(experiment: Experiment) -> tuple[int, int]:
  """The largest canvas of the configuration, the first one of equals."""
  return max(experiment.data.canvases, key=lambda size: size[0] * size[1])


def model_flops(experiment: Experiment) -> int:
  """FLOPs of a picture: forward, and twice that for the gradient. What a backward pass recomputes is not counted, nor
  what the deformable convolution by windows multiplies with zeros."""
  task = objective.grounding(dataclasses.replace(experiment.model, deform="gather"), experiment.loss)
  params, batch = jax.eval_shape(task.init, jax.random.key(0)), _batch(experiment, 1)

  def forward(params, batch):
    targets, counts, _ = task.targets(batch)
    return task.loss(params, batch, targets, counts, jax.random.key(0))

  return 3 * flops.count(forward, params, batch)


def report(experiment: Experiment, topology: str, images: int, save: pathlib.Path | None = None) -> dict[str, Any]:
  """Compiles and measures. Where `fits` is False, `why` says what the compiler said, and no costs are there."""
  mesh = slices.slice_mesh(topology, experiment.train.data, experiment.train.fsdp)
  chip, height_width = slices.chip(mesh), canvas(experiment)
  head = {
    "variant": experiment.variant,
    "topology": topology,
    "chip": mesh.devices.flat[0].device_kind,
    "mesh": dict(mesh.shape),
    "canvas": height_width,
    "images_per_chip": images,
    "batch": images * mesh.devices.size,
    "compute_dtype": experiment.model.compute_dtype,
    "remat": experiment.model.remat,
    "deform": experiment.model.deform,
    "fusion": experiment.model.fusion,
    "effort": jax.config.jax_exec_time_optimization_effort,
    "jax": jax.__version__,
  }
  begin = time.monotonic()
  try:
    compiled = compile_step(experiment, mesh, images)
  except jax.errors.JaxRuntimeError as error:
    if NO_MEMORY not in str(error):
      raise
    return {**head, "fits": False, "why": str(error).splitlines()[0]}
  seconds, text = time.monotonic() - begin, compiled.as_text()
  if save is not None:
    save.write_text(text)
  costs = profile.profile(text, chip, model_flops(experiment) * images)
  memory = profile.memory(compiled.memory_analysis(), chip)
  found = {**head, "fits": memory["peak"] <= memory["limit"], "compile_seconds": round(seconds), "memory": memory}
  if not found["fits"]:  # the compiler for GPUs does not mind
    return {**found, "why": "the program needs more memory than there is"}
  return {**found, **costs}


def sweep(experiment: Experiment, topology: str, out: pathlib.Path) -> dict[str, Any]:
  """The largest `images` that fits; all reports by number of images are kept in `out` on the way."""
  done = json.loads(out.read_text()) if out.exists() else {}

  def fits(images: int) -> bool:
    if str(images) not in done:
      print(f"compiling {images} per chip", flush=True)
      done[str(images)] = report(experiment, topology, images)
      write_json(out, done)
      print(summary(done[str(images)]), flush=True)
    return done[str(images)]["fits"]

  largest = largest_that(fits)
  print(f"largest batch per chip that fits: {largest}")
  return done


def largest_that(fits) -> int:
  """The largest n >= 1 with fits(n), 0 if there is none: doubling, then halving the interval."""
  low, high = 0, 1
  while fits(high):
    low, high = high, 2 * high
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if fits(middle) else (low, middle)
  return low


def summary(found: dict[str, Any]) -> str:
  """A few lines for the reader of the terminal."""
  name = f"{found['variant']} on {found['topology']}, {found['images_per_chip']} images per chip"
  if not found["fits"]:
    return f"{name}: does not fit. {found['why']}"
  memory, cycles = found["memory"], found["estimated_cycles"] + found["floor_cycles"]
  seconds = f"{found['estimated_seconds'] * 1e3:.0f} ms, MFU {found['mfu']:.1%}" if cycles else "time not estimated"
  lines = [f"{name}: peak {memory['peak'] / 2**30:.2f} of {memory['limit'] / 2**30:.2f} GiB, {seconds}"]
  for part, costs in found["parts"].items():
    share = f"{(costs['cycles'] + costs['floor_cycles']) / cycles:6.1%} of the cycles, " if cycles else ""
    lines.append(f"  {part:<12} {share}{costs['flops'] / found['flops']['compiled']:6.1%} of the FLOPs")
  for kind, costs in found["collectives"].items():
    lines.append(f"  {kind:<20} {costs['count']:>5} x, {costs['bytes'] / 1e6:.1f} MB")
  return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
  """Parses flags, compiles and writes the report."""
  flags_and_arguments = settings.opened("glipv2 compile-tpu", __doc__, argv)
  if flags_and_arguments is None:
    return 0
  values, arguments = flags_and_arguments
  flags.DEFINE_string("topology", None, "slice, such as v5e:16x16", flag_values=values)
  flags.DEFINE_string("out", None, "file of the report", flag_values=values)
  flags.DEFINE_integer("images", 1, "images per chip", lower_bound=1, flag_values=values)
  flags.DEFINE_bool("sweep", False, "find the largest number of images that fits", flag_values=values)
  flags.DEFINE_float("effort", 0.0, "of the compiler", lower_bound=-1.0, upper_bound=1.0, flag_values=values)
  flags.DEFINE_string("save", None, "file for the compiled program", flag_values=values)
  try:
    settings.read(values, arguments, "config", "topology", "out")
    experiment = from_tree(values.config.to_dict())
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_exec_time_optimization_effort", values.effort)
    out = pathlib.Path(values.out)
    if values.sweep:
      sweep(experiment, values.topology, out)
    else:
      found = report(experiment, values.topology, values.images, values.save and pathlib.Path(values.save))
      write_json(out, found)
      print(summary(found))
      return 0 if found["fits"] else 1
  except (flags.Error, app.UsageError, ImportError, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
    print(f"glipv2 compile-tpu: {error}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())

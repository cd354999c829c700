"""Weak scaling of a training step by compiled cost: FLOPs and collective bytes per device on 1, 2, 4, 8 devices. JSON.

  python -m benchmarks.scaling [--network demo] [--per_device 2] [--form gathered ring] [--fsdp] [--out scaling.json]

The demo network at 128x128 or, with --network t, GLIPv2-T at the largest canvas of pre-training, with all four losses
and a fixed number of images per device; fake CPU devices, nothing runs.
FLOPs are those of matrix products and convolutions in the program of one device, loops multiplied by their length.
Everything but L_inter is the same work on any number of devices; L_inter compares a device's regions with the words of
all of them, which is counted in. `growth` is FLOPs per device against one device. Bytes of a collective: the whole
array that it makes or takes on one device. --fsdp also splits parameters and moments over all devices.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import jax

from configs import ablation, pretrain
from glipv2_jax.parallel import hlo
from glipv2_jax.parallel.mesh import make_mesh
from glipv2_jax.schema import abstract_batch
from glipv2_jax.train import objective, optim
from glipv2_jax.train.state import abstract_state
from glipv2_jax.train.step import make_train_step
from launch import experiment

NETWORKS = {"demo": (ablation.get_config, (128, 128)), "t": (lambda: pretrain.get_config("t"), (800, 1120))}
DEVICES = (1, 2, 4, 8)
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # of the machine code only


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--network", default="demo", choices=NETWORKS)
  parser.add_argument("--per_device", type=int, default=2, help="images")
  parser.add_argument("--form", nargs="+", default=["gathered", "ring"], choices=("gathered", "ring"))
  parser.add_argument("--fsdp", action="store_true")
  parser.add_argument("--devices", type=int, nargs="+", default=DEVICES)
  parser.add_argument("--out", type=pathlib.Path)
  options = parser.parse_args(argv)
  if len(options.devices) == len(options.form) == 1:
    report = [measure(options.network, options.devices[0], options.per_device, options.form[0], options.fsdp)]
  else:
    report = [row for form in options.form for row in _sweep(options, form)]
  text = json.dumps(report, indent=2)
  print(text)
  if options.out:
    options.out.write_text(text + "\n")
  return 0


def measure(network: str, devices: int, per_device: int, form: str, fsdp: bool) -> dict:
  """Cost of one device's program, from the text that the compiler leaves."""
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", devices)
  get_config, canvas = NETWORKS[network]
  config = get_config()
  config.loss.inter.form = form
  config.model.loop = True  # less to compile, the same work
  run = experiment.from_tree(config.to_dict())
  task = objective.grounding(run.model, run.loss)
  mesh = make_mesh(1, -1) if fsdp else make_mesh()
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  optimizer = optim.make_optimizer(run.optim, shapes, run.train.total_steps, task.frozen)
  batch = abstract_batch(devices * per_device, canvas, run.model.max_tokens, run.data.max_boxes, hidden=True)
  with jax.set_mesh(mesh):
    step = make_train_step(task, optimizer, mesh, abstract_state(task.init, optimizer, mesh))
    compiled = step.lower(abstract_state(task.init, optimizer, mesh), batch).compile(compiler_options=QUICK)
  flops, collectives = cost(compiled.as_text())
  return {
    "network": network,
    "devices": devices,
    "images_per_device": per_device,
    "form": form,
    "fsdp": fsdp,
    "flops_per_device": flops,
    "collective_bytes_per_device": sum(collectives.values()),
    "collectives": collectives,
    "temporaries": compiled.memory_analysis().temp_size_in_bytes,
  }


def cost(text: str) -> tuple[int, dict[str, int]]:
  """FLOPs and bytes of collectives by kind. Raises ValueError when the length of a loop cannot be read."""
  program = hlo.Program(text)
  flops, collectives = 0, {}
  for use in program.uses():
    flops += use.times * program.flops(use)
    kind = use.instruction.collective
    if kind:
      collectives[kind] = collectives.get(kind, 0) + use.times * program.collective_bytes(use)
  if program.unknown_loops:
    raise ValueError(f"loops of unknown length: {program.unknown_loops}")
  return flops, collectives


def _sweep(options: argparse.Namespace, form: str) -> list[dict]:
  """The number of devices is fixed when a process starts."""
  rows = []
  for devices in options.devices:
    print(f"compiling for {devices} devices, {form}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "benchmarks.scaling", "--network", options.network]
    command += ["--devices", str(devices), "--form", form]
    command += ["--per_device", str(options.per_device), *(["--fsdp"] if options.fsdp else [])]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    rows += found
  first = rows[0]["flops_per_device"]
  return [{**row, "growth": round(row["flops_per_device"] / first - 1, 5)} for row in rows]


if __name__ == "__main__":
  sys.exit(main())

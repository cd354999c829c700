"""Memory of L_inter, value and gradient, per device against the global batch; nothing runs, the compiler says. As JSON.

  python -m benchmarks.inter [--out inter.json]
  python -m benchmarks.inter --topology v5e:16x16 --batch 4096 [--form gathered]    # with libtpu installed, no TPU

Two sweeps on fake CPU devices: a growing batch on 8 devices; a growing mesh with 8 images per device. Regions (100),
tokens (256) and channels (64) per image are those of pre-training. `temporaries` is what the program needs beside its
inputs (embeddings and labels) and its outputs (gradients). 'dense' stores similarities and targets as matrices.
"""

import argparse
import functools
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding

from glipv2_jax.losses import inter
from glipv2_jax.parallel.mesh import AXES, BATCH
from glipv2_jax.schema import Embeddings

REGIONS, TOKENS, CHANNELS = 100, 256, 64
FORMS = ("dense", "gathered", "ring")
SWEEPS = tuple((8, batch) for batch in (64, 512, 4096)) + tuple((batch // 8, batch) for batch in (512, 4096))


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--topology", help="a TPU slice such as v5e:16x16")
  parser.add_argument("--devices", type=int, help="one number of fake devices instead of the sweeps")
  parser.add_argument("--batch", type=int, default=4096, help="with --topology or --devices")
  parser.add_argument("--form", nargs="+", choices=FORMS)
  parser.add_argument("--pairs", type=int, default=inter.InterConfig.pairs)
  parser.add_argument("--out", type=pathlib.Path)
  options = parser.parse_args(argv)
  if options.topology or options.devices:
    mesh = topology_mesh(options.topology) if options.topology else fake_mesh(options.devices)
    forms = options.form or (FORMS[1:] if options.topology else FORMS)
    report = [measure(mesh, options.batch, form, options.pairs) for form in forms]
  else:  # the number of devices is fixed when a process starts
    report = [
      row for devices, batch in SWEEPS for row in _in_own_process(devices, batch, options.form or FORMS, options.pairs)
    ]
  text = json.dumps(report, indent=2)
  print(text)
  if options.out:
    options.out.write_text(text + "\n")
  return 0


def fake_mesh(devices: int) -> Mesh:
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", devices)
  return jax.make_mesh((devices, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3)


def topology_mesh(name: str) -> Mesh:
  """All chips of a TPU slice in one ring, neighbours beside each other where the compiler knows how."""
  from jax.experimental import topologies

  jax.config.update("jax_platforms", "cpu")
  slice_ = topologies.get_topology_desc(platform="tpu", topology_name=name)
  devices = topologies.make_mesh(slice_, (len(slice_.devices), 1, 1), AXES).devices
  return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 3)


def dense(embeddings: Embeddings, known: inter.Labels):
  """The same loss from whole matrices; jit divides them by rows."""
  b, r, m = known.region_named.shape
  logits = jnp.einsum("brd,cmd->brcm", embeddings.regions, embeddings.words) * jnp.exp(-embeddings.log_scale)
  target = known.region_concept[..., None, None] == known.word_concept
  target &= known.region_concept[..., None, None] >= 0
  own = jnp.eye(b, dtype=bool)[:, None, :, None]
  live = known.region_valid[..., None, None] & known.word_valid
  target = (jnp.where(own, known.region_named[:, :, None], target) & live).reshape(b * r, b * m).astype(jnp.float32)
  logits = jnp.where(live, logits, -1e9).reshape(b * r, b * m)
  shares = (target / jnp.maximum(target.sum(axis, keepdims=True), 1.0) for axis in (0, 1))
  return -sum((t * jax.nn.log_softmax(logits, axis)).sum() for axis, t in enumerate(shares)) / 2


def measure(mesh: Mesh, batch: int, form: str, pairs: int) -> dict:
  """Bytes per device of loss and gradient of one form."""
  rows, everywhere = NamedSharding(mesh, BATCH), NamedSharding(mesh, jax.P())

  def array(*shape, dtype=jnp.float32, sharding=rows):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  embeddings = Embeddings(
    array(batch, REGIONS, CHANNELS), array(batch, TOKENS, CHANNELS), array(1, sharding=everywhere)
  )
  known = inter.Labels(
    region_concept=array(batch, REGIONS, dtype=jnp.int32),
    region_named=array(batch, REGIONS, TOKENS, dtype=jnp.bool_),
    region_valid=array(batch, REGIONS, dtype=jnp.bool_),
    word_concept=array(batch, TOKENS, dtype=jnp.int32),
    word_valid=array(batch, TOKENS, dtype=jnp.bool_),
  )
  if form == "dense":
    loss = dense
  else:
    loss = functools.partial(inter.cross_entropies, inter.InterConfig(regions=REGIONS, form=form, pairs=pairs))
  gradients = jax.tree.map(lambda x: x.sharding, embeddings)
  with jax.set_mesh(mesh):
    program = jax.jit(jax.value_and_grad(loss), out_shardings=(everywhere, gradients))
    memory = program.lower(embeddings, known).compile().memory_analysis()
  devices = mesh.devices.size
  return {
    "device": mesh.devices.flat[0].device_kind,
    "devices": devices,
    "batch": batch,
    "images_per_device": batch // devices,
    "global_words": batch * TOKENS,
    "form": form,
    "pairs": pairs,
    "temporaries": memory.temp_size_in_bytes,
    "inputs": memory.argument_size_in_bytes,
    "outputs": memory.output_size_in_bytes,
    "peak": memory.peak_memory_in_bytes,
  }


def _in_own_process(devices: int, batch: int, forms: tuple[str, ...], pairs: int) -> list[dict]:
  command = [sys.executable, "-m", "benchmarks.inter", "--devices", str(devices), "--batch", str(batch)]
  command += ["--pairs", str(pairs), "--form", *forms]
  return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


if __name__ == "__main__":
  sys.exit(main())

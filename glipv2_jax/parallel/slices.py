"""TPU slices and GPU hosts that one does not have: their chips, and a mesh over them for ahead-of-time compilation.

libtpu (the extra `tpu`) holds the compiler and the description of every slice, JAX's CUDA plugin (the extra `cuda`) the
compiler for GPUs, which is told what it compiles for (h100.txtpb). Nothing runs, no such machine is needed.
"""

import dataclasses
import importlib.util
import os
import pathlib

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from glipv2_jax.parallel.mesh import make_mesh

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published figures of a chip as JAX sees it, one device; `hbm` is what its compiler lets a program use, in bytes.

  `hertz` is None where the compiler estimates no cycles. Those of a TPU are of a core; the two cores of v4 and v5p run
  the same program on halves of every operation.
  """

  hbm: int
  flops: float  # bfloat16 per second
  hertz: float | None
  bandwidth: float  # HBM bytes per second


CHIPS = {
  "TPU v4": Chip(int(30.75 * GIB), 275e12, 1.05e9, 1228e9),
  "TPU v5 lite": Chip(int(15.75 * GIB), 197e12, 1.5e9, 819e9),
  "TPU v5": Chip(int(95.74 * GIB), 459e12, 1.75e9, 2765e9),
  "TPU v6 lite": Chip(int(31.25 * GIB), 918e12, 1.75e9, 1640e9),
  "NVIDIA H100 80GB HBM3": Chip(84_942_979_072, 989e12, None, 3352e9),
}
# Without these libtpu asks the network what machine it is on, and works for one process at a time.
_ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # it guards chips, and there are none
}
# One device per chip, as on the machines themselves; the description's default is one per core.
_OPTIONS = {"v4": {"chip_config_name": "megacore"}}


def slice_mesh(topology: str, data: int = -1, fsdp: int = 1) -> Mesh:
  """The mesh of `mesh.make_mesh` over the chips of a TPU slice such as 'v5e:16x16', or of GPUs, 'h100:8' or 'h100:4x8'
  (hosts x GPUs).

  Raises ValueError for a machine that the compiler does not know and for sizes that do not fit it, ImportError without
  that compiler.
  """
  try:
    devices = _gpus(topology) if topology.startswith("h100:") else _tpus(topology)
  except (jax.errors.JaxRuntimeError, RuntimeError) as error:
    raise ValueError(
      f"no compiler knows {topology!r} ({str(error).splitlines()[0]}); topologies look like v4:4x4x4, v5e:16x16, "
      "v5p:4x4x4, v6e:8x8, h100:8"
    ) from error
  try:
    return make_mesh(data, fsdp, devices=devices)
  except NotImplementedError as error:
    raise ValueError(
      f"mesh data={data}, fsdp={fsdp} does not fit the wires of {topology}: a size has to be a product of its sides"
    ) from error


def _tpus(topology: str):
  for name, value in _ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  if importlib.util.find_spec("libtpu") is None:
    raise ImportError('compiling for TPUs needs their compiler: pip install -e ".[tpu]" (no TPU is needed)')
  return topologies.get_topology_desc(topology, "tpu", **_OPTIONS.get(topology.split(":")[0], {})).devices


def _gpus(topology: str):
  if all(importlib.util.find_spec(f"jax_plugins.xla_cuda{version}") is None for version in (12, 13)):
    raise ImportError('compiling for GPUs needs JAX\'s plugin for them: pip install -e ".[cuda]" (no GPU is needed)')
  hosts = topology.split(":")[1]
  hosts = hosts if "x" in hosts else f"1x{hosts}"
  options = {"topology": f"1x{hosts}", "target_config": (pathlib.Path(__file__).parent / "h100.txtpb").read_text()}
  return topologies.get_topology_desc("", "cuda", **options).devices


def chip(mesh: Mesh) -> Chip:
  """Raises ValueError for a kind of chip that is not in the table."""
  kind = mesh.devices.flat[0].device_kind
  if kind not in CHIPS:
    raise ValueError(f"no figures for {kind!r}; known chips: {', '.join(CHIPS)}; add a row to {__name__}.CHIPS")
  return CHIPS[kind]

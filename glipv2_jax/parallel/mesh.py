"""The device mesh: axes `data`, `fsdp` and `model` (size 1 until needed), and how host arrays get onto it.

The batch is sharded over ('data', 'fsdp'), parameters over 'fsdp' (rules.py). Axis types are Auto: the compiler moves
data where an operation needs it, which windows, embedding lookups and convolutions rely on.

Nothing is split over `model` yet: the largest network, GLIPv2-H with all heads, has 1,143 M parameters, with moments
and average 18.3 GB or 0.3 GB per device at fsdp=64, and its largest array, whole where it is used, takes 193 MiB.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "model")
BATCH = PartitionSpec(("data", "fsdp"))


def make_mesh(data: int = -1, fsdp: int = 1, model: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh of all devices (or of `devices`); one size may be -1, "what is left". Raises ValueError with the numbers."""
  devices = jax.devices() if devices is None else list(devices)
  sizes = {"data": data, "fsdp": fsdp, "model": model}
  asked = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
  open_axes = [axis for axis, size in sizes.items() if size == -1]
  if len(open_axes) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
    raise ValueError(f"mesh {asked}: sizes are positive, and at most one is -1 (what is left)")
  if open_axes:
    given = -data * fsdp * model  # the one -1 takes the sign back
    if len(devices) % given:
      raise ValueError(
        f"mesh {asked}: {len(devices)} devices cannot be divided by {given}; choose sizes whose product divides them"
      )
    sizes[open_axes[0]] = len(devices) // given
  product = sizes["data"] * sizes["fsdp"] * sizes["model"]
  if product != len(devices):
    raise ValueError(f"mesh {asked} needs {product} devices, there are {len(devices)}; set one of the sizes to -1")
  return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
  """The same values on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """First axis split over all devices of ('data', 'fsdp')."""
  return NamedSharding(mesh, BATCH)


def batch_devices(mesh: Mesh) -> int:
  """Into how many parts the batch is split."""
  return mesh.shape["data"] * mesh.shape["fsdp"]


def to_global(host_arrays: Any, mesh: Mesh) -> Any:
  """A tree of this process's rows (NumPy, rows on axis 0) -> the same tree of global arrays sharded over the mesh.

  Raises ValueError when the global number of rows cannot be split evenly.
  """
  rows = jax.tree.leaves(host_arrays)[0].shape[0] * jax.process_count()
  if rows % batch_devices(mesh):
    raise ValueError(
      f"a global batch of {rows} rows cannot be split over {batch_devices(mesh)} devices "
      f"(data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']}); choose a multiple"
    )
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), host_arrays)


def on_each_device(function: Callable, in_specs: Any = BATCH, out_specs: Any = BATCH) -> Callable:
  """`function` of the rows that each device holds of the mesh that is set; without a mesh, of all rows.

  For what the compiler does not share out by itself: kernels, arrays of a fixed layout, loops whose length depends on
  the row, and `top_k`, for which it collects the rows of all devices on each (on CPUs; sorting, as on TPUs, it splits).
  Nothing in `function` may go over the devices.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return function
  return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def keep_rows(x: jax.Array) -> jax.Array:
  """`x`, its first axis split like the batch on the mesh that is set, if there is one and it can be."""
  return jax.lax.with_sharding_constraint(x, BATCH) if _can_be_split(x) else x


def row_major(x: jax.Array) -> jax.Array:
  """`x`, on a mesh of TPUs in memory in the order of its axes, the first one split like the batch if it can be.

  Before it cuts a map into pieces the TPU compiler likes to lay the map out anew, with the batch of 1 that a chip has
  beside the channels in its registers, which then are almost empty.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is None or device.platform != "tpu" or not _can_be_split(x):
    return x
  layout = Layout(tuple(range(x.ndim)))
  return on_each_device(lambda x: with_layout_constraint(x, layout))(x)


def _can_be_split(x: jax.Array) -> bool:
  """Whether a mesh is set, here for the compiler to share out, and its devices divide the first axis."""
  mesh = jax.sharding.get_abstract_mesh()
  return not (mesh.empty or mesh.manual_axes or x.shape[0] % batch_devices(mesh))

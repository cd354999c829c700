"""The deformable convolution of deform.py for TPUs: the same numbers out of matrix products instead of gathers.

A TPU gathers and scatters row by row while its matrix units wait. Here every source map is cut into windows of 16 x 16
cells, 8 x 8 of its own and a halo of 4; the output cells above a window (64 of a convolution with stride 1, 16 with
stride 2) form its tiles. A tap of all tiles of a window is a product of a matrix (tile cells x 256) with the window
(256 x c); a row of that matrix holds the bilinear weights of one place, zero but for its four neighbours. Its gradient
is two more products, by the window and by the weights, and no scatter. With p output cells that takes 512pc FLOPs per
tap beside the 2pco of the convolution itself. The matrix is made inside of the products; what the taps read (9pc
numbers, of one picture after the other) is made again in the backward pass: to keep it in the loop over the tower's
stages and to take it back costs the compiler more (GLIPv2-T on v5e, with a copy into another layout: 12.6 M cycles of
281 M, against 6.9 M).

One convolution of P3 at 800x1344 in bfloat16, forward and backward, compiled for TPU v5e: 5.7 M estimated cycles;
gathering takes 6.6 M and, without an estimate, at least 3.6 M for the bytes that it gathers and scatters.

A place further than three cells from where a plain convolution would look leaves its window. Such places are counted,
and only if there are any, the plain form adds what they contribute: the result is exact for all offsets.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from glipv2_jax.models import deform
from glipv2_jax.models.deform import SIDE, TAPS, Places
from glipv2_jax.parallel.mesh import BATCH, on_each_device

SIZE = 8  # rows and columns of a block: what a window owns; and two half blocks around it
HALO = SIZE // 2


@dataclasses.dataclass(frozen=True)
class Reader:
  """One output map h w of a convolution, read from a source map; its cells are the output's rows from `begin` on."""

  shape: tuple[int, int]
  stride: int
  source: tuple[int, int, int]  # height, width, first row in `cells`
  begin: int
  kernel: int

  @property
  def tile(self) -> tuple[int, int]:
    return SIZE // self.stride, SIZE // self.stride


def readers(where: Sequence[Places]) -> list[Reader]:
  """The maps that `deform.places` made; `where[i]` has kernel i."""
  found, begin = [], 0
  for kernel, part in enumerate(where):
    first = np.flatnonzero((part.row == -1) & (part.column == -1))  # the first cell of every map
    for start, end in zip(first, [*first[1:], len(part)]):
      columns = int(np.sum(part.row[start:end] == -1))
      rows = int(end - start) // columns
      near = part.column[start + 1] if columns > 1 else part.row[start + columns] if rows > 1 else 0
      source = tuple(int(x[start]) for x in (part.height, part.width, part.start))
      found.append(Reader((rows, columns), int(near) + 1, source, begin + int(start), kernel))
    begin += len(part)
  return found


def grid(source: tuple[int, int, int]) -> tuple[int, int]:
  """Windows of a source map."""
  return tuple(-(-size // SIZE) for size in source[:2])


def windows(cells: jax.Array, source: tuple[int, int, int]) -> jax.Array:
  """A map among the rows of `cells` (n c) -> windows 256 c, zeros outside of the map.

  The map, moved by half a block, is cut into blocks once; a window is four of them, one after the other."""
  (height, width, start), (rows, columns) = source, grid(source)
  c = cells.shape[-1]
  x = cells[start : start + height * width].reshape(height, width, c)
  after = [(n + 1) * SIZE - HALO - size for n, size in zip((rows, columns), (height, width))]
  x = jnp.pad(x, ((HALO, after[0]), (HALO, after[1]), (0, 0)))
  x = jnp.swapaxes(x.reshape(rows + 1, SIZE, columns + 1, SIZE, c), 1, 2).reshape(rows + 1, columns + 1, -1, c)
  x = jnp.concatenate([x[i : rows + i, j : columns + j] for i in (0, 1) for j in (0, 1)], 2)
  return x.reshape(rows * columns, -1, c)


def window_positions() -> tuple[np.ndarray, np.ndarray]:
  """Row and column of every cell of a window."""
  block, cell = np.divmod(np.arange(4 * SIZE**2), SIZE**2)
  return tuple((SIZE * b + x).astype(np.float32) for b, x in zip(np.divmod(block, 2), np.divmod(cell, SIZE)))


def tiled(values: jax.Array, reader: Reader) -> jax.Array:
  """Of one map, ... h*w -> ... windows cells; zeros where a tile reaches over the map's end."""
  (h, w), (rows, columns), (th, tw) = reader.shape, grid(reader.source), reader.tile
  *lead, _ = values.shape
  x = values.reshape(*lead, h, w)
  x = jnp.pad(x, ((0, 0),) * len(lead) + ((0, rows * th - h), (0, columns * tw - w)))
  x = jnp.swapaxes(x.reshape(*lead, rows, th, columns, tw), -3, -2)
  return x.reshape(*lead, rows * columns, th * tw)


def untiled(values: jax.Array, reader: Reader) -> jax.Array:
  """windows cells o -> h*w o."""
  (h, w), (rows, columns), (th, tw) = reader.shape, grid(reader.source), reader.tile
  o = values.shape[-1]
  x = jnp.swapaxes(values.reshape(rows, columns, th, tw, o), 1, 2)
  return x.reshape(rows * th, columns * tw, o)[:h, :w].reshape(h * w, o)


def deform_convs(
  cells: jax.Array,
  where: Sequence[Places],
  offset: jax.Array,
  mask: jax.Array,
  kernels: Sequence[jax.Array],
  biases: Sequence[jax.Array],
) -> list[jax.Array]:
  """`deform.deform_convs`: the same arguments, the same results. The weights of a place are rounded to cells' dtype."""

  def on_device(cells, offset, mask, kernels, biases):
    far = beyond(deform.concatenate(where), offset)
    near = by_windows(cells, readers(where), offset, jnp.where(far, 0.0, mask), kernels, biases)

    def add_far(near):
      nothing = [jnp.zeros_like(bias) for bias in biases]
      more = deform.deform_convs(cells, where, offset, jnp.where(far, mask, 0.0), kernels, nothing)
      return jax.tree.map(jnp.add, near, more)

    return jax.lax.cond(jnp.any(far), add_far, lambda near: near, near)

  arguments = cells, offset.astype(jnp.float32), mask.astype(jnp.float32), list(kernels), list(biases)
  # Every device decides for its own pictures, and the gradients of the kernels are summed once, after the last picture.
  return on_each_device(on_device, (BATCH, BATCH, BATCH, jax.P(), jax.P()))(*arguments)


def beyond(where: Places, offset: jax.Array) -> jax.Array:
  """b p 9: places with neighbours on the map that are not in the window (zeros outside the map need none)."""
  i, j = np.divmod(np.arange(TAPS, dtype=np.float32), SIDE)
  outside = on_map = False
  for axis, (first, tap, size) in enumerate(((where.row, i, where.height), (where.column, j, where.width))):
    position = first[:, None] + tap + offset[..., axis]
    origin = np.floor((first + 1) / SIZE)[:, None] * SIZE - HALO  # of the window, in cells
    outside |= (position < origin) | (position > origin + 2 * SIZE - 1)
    here = (position > -1) & (position < size[:, None])
    on_map = here if axis == 0 else on_map & here
  return outside & on_map


def by_windows(cells, maps: list[Reader], offset, mask, kernels, biases) -> list[jax.Array]:
  """The convolutions of places that lie in their windows, one picture at a time. The pictures' gradients of the kernels
  are summed in float32."""
  offset, mask = jnp.moveaxis(offset, (2, 3), (1, 2)), jnp.moveaxis(mask, 2, 1)  # b taps 2 p, b taps p
  # Maps whose readers have the same strides and kernels go through the same products.
  groups: dict[tuple, list[list[Reader]]] = {}
  for source in dict.fromkeys(reader.source for reader in maps):
    own = [reader for reader in maps if reader.source == source]
    groups.setdefault(tuple((reader.stride, reader.kernel) for reader in own), []).append(own)
  wide = [kernel.astype(jnp.float32).reshape(TAPS, *kernel.shape[2:]) for kernel in kernels]

  def one(picture):
    cells, offset, mask = picture
    found = [{} for _ in kernels]  # per kernel, its maps by their first row
    for kind, members in groups.items():
      source = jnp.concatenate([windows(cells, own[0].source) for own in members])
      totals = products(kind, source, tiles(offset, members), tiles(mask, members), wide, biases)
      begin = 0
      for own in members:
        end = begin + int(np.prod(grid(own[0].source)))
        for reader, values in zip(own, totals):
          found[reader.kernel][reader.begin] = untiled(values[begin:end], reader)
        begin = end
    return [jnp.concatenate([own[begin] for begin in sorted(own)]) for own in found]

  return jax.lax.map(one, (cells, offset, mask))


@functools.partial(jax.checkpoint, static_argnums=(0,))
def products(kind: tuple[tuple[int, int], ...], source, offset, mask, kernels, biases) -> list[jax.Array]:
  """source w s c; offset taps 2 w p; mask taps w p; kernels taps c o -> of every reader (stride, kernel): w p' o."""
  ends = np.cumsum([cells_of(stride) for stride, _ in kind])
  row, column = window_positions()
  y, x = tile_positions(kind)
  i, j = np.divmod(np.arange(TAPS, dtype=np.float32), SIDE)
  y, x = (i[:, None] + y)[..., None] - row, (j[:, None] + x)[..., None] - column  # taps p s
  offset, mask = jnp.moveaxis(offset, 2, 0)[..., None], jnp.moveaxis(mask, 1, 0)[..., None]  # w taps 2 p 1, w taps p 1
  near = jax.nn.relu(1 - jnp.abs(y + offset[:, :, 0])) * jax.nn.relu(1 - jnp.abs(x + offset[:, :, 1])) * mask
  sampled = jnp.einsum("wtps,wsc->wtpc", near.astype(source.dtype), source, preferred_element_type=source.dtype)
  return [
    jnp.einsum("wtpc,tco->wpo", part, kernels[which].astype(part.dtype), preferred_element_type=jnp.float32)
    + biases[which]
    for part, (_, which) in zip(jnp.split(sampled, ends[:-1], 2), kind)
  ]


def tiles(values: jax.Array, members: list[list[Reader]]) -> jax.Array:
  """... p -> ... windows cells, of all windows of a group and all tiles of each."""
  found = []
  for own in members:
    parts = [tiled(values[..., r.begin : r.begin + r.shape[0] * r.shape[1]], r) for r in own]
    found.append(jnp.concatenate(parts, -1))
  return jnp.concatenate(found, -2)


def cells_of(stride: int) -> int:
  """Output cells of a tile."""
  return (SIZE // stride) ** 2


def tile_positions(kind: tuple[tuple[int, int], ...]) -> tuple[np.ndarray, np.ndarray]:
  """Where the first tap of every cell of a window's tiles lies in the window, in rows and in columns."""
  found = []
  for stride, _ in kind:
    row, column = np.divmod(np.arange(cells_of(stride), dtype=np.float32), SIZE // stride)
    found.append((row * stride - 1 + HALO, column * stride - 1 + HALO))
  return tuple(np.concatenate(axis) for axis in zip(*found))

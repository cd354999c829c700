"""Swin transformer v1 as GLIP uses it (reference 2.2): four maps at strides 4, 8, 16, 32.

Differences to the classification Swin that checkpoints depend on: windows are padded with zeros after norm1 and nothing
masks those cells, the shift is kept on maps smaller than a window, and the first stage has no output norm.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from glipv2_jax.models.layers import (
  LayerNorm,
  Linear,
  Mlp,
  conv,
  drop_path,
  fold,
  gelu,
  in_turn,
  loop,
  maybe_checkpoint,
  normal_02,
)
from glipv2_jax.models.padding import cells_valid, zero_padding
from glipv2_jax.models.variants import SwinConfig
from glipv2_jax.parallel.mesh import keep_rows, row_major

EPSILON = 1e-5


def relative_position_index(window: int) -> np.ndarray:
  """[window^2, window^2] row of the bias table for (query, key)."""
  y, x = np.divmod(np.arange(window * window), window)
  return (y[:, None] - y[None] + window - 1) * (2 * window - 1) + (x[:, None] - x[None] + window - 1)


def parted_by_shift(rows: int, columns: int, window: int) -> jax.Array:
  """[rows * columns, window^2, window^2] bool: the two cells are not neighbours in the picture although the roll put
  them in one window, as it does in the last row and in the last column of windows only. (Written as a comparison of
  region numbers per window this took a fifth of the CPU time that the forward pass compiles in: LLVM unrolled it.)
  """
  y, x = np.divmod(np.arange(window * window), window)
  wrapped_y, wrapped_x = y >= window - window // 2, x >= window - window // 2
  below, right = (wrapped[:, None] != wrapped[None] for wrapped in (wrapped_y, wrapped_x))
  i, j = np.divmod(np.arange(rows * columns), columns)
  last_row, last_column = ((at == n - 1)[:, None, None] for at, n in ((i, rows), (j, columns)))
  return (last_row & jnp.asarray(below)) | (last_column & jnp.asarray(right))


def partition(x: jax.Array, window: int) -> jax.Array:
  """b h w ... -> b windows window^2 ..., row-major; h and w are multiples of `window`."""
  b, h, w, *rest = x.shape
  x = x.reshape(b, h // window, window, w // window, window, *rest)
  return jnp.swapaxes(x, 2, 3).reshape(b, (h // window) * (w // window), window * window, *rest)


def unpartition(x: jax.Array, window: int, h: int, w: int) -> jax.Array:
  b, _, _, d = x.shape
  x = x.reshape(b, h // window, w // window, window, window, d)
  return jnp.swapaxes(x, 2, 3).reshape(b, h, w, d)


class WindowAttention(nnx.Module):
  """Self-attention inside windows, with a learned bias per head and relative position."""

  def __init__(self, d: int, heads: int, window: int, *, dtype, rngs):
    self.qkv = Linear(d, 3 * d, dtype=dtype, kernel_init=normal_02, rngs=rngs)
    self.proj = Linear(d, d, dtype=dtype, kernel_init=normal_02, rngs=rngs)
    table = normal_02(rngs.params(), ((2 * window - 1) ** 2, heads), jnp.float32)
    self.relative_position_bias_table = nnx.Param(table)
    self.heads, self.window = heads, window

  def __call__(self, x: jax.Array, shift: int, size: jax.Array | None) -> jax.Array:
    """x: b h w d, normalised. Returns b h w d in the compute dtype."""
    _, h, w, d = x.shape
    window, heads = self.window, self.heads
    padding = ((0, 0), (0, -h % window), (0, -w % window))
    x = row_major(jnp.pad(x.astype(self.qkv.dtype), (*padding, (0, 0))))
    _, padded_h, padded_w, _ = x.shape
    if shift:
      x = jnp.roll(x, (-shift, -shift), (1, 2))
    x = partition(x, window)
    b, windows, n, _ = x.shape
    q, k, v = (part.reshape(b, windows, n, heads, d // heads) for part in self.qkv.parts(x, 3))
    scores = jnp.einsum("bwqkd,bwnkd->bwkqn", q * (d // heads) ** -0.5, k, preferred_element_type=jnp.float32)
    bias = self.relative_position_bias_table[...][relative_position_index(window).reshape(-1)]
    scores += bias.reshape(n, n, heads).transpose(2, 0, 1)
    if shift:
      parted = parted_by_shift(padded_h // window, padded_w // window, window)
      scores += jnp.where(parted, -100.0, 0.0)[:, None]
    if size is not None:
      valid = jnp.pad(cells_valid(size, h, w), padding)
      valid = partition(jnp.roll(valid, (-shift, -shift), (1, 2)), window)
      scores = jnp.where(valid[:, :, None, None], scores, -1e30)
    x = jnp.einsum("bwkqn,bwnkd->bwqkd", jax.nn.softmax(scores).astype(v.dtype), v)
    x = unpartition(self.proj(x.reshape(b, windows, n, d)), window, padded_h, padded_w)
    if shift:
      x = jnp.roll(x, (shift, shift), (1, 2))
    return x[:, :h, :w]


class Block(nnx.Module):
  """x + attention(norm1(x)), then x + mlp(norm2(x))."""

  def __init__(self, d: int, heads: int, cfg: SwinConfig, *, shift: int, drop: float, dtype, rngs):
    self.norm1 = LayerNorm(d, EPSILON, rngs=rngs)
    self.attn = WindowAttention(d, heads, cfg.window, dtype=dtype, rngs=rngs)
    self.norm2 = LayerNorm(d, EPSILON, rngs=rngs)
    self.mlp = Mlp(d, cfg.mlp_ratio * d, gelu, dtype=dtype, kernel_init=normal_02, rngs=rngs)
    self.shift, self.drop = shift, drop

  def __call__(self, x: jax.Array, size: jax.Array | None, key: jax.Array | None = None, drop=None) -> jax.Array:
    """`drop`: a traced rate instead of the block's own."""
    drop = self.drop if drop is None else drop
    x = x + drop_path(self.attn(self.norm1(x), self.shift, size), drop, fold(key, 0))
    return x + drop_path(self.mlp(self.norm2(x)), drop, fold(key, 1))


class Downsample(nnx.Module):
  """Four neighbours side by side, norm, linear map to twice the width. Odd maps are padded with zeros."""

  def __init__(self, d: int, *, dtype, rngs):
    self.norm = LayerNorm(4 * d, EPSILON, rngs=rngs)
    self.reduction = Linear(4 * d, 2 * d, dtype=dtype, kernel_init=normal_02, use_bias=False, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    _, h, w, _ = x.shape
    x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
    corners = [x[:, y::2, z::2] for y, z in ((0, 0), (1, 0), (0, 1), (1, 1))]
    return self.reduction(self.norm(jnp.concatenate(corners, -1)))


class Stage(nnx.Module):
  def __init__(self, d: int, heads: int, cfg: SwinConfig, drops: list[float], *, downsample: bool, dtype, rngs):
    self.blocks = nnx.List(
      Block(d, heads, cfg, shift=(cfg.window // 2) * (i % 2), drop=drop, dtype=dtype, rngs=rngs)
      for i, drop in enumerate(drops)
    )
    self.downsample = Downsample(d, dtype=dtype, rngs=rngs) if downsample else None


class PatchEmbed(nnx.Module):
  """b h w 3 -> b h/4 w/4 d, normalised: the convolution of patches that do not overlap, as a product. (Of the three
  channels as a convolution's input the TPU compiler makes an array of 128: 13.1 M cycles instead of 2.4 at 800x1120.)
  """

  def __init__(self, d: int, patch: int, *, dtype, rngs):
    self.proj = conv(3, d, patch, stride=patch, dtype=dtype, rngs=rngs)
    self.norm = LayerNorm(d, EPSILON, rngs=rngs)
    self.patch, self.dtype = patch, dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    patch = self.patch
    x = jnp.pad(x.astype(self.dtype), ((0, 0), (0, -x.shape[1] % patch), (0, -x.shape[2] % patch), (0, 0)))
    b, h, w, c = x.shape
    x = jnp.swapaxes(x.reshape(b, h // patch, patch, w // patch, patch * c), 2, 3)
    kernel, bias = (p[...].astype(self.dtype) for p in (self.proj.kernel, self.proj.bias))
    y = keep_rows(x.reshape(-1, patch * patch * c) @ kernel.reshape(patch * patch * c, -1)) + bias
    return self.norm(y.reshape(b, h // patch, w // patch, -1))


class Swin(nnx.Module):
  """pixels b h w 3 (normalised BGR) -> the outputs of the four stages, `b h/4 w/4 d` to `b h/32 w/32 8d`, float32."""

  def __init__(self, cfg: SwinConfig, *, dtype, remat: tuple[str, ...] = (), looped: bool = False, rngs: nnx.Rngs):
    self.patch_embed = PatchEmbed(cfg.embed_dim, cfg.patch, dtype=dtype, rngs=rngs)
    drops = np.linspace(0.0, cfg.drop_path, sum(cfg.depths)).tolist()
    self.stages, self.norms, last = nnx.List(), nnx.List(), len(cfg.depths) - 1
    for i, depth in enumerate(cfg.depths):
      d = cfg.embed_dim * 2**i
      own, drops = drops[:depth], drops[depth:]
      self.stages.append(Stage(d, cfg.heads[i], cfg, own, downsample=i < last, dtype=dtype, rngs=rngs))
      if i > 0:
        self.norms.append(LayerNorm(d, EPSILON, rngs=rngs))
    self.remat, self.looped = remat, looped

  def __call__(self, pixels: jax.Array, sizes: list | None = None, key: jax.Array | None = None) -> list[jax.Array]:
    """`sizes`: valid cells at strides 4, 8, 16, 32 (models.padding), or None."""
    x, outputs = self.patch_embed(pixels), []
    for i, stage in enumerate(self.stages):
      size = None if sizes is None else sizes[i]
      own = fold(key, i)
      if len(stage.blocks) > 2 and len(stage.blocks) % 2 == 0:
        x = self._pairs(stage.blocks, x, size, own)
      else:
        for j, block in enumerate(stage.blocks):
          x = maybe_checkpoint(block, self.remat, "swin")(x, size, fold(own, j))
      x = zero_padding(x, size)
      outputs.append(x if i == 0 else zero_padding(self.norms[i - 1](x), size))
      if stage.downsample is not None:
        x = stage.downsample(x).astype(jnp.float32)
    return outputs

  def _pairs(self, blocks, x: jax.Array, size, key) -> jax.Array:
    """The blocks of a stage, pair by pair: one without and one with shift are all that differs."""

    def run(pair, x, i, drops):
      for j, block in enumerate(pair):
        x = maybe_checkpoint(block, self.remat, "swin")(x, size, fold(key, 2 * i + j), drops[j])
      return x

    pairs = [nnx.List([blocks[j], blocks[j + 1]]) for j in range(0, len(blocks), 2)]
    drops = jnp.array([block.drop for block in blocks], jnp.float32).reshape(-1, 2)
    return (loop if self.looped else in_turn)(pairs, run, x, drops)

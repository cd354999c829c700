"""Layers and small functions that the encoders, the tower and the heads share.

Linear and convolution layers run in the compute dtype; normalisation is float32 and hands float32 on, so residual
streams are float32 whatever the compute dtype is (reference 13.1). Randomness is an explicit key, None in evaluation.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from glipv2_jax.parallel.mesh import keep_rows, row_major

# timm's trunc_normal_(std=0.02) cuts at +-2, a hundred standard deviations: a plain normal.
normal_02 = nnx.initializers.normal(0.02)
normal_01 = nnx.initializers.normal(0.01)
torch_uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default weight
xavier = nnx.initializers.xavier_uniform()
kaiming_a1 = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")  # kaiming-uniform with a = 1
zeros, ones = nnx.initializers.zeros_init(), nnx.initializers.ones_init()


class Keys:
  """Stands in for `nnx.Rngs` while a model is built: `params()` gives the next key.

  `nnx.Rngs` keeps its counter in a traced variable, which makes tracing the initialisation of a large network quadratic
  (20 s against 2 s for GLIP-T).
  """

  def __init__(self, key: jax.Array):
    self.key, self.count = key, 0

  def params(self) -> jax.Array:
    self.count += 1
    return jax.random.fold_in(self.key, self.count)


def torch_bias(fan_in: int):
  """PyTorch's default bias: U(+-1/sqrt(fan_in))."""

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -1.0, 1.0) / np.sqrt(fan_in)

  return init


class Linear(nnx.Module):
  """`... d_in -> ... d_out` in the compute dtype; without `kernel_init` both tensors get PyTorch's default.

  The leading axes are merged before the product: XLA's CPU backend takes 4-7 times as long for the gradient of a weight
  that is contracted over several axes. On a mesh the result, and its gradient, stay with the rows' devices, so that
  what travels is the weight where it is split (FSDP), not the activations.
  """

  def __init__(self, d_in: int, d_out: int, *, dtype, rngs, kernel_init=None, bias_init=zeros, use_bias=True):
    if kernel_init is None:
      kernel_init, bias_init = torch_uniform, torch_bias(d_in)
    self.kernel = nnx.Param(kernel_init(rngs.params(), (d_in, d_out), jnp.float32))
    self.bias = nnx.Param(bias_init(rngs.params(), (d_out,), jnp.float32)) if use_bias else None
    self.dtype = dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.parts(x, 1)[0]

  def parts(self, x: jax.Array, n: int) -> list[jax.Array]:
    """The result in `n` equal parts of its last axis, as attention takes query, key and value. (Of one array with an
    axis for the parts the TPU compiler makes several copies.)"""
    kernel = self.kernel[...].astype(self.dtype)
    found = jnp.split(keep_rows(x.astype(self.dtype).reshape(-1, x.shape[-1]) @ kernel), n, -1)
    if self.bias is not None:
      biases = jnp.split(self.bias[...].astype(self.dtype), n)
      found = [y + bias for y, bias in zip(found, biases, strict=True)]
    return [y.reshape(*x.shape[:-1], -1) for y in found]


def conv(d_in: int, d_out: int, kernel: int, *, stride=1, padding=0, dtype, rngs, kernel_init=None, bias_init=zeros):
  """Square NHWC convolution with PyTorch's symmetric padding (SAME pads differently at stride 2)."""
  if kernel_init is None:
    kernel_init, bias_init = torch_uniform, torch_bias(d_in * kernel * kernel)
  return nnx.Conv(
    d_in,
    d_out,
    (kernel, kernel),
    strides=(stride, stride),
    padding=((padding, padding), (padding, padding)),
    dtype=dtype,
    kernel_init=kernel_init,
    bias_init=bias_init,
    rngs=rngs,
  )


class LayerNorm(nnx.Module):
  """Layer normalisation over the last axis, statistics and result in float32."""

  def __init__(self, d: int, epsilon: float, *, rngs):
    self.scale = nnx.Param(ones(rngs.params(), (d,), jnp.float32))
    self.bias = nnx.Param(zeros(rngs.params(), (d,), jnp.float32))
    self.epsilon = epsilon

  def __call__(self, x: jax.Array) -> jax.Array:
    rows = row_major(x.astype(jnp.float32))
    return row_major(_standardise(rows, self.epsilon) * self.scale[...] + self.bias[...])


@functools.partial(jax.checkpoint, static_argnums=(1,))
def _standardise(x: jax.Array, epsilon: float) -> jax.Array:
  """(x - mean) / sqrt(variance + epsilon). Keeps only x for the backward pass: recomputing is cheaper than memory."""
  x = x - jnp.mean(x, -1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + epsilon)


class Mlp(nnx.Module):
  """Linear, activation, Linear."""

  def __init__(self, d: int, hidden: int, activation, *, dtype, rngs, kernel_init=None):
    self.fc1 = Linear(d, hidden, dtype=dtype, kernel_init=kernel_init, rngs=rngs)
    self.fc2 = Linear(hidden, d, dtype=dtype, kernel_init=kernel_init, rngs=rngs)
    self.activation = activation

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.fc2(self.activation(self.fc1(x)))


class SelfAttention(nnx.Module):
  """Multi-head self-attention over words; one matrix holds query, key and value side by side.

  `limit` clips the scores as the authors do inside the head (reference 4.3).
  """

  def __init__(self, d: int, heads: int, *, dtype, rngs, qkv_init=None, out_init=None, limit: float | None = None):
    self.qkv = Linear(d, 3 * d, dtype=dtype, kernel_init=qkv_init, rngs=rngs)
    self.out = Linear(d, d, dtype=dtype, kernel_init=out_init, rngs=rngs)
    self.heads, self.limit = heads, limit

  def __call__(self, x: jax.Array, valid: jax.Array, dropout_rate: float = 0.0, key: jax.Array | None = None):
    """x: b m d; valid: b m, the words that may be attended to. Returns b m d in the compute dtype."""
    b, m, d = x.shape
    q, k, v = (part.reshape(b, m, self.heads, d // self.heads) for part in self.qkv.parts(x, 3))
    scores = jnp.einsum("bqkd,bmkd->bkqm", q, k, preferred_element_type=jnp.float32) * (d // self.heads) ** -0.5
    if self.limit is not None:
      scores = jnp.clip(scores, -self.limit, self.limit)
    # Finite, so that a padding example without any word stays free of NaN.
    scores = jnp.where(valid[:, None, None, :], scores, -1e30)
    probabilities = dropout(jax.nn.softmax(scores), dropout_rate, key).astype(v.dtype)
    return self.out(jnp.einsum("bkqm,bmkd->bqkd", probabilities, v).reshape(b, m, d))


@jax.checkpoint
def gelu(x: jax.Array) -> jax.Array:
  """The exact (erf) form; JAX's default is the tanh approximation. Keeps only x for the backward pass."""
  return x * (0.5 + 0.5 * jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))


@jax.checkpoint
def quick_gelu(x: jax.Array) -> jax.Array:
  return x * jax.nn.sigmoid(1.702 * x)


def hard_sigmoid(x: jax.Array) -> jax.Array:
  return jnp.clip(x + 3.0, 0.0, 6.0) / 6.0


def l2_normalise(x: jax.Array) -> jax.Array:
  """x / max(|x|, 1e-12) along the last axis in float32, with a finite gradient at zero."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-24))


def fold(key: jax.Array | None, i: int) -> jax.Array | None:
  """A key of its own for part `i`; None stays None."""
  return None if key is None else jax.random.fold_in(key, i)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """b ...: each number is zero with probability `rate`, the others are divided by 1 - rate."""
  if key is None or rate == 0.0:
    return x
  return jnp.where(kept(random_words(key, x.shape), rate), x / (1 - rate), jnp.zeros_like(x))


def kept(words: jax.Array, rate: float) -> jax.Array:
  """Whether a number with these random bits stays."""
  return words >= np.uint32(round(rate * 2**32))


def random_words(key: jax.Array, shape: Sequence[int]) -> jax.Array:
  """uint32 of `shape`, for dropout: a hash of every place's number in its example, keyed by two words of the example.

  `jax.random.bits` takes over a hundred operations for a word, several times what is left of an attention map that it
  thins out (and the map is made again in the backward pass, with its words); this takes about twelve. Like those, the
  words do not depend on how the array is sharded.
  """
  strides = np.cumprod([1, *shape[:0:-1]], dtype=np.uint32)[::-1]
  places = jnp.zeros((), jnp.uint32)
  for axis in range(1, len(shape)):
    places += jax.lax.broadcasted_iota(jnp.uint32, (1, *shape[1:]), axis) * strides[axis]
  return scrambled(places, dropout_seeds(key, shape[0]).reshape(2, -1, *[1] * (len(shape) - 1)))


def dropout_seeds(key: jax.Array, b: int) -> jax.Array:
  """2 b uint32: two words for every example."""
  return jax.random.bits(key, (2, b), jnp.uint32)


def scrambled(places: jax.Array, seeds: Sequence[jax.Array]) -> jax.Array:
  """A permutation of the uint32 by two rounds of xor-shift and multiplication, keyed by two words. Its constants are
  those with the least bias found by the hash-prospector project (16 21f0aaad 15 735a2d97 15)."""
  x = places ^ seeds[0]
  x = (x ^ (x >> 16)) * np.uint32(0x21F0AAAD) ^ seeds[1]
  x = (x ^ (x >> 15)) * np.uint32(0x735A2D97)
  return x ^ (x >> 15)


def drop_path(x: jax.Array, rate: float | jax.Array, key: jax.Array | None) -> jax.Array:
  """Stochastic depth: the whole residual branch of an example is dropped."""
  if key is None or (isinstance(rate, float) and rate == 0.0):
    return x
  keep = jax.random.bernoulli(key, 1 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
  return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


def maybe_checkpoint(function, parts: Sequence[str], part: str):
  """`function`, recomputed in the backward pass where `part` is listed in `ModelConfig.remat`."""
  return jax.checkpoint(function) if part in parts else function


def in_turn(modules: Sequence[nnx.Module], run, carry, *each):
  """`run(module, carry, i, ...)` for one module after the other: calls of one function, traced once, with the module's
  parameters, the number `i` and its own row of `each` as arguments. The modules differ in nothing but parameters."""
  parts = [nnx.split(module) for module in modules]
  body = jax.jit(lambda params, carry, i, *each: run(nnx.merge(parts[0][0], params), carry, i, *each))
  for i, (_, params) in enumerate(parts):
    carry = body(nnx.to_pure_dict(params), carry, jnp.asarray(i), *(x[i] for x in each))
  return carry


def loop(modules: Sequence[nnx.Module], run, carry, *each):
  """`in_turn` as one loop of the program, which compiles in the time of one module; `i` is a traced number.

  The modules differ in nothing but their parameters, which are stacked (a copy).
  """
  parts = [nnx.split(module) for module in modules]
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *(nnx.to_pure_dict(state) for _, state in parts))

  def body(carry, item):
    i, params, *each = item
    return run(nnx.merge(parts[0][0], params), carry, i, *each), None

  return jax.lax.scan(body, carry, (jnp.arange(len(parts)), stacked, *each))[0]

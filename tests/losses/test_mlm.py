"""L_mlm against a loop, and head and loss against a recording of the authors' code."""

import dataclasses
import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from glipv2_jax.losses import mlm
from glipv2_jax.models import variants
from glipv2_jax.models.heads import MlmHead
from glipv2_jax.models.layers import Keys
from glipv2_jax.schema import Batch
from tests import tiny


def example():
  rng = np.random.default_rng(0)
  labels = np.where(rng.random((8, tiny.TOKENS)) < 0.3, rng.integers(0, 20, (8, tiny.TOKENS)), -100).astype(np.int32)
  valid = np.arange(8) < 6
  batch = dataclasses.replace(tiny.batch(0), mlm_labels=labels, example_valid=valid)
  return batch, rng.normal(size=(8, tiny.TOKENS, 20)).astype(np.float32)


def test_sum_over_predicted_tokens():
  batch, logits = example()
  term = mlm.mlm_term(logits, batch)
  total = count = 0
  for b, m in zip(*np.nonzero(batch.mlm_labels >= 0), strict=True):
    if batch.example_valid[b]:
      row = np.float64(logits[b, m])
      total, count = total + np.log(np.exp(row).sum()) - row[batch.mlm_labels[b, m]], count + 1
  assert count > 5
  np.testing.assert_allclose(term.total, total, rtol=1e-6)
  assert term.count == count


def test_nothing_predicted_is_zero_with_a_finite_gradient():
  batch, logits = example()
  batch = dataclasses.replace(batch, mlm_labels=np.full_like(batch.mlm_labels, -100))
  value, slope = jax.value_and_grad(lambda x: mlm.mlm_term(x, batch).mean())(logits * np.nan)
  assert value == 0 and not slope.any()


def test_batches_without_labels_are_refused():
  with pytest.raises(ValueError, match="mlm_labels.*MaskingConfig"):
    mlm.mlm_term(np.zeros((8, tiny.TOKENS, 20), np.float32), dataclasses.replace(tiny.batch(0), mlm_labels=None))


def weight(name, shape):
  """The authors' test tensor of this name (shared/golden/glip, deterministic_weights.py)."""
  key = zlib.crc32(f"rpn.head.mlm_head.{name}".encode())
  normals = np.random.Generator(np.random.Philox(key)).standard_normal(shape)
  shift, scale = (1.0, 0.1) if name.endswith("LayerNorm.weight") else (0.0, 0.02)
  return (shift + (scale if len(shape) == 1 else shape[-1] ** -0.5) * normals).astype(np.float32)


def test_head_and_loss_equal_the_recording(golden):
  """Features of the hidden words are ours under the authors' weights (tests/golden/condense_glipv2.py)."""
  with np.load(golden / "glip" / "mlm.npz") as file:
    numbers = dict(file)
  cfg = variants.get("glip_t", mlm=True)
  definition = nnx.graphdef(nnx.eval_shape(lambda: MlmHead(cfg, dtype=jnp.float32, rngs=Keys(jax.random.key(0)))))
  e, v = cfg.text.width, cfg.text.vocab_size
  linear = lambda name, bias, *shape: {"kernel": weight(name, shape).T, "bias": weight(bias, shape[:1])}  # noqa: E731
  params = {
    "dense": linear("transform.dense.weight", "transform.dense.bias", e, e),
    "norm": {"scale": weight("transform.LayerNorm.weight", (e,)), "bias": weight("transform.LayerNorm.bias", (e,))},
    "decoder": linear("decoder.weight", "bias", v, e),
  }
  fields = {f.name: None for f in dataclasses.fields(Batch)}
  batch = Batch(**fields | {"mlm_labels": numbers["labels"][None], "example_valid": np.ones(1, bool)})

  @jax.jit
  @jax.value_and_grad
  def loss(params):
    return mlm.mlm_term(nnx.merge(definition, params)(numbers["words"][None]), batch).mean()

  value, gradient = loss(jax.tree.map(jnp.asarray, params))
  np.testing.assert_allclose(value, numbers["loss"], rtol=5e-6)
  np.testing.assert_allclose(value, numbers["loss_float64"], rtol=5e-6)
  ours = {
    "bias": gradient["decoder"]["bias"],
    "decoder.weight": gradient["decoder"]["kernel"].T,
    "transform.dense.weight": gradient["dense"]["kernel"].T,
    "transform.dense.bias": gradient["dense"]["bias"],
    "transform.LayerNorm.weight": gradient["norm"]["scale"],
    "transform.LayerNorm.bias": gradient["norm"]["bias"],
  }
  recorded = [key.removeprefix("grad/").split("@s") for key in numbers if key.startswith("grad/")]
  assert len(recorded) == 6
  for name, step in recorded:
    values, theirs = np.asarray(ours[name]).reshape(-1), numbers[f"grad/{name}@s{step}"]
    close = functools.partial(np.testing.assert_allclose, rtol=2e-4, err_msg=name)
    close(np.linalg.norm(values), numbers[f"norm/{name}"])
    close(values[:: int(step)][:8], theirs, atol=2e-4 * np.abs(theirs).max())

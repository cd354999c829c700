"""Every published size: traced at full size without memory, its parameters counted from the shapes of the tables."""

import jax
import pytest
from flax import nnx

from glipv2_jax.models import deform, deform_columns, deform_windows, dyhead, variants
from glipv2_jax.models.glipv2 import GLIPv2, abstract_params, graphdef, param_paths
from glipv2_jax.models.layers import Keys
from glipv2_jax.schema import abstract_batch

PUBLISHED = {"glip_a": 151_430_526, "glip_t": 231_780_222, "glipv2_t": 231_780_222, "glip_l": 430_422_384}


def linear(d_in, d_out):
  return d_in * d_out + d_out


def conv(d_in, d_out, kernel):
  return d_in * d_out * kernel**2 + d_out


def swin(c, depths, heads, window):
  total = conv(3, c, 4) + 2 * c
  for stage, (depth, k) in enumerate(zip(depths, heads, strict=True)):
    d = c * 2**stage
    block = (
      2 * 2 * d + linear(d, 3 * d) + linear(d, d) + (2 * window - 1) ** 2 * k + linear(d, 4 * d) + linear(4 * d, d)
    )
    total += depth * block
    total += (2 * 4 * d + 4 * d * 2 * d) if stage < 3 else 0  # norm and reduction without bias
    total += 2 * d if stage > 0 else 0  # output norm
  return total


def text_layer(d, mlp):
  return 4 * linear(d, d) + 2 * 2 * d + linear(d, mlp) + linear(mlp, d)


def text(cfg):
  token_types = 2 if cfg.kind == "bert" else 0
  return (
    (cfg.vocab_size + cfg.positions + token_types) * cfg.width
    + 2 * cfg.width
    + cfg.layers * text_layer(cfg.width, cfg.mlp_dim)
  )


def fusion(d, e, dim):
  return 3 * (d + e) + 2 * linear(d, dim) + 2 * linear(e, dim) + linear(dim, d) + linear(dim, e)


def dyconv(d, reduction):
  relu = linear(d, d // reduction) + linear(d // reduction, 4 * d)
  return conv(d, 27, 3) + 3 * (conv(d, d, 3) + 2 * d) + linear(d, 1) + relu


def expected(cfg):
  d, s = cfg.head.channels, cfg.swin
  total = swin(s.embed_dim, s.depths, s.heads, s.window)
  total += sum(conv(s.embed_dim * 2**i, d, 1) + conv(d, d, 3) for i in (1, 2, 3)) + 2 * conv(d, d, 3)
  total += cfg.head.stages * dyconv(d, cfg.head.dyrelu_reduction)
  total += linear(d, cfg.head.classes) + linear(d, 4) + linear(d, 1) + 5
  if cfg.text is not None:
    e = cfg.text.width
    total += text(cfg.text) + linear(e, d) + e + 2
    if cfg.head.fusion:
      total += cfg.head.stages * (fusion(d, e, cfg.head.fusion_dim) + text_layer(e, cfg.text.mlp_dim))
  return total


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_parameter_count(name):
  cfg = variants.get(name)
  count = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(cfg)))
  assert count == expected(cfg)
  assert count == PUBLISHED.get(name, count)


@pytest.mark.parametrize("name", ["demo", "glipv2_t", "glipv2_b", "dyhead_t"])
def test_parameters_have_the_type_of_their_updates(name):
  """A weakly typed initial value (jnp.full of a Python number) turns strong in the first step: a second compilation."""
  leaves = jax.tree.leaves_with_path(abstract_params(variants.get(name)))
  assert [jax.tree_util.keystr(path) for path, leaf in leaves if leaf.weak_type] == []


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_traces_at_full_size(name):
  cfg = variants.get(name)
  batch = abstract_batch(1, (800, 1344), cfg.max_tokens, 10)
  outputs = jax.eval_shape(lambda params, batch: nnx.merge(graphdef(cfg), params)(batch), abstract_params(cfg), batch)
  n = 100 * 168 + 50 * 84 + 25 * 42 + 13 * 21 + 7 * 11
  assert outputs.token_logits.shape == (1, n, cfg.max_tokens)
  assert outputs.deltas.shape == (1, n, 4) and outputs.centerness.shape == (1, n)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(outputs)} == {"float32"}


def test_parameters_are_the_only_state():
  cfg = variants.get("demo")
  model = nnx.eval_shape(lambda: GLIPv2(cfg, rngs=Keys(jax.random.key(0))))
  _, params, rest = nnx.split(model, nnx.Param, ...)
  assert not jax.tree.leaves(rest)
  assert param_paths(nnx.to_pure_dict(params)) == param_paths(abstract_params(cfg))


def test_unknown_parts_to_recompute_are_named():
  with pytest.raises(ValueError, match="unknown parts .'tower'.*dyconv"):
    variants.get("demo", remat=("swin", "tower"))


def test_unknown_variant_is_named():
  with pytest.raises(ValueError, match="glip_x.*glipv2_t"):
    variants.get("glip_x")


def test_the_configuration_chooses_the_forms_of_layers():
  """The one that it names is what the network holds; what no form computes is refused with a remedy."""
  assert set(dyhead.FORMS) == set(variants.DEFORM)
  for name, module in (("gather", deform), ("windows", deform_windows), ("columns", deform_columns)):
    assert dyhead.FORMS[name] is module.deform_convs
  cfg = variants.get("demo", deform="columns", fusion="kernels")
  stage = nnx.eval_shape(lambda: GLIPv2(cfg, rngs=Keys(jax.random.key(0)))).tower[0]
  assert (stage.dyconv.deform, stage.fusion.form) == ("columns", "kernels")
  with pytest.raises(ValueError, match="model.fusion is 'flash'.*heads, lanes, kernels"):
    variants.get("demo", fusion="flash")
  with pytest.raises(ValueError, match="power of two.*100.*'heads'"):
    variants.get("demo", fusion="kernels", max_tokens=100)

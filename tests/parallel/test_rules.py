"""Mesh sizes and path-regex sharding rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from glipv2_jax.parallel import mesh as meshes
from glipv2_jax.parallel import rules


def tree():
  shapes = {
    "text": {"embedding": (64, 12), "bias": (12,)},
    "layers": {0: {"kernel": (3, 8, 16)}, 1: {"kernel": (5, 7)}},
  }
  return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), shapes, is_leaf=lambda x: isinstance(x, tuple))


def specs(rule_set, min_size=1, data=2, fsdp=4):
  found = rules.shardings(tree(), meshes.make_mesh(data, fsdp), rule_set, min_size)
  return {rules.path_name(path): s.spec for path, s in jax.tree_util.tree_leaves_with_path(found)}


@pytest.mark.parametrize(
  "sizes, expected",
  [((-1, 1), (8, 1, 1)), ((2, 4), (2, 4, 1)), ((2, -1), (2, 4, 1)), ((-1, 8), (1, 8, 1)), ((2, 2, -1), (2, 2, 2))],
)
def test_mesh_sizes(sizes, expected):
  mesh = meshes.make_mesh(*sizes)
  assert tuple(mesh.shape.values()) == expected
  assert mesh.axis_names == ("data", "fsdp", "model")


def test_mesh_of_some_devices():
  mesh = meshes.make_mesh(1, 2, devices=jax.devices()[3:5])
  assert list(mesh.devices.flat) == jax.devices()[3:5]


@pytest.mark.parametrize("sizes", [(3, 1), (-1, 3), (2, 2), (-1, -1), (0, 8), (-2, 4)])
def test_mesh_errors_name_the_numbers(sizes):
  with pytest.raises(ValueError, match=rf"data={sizes[0]}, fsdp={sizes[1]}"):
    meshes.make_mesh(*sizes)


def test_fsdp_takes_the_largest_divisible_dimension():
  found = specs(rules.FSDP)
  assert found["text/embedding"] == P("fsdp", None)
  assert found["layers/0/kernel"] == P(None, None, "fsdp")
  assert found["layers/1/kernel"] == P()  # nothing divides by 4


def test_small_arrays_are_replicated():
  found = specs(rules.FSDP, min_size=400)
  assert found["text/embedding"] == P("fsdp", None)
  assert found["layers/0/kernel"] == P()
  assert found["text/bias"] == P()


def test_first_match_wins_and_matches_tails():
  found = specs(((r"text/.*", "replicate"), (r"0/kernel", (None, "fsdp", None)), (r".*", "fsdp")))
  assert found["text/embedding"] == P()
  assert found["layers/0/kernel"] == P(None, "fsdp", None)


def test_moments_follow_their_parameter():
  mesh = meshes.make_mesh(2, 4)
  state = {"params": tree(), "opt_state": {"mu": tree()}}
  found = rules.shardings(state, mesh, ((r"text/embedding", (None, "fsdp")), (r".*", "fsdp")), min_size=1)
  assert found["opt_state"]["mu"]["text"]["embedding"].spec == P(None, "fsdp")
  assert jax.tree.all(jax.tree.map(lambda a, b: a == b, found["params"], found["opt_state"]["mu"]))


@pytest.mark.parametrize(
  "rule_set, message",
  [
    (((r"text/.*", "fsdp"),), "layers/0/kernel"),
    (((r".*", "split"),), "'split'"),
    (((r"layers/1/.*", ("fsdp", None)), (r".*", "fsdp")), r"layers/1/kernel.*5.*fsdp=4"),
    (((r"text/bias", ("rows",)), (r".*", "fsdp")), r"text/bias.*'rows'"),
    (((r"text/bias", (None, "fsdp")), (r".*", "fsdp")), r"text/bias.*2 axes"),
  ],
)
def test_errors_name_the_path(rule_set, message):
  with pytest.raises(ValueError, match=message):
    specs(rule_set)


def test_unused_rules_are_reported():
  rule_set = ((r"text/.*", "fsdp"), (r"text/bias", "replicate"), (r"vision/.*", "fsdp"), (r".*", "fsdp"))
  assert rules.unused(tree(), rule_set) == ("text/bias", "vision/.*")
  assert rules.unused(tree(), rules.FSDP) == ()


def test_to_global_keeps_rows_in_order():
  mesh = meshes.make_mesh(2, 4)
  host = {"x": np.arange(32.0).reshape(16, 2), "valid": np.arange(16) % 3 == 0}
  found = meshes.to_global(host, mesh)
  np.testing.assert_array_equal(found["x"], host["x"])
  np.testing.assert_array_equal(found["valid"], host["valid"])
  assert all(shard.data.shape == (2, 2) for shard in found["x"].addressable_shards)


def test_to_global_refuses_uneven_batches():
  with pytest.raises(ValueError, match="12 rows.*8 devices"):
    meshes.to_global({"x": np.zeros((12, 2))}, meshes.make_mesh(2, 4))

"""The forms for TPUs and GPUs of the deformable convolution against the plain one: values and gradients, near, far and
outside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glipv2_jax.models import deform, deform_columns, deform_windows
from glipv2_jax.models.deform import concatenate, places
from glipv2_jax.parallel import hlo
from glipv2_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from glipv2_jax.train.state import RUN_ONCE

SHAPES = ((18, 35), (9, 18), (5, 9))  # no side is a multiple of a window
STARTS = np.cumsum([0, *[h * w for h, w in SHAPES]])
WHERE = (
  concatenate([places(SHAPES[l], 1, SHAPES[l], STARTS[l]) for l in (1, 2)]),
  concatenate([places(SHAPES[l], 1, SHAPES[l], STARTS[l]) for l in range(3)]),
  concatenate([places(SHAPES[l], 2, SHAPES[l - 1], STARTS[l - 1]) for l in (1, 2)]),
)
CELLS = sum(map(len, WHERE))


def inputs(reach, c=3, o=4, b=2):
  r = np.random.default_rng(0)
  cells, offset = r.normal(size=(b, STARTS[-1], c)), reach * r.normal(size=(b, CELLS, 9, 2))
  mask, kernels = r.uniform(size=(b, CELLS, 9)), r.normal(size=(3, 3, 3, c, o))
  return jax.tree.map(jnp.float32, (cells, offset, mask, list(kernels), list(r.normal(size=(3, o)))))


@pytest.mark.parametrize("form", [deform_windows, deform_columns], ids=["windows", "columns"])
@pytest.mark.parametrize("reach,least,most", [(2.5, 0.001, 0.1), (20.0, 0.05, 1)])
def test_equals_the_plain_form_forward_and_backward(reach, least, most, form):
  """Offsets that sometimes leave the windows, and that mostly leave the map."""
  arguments = inputs(reach)
  far = deform_windows.beyond(concatenate(WHERE), arguments[1]).mean()
  assert least <= far <= most

  def value_and_gradient(convolve):
    def loss(cells, *rest):
      y = jnp.concatenate(convolve(cells, WHERE, *rest), 1)
      return jnp.sum(jnp.sin(y)), y

    program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4), has_aux=True)).lower(*arguments)
    return program.compile(compiler_options=RUN_ONCE)(*arguments)

  plain, ours = value_and_gradient(deform.deform_convs), value_and_gradient(form.deform_convs)
  for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(ours), strict=True):
    np.testing.assert_allclose(a, b, atol=3e-5 * float(jnp.abs(a).max()))


def test_near_places_need_no_plain_form():
  """Offsets of up to three cells, to all sides and wherever a cell lies, stay in its window."""
  offset = np.broadcast_to(
    np.float32([[3, 3], [-3, 3], [3, -3], [-3, -3], [0, 0], [1, 2], [2, -3], [0, 3], [-3, 0]]), (1, CELLS, 9, 2)
  )
  assert not deform_windows.beyond(concatenate(WHERE), offset).any()
  assert deform_windows.beyond(concatenate(WHERE), 3 * offset).any()


def test_readers_find_the_maps_again():
  found = deform_windows.readers(WHERE)
  assert [reader.shape for reader in found] == [*SHAPES[1:], *SHAPES, *SHAPES[1:]]
  assert [reader.stride for reader in found] == [1] * 5 + [2] * 2
  assert [reader.kernel for reader in found] == [0] * 2 + [1] * 3 + [2] * 2
  assert [reader.source for reader in found] == [(*SHAPES[l], STARTS[l]) for l in (1, 2, 0, 1, 2, 0, 1)]
  assert deform_windows.readers([places((1, 1), 1, (1, 1), 0)])[0].stride == 1
  assert deform_windows.readers([places((1, 4), 2, (2, 7), 0)])[0].shape == (1, 4)
  assert deform_windows.readers([places((4, 1), 2, (7, 2), 0)])[0].stride == 2


def test_on_a_mesh_every_device_works_alone():
  """Values and gradients of one device; nothing travels but sums of the kernels' gradients, outside of the loops."""
  arguments, mesh = inputs(2.5, b=4), make_mesh(2, 2, devices=jax.devices()[:4])

  def loss(*arguments):
    return sum(jnp.sum(jnp.sin(y)) for y in deform_windows.deform_convs(arguments[0], WHERE, *arguments[1:]))

  both = jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4))
  alone = jax.jit(both).lower(*arguments).compile(compiler_options=RUN_ONCE)(*arguments)
  rows, whole = batch_sharding(mesh), replicated(mesh)
  with jax.set_mesh(mesh):
    places = (rows, rows, rows, [whole] * 3, [whole] * 3)
    program = jax.jit(both, in_shardings=places, out_shardings=(whole, places)).lower(*arguments)
    program = program.compile(compiler_options=RUN_ONCE)
    together = program(*jax.device_put(arguments, places))
  for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
    np.testing.assert_allclose(a, b, atol=3e-5 * float(jnp.abs(a).max()))
  text = hlo.Program(program.as_text())
  travels = [
    (u.instruction.collective, use.times) for use in text.uses() for u in text.inside(use) if u.instruction.collective
  ]
  assert travels and set(travels) == {("all-reduce", 1)}

"""FLOPs of a program's matrix products and convolutions, loops multiplied by their length.

XLA's own `cost_analysis` counts the body of a loop once, whatever its length; the jaxpr knows the length of a scan.
Elementwise work is not counted: it is what a matrix unit cannot help with. The branches of a condition are ways to the
same result, so the cheapest counts: the figure stands for the work that has to be done.
"""

import math

import jax


def count(function, *args) -> int:
  """FLOPs (a multiplication and an addition are two) of `function(*args)`; arguments may be shapes."""
  return _of(jax.make_jaxpr(function)(*args).jaxpr)


def _of(jaxpr) -> int:
  total = 0
  for equation in jaxpr.eqns:
    out = equation.outvars[0].aval
    if equation.primitive.name == "dot_general":
      (contracted, _), _ = equation.params["dimension_numbers"]
      lhs = equation.invars[0].aval.shape
      total += 2 * math.prod(out.shape) * math.prod(lhs[axis] for axis in contracted)
    elif equation.primitive.name == "conv_general_dilated":
      kernel, dimensions = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
      total += 2 * math.prod(out.shape) * math.prod(kernel) // kernel[dimensions.rhs_spec[0]]
    elif equation.primitive.name == "cond":
      total += min(_of(branch) for branch in _inner(equation.params.values()))
    else:
      times = equation.params["length"] if equation.primitive.name == "scan" else 1
      total += times * sum(_of(inner) for inner in _inner(equation.params.values()))
  return total


def _inner(values):
  """The jaxprs among the parameters of an equation."""
  for value in values:
    if isinstance(value, tuple | list):
      yield from _inner(value)
    elif hasattr(value, "jaxpr"):
      yield value.jaxpr
    elif hasattr(value, "eqns"):
      yield value

"""The network as one file that runs without this package: ONNX for any runtime, StableHLO for bare JAX.

Both hold the same function, `answers`: a picture and a text in, and for every location a box, a score per token and a
centerness out. What is left to the user is a threshold and non-maximum suppression: the score of a phrase at a location
is sqrt(mean of its tokens' scores * centerness) (reference 7).

  ONNX       weights inside; what does not fit into the 2 GiB of one file lies beside it, in FILE.data
  StableHLO  an .npz with the program ("program", of jax.export), JSON ("about") and every weight by its path. Weights
             are arguments of the program: as constants they would be copied, and folded, by every compilation.
"""

import dataclasses
import functools
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import jaxpr_as_fun

from glipv2_jax import anchors, boxes
from glipv2_jax.models import glipv2
from glipv2_jax.models.variants import ModelConfig
from glipv2_jax.schema import Array

OUTPUTS = ("boxes_xyxy_px", "scores", "centerness")
PLATFORMS = ("cpu", "cuda", "tpu")
ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Where")
LARGEST = 2**31 - 2**26  # bytes of weights in an ONNX file: protobuf's limit, less room for the graph
INSTALL = 'pip install onnx onnx-ir onnxruntime, and pip install --no-deps "jax2onnx>=0.17.1"'


def inputs(cfg: ModelConfig, canvas: tuple[int, int], batch: Any = 1) -> dict[str, jax.ShapeDtypeStruct]:
  """Names, shapes and dtypes of what `answers` takes, in its order; `batch` may be a symbolic dimension."""
  shapes = {
    "image": ((batch, *canvas, 3), jnp.uint8),
    "image_size": ((batch, 2), jnp.int32),
    "tokens": ((batch, cfg.max_tokens), jnp.int32),
    "tokens_valid": ((batch, cfg.max_tokens), jnp.bool_),
  }
  names = list(shapes)[: 2 if cfg.text is None else 4]
  return {name: jax.ShapeDtypeStruct(*shapes[name]) for name in names}


def answers(
  cfg: ModelConfig,
  params: Any,
  image: Array,
  image_size: Array,
  tokens: Array | None = None,
  tokens_valid: Array | None = None,
) -> tuple[Array, Array, Array]:
  """What every location of the pyramid says (b images, n locations of all levels, m tokens), as in `OUTPUTS`.

  image b h w 3 uint8 RGB on its canvas, padded with zeros at the bottom and right; image_size b 2, its valid height and
  width; tokens and tokens_valid b m (neither for a network without text). Returns float32 boxes b n 4 (x1, y1, x2, y2,
  inclusive, in pixels of the canvas, clipped to image_size), probabilities b n m of the tokens (of the classes in a
  network without text), and centerness b n as a probability.
  """
  model = nnx.merge(glipv2.graphdef(dataclasses.replace(cfg, remat=())), params)
  text = None if cfg.text is None else model.encode_text(tokens, tokens_valid)
  levels, text = model.fuse(model.encode_image(image, image_size), text, tokens_valid, image_size)
  outputs = model.predict(levels, text)
  found = boxes.decode(outputs.deltas, anchors.anchors(image.shape[1:3], cfg.strides, cfg.anchor_scale))
  height, width = image_size[:, :, None, None].astype(jnp.float32).swapaxes(0, 1)
  return boxes.clip(found, (height, width)), jax.nn.sigmoid(outputs.token_logits), jax.nn.sigmoid(outputs.centerness)


def by_path(params: Any) -> dict[str, Any]:
  """The parameters as one flat dictionary."""
  return dict(zip(glipv2.param_paths(params), jax.tree.leaves(params), strict=True))


def with_weights(cfg: ModelConfig, weights: Mapping[str, Array], *args: Array) -> tuple[Array, Array, Array]:
  """`answers` for parameters `by_path`."""
  shapes = glipv2.abstract_params(cfg)
  params = jax.tree.unflatten(jax.tree.structure(shapes), [weights[path] for path in by_path(shapes)])
  return answers(cfg, params, *args)


def write_onnx(
  path: pathlib.Path, cfg: ModelConfig, params: Any, canvas: tuple[int, int], batch: int, about: Mapping[str, str]
) -> list[pathlib.Path]:
  """Writes `answers` for one canvas and one number of pictures, in float32, as an ONNX file; `about` becomes metadata.

  Returns the files written. Raises ValueError where the converter, jax2onnx, is absent.
  """
  try:
    import onnx_ir
    from jax2onnx import to_onnx
    from onnx_ir.passes import common as passes
  except ImportError as error:
    raise ValueError(f"the ONNX converter is not installed ({error}): {INSTALL}") from error
  for name in ("jax2onnx", "onnx_ir"):  # they report every plugin and every inner shape that they know nothing of
    logging.getLogger(name).setLevel(logging.ERROR)
  cfg, wanted = dataclasses.replace(cfg, compute_dtype="float32"), inputs(cfg, canvas, batch)
  weights = by_path(params)
  # Traced here: the converter would put its own versions in place of functions of jax.numpy and Flax while it traces.
  traced = jax.make_jaxpr(functools.partial(with_weights, cfg))(weights, *wanted.values())
  names = [*sorted(weights), *wanted]  # the order in which JAX flattens a dictionary
  model = to_onnx(
    jaxpr_as_fun(traced), traced.in_avals, return_mode="ir", input_names=names, output_names=OUTPUTS
  ).clone()  # the clone forgets nodes that the converter dropped and that still count as users of constants
  graph = model.graph
  for value in [value for value in graph.inputs if value.name in weights]:
    graph.inputs.remove(value)
    value.const_value = onnx_ir.tensor(np.asarray(weights[value.name]), name=value.name)
    graph.register_initializer(value)
  for tidy in (
    passes.LiftSubgraphInitializersToMainGraphPass,
    passes.RemoveUnusedNodesPass,
    passes.DeduplicateInitializersPass,
  ):
    tidy()(model)
  _shrink(model)
  model.metadata_props.update(about)
  large = sum(value.const_value.nbytes for value in graph.initializers.values()) > LARGEST
  beside = path.with_name(f"{path.name}.data") if large else None
  onnx_ir.save(model, path, external_data=beside and beside.name)
  return [path, beside] if beside else [path]


def _shrink(model: Any) -> None:
  """Arrays that repeat one number shrink to it where ONNX broadcasts them again: a quarter of the file of GLIP-T."""
  import onnx_ir

  def broadcast(node, value):
    return node.op_type in ELEMENTWISE and any(x is not value and x.shape == value.shape for x in node.inputs)

  for value in model.graph.initializers.values():
    array = value.const_value.numpy()
    if array.size > 1 and all(broadcast(node, value) for node, _ in value.uses()) and (array == array.flat[0]).all():
      value.const_value = onnx_ir.tensor(array.reshape(-1)[:1].reshape((1,) * array.ndim), name=value.name)
      value.shape = value.const_value.shape


def write_stablehlo(
  path: pathlib.Path,
  cfg: ModelConfig,
  params: Any,
  canvas: tuple[int, int],
  batch: int | None,
  platforms: Sequence[str],
  about: Mapping[str, str],
) -> list[pathlib.Path]:
  """Writes `answers` for one canvas with the weights as its first argument; `batch` None: any number of pictures.

  It computes in `cfg.compute_dtype`, as `glipv2 predict`. The file is read by `numpy.load`; `jax.export.deserialize` of
  its "program" gives a function of (dict of the weights, image, image_size, tokens, tokens_valid). Returns the files
  written.
  """

  def run(weights, *args):
    return dict(zip(OUTPUTS, with_weights(cfg, weights, *args), strict=True))

  size = jax.export.symbolic_shape("b")[0] if batch is None else batch
  shapes = by_path(glipv2.abstract_params(cfg))
  exported = jax.export.export(jax.jit(run), platforms=platforms)(shapes, *inputs(cfg, canvas, size).values())
  entries = {"program": np.frombuffer(exported.serialize(), np.uint8), "about": np.array(json.dumps(dict(about)))}
  with path.open("wb") as file:
    np.savez(file, **entries, **{name: np.asarray(x) for name, x in by_path(params).items()})
  return [path]

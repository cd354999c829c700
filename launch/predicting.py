"""The predictor: network + post-processing as one jitted function on a mesh, and predictions of a whole data set.

Every process predicts its own share of the batches; `gather` brings the results together. `restore` gives the
predictor's parameters from a checkpoint. Used by training (evaluation), `glipv2 evaluate` and `glipv2 predict`.
"""

import dataclasses
import functools
import pickle
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from glipv2_jax import anchors, infer
from glipv2_jax.infer import Detections, ImageDetections, InferConfig
from glipv2_jax.models import glipv2
from glipv2_jax.models.variants import ModelConfig
from glipv2_jax.parallel.mesh import batch_sharding, to_global
from glipv2_jax.parallel.rules import FSDP, Rules, shardings
from glipv2_jax.schema import Batch, Outputs
from glipv2_jax.train import checkpoint
from pipelines.records import HostBatch, Info

COLUMNS = 16  # phrases per image are padded to a multiple of this: few compilations


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What the network says about one picture and one text, in pixels of the original picture."""

  info: Info
  found: ImageDetections  # labels index info.phrases
  truth_xyxy_px: np.ndarray  # g 4 float32, the boxes that came with the batch
  positive_map: np.ndarray  # g m bool, the tokens that name them


class Predictor:
  """Detections of batches for any parameters of one network.

  The network compiles once per canvas; the post-processing, which is cheap, also per number of columns.
  """

  def __init__(self, model: ModelConfig, cfg: InferConfig, mesh: Mesh):
    self.model, self.cfg, self.mesh = model, cfg, mesh
    rows = batch_sharding(mesh)
    self._forward = jax.jit(functools.partial(_forward, glipv2.graphdef(model)), out_shardings=rows)
    self._detect = jax.jit(functools.partial(_detect, model, cfg), static_argnums=0, out_shardings=rows)

  def __call__(self, params: Any, batch: Batch, phrases: Sequence[Sequence[Any] | None]) -> Detections:
    """Detections of the global batch, sharded like it, in pixels of the canvas.

    `batch`: this process's rows (NumPy); `phrases`: what each row names (objects with `.tokens`), None for padding.
    """
    most = _most_of_all_processes(max((len(p) for p in phrases if p is not None), default=0))
    columns = max(1, -(-most // COLUMNS)) * COLUMNS
    phrase_map = infer.phrase_map(phrases, columns, batch.tokens.shape[1])
    batch, phrase_map = to_global((batch, phrase_map), self.mesh)
    return self._detect(batch.image.shape[1:3], self._forward(params, batch), batch.image_size, phrase_map)


def _forward(graphdef: nnx.GraphDef, params: Any, batch: Batch) -> Outputs:
  return nnx.merge(graphdef, params)(batch)


def _detect(model: ModelConfig, cfg: InferConfig, canvas: tuple[int, int], outputs: Outputs, image_size, phrase_map):
  places = anchors.anchors(canvas, model.strides, model.anchor_scale)
  levels = anchors.level_slices(canvas, model.strides)
  return infer.postprocess(outputs, image_size, phrase_map, places, levels, cfg)


def predict_batches(predictor: Predictor, params: Any, batches: Iterable[HostBatch]) -> Iterator[Prediction]:
  """A `Prediction` for every valid row of this process's batches, in order; the device works one batch ahead.

  Every process must see the same number of batches with the same canvases (pipelines.build.evaluation_batches).
  """
  waiting = None
  for host in batches:
    phrases = [None if info is None else info.phrases for info in host.info]
    started = host, predictor(params, host.batch, phrases)
    if waiting:
      yield from _finished(*waiting)
    waiting = started
  if waiting:
    yield from _finished(*waiting)


def _finished(host: HostBatch, detections: Detections) -> Iterator[Prediction]:
  local = jax.tree.map(local_rows, detections)
  for b, info in enumerate(host.info):
    if info is None:
      continue
    found, valid = infer.of_image(local, b), host.batch.boxes_valid[b]
    to_original = functools.partial(infer.original_boxes, image_size=info.image_size, original_size=info.original_size)
    yield Prediction(
      info=info,
      found=dataclasses.replace(found, boxes_xyxy_px=to_original(found.boxes_xyxy_px)),
      truth_xyxy_px=to_original(host.batch.boxes_xyxy_px[b][valid]),
      positive_map=host.batch.positive_map[b][valid],
    )


def local_rows(array: jax.Array) -> np.ndarray:
  """This process's rows of an array whose first axis is split over devices (the inverse of `mesh.to_global`)."""
  shards = {shard.index[0].start or 0: shard for shard in array.addressable_shards}
  return np.concatenate([np.asarray(shards[start].data) for start in sorted(shards)])


def gather(items: Sequence[Any]) -> list[Any]:
  """The items of all processes in order of the processes, on every process."""
  if jax.process_count() == 1:
    return list(items)
  data = np.frombuffer(pickle.dumps(list(items)), np.uint8)
  lengths = np.asarray(multihost_utils.process_allgather(np.array([len(data)], np.int32))).reshape(-1)
  padded = np.zeros(lengths.max(), np.uint8)
  padded[: len(data)] = data
  everything = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(lengths), -1)
  parts = [pickle.loads(row[:length].tobytes()) for row, length in zip(everything, lengths, strict=True)]
  return [item for part in parts for item in part]


def _most_of_all_processes(number: int) -> int:
  if jax.process_count() == 1:
    return number
  return int(np.max(multihost_utils.process_allgather(np.array(number, np.int32))))


def restore(folder: str, model: ModelConfig, mesh: Mesh, *, ema: bool = False, rules: Rules = FSDP) -> Any:
  """Parameters (or their running average) of the newest checkpoint in a run folder, placed on the mesh.

  Raises FileNotFoundError or CheckpointMismatch, which say what is missing.
  """
  shapes = glipv2.abstract_params(model)
  places = shardings(shapes, mesh, rules)
  abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, places)
  return checkpoint.restore_params(folder, abstract, ema=ema)

"""The predictor: the network and its post-processing on a mesh, and the predictions of a stream of batches.

Three jitted steps: pictures to pyramids, texts to features, and the fusion of both with heads and post-processing. Deep
fusion makes every answer depend on picture and text together, so a vocabulary in several prompts takes the third step
for each; but a picture is encoded once, and a prompt once for a whole data set. Used by training (evaluation),
`glipv2 evaluate` and `glipv2 predict`. `restore` gives parameters from a checkpoint.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from glipv2_jax import anchors, augment, infer
from glipv2_jax.infer import Detections, ImageDetections, InferConfig
from glipv2_jax.models import glipv2
from glipv2_jax.models.glipv2 import TextFeatures
from glipv2_jax.models.variants import ModelConfig
from glipv2_jax.parallel.jit import Jitted
from glipv2_jax.parallel.mesh import batch_sharding, on_each_device, replicated, to_global
from glipv2_jax.parallel.rules import FSDP, Rules, shardings
from glipv2_jax.schema import Batch
from glipv2_jax.train import checkpoint
from pipelines.build import Look
from pipelines.mirror import names_a_side
from pipelines.prompts import Prompt, phrases
from pipelines.records import HostBatch, Info, Phrase
from pipelines.words import Words

COLUMNS = 16  # phrases per text are padded to a multiple of this: few compilations


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Text:
  """An encoded text: one row that all pictures are asked, or a row for each picture."""

  features: TextFeatures | None  # None: a network without language
  valid: jax.Array  # 1|b m bool
  phrase_map: jax.Array  # 1|b c m bool


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What the network says about one picture, in its own pixels."""

  info: Info
  found: ImageDetections  # best first; labels count the phrases of all prompts, or index info.phrases


class Predictor:
  """Detections of batches for any parameters of one network. Compiles once per canvas and number of columns."""

  def __init__(self, model: ModelConfig, cfg: InferConfig, mesh: Mesh):
    self.model, self.cfg, self.mesh = model, cfg, mesh
    graph, rows, everywhere = glipv2.graphdef(model), batch_sharding(mesh), replicated(mesh)
    self._encode_image = Jitted(functools.partial(_encode_image, graph), out_shardings=rows)
    self._encode_rows = Jitted(functools.partial(_encode_text, graph), out_shardings=rows)
    self._encode_prompt = Jitted(functools.partial(_encode_text, graph), out_shardings=everywhere)
    self._answer = Jitted(functools.partial(_answer, graph, cfg), static_argnums=0, out_shardings=rows)

  def prompts(self, params: Any, prompts: Sequence[Prompt], words: Words) -> list[Text]:
    """The texts that every picture is asked, each encoded once."""
    columns = _columns(max(len(prompt.spans) for prompt in prompts))
    texts = []
    for prompt in prompts:
      encoding = prompt.encode(words)
      table = infer.phrase_map([phrases(prompt, encoding)], columns, len(encoding.tokens))
      tokens, valid, table = jax.device_put(
        (encoding.tokens[None], encoding.tokens_valid[None], table), replicated(self.mesh)
      )
      with jax.set_mesh(self.mesh):
        texts.append(Text(self._encode_prompt(params, tokens, valid), valid, table))
    return texts

  def texts(self, params: Any, batch: Batch, named: Sequence[Sequence[Phrase] | None]) -> Text:
    """The text of every row of this process's `batch`; `named`: what each row names, None for padding."""
    most = _most_of_all_processes(max((len(p) for p in named if p is not None), default=0))
    table = infer.phrase_map(named, _columns(most), batch.tokens.shape[1])
    tokens, valid, table = to_global((batch.tokens, batch.tokens_valid, table), self.mesh)
    with jax.set_mesh(self.mesh):
      return Text(self._encode_rows(params, tokens, valid), valid, table)

  def __call__(self, params: Any, batch: Batch, texts: Sequence[Text]) -> list[Detections]:
    """For each text the detections of the global batch, sharded like it, in pixels of the canvas.

    `batch`: this process's rows (NumPy), of which only the pictures are looked at.
    """
    canvas = batch.image.shape[1:3]
    image, image_size = to_global((batch.image, batch.image_size), self.mesh)
    with jax.set_mesh(self.mesh):
      pyramid = self._encode_image(params, image, image_size)
      return [self._answer(canvas, params, pyramid, text, image_size) for text in texts]


def _encode_image(graph: nnx.GraphDef, params: Any, image, image_size) -> list[jax.Array]:
  return nnx.merge(graph, params).encode_image(image, image_size)


def _encode_text(graph: nnx.GraphDef, params: Any, tokens, valid) -> TextFeatures | None:
  model = nnx.merge(graph, params)
  return None if model.cfg.text is None else model.encode_text(tokens, valid)


def _answer(graph: nnx.GraphDef, cfg: InferConfig, canvas, params: Any, pyramid, text: Text, image_size) -> Detections:
  model = nnx.merge(graph, params)
  rows = image_size.shape[0]
  text = jax.tree.map(lambda x: jnp.broadcast_to(x, (rows, *x.shape[1:])), text)
  outputs = model.predict(*model.fuse(pyramid, text.features, text.valid, image_size))
  places = anchors.anchors(canvas, model.cfg.strides, model.cfg.anchor_scale)
  levels = anchors.level_slices(canvas, model.cfg.strides)
  search = functools.partial(infer.postprocess, anchors=places, level_slices=levels, cfg=cfg)
  return on_each_device(search)(outputs, image_size, text.phrase_map)


def _columns(most: int) -> int:
  return max(1, -(-most // COLUMNS)) * COLUMNS


def looks(cfg: InferConfig, prompts: Sequence[Prompt] = ()) -> tuple[Look, ...]:
  """How often each picture is read for `augment.passes`. Prompts that tell left from right are not asked of mirrored
  pictures (captions of single pictures have the two words exchanged instead)."""
  return tuple(Look(scale[0], mirrored) for scale, mirrored in _passes(cfg, prompts))


def _passes(cfg: InferConfig, prompts: Sequence[Prompt]):
  sided = any(names_a_side(prompt.text) for prompt in prompts)
  return tuple(one for one in augment.passes(cfg) if not (sided and one[1]))


def predict_batches(
  predictor: Predictor,
  params: Any,
  batches: Iterable[HostBatch],
  prompts: Sequence[Prompt] = (),
  words: Words | None = None,
  limit: int | None = None,
) -> Iterator[tuple[HostBatch, list[Prediction | None]]]:
  """Each batch (of its first look) with a `Prediction` for every row, None where there is no picture.

  Every picture is asked all `prompts` (`words` encodes them), or, without any, the text of its own row. `limit`:
  detections per picture over all prompts. `batches` has every batch once for each of `looks`, as
  `pipelines.build.evaluation_batches` gives them; the device works one batch ahead. Every process must see the same
  number of batches with the same canvases.
  """
  texts = predictor.prompts(params, prompts, words) if prompts else None
  offsets = np.cumsum([0, *(len(prompt.spans) for prompt in prompts)])[: max(1, len(prompts))]
  passes = _passes(predictor.cfg, prompts)

  def started():
    for host in batches:
      named = [None if info is None else info.phrases for info in host.info]
      yield host, predictor(params, host.batch, texts or [predictor.texts(params, host.batch, named)])

  ahead = _one_ahead(started())
  while of_batch := list(itertools.islice(ahead, len(passes))):
    hosts = [host for host, _ in of_batch]
    found = [jax.tree.map(local_rows, detections) for _, detections in of_batch]  # pass, text
    rows: list[Prediction | None] = []
    for b, info in enumerate(hosts[0].info):
      if info is None:
        rows.append(None)
        continue
      views = [(host.info[b], p) for host, p in zip(hosts, passes, strict=True)]
      parts = []
      for k, offset in enumerate(offsets):
        seen = [_in_original(infer.of_image(found[i][k], b), *view) for i, view in enumerate(views)]
        one = augment.together(seen, predictor.cfg) if predictor.cfg.augmented else seen[0]
        parts.append(dataclasses.replace(one, labels=one.labels + offset))
      rows.append(Prediction(info, infer.merge(parts, limit)))
    yield hosts[0], rows


def _one_ahead(items: Iterator[Any]) -> Iterator[Any]:
  waiting = [next(items, None)]
  for item in items:
    waiting.append(item)
    yield waiting.pop(0)
  if waiting[0] is not None:
    yield waiting[0]


def _in_original(found: ImageDetections, info: Info, one_pass) -> ImageDetections:
  """Detections on the canvas of one pass -> in pixels of the original picture."""
  (_, *bounds), mirrored = one_pass
  found = augment.of_size(found, *bounds)
  boxes = augment.unmirrored(found.boxes_xyxy_px, info.image_size[1]) if mirrored else found.boxes_xyxy_px
  return dataclasses.replace(found, boxes_xyxy_px=infer.original_boxes(boxes, info.image_size, info.original_size))


def local_rows(array: jax.Array) -> np.ndarray:
  """This process's rows of an array whose first axis is split over devices (the inverse of `mesh.to_global`)."""
  shards = {shard.index[0].start or 0: shard for shard in array.addressable_shards}
  return np.concatenate([np.asarray(shards[start].data) for start in sorted(shards)])


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

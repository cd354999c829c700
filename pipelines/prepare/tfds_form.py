"""Prepared shards in the form of TensorFlow Datasets: `tf.train.Example` records and metadata, without TensorFlow.

`tfds.builder_from_directory(folder)` opens what `glipv2 data prepare --tfds SPLIT` wrote, `as_data_source` reads it at
random. Features, by the kind of the source:

  all         image (the file as the source gave it), image_id, glipv2_example
  detection   objects: bbox (fractions of the picture: ymin, xmin, ymax, xmax, cut at its edges), label
  grounding   caption; objects: bbox, phrase (the words that name it)
  caption     caption
  vqa         question, answers

`glipv2_example` holds the whole annotation (masks, spans, negatives, exact boxes, ...) as `pipelines/example_bytes.py`
writes it, the picture left out: the source `tfds_data` gives back what was prepared. Needs the extra `data`.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pipelines import images
from pipelines.example_bytes import encoded, to_bytes
from pipelines.records import Example, Source
from pipelines.sources.tfds_data import WHOLE, import_tfds

TEMPLATE = "data-{SHARD_X_OF_Y}.{FILEFORMAT}"  # the names that pipelines/prepare/shards.py gives


def check(source: Source, split: str) -> None:
  """For start-up. Raises ImportError without TFDS, ValueError for a split or class names that TFDS cannot keep."""
  import_tfds()
  if not re.fullmatch(r"[A-Za-z]\w*", split, re.ASCII) or split == "all":
    raise ValueError(f"{split!r} cannot be the name of a split of TFDS; take for example train or val")
  if [line.strip() for line in "\n".join(source.classes).split("\n")] != list(source.classes or ("",)):
    raise ValueError(f"TFDS keeps class names one a line: {source.name} has one with white space around or a new line")


def encoder(source: Source) -> Callable[[Example], bytes]:
  """Example -> the bytes of its record, equal ones for equal Examples. Raises BadRecord for a broken picture."""
  import_tfds()
  from tensorflow_datasets.core import example_serializer

  features = _features(source.kind, source.classes)
  serializer = example_serializer.ExampleSerializer(features.get_serialized_info())

  def encode(example: Example) -> bytes:
    content = features.encode_example(_content(example))
    # TFDS's own serialize_example leaves the order of the features to chance
    return serializer.get_tf_example(content).SerializeToString(deterministic=True)

  return encode


def write_metadata(folder: str, manifest: Mapping[str, Any]) -> None:
  """Writes dataset_info.json, features.json, metadata.json and the class names beside the shards of `manifest`."""
  tfds = import_tfds()
  from tensorflow_datasets.core import naming

  name = re.sub(r"\W", "_", manifest["name"], flags=re.ASCII)
  name = name if name[:1].isalpha() else f"set_{name}"
  info = tfds.core.DatasetInfo(
    builder=tfds.core.DatasetIdentity(name=name, version=tfds.core.Version("1.0.0"), data_dir=folder, module_name=""),
    description=f"{manifest['name']}: the source {manifest['source']} of glipv2_jax",
    features=_features(manifest["kind"], manifest["classes"]),
    metadata=tfds.core.MetadataDict({key: manifest[key] for key in ("name", "kind", "classes")}),
    disable_shuffling=True,  # records are in the order of the source
  )
  info.set_file_format("array_record")
  split = tfds.core.SplitInfo(
    name=manifest["tfds"],
    shard_lengths=[shard["records"] for shard in manifest["shards"]],
    num_bytes=sum(shard["bytes"] for shard in manifest["shards"]),
    filename_template=naming.ShardedFileTemplate(
      folder, TEMPLATE, dataset_name=name, split=manifest["tfds"], filetype_suffix="array_record"
    ),
  )
  info.set_splits(tfds.core.SplitDict([split]))
  info.write_to_directory(folder)


def _features(kind: str, classes: Sequence[str]) -> Any:
  features = import_tfds().features
  content = {"image": features.Image(), "image_id": features.Text(), WHOLE: features.Tensor(shape=(), dtype=np.object_)}
  box = {"bbox": features.BBoxFeature()}
  match kind:
    case "detection":
      content["objects"] = features.Sequence(box | {"label": features.ClassLabel(names=list(classes))})
    case "grounding":
      content |= {"caption": features.Text(), "objects": features.Sequence(box | {"phrase": features.Text()})}
    case "caption":
      content["caption"] = features.Text()
    case "vqa":
      content |= {"question": features.Text(), "answers": features.Sequence(features.Text())}
  return features.FeaturesDict(content)


def _content(example: Example) -> dict[str, Any]:
  picture = encoded(example.image)
  content = {"image": picture, "image_id": str(example.image_id)}  # some are larger than int64
  content[WHOLE] = to_bytes(dataclasses.replace(example, image=b""))
  match example.kind:
    case "detection":
      content["objects"] = [{"bbox": b, "label": x} for b, x in zip(_fractions(example, picture), example.labels)]
    case "grounding":
      phrases = [" ".join(example.caption[begin:end] for begin, end in spans) for spans in example.spans]
      objects = [{"bbox": b, "phrase": x} for b, x in zip(_fractions(example, picture), phrases)]
      content |= {"caption": example.caption, "objects": objects}
    case "caption":
      content["caption"] = example.caption
    case "vqa":
      (question,) = example.questions
      content |= {"question": question.text, "answers": list(question.answers)}
  return content


def _fractions(example: Example, picture: bytes) -> np.ndarray:
  """g 4 float64 ymin, xmin, ymax, xmax in 0..1 and in order, as TFDS demands, of boxes in the inclusive convention.

  A box that is none (NaN, x2 < x1) becomes an empty one here; `glipv2_example` keeps it as it is."""
  height, width = images.size_of(picture, example.record)
  left, top, right, bottom = example.boxes_xyxy_px.astype(np.float64).T
  corners = np.stack([top / height, left / width, (bottom + 1) / height, (right + 1) / width], axis=-1)
  corners = np.where(np.isfinite(corners).all(axis=-1, keepdims=True), corners, 0)
  low, high = np.split(np.clip(corners, 0, 1), 2, axis=-1)
  return np.concatenate([low, np.maximum(low, high)], axis=-1)

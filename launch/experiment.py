"""A configuration (ConfigDict, or its JSON from a checkpoint) -> the frozen dataclasses that the library takes.

This is the only place that knows both sides. A surplus or missing field stops here with its name.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from glipv2_jax.infer import InferConfig
from glipv2_jax.losses.grounding import LossConfig
from glipv2_jax.losses.inter import InterConfig
from glipv2_jax.models import variants
from glipv2_jax.models.variants import ModelConfig
from glipv2_jax.train import checkpoint
from glipv2_jax.train.loop import TrainConfig
from glipv2_jax.train.optim import OptimConfig
from launch.official import Evaluated
from launch.scoring import ScoringConfig
from pipelines.build import DataConfig, SourceEntry
from pipelines.masking import MaskingConfig
from pipelines.prompts import PromptConfig

SECTIONS = ("model", "data", "prompt", "masking", "loss", "optim", "train", "eval", "infer")


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Everything a program needs to know about a run."""

  variant: str
  model: ModelConfig
  data: DataConfig
  loss: LossConfig
  optim: OptimConfig
  train: TrainConfig
  evaluation: DataConfig  # canvases, batch and workers of evaluation
  scoring: ScoringConfig  # its sources and their tasks
  infer: InferConfig
  record: Mapping[str, Any]  # the configuration as JSON-able dict, for checkpoints and logs


def from_tree(tree: Mapping[str, Any]) -> Experiment:
  """`tree`: the configuration as nested dicts (ConfigDict.to_dict(), or JSON).

  Raises ValueError or TypeError naming the section and the field that does not fit.
  """
  absent = [name for name in SECTIONS if name not in tree]
  if absent:
    raise ValueError(f"the configuration lacks the sections {absent}; start from configs.common.base()")
  c = {name: as_tuples(tree[name]) for name in SECTIONS}

  variant, model_options = _split(c["model"], "variant")
  model = variants.get(variant, max_tokens=c["data"]["max_tokens"], **model_options)

  root, data = _split(c["data"], "root")
  sources, data = _split(data, "sources")
  prompt = _make(PromptConfig, "prompt", c["prompt"])
  hidden = _make(MaskingConfig, "masking", c["masking"]) if c["loss"]["weights"]["mlm"] else None
  named = {name: {"name": name, **fields} for name, fields in sources.items()}  # messages and counts say it
  own = {"prompt": prompt, "masking": hidden, "sources": _entries(named, root)}
  training = _make(DataConfig, "data", {**data, **own})

  chosen, rest = _split(c["eval"], "sources")
  scoring, rest = _pick(rest, ("limit", "per_prompt", "region_threshold"))
  scoring["sources"] = _evaluated(chosen, root)
  evaluation = dataclasses.replace(training, sources=(), **rest)

  weights = tuple(sorted(c["loss"]["weights"].items()))
  inter = _make(InterConfig, "loss.inter", c["loss"]["inter"])
  return Experiment(
    variant=variant,
    model=model,
    data=training,
    loss=_make(LossConfig, "loss", {**c["loss"], "weights": weights, "inter": inter}),
    optim=_make(OptimConfig, "optim", c["optim"]),
    train=_make(TrainConfig, "train", {**c["train"], "skip_limit": training.skip_limit}),
    evaluation=evaluation,
    scoring=_make(ScoringConfig, "eval", scoring),
    infer=_make(InferConfig, "infer", c["infer"]),
    record=tree,
  )


def from_checkpoint(folder: str) -> Experiment:
  """The experiment that wrote the newest checkpoint of a run folder. Raises FileNotFoundError."""
  return from_tree(checkpoint.read_meta(folder).config)


def _entries(sources: Mapping[str, Mapping[str, Any]], root: str) -> tuple[SourceEntry, ...]:
  """Named sources -> (kind, weight, options), in the order of their names."""
  entries = []
  for name, fields in sorted(sources.items()):
    for needed in ("kind", "weight"):
      if needed not in fields:
        raise ValueError(f"source {name!r} of the configuration has no {needed!r}; its fields: {sorted(fields)}")
    options = {k: _with_root(v, root) for k, v in fields.items() if k not in ("kind", "weight")}
    entries.append((fields["kind"], fields["weight"], tuple(options.items())))
  return tuple(entries)


def _evaluated(sources: Mapping[str, Mapping[str, Any]], root: str) -> tuple[Evaluated, ...]:
  """Named sources with what is scored on them, in the order of their names."""
  found = []
  for name, fields in sorted(sources.items()):
    scored, own = _pick(fields, ("evaluator", "truth", "wordings"))
    (entry,) = _entries({name: own}, root)
    found.append(Evaluated(name, entry, **{key: _with_root(value, root) for key, value in scored.items()}))
  return tuple(found)


def _with_root(value: Any, root: str) -> Any:
  if isinstance(value, list | tuple):  # json makes lists of tuples
    return tuple(_with_root(item, root) for item in value)
  return value.replace("{root}", root.rstrip("/") or ".") if isinstance(value, str) else value


def _make(kind: type, section: str, fields: Mapping[str, Any]) -> Any:
  known = {field.name for field in dataclasses.fields(kind)}
  unknown = sorted(set(fields) - known)
  if unknown:
    raise ValueError(f"config.{section} has unknown fields {unknown}; known: {', '.join(sorted(known))}")
  return kind(**fields)


def _split(fields: Mapping[str, Any], name: str) -> tuple[Any, dict[str, Any]]:
  return fields[name], {key: value for key, value in fields.items() if key != name}


def _pick(fields: Mapping[str, Any], names: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
  return {k: v for k, v in fields.items() if k in names}, {k: v for k, v in fields.items() if k not in names}


def as_tuples(value: Any) -> Any:
  """Lists (JSON has no tuples) become tuples at every depth."""
  if isinstance(value, Mapping):
    return {key: as_tuples(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return tuple(as_tuples(item) for item in value)
  return value

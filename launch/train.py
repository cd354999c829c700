"""`glipv2 train`: trains, or continues, the run in --workdir.

  glipv2 train --config=configs/demo.py --workdir=runs/demo
  glipv2 train --config=configs/finetune_coco.py --workdir=runs/mine --config.data.root=/path/to/folder

Any field of the configuration is an option: --config.optim.lr=2e-4. Started again with the same --workdir the run goes
on exactly where its newest checkpoint left it. Several hosts: --coordinator=HOST:PORT --process_count=N --process_id=I
on each, or --cluster=slurm|tpu|gke-tpu (launch/hosts.py; the scripts beside it start all of them). On a CPU,
--cpu_devices=2 splits the batch over two devices.
The folder receives config.json, metrics.jsonl, TensorBoard files, checkpoints/, metrics.json and, from the last
evaluation, predictions/. SIGTERM saves a checkpoint and ends with status 75: start again to go on. Statuses 1 and 2 are
mistakes that would repeat.
"""

import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import app, flags

from glipv2_jax.parallel.mesh import make_mesh
from glipv2_jax.train import checkpoint, loop, objective
from glipv2_jax.train.metrics import TrainingDiverged
from glipv2_jax.train.skips import TooManySkipped
from launch import hosts, scoring, settings
from launch.experiment import Experiment, from_tree
from launch.predicting import Predictor
from pipelines.build import open_sources, train_batches
from pipelines.words import load_words

METRICS = "metrics.json"
# Which example stands where in the stream follows from these fields of config.data and the lengths of the sources.
STREAM = ("sources", "weighting", "temperature", "canvases", "batch", "seed", "records")


def run(experiment: Experiment, workdir: pathlib.Path) -> loop.Result:
  """Trains and evaluates; the last report stands in workdir/metrics.json. See `glipv2_jax.train.loop.train`."""
  workdir.mkdir(parents=True, exist_ok=True)
  words = load_words(experiment.data.tokenizer, experiment.data.max_tokens)
  check_vocabulary(experiment, words.vocab_size)
  sources = open_sources(experiment.data, words)
  record = {**experiment.record, "records": {source.name: len(source) for source in sources}}
  check_data(experiment, record, workdir)
  if jax.process_index() == 0:
    write_json(workdir / "config.json", record)
  mesh = make_mesh(experiment.train.data, experiment.train.fsdp)
  predictor = Predictor(experiment.model, experiment.infer, mesh)

  def data(start: int):
    place = dict(host=jax.process_index(), hosts=jax.process_count())
    return train_batches(experiment.data, start_step=start, words=words, sources=sources, **place)

  def evaluate(params, step: int) -> dict[str, float]:
    found = dict(words=words, out=workdir / "predictions", about={"step": step})
    report = scoring.evaluate(predictor, params, experiment.evaluation, experiment.scoring, **found)
    if report:
      write_json(workdir / METRICS, {"step": step, **report})
    return scoring.numbers(report)

  return loop.train(
    objective.grounding(experiment.model, experiment.loss),
    experiment.optim,
    experiment.train,
    data,
    workdir,
    variant=experiment.variant,
    record=record,
    evaluate=evaluate if experiment.scoring.sources else None,
  )


def check_vocabulary(experiment: Experiment, vocab_size: int) -> None:
  """Raises ValueError when the tokenizer has ids that the text encoder has no embedding for."""
  text = experiment.model.text
  if text is not None and vocab_size > text.vocab_size:
    raise ValueError(
      f"tokenizer {experiment.data.tokenizer!r} has {vocab_size} tokens, variant {experiment.variant!r} embeds "
      f"{text.vocab_size}; use another tokenizer or variant"
    )


def check_data(experiment: Experiment, record: Mapping[str, Any], workdir: pathlib.Path) -> None:
  """Raises ValueError when the run's newest checkpoint was trained on another stream of examples than `record` (the
  configuration and the length of every source) describes, unless data.accept_changed says that this is meant."""
  try:
    before = checkpoint.read_meta(workdir)
  except FileNotFoundError:
    return
  new = json.loads(json.dumps({**record["data"], "records": record["records"]}))
  old = before.config["data"] | {name: value for name, value in before.config.items() if name == "records"}
  changed = [f"{name}: {old[name]} -> {new[name]}" for name in STREAM if name in old and old[name] != new[name]]
  if changed and not experiment.data.accept_changed:
    raise ValueError(
      f"{workdir} was trained up to step {before.step} on other data, so it would not go on where it stopped: "
      f"{'; '.join(changed)}. Undo the change, or state it with --config.data.accept_changed=True"
    )


def write_json(path: pathlib.Path, content) -> None:
  """Whole or not at all: a killed run leaves no half-written file."""
  part = path.with_suffix(".part")
  part.write_text(json.dumps(content, indent=2) + "\n")
  part.replace(path)


def main(argv: Sequence[str] | None = None) -> int:
  """Parses flags and trains; mistakes in the configuration end with one line and status 1."""
  flags_and_arguments = settings.opened("glipv2 train", __doc__, argv)
  if flags_and_arguments is None:
    return 0
  values, arguments = flags_and_arguments
  flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
  flags.DEFINE_integer("cpu_devices", None, "split the CPU into so many devices", flag_values=values)
  for name, (default, kind, text) in hosts.OPTIONS.items():
    define = flags.DEFINE_integer if kind is int else flags.DEFINE_string
    define(name, default, text, flag_values=values)
  try:
    settings.read(values, arguments, "config", "workdir")
    experiment = from_tree(values.config.to_dict())
    place = hosts.Hosts(**{name: values[name].value for name in hosts.OPTIONS})
  except (flags.Error, app.UsageError, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
    return _stop(error)
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # grain's worker processes read absl's global flags
  if values.cpu_devices is not None:
    jax.config.update("jax_num_cpu_devices", values.cpu_devices)

  def program() -> int:
    try:
      result = run(experiment, pathlib.Path(values.workdir))
    except (OSError, ValueError, TrainingDiverged, TooManySkipped) as error:
      return _stop(error)
    if jax.process_index() == 0:
      print(f"{result.status} at step {result.step} after {result.seconds:.0f} s; see {values.workdir}")
    return hosts.RESTART if result.status == "stopped" else 0

  try:
    return hosts.run(place, program)
  except ValueError as error:
    return _stop(error)


def _stop(error: Exception) -> int:
  print(f"glipv2 train: {error}", file=sys.stderr)
  return 1


if __name__ == "__main__":
  sys.exit(main())

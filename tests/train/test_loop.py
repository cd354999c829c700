"""The loop as a whole, in this process, on the toy model: resuming, evaluation, starting from another run, stopping."""

import dataclasses
import itertools
import json
import os
import signal
import types

import jax
import numpy as np
import pytest

from glipv2_jax.train import checkpoint, loop, metrics, skips
from tests import tiny, toy

TIMES = ("images_per_second", "data_seconds", "seconds")
CONFIG = loop.TrainConfig(total_steps=7, log_every=1, checkpoint_every=3, keep=10, fsdp=4, shard_min_size=1)


def train(folder, data=tiny.data, evaluate=None, objective=toy.OBJECTIVE, **changes):
  config = dataclasses.replace(CONFIG, **changes)
  record = {"note": "a test"}
  return loop.train(
    objective, tiny.optimizer_config(), config, data, folder, variant="toy", record=record, evaluate=evaluate
  )


def lines(folder):
  found = [json.loads(line) for line in (folder / metrics.JSON_LINES).read_text().splitlines()]
  return [{name: value for name, value in line.items() if name not in TIMES} for line in found]


def steps(folder):
  with checkpoint.manager(folder / checkpoint.FOLDER) as checkpoints:
    return list(checkpoints.all_steps())


def test_an_interrupted_run_reads_like_an_uninterrupted_one(tmp_path):
  def evaluate(params, step):
    return {"norm": float(sum(abs(x).sum() for x in jax.tree.leaves(params))), "step": step}

  whole = train(tmp_path / "whole", evaluate=evaluate, eval_every=2)
  assert whole.status == "finished" and whole.step == 7
  assert steps(tmp_path / "whole") == [3, 6, 7]

  def broken(start):
    yield from itertools.islice(tiny.data(start), 5 - start)
    raise OSError("the disk is gone")

  with pytest.raises(OSError, match="disk"):
    train(tmp_path / "parts", data=broken, evaluate=evaluate, eval_every=2)
  assert steps(tmp_path / "parts") == [3]
  again = train(tmp_path / "parts", evaluate=evaluate, eval_every=2)
  assert again.status == "finished"
  assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
  assert [line["step"] for line in lines(tmp_path / "whole") if "eval" in line] == [2, 4, 6, 7]
  found = checkpoint.read_meta(tmp_path / "parts")
  assert (found.step, found.examples, found.variant, found.config) == (7, 56, "toy", {"note": "a test"})
  assert found.seconds > 0


def test_a_missed_evaluation_is_made_up_once(tmp_path):
  train(tmp_path)
  seen = []

  def evaluate(params, step):
    seen.append(step)
    return {"AP": 0.25}

  for _ in range(2):
    train(tmp_path, evaluate=evaluate)
  assert seen == [7]
  assert lines(tmp_path)[-1] == {"step": 7, "eval": {"AP": 0.25}}


def test_evaluation_of_the_average(tmp_path):
  found = {}
  for name, changes in (("params", {}), ("ema", {"evaluate_ema": True})):

    def evaluate(params, step, name=name):
      found[name] = jax.tree.map(np.asarray, params)
      return {}

    train(tmp_path, evaluate=evaluate, total_steps=3, **changes)
    (tmp_path / metrics.JSON_LINES).unlink()  # so that the evaluation is made up
  shapes = jax.eval_shape(toy.init, jax.random.key(0))
  for name, ema in (("params", False), ("ema", True)):
    saved = checkpoint.restore_params(tmp_path, shapes, ema=ema)
    jax.tree.map(np.testing.assert_array_equal, found[name], saved)
  assert (found["params"]["text"]["embedding"] != found["ema"]["text"]["embedding"]).any()


def test_starting_from_the_parameters_of_another_run(tmp_path):
  train(tmp_path / "first")
  train(tmp_path / "second", init_from=str(tmp_path / "first"), total_steps=1)
  loss = {name: lines(tmp_path / name)[0]["loss"] for name in ("first", "second")}
  assert lines(tmp_path / "second")[0]["step"] == 1
  assert loss["second"] < loss["first"]
  with pytest.raises(FileNotFoundError, match="absent"):
    train(tmp_path / "third", init_from=str(tmp_path / "absent"))


def test_a_run_of_no_steps_is_what_others_start_from(tmp_path):
  assert train(tmp_path / "start", total_steps=0).status == "finished"
  assert steps(tmp_path / "start") == [0] and lines(tmp_path / "start") == []
  assert train(tmp_path / "start", total_steps=0).step == 0  # again: nothing to do
  for name, changes in (("same", {}), ("from", {"init_from": str(tmp_path / "start")})):
    train(tmp_path / name, total_steps=1, **changes)
  assert lines(tmp_path / "same") == lines(tmp_path / "from")


def test_sigterm_finishes_the_step_and_saves(tmp_path):
  def data(start):
    for feed in tiny.data(start):
      start += 1
      if start == 5:
        os.kill(os.getpid(), signal.SIGTERM)
      yield feed

  before = signal.getsignal(signal.SIGTERM)
  result = train(tmp_path, data=data)
  assert (result.status, result.step) == ("stopped", 5)
  assert steps(tmp_path) == [3, 5]
  assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5]
  assert signal.getsignal(signal.SIGTERM) is before
  assert train(tmp_path).status == "finished"


def test_divergence_names_step_and_term_and_leaves_no_bad_checkpoint(tmp_path):
  def loss(params, batch, want, counts, key):
    value, terms = toy.loss(params, batch, want, counts, key)
    bad = jax.numpy.where(batch.image_size[0, 0] == 0, jax.numpy.nan, 0.0)
    return value + bad, {**terms, "other": bad}

  def data(start):
    for feed in tiny.data(start):
      start += 1
      batch = feed.batch
      if start == 6:
        batch = dataclasses.replace(batch, image_size=batch.image_size * 0)
      yield types.SimpleNamespace(batch=batch, skipped=(), reduced=(), rows={"toy": 8})

  with pytest.raises(metrics.TrainingDiverged, match="step 6: .*other.* not finite"):
    train(tmp_path, data=data, objective=dataclasses.replace(toy.OBJECTIVE, loss=loss))
  assert steps(tmp_path) == [3]


def test_skipped_records_are_logged_survive_restarts_and_stop_the_run(tmp_path):
  def data(start):
    return tiny.data(start, skipped=(("nan_box", f"shapes/{start}"),), reduced=(("too_many_boxes", "shapes/0"),) * 2)

  train(tmp_path, data=data, total_steps=3)
  train(tmp_path, data=data, total_steps=6)
  assert [line["skipped"] for line in lines(tmp_path)] == [{"nan_box": n} for n in range(1, 7)]
  assert [line["reduced"] for line in lines(tmp_path)] == [{"too_many_boxes": 2 * n} for n in range(1, 7)]
  with pytest.raises(skips.TooManySkipped, match="nan_box"):
    train(tmp_path, data=data, total_steps=6 + skips.GRACE, checkpoint_every=1000)


def test_mistakes_are_explained(tmp_path):
  with pytest.raises(RuntimeError, match="data ended at step 3"):
    train(tmp_path / "a", data=lambda start: iter([next(tiny.data(i)) for i in range(2)]))
  with pytest.raises(ValueError, match="6 rows.*8 devices"):
    train(tmp_path / "b", data=lambda start: tiny.data(start, rows=6))
  with pytest.raises(ValueError, match="ema_decay"):
    loop.train(
      toy.OBJECTIVE, tiny.optimizer_config(ema_decay=0.0), dataclasses.replace(CONFIG, evaluate_ema=True),
      tiny.data, tmp_path, variant="toy", record={},
    )  # fmt: skip

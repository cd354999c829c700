"""`glipv2 train` as a user calls it: what it writes, that it goes on, and one-line answers to mistakes."""

import json
import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import pytest

from configs import demo, finetune_coco
from glipv2_jax.train import checkpoint
from launch import cli, experiment, train

ROOT = pathlib.Path(__file__).resolve().parents[2]


def arguments(tmp_path, *more):
  return ["train", f"--config={finetune_coco.__file__}:debug", f"--workdir={tmp_path / 'run'}", *more]


def test_missing_annotation_file_is_named(tmp_path, capsys):
  assert cli.main(arguments(tmp_path, f"--config.data.root={tmp_path}")) == 1
  message = capsys.readouterr().err
  assert "image folder" in message or "annotations/train.json" in message
  assert str(tmp_path) in message and "Traceback" not in message


def test_config_and_workdir_are_needed(capsys):
  assert train.main([]) == 1
  assert "--config is needed" in capsys.readouterr().err


def test_unknown_command_lists_the_commands(capsys):
  assert cli.main(["trian"]) == 2
  assert "train" in capsys.readouterr().err


def test_tokenizer_must_fit_the_variant(tmp_path, capsys):
  vocabulary = tmp_path / "vocab.txt"
  vocabulary.write_text(
    "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(600))]) + "\n"
  )
  assert cli.main(arguments(tmp_path, f"--config.data.tokenizer={vocabulary}")) == 1
  assert "605 tokens" in capsys.readouterr().err


def test_changed_data_is_refused_on_resume_unless_stated(tmp_path):
  def run(**changes):
    config = demo.get_config("debug")
    for name, value in changes.items():
      setattr(config.data, name, value)
    return experiment.from_tree(config.to_dict())

  first = run()
  record = {**first.record, "records": {"kinds": 7}}
  meta = checkpoint.Meta(3, 6, 1.0, "demo", json.loads(json.dumps(record)), "unknown", {}, {})
  with checkpoint.manager(tmp_path / checkpoint.FOLDER) as checkpoints:
    checkpoint.save(checkpoints, {"a": jnp.zeros(2)}, meta)
  train.check_data(first, record, tmp_path)
  train.check_data(first, record, tmp_path / "fresh")
  heavier = demo.get_config("debug").data.sources
  heavier.kinds.weight = 0.5
  for changes, records, message in (
    ({"sources": heavier}, {"kinds": 7}, "up to step 3 on other data.*sources: .*'weight': 0.4.* -> .*'weight': 0.5"),
    ({"batch": 4}, {"kinds": 7}, "batch: 2 -> 4"),
    ({"seed": 1}, {"kinds": 7}, "seed: 0 -> 1.*accept_changed=True"),
    ({}, {"kinds": 8}, "records: {'kinds': 7} -> {'kinds': 8}"),
  ):
    other = run(**changes)
    with pytest.raises(ValueError, match=message):
      train.check_data(other, {**other.record, "records": records}, tmp_path)
    stated = run(**changes, accept_changed=True)
    train.check_data(stated, {**stated.record, "records": records}, tmp_path)


def glipv2(*words):
  """Runs the program in a process of its own, with the machine's own devices."""
  command = [sys.executable, "-m", "launch.cli", *map(str, words)]
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  return subprocess.run(
    command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True, timeout=900
  ).stdout


@pytest.mark.slow
def test_train_continue_evaluate_and_predict_on_a_coco_folder(tmp_path, shared):
  root, run = shared / "data/bccd", tmp_path / "run"
  train_it = arguments(tmp_path, f"--config.data.root={root}")
  glipv2(*train_it)
  glipv2(*train_it, "--config.train.total_steps=4")
  lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines if "eval" in line] == [2, 4]
  glipv2("evaluate", "--checkpoint", run, "--out", tmp_path / "again.json")
  first, again = (json.loads(path.read_text()) for path in (run / train.METRICS, tmp_path / "again.json"))
  assert first["step"] == 4 and first["AP50"] == pytest.approx(again["AP50"], abs=1e-6)
  picture = sorted((root / "images").iterdir())[0]
  glipv2(
    "predict", "--checkpoint", run, "--image", picture, "--classes", "RBC,WBC,Platelets", "--out", tmp_path / "out"
  )
  answers = json.loads((tmp_path / "out/predictions.json").read_text())
  assert answers["images"][0]["width"] == 640 and (tmp_path / "out" / answers["images"][0]["drawn"]).is_file()

"""`glipv2 train` as a user calls it: what it writes, that it goes on, and one-line answers to mistakes."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from configs import finetune_coco
from launch import cli, train

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

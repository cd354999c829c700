"""Real processes: a run that is killed at random moments, and stopped politely once, equals one that never was."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

from glipv2_jax.train import checkpoint, metrics

PROGRAM = pathlib.Path(__file__).with_name("train_toy.py")
TIMES = ("images_per_second", "data_seconds", "seconds")
STEPS = 80


def start(folder, cache):
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "1",
    "JAX_COMPILATION_CACHE_DIR": str(cache),  # so that only the first start compiles
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  return subprocess.Popen(
    [sys.executable, str(PROGRAM), str(folder), str(STEPS)],
    env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip


def lines(folder):
  """Complete lines of the log, without clock times."""
  path = folder / metrics.JSON_LINES
  found = [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []
  return [{name: value for name, value in line.items() if name not in TIMES} for line in found]


def wait_for_step(process, folder, step):
  deadline = time.monotonic() + 120
  while time.monotonic() < deadline:
    found = lines(folder)
    if found and found[-1]["step"] >= step:
      return
    assert process.poll() is None, process.communicate()[1]
    time.sleep(0.01)
  raise AssertionError(f"no step {step} in {folder}")


def finish(process):
  output, errors = process.communicate(timeout=120)
  assert process.returncode == 0, errors
  return output.strip()


def test_killed_and_stopped_runs_equal_one_that_never_was(tmp_path):
  whole, parts, cache = tmp_path / "whole", tmp_path / "parts", tmp_path / "cache"
  assert finish(start(whole, cache)) == f"finished {STEPS}"

  pick = random.Random()
  for begin in (1, 20):
    process = start(parts, cache)
    wait_for_step(process, parts, begin)
    time.sleep(pick.uniform(0, 0.3))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL

  process = start(parts, cache)
  wait_for_step(process, parts, 45)  # further than the killed runs can have come: a step takes 0.03 s or more
  process.send_signal(signal.SIGTERM)
  status, step = finish(process).split()
  assert status == "stopped"
  assert checkpoint.read_meta(parts).step == int(step) == lines(parts)[-1]["step"] < STEPS

  assert finish(start(parts, cache)) == f"finished {STEPS}"
  assert lines(parts) == lines(whole)
  assert [line["step"] for line in lines(whole)] == list(range(1, STEPS + 1))

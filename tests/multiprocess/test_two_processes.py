"""Two real processes of four devices train like one process of eight, and leave the same checkpoint."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from glipv2_jax.train import checkpoint, metrics
from tests import toy

PROGRAM = pathlib.Path(__file__).with_name("train_toy.py")


def start(folder, steps, processes):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    coordinator = f"127.0.0.1:{free.getsockname()[1]}"
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(8 // processes)}
  together = [coordinator, str(processes)] if processes > 1 else []
  return [
    subprocess.Popen(
      [sys.executable, str(PROGRAM), str(folder), str(steps), *together, *([str(i)] if together else [])],
      env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    for i in range(processes)
  ]  # fmt: skip


def finish(running):
  outputs = [process.communicate(timeout=180) for process in running]
  assert all(process.returncode == 0 for process in running), "\n".join(errors for _, errors in outputs)
  return [output.strip().split("\n")[-1] for output, _ in outputs]  # gloo prints lines of its own before


def lines(folder):
  path = folder / metrics.JSON_LINES
  return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def test_two_processes_train_like_one(tmp_path):
  assert finish(start(tmp_path / "one", 6, 1)) == ["finished 6"]
  assert finish(start(tmp_path / "two", 6, 2)) == ["finished 6"] * 2
  one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
  assert [line["step"] for line in two] == [1, 2, 3, 4, 5, 6]
  for a, b in zip(two, one, strict=True):
    assert (a["loss"], a["grad_norm"]) == pytest.approx((b["loss"], b["grad_norm"]), rel=1e-5)
    assert a["num_pos"] == b["num_pos"]
  shapes = jax.eval_shape(toy.init, jax.random.key(0))
  params = [checkpoint.restore_params(tmp_path / name, shapes) for name in ("one", "two")]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *params)


def test_sigterm_to_one_process_stops_both(tmp_path):
  running = start(tmp_path, 100000, 2)
  deadline = time.monotonic() + 120
  while not lines(tmp_path) and time.monotonic() < deadline:
    assert all(process.poll() is None for process in running)
    time.sleep(0.05)
  running[1].send_signal(signal.SIGTERM)
  first, second = finish(running)
  assert first == second and first.startswith("stopped")
  assert checkpoint.read_meta(tmp_path).step == int(first.split()[1]) == lines(tmp_path)[-1]["step"]

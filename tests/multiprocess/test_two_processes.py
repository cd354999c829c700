"""Two real processes of four devices train like one process of eight, leave the same checkpoint, and end together."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from glipv2_jax.train import checkpoint
from launch import hosts
from tests import toy
from tests.multiprocess import together
from tests.multiprocess.together import DEVICES, PROGRAM, finish, lines, wait_for_checkpoint, wait_for_step

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 12
HEARTBEAT = 10  # seconds; the default is 60


@pytest.fixture(scope="module")
def one(tmp_path_factory):
  """The run of one process that the others are compared with."""
  folder = tmp_path_factory.mktemp("one")
  statuses, last, errors = finish(together.start(folder, STEPS, 1))
  assert (statuses, last) == ([0], [f"finished {STEPS}"]), errors
  return folder


def assert_same(folder, one):
  assert [line["step"] for line in lines(folder)] == list(range(1, STEPS + 1))
  for a, b in zip(lines(folder), lines(one), strict=True):
    assert (a["loss"], a["grad_norm"]) == pytest.approx((b["loss"], b["grad_norm"]), rel=1e-5)
    assert a["num_pos"] == b["num_pos"]
  shapes = jax.eval_shape(toy.init, jax.random.key(0))
  params = [checkpoint.restore_params(path, shapes) for path in (folder, one)]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *params)


def slurm(port, process):
  """What srun tells two tasks on two nodes."""
  return {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_NODELIST": "localhost,localhost",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": str(process),
    "SLURM_LOCALID": "0",
    "JAX_COORDINATOR_PORT": str(port),  # Slurm's would follow from the job's number
  }


def test_two_processes_train_like_one(tmp_path, one):
  """By the local simulation of several hosts, launch/local.sh."""
  command = [ROOT / "launch" / "local.sh", sys.executable, PROGRAM, tmp_path, str(STEPS)]
  places = {"PROCESSES": "2", "DEVICES": str(DEVICES // 2)}
  done = subprocess.run(command, env=os.environ | places, capture_output=True, text=True, timeout=600)
  assert done.returncode == 0, done.stderr
  assert {f"{i}: finished {STEPS}" for i in (0, 1)} <= set(done.stdout.splitlines())
  assert_same(tmp_path, one)


def test_sigterm_to_one_process_saves_and_asks_for_a_restart(tmp_path, start):
  running = start(tmp_path, 100000, 2, cluster=slurm)
  wait_for_step(running, tmp_path, 1)
  running[1].send_signal(signal.SIGTERM)
  statuses, (first, second), errors = finish(running)
  assert statuses == [hosts.RESTART] * 2, errors
  assert first == second and first.startswith("stopped")
  assert checkpoint.read_meta(tmp_path).step == int(first.split()[1]) == lines(tmp_path)[-1]["step"]


@pytest.mark.parametrize("lost", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_process_stops_the_other_and_one_goes_on_alone(tmp_path, start, one, lost):
  running = start(tmp_path, STEPS, 2, f"--heartbeat={HEARTBEAT}", f"--stall={lost},10")
  wait_for_checkpoint(running, tmp_path, 8)  # the other process waits for step 10 to come together
  running[lost].kill()
  began = time.monotonic()
  statuses, _, errors = finish(running)
  assert time.monotonic() - began < HEARTBEAT + 15
  assert statuses[lost] == -signal.SIGKILL and statuses[1 - lost] not in (0, 1, 2, hosts.RESTART)
  assert "heartbeat timeout" in errors or "another task died" in errors or "the others stop" in errors
  statuses, last, errors = finish(start(tmp_path, STEPS, 1))
  assert (statuses, last) == ([0], [f"finished {STEPS}"]), errors
  assert f"going on from step {8}" in errors
  assert_same(tmp_path, one)


def test_a_process_that_fails_stops_the_other(tmp_path, start):
  running = start(tmp_path, STEPS, 2, f"--heartbeat={HEARTBEAT}", "--fail=1,6")
  wait_for_checkpoint(running, tmp_path, 4)
  began = time.monotonic()
  statuses, _, errors = finish(running)
  assert time.monotonic() - began < HEARTBEAT + 15
  assert all(status not in (0, 1, 2, hosts.RESTART) for status in statuses)
  assert "the disk of process 1 is gone" in errors and "process 1 failed; the others stop" in errors

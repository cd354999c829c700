"""Real processes: a run that is killed at random moments, and stopped politely once, equals one that never was."""

import random
import signal
import time

import pytest

from glipv2_jax.train import checkpoint
from launch import hosts
from tests.multiprocess.together import finish, lines, wait_for_step

STEPS = 80


@pytest.fixture
def cached(tmp_path):
  """Only the first start compiles."""
  cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
  return lambda port, process: cache | {"JAX_NUM_CPU_DEVICES": "1"}


def test_killed_and_stopped_runs_equal_one_that_never_was(tmp_path, start, cached):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  statuses, last, errors = finish(start(whole, STEPS, 1, cluster=cached))
  assert (statuses, last) == ([0], [f"finished {STEPS}"]), errors

  pick = random.Random()
  for begin in (1, 20):
    running = start(parts, STEPS, 1, cluster=cached)
    wait_for_step(running, parts, begin)
    time.sleep(pick.uniform(0, 0.3))
    running[0].kill()
    assert finish(running)[0] == [-signal.SIGKILL]

  running = start(parts, STEPS, 1, cluster=cached)
  wait_for_step(running, parts, 45)  # further than the killed runs can have come: a step takes 0.03 s or more
  running[0].send_signal(signal.SIGTERM)
  statuses, last, errors = finish(running)
  status, step = last[0].split()
  assert (statuses, status) == ([hosts.RESTART], "stopped"), errors
  assert checkpoint.read_meta(parts).step == int(step) == lines(parts)[-1]["step"] < STEPS

  statuses, last, errors = finish(start(parts, STEPS, 1, cluster=cached))
  assert (statuses, last) == ([0], [f"finished {STEPS}"]), errors
  assert lines(parts) == lines(whole)
  assert [line["step"] for line in lines(whole)] == list(range(1, STEPS + 1))

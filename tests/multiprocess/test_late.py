"""A process that compiles longer than the transport waits for it: the others wait at a barrier before they connect."""

import os
import pathlib
import subprocess
import sys

from tests.multiprocess.together import finish, free_port

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORKER = pathlib.Path(__file__).with_name("late_worker.py")
LATE = 40  # seconds; Gloo gives up after 30


def test_the_fast_process_waits_for_the_one_that_compiles():
  port, environment = free_port(), {**os.environ, "PYTHONPATH": str(ROOT)}
  running = [
    subprocess.Popen(
      [sys.executable, str(WORKER), str(port), str(i), str(LATE)],
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  statuses, last, errors = finish(running)
  assert statuses == [0, 0], errors
  assert last == ["6.0 2", "6.0 2"]  # the sum of 0, 1, 2, 3; traced once for each of two shapes

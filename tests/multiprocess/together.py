"""Starts train_toy.py as several real processes, and looks at what they leave. For the tests of this folder."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

from glipv2_jax.train import checkpoint, metrics

PROGRAM = pathlib.Path(__file__).with_name("train_toy.py")
DEVICES = 8  # in all
TIMES = ("images_per_second", "data_seconds", "seconds")


def free_port():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


def start(folder, steps, processes, *more, cluster=None):
  """`cluster`: a function (port, number of a process) -> environment, for several processes that of Slurm; None:
  explicit options."""
  port = free_port()
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(DEVICES // processes)}
  running = []
  for i in range(processes):
    explicit = [f"--coordinator=127.0.0.1:{port}", f"--process_count={processes}", f"--process_id={i}"]
    place = [] if processes == 1 else explicit if cluster is None else ["--cluster=slurm"]
    command = [sys.executable, str(PROGRAM), str(folder), str(steps), *place, *more]
    own = cluster(port, i) if cluster else {}
    running.append(
      subprocess.Popen(command, env=environment | own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    )
  return running


def finish(running, timeout=600):
  """(exit statuses, last lines of output, all errors)."""
  try:
    outputs = [process.communicate(timeout=timeout) for process in running]
  finally:
    for process in running:
      process.kill()
  last = [output.strip().split("\n")[-1] for output, _ in outputs]  # gloo prints lines of its own before
  return [process.returncode for process in running], last, "\n".join(errors for _, errors in outputs)


def lines(folder):
  """Complete lines of the log, without clock times."""
  path = folder / metrics.JSON_LINES
  found = [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []
  return [{name: value for name, value in line.items() if name not in TIMES} for line in found]


def wait_for_step(running, folder, step):
  """Until the log has it. Raises AssertionError when a process ends before, or after ten minutes."""
  _wait(running, lambda: [line for line in lines(folder) if line["step"] >= step], f"no step {step} in {folder}")


def wait_for_checkpoint(running, folder, step):
  """Until it is complete; see `wait_for_step`."""
  finished = folder / checkpoint.FOLDER / f"{step:08d}" / "commit_success.txt"
  _wait(running, finished.exists, f"no checkpoint of step {step} in {folder}")


def _wait(running, condition, otherwise):
  deadline = time.monotonic() + 600
  while not condition():
    ended = [process for process in running if process.poll() is not None]
    assert not ended or condition(), ended[0].communicate()[1]
    assert time.monotonic() < deadline, otherwise
    time.sleep(0.05)

"""Two processes, each predicting its share, give the report of one: nothing lost, nothing twice, one of them scores."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORKER = pathlib.Path(__file__).with_name("evaluation_worker.py")


def report_of(count, folder):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  out = folder / f"report_{count}.json"
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  running = [
    subprocess.Popen(
      [sys.executable, str(WORKER), str(port), str(count), str(i), str(out)],
      cwd=ROOT,
      env=environment,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(count)
  ]
  try:
    errors = [process.communicate(timeout=900)[1] for process in running]
  finally:
    for process in running:
      process.kill()
  for process, error in zip(running, errors, strict=True):
    assert process.returncode == 0, error[-3000:]
  return json.loads(out.read_text())


def test_two_processes_report_what_one_reports(tmp_path):
  one, two = (report_of(count, tmp_path)["sources"]["shapes_val/grounding"] for count in (1, 2))
  assert two["images"] == one["images"] == 9
  assert two["phrases"] == one["phrases"] > 9
  assert 0 < one["grounding_recall_upper_bound"] < 1
  for name, value in one.items():
    if name.startswith("grounding_recall"):
      assert two[name] == pytest.approx(value)

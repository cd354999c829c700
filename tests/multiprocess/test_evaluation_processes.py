"""Two processes, each predicting its share, write the predictions and the report of one; also when both are killed."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORKER = pathlib.Path(__file__).with_name("evaluation_worker.py")
FILES = ("captions.json", "kinds.json")


def start(count, folder, die=""):
  """The exit statuses of `count` processes, and what they wrote to standard error."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  environment = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "XLA_FLAGS": "--xla_llvm_disable_expensive_passes=true",  # a few batches are not worth good code
    "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "cache"),  # so that only the first start compiles
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  running = [
    subprocess.Popen(
      [sys.executable, str(WORKER), str(port), str(count), str(i), str(folder), die],
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
  return [process.returncode for process in running], errors


def report_of(count, folder):
  statuses, errors = start(count, folder)
  assert statuses == [0] * count, "\n".join(error[-3000:] for error in errors)
  return json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  """The folder of one process of eight devices, and its report."""
  folder = tmp_path_factory.mktemp("evaluation") / "one"
  return folder, report_of(1, folder)


def same(report, expected, folder, other):
  for name in FILES:
    assert (folder / name).read_text() == (other / name).read_text(), name
  for name, metrics in expected["sources"].items():
    files = {"annotations": str(folder / f"{name}.truth.json"), "predictions": str(folder / f"{name}.json")}
    ours = report["sources"][name]
    assert {**ours, "seconds": 0} == {**metrics, "seconds": 0, **files}  # each names its own files


def test_two_processes_write_and_report_what_one_does(alone):
  """25 captions and 9 pictures in batches of eight: the last ones are mostly padding."""
  other, expected = alone
  captions, kinds = (expected["sources"][name] for name in ("captions", "kinds"))
  assert captions["images"] == 25 and kinds["images"] == 9 and captions["phrases"] > 25
  assert 0 < captions["R@upper_bound"] < 1
  assert len(json.loads((other / "kinds.json").read_text())) > 9
  folder = other.parent / "two"
  same(report_of(2, folder), expected, folder, other)


@pytest.mark.parametrize("again", [2, 1])
def test_killed_and_started_again_with_as_many_processes_or_fewer(alone, again):
  other, expected = alone
  folder = other.parent / f"killed_{again}"
  statuses, errors = start(2, folder, die="2")
  assert statuses == [9, 9], errors
  kept = {path.name: path.stat().st_mtime_ns for path in (folder / ".captions").glob("*.jsonl")}
  assert sorted(kept) == [f"{batch:08d}.{host}-of-2.jsonl" for batch in (0, 1) for host in (0, 1)]
  assert not (folder / "captions.json").exists()
  same(report_of(again, folder), expected, folder, other)

"""Processes that prepare data end with the program that started them, also when it is killed."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = """
import os, time
from pipelines.prepare import ranges

def work(source, part):
  print(os.getpid(), flush=True)
  time.sleep(600)

if __name__ == "__main__":
  list(ranges.over(ranges.SourceSpec("shapes"), work, ranges.split(4, 1), 2))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes by their number")
def test_workers_end_with_a_killed_program(tmp_path):
  (tmp_path / "program.py").write_text(PROGRAM)
  env = os.environ | {"PYTHONPATH": str(ROOT)}
  with subprocess.Popen(
    [sys.executable, str(tmp_path / "program.py")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env
  ) as main:
    workers = [int(main.stdout.readline()) for _ in range(2)]
    assert len(set(workers)) == 2 and all(pathlib.Path(f"/proc/{pid}").exists() for pid in workers)
    main.kill()
  deadline = time.monotonic() + 20
  while any(pathlib.Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
    time.sleep(0.1)
  assert not any(pathlib.Path(f"/proc/{pid}").exists() for pid in workers)

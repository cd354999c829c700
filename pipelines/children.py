"""Processes that read for the main one must not outlive it."""

import os
import threading
from multiprocessing import connection, parent_process


def end_with_parent() -> None:
  """Run in a child at its start: it ends when the process that started it has ended, however that was (kill -9 too)."""

  def watch() -> None:
    connection.wait([parent_process().sentinel])
    os._exit(1)

  threading.Thread(target=watch, daemon=True, name="end_with_parent").start()

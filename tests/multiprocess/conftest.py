"""Processes that a test starts never outlive it."""

import pytest

from tests.multiprocess import together


@pytest.fixture
def start():
  """`together.start`; what still runs when the test ends is killed."""
  running = []

  def begin(*arguments, **options):
    begun = together.start(*arguments, **options)
    running.extend(begun)
    return begun

  yield begin
  for process in running:
    process.kill()

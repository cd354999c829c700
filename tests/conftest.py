"""Shared fixtures. Eight fake CPU devices, so that sharded code is tested on every machine."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis
import jax
import pytest
from absl import flags

hypothesis.settings.register_profile("any machine", deadline=None)  # a slow one is no failure
hypothesis.settings.load_profile("any machine")
jax.config.update("jax_num_cpu_devices", 8)
if not flags.FLAGS.is_parsed():
  flags.FLAGS.mark_as_parsed()  # grain's worker processes read absl flags

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
  """Small number files that travel with the project."""
  return ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
  """Reference data beside the checkout; tests that need it are skipped where it is absent."""
  path = ROOT.parent / "shared"
  if not (path / "data").is_dir():
    pytest.skip("needs the reference data folder ../shared, which this machine does not have")
  return path

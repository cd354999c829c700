"""A training program on the toy model, for tests that kill it or run several of it.

python tests/multiprocess/train_toy.py FOLDER STEPS [--fail P,N] [--stall P,N] [options of launch/hosts.py]

At step N the data of process P raises an error, or never comes.
"""

import argparse
import functools
import pathlib
import sys
import time
import types

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import jax  # noqa: E402

from glipv2_jax.train import loop  # noqa: E402
from launch import hosts  # noqa: E402
from tests import tiny, toy  # noqa: E402


def slow_data(fail, stall, start):
  """This process's rows of every global batch."""
  process = jax.process_index()
  own = slice(process, None, jax.process_count())
  while True:
    time.sleep(3600 if (process, start + 1) == stall else 0.03)
    if (process, start + 1) == fail:
      raise OSError(f"the disk of process {process} is gone")
    batch = jax.tree.map(lambda x: x[own], tiny.batch(start))
    yield types.SimpleNamespace(batch=batch, skipped=(), reduced=(), rows={"toy": len(batch.image)})
    start += 1


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("folder")
  parser.add_argument("steps", type=int)
  for name in ("--fail", "--stall"):
    parser.add_argument(name, type=lambda text: tuple(map(int, text.split(","))))
  for name, (default, kind, _) in hosts.OPTIONS.items():
    parser.add_argument(f"--{name}", default=default, type=kind)
  options = parser.parse_args()
  config = loop.TrainConfig(
    total_steps=options.steps, log_every=1, checkpoint_every=4, fsdp=-1, data=1, shard_min_size=1
  )
  data = functools.partial(slow_data, options.fail, options.stall)

  def program():
    result = loop.train(toy.OBJECTIVE, tiny.optimizer_config(), config, data, options.folder, variant="toy", record={})
    print(result.status, result.step)
    return hosts.RESTART if result.status == "stopped" else 0

  return hosts.run(hosts.Hosts(**{name: getattr(options, name) for name in hosts.OPTIONS}), program)


if __name__ == "__main__":
  sys.exit(main())

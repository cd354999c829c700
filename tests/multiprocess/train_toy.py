"""A training program on the toy model, for tests that kill it or run several of it.

python tests/multiprocess/train_toy.py FOLDER STEPS [COORDINATOR PROCESSES PROCESS]
"""

import pathlib
import sys
import time
import types

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import jax  # noqa: E402

from glipv2_jax.train import loop  # noqa: E402
from tests import tiny, toy  # noqa: E402


def slow_data(start):
  """This process's rows of every global batch."""
  own = slice(jax.process_index(), None, jax.process_count())
  while True:
    time.sleep(0.03)
    batch = jax.tree.map(lambda x: x[own], tiny.batch(start))
    yield types.SimpleNamespace(batch=batch, skipped=(), reduced=(), rows={"toy": 8})
    start += 1


def main(folder, steps, coordinator=None, processes=1, process=0):
  if coordinator:
    jax.distributed.initialize(coordinator, int(processes), int(process))
  config = loop.TrainConfig(total_steps=int(steps), log_every=1, checkpoint_every=4, fsdp=-1, data=1, shard_min_size=1)
  result = loop.train(toy.OBJECTIVE, tiny.optimizer_config(), config, slow_data, folder, variant="toy", record={})
  print(result.status, result.step)


if __name__ == "__main__":
  main(*sys.argv[1:])

"""Program of test_evaluation_processes.py: PORT COUNT ID FOLDER [DIE]. COUNT processes score a tiny random network.

DIE: every process ends like a killed one after so many batches.
"""

import dataclasses
import json
import os
import pathlib
import sys

import jax
import numpy as np

TOKENS = 64


def main(port: str, count: str, number: str, folder: str, die: str = "") -> None:
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", 8 // int(count))  # eight devices in all
  if int(count) > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", int(count), int(number))

  from absl import flags

  from glipv2_jax.infer import InferConfig
  from glipv2_jax.models import glipv2
  from glipv2_jax.parallel.mesh import make_mesh
  from glipv2_jax.parallel.rules import shardings
  from launch import scoring, shards
  from launch.official import Evaluated
  from launch.predicting import Predictor
  from pipelines.build import DataConfig
  from tests import tiny

  flags.FLAGS.mark_as_parsed()
  model = dataclasses.replace(tiny.model(), max_tokens=TOKENS)
  model = dataclasses.replace(model, text=dataclasses.replace(model.text, vocab_size=512, positions=TOKENS))
  mesh = make_mesh(data=4, fsdp=2)
  rng = np.random.default_rng(0)
  shapes = glipv2.abstract_params(model)
  noise = jax.tree.map(lambda x: 0.1 * rng.normal(size=x.shape).astype(np.float32), shapes)
  places = shardings(shapes, mesh, min_size=64)
  params = jax.tree.map(lambda x, s: jax.make_array_from_callback(x.shape, s, lambda i: x[i]), noise, places)

  if die:
    shards.BATCHES = 1
    add, seen = shards.Shards.add, []

    def add_and_die(self, *rows):
      add(self, *rows)
      seen.append(rows)
      if len(seen) == int(die):
        os._exit(9)

    shards.Shards.add = add_and_die

  size = {"split": "val", "size": (64, 64)}
  sources = (
    Evaluated("captions", ("shapes", 1.0, (*size.items(), ("length", 25), ("task", "grounding")))),
    Evaluated("kinds", ("shapes", 1.0, (*size.items(), ("length", 9), ("task", "detection"), ("names", "kind")))),
  )
  data = DataConfig((), "shapes", TOKENS, canvases=((64, 64),), batch=8)
  predictor = Predictor(model, InferConfig(threshold=0.001, max_detections=20), mesh)
  cfg = scoring.ScoringConfig(sources, per_prompt=5)
  out = pathlib.Path(folder)
  report = scoring.evaluate(predictor, params, data, cfg, out=out, about={"step": 1}, resume=True, quiet=True)
  assert bool(report) == (jax.process_index() == 0)
  if report:
    (out / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
  main(*sys.argv[1:])

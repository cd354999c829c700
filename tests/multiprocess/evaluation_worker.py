"""Program of test_evaluation_processes.py: PORT COUNT ID OUT. Scores a tiny random network with COUNT processes."""

import dataclasses
import json
import pathlib
import sys

import jax
import numpy as np

TOKENS = 64


def main(port: str, count: str, number: str, out: str) -> None:
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", 4 // int(count))  # four devices in all
  if int(count) > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", int(count), int(number))

  from absl import flags

  from glipv2_jax.infer import InferConfig
  from glipv2_jax.models import glipv2
  from glipv2_jax.parallel.mesh import make_mesh
  from glipv2_jax.parallel.rules import shardings
  from launch import scoring
  from launch.predicting import Predictor
  from pipelines.build import DataConfig
  from tests import tiny

  flags.FLAGS.mark_as_parsed()
  model = dataclasses.replace(tiny.model(), max_tokens=TOKENS)
  model = dataclasses.replace(model, text=dataclasses.replace(model.text, vocab_size=512, positions=TOKENS))
  mesh = make_mesh(data=2, fsdp=2)
  rng = np.random.default_rng(0)
  shapes = glipv2.abstract_params(model)
  noise = jax.tree.map(lambda x: 0.1 * rng.normal(size=x.shape).astype(np.float32), shapes)
  places = shardings(shapes, mesh, min_size=64)
  params = jax.tree.map(lambda x, s: jax.make_array_from_callback(x.shape, s, lambda i: x[i]), noise, places)
  options = {"split": "val", "size": (64, 64), "length": 9, "task": "grounding"}
  data = DataConfig((("shapes", 1.0, tuple(options.items())),), "shapes", TOKENS, canvases=((64, 64),), batch=4)
  predictor = Predictor(model, InferConfig(threshold=0.001, max_detections=20), mesh)
  report = scoring.evaluate(predictor, params, data, quiet=True)
  assert bool(report) == (jax.process_index() == 0)
  if report:
    pathlib.Path(out).write_text(json.dumps(report))


if __name__ == "__main__":
  main(*sys.argv[1:])

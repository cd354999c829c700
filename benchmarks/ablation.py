"""What the losses of the paper's Table 4 do on the embedded data: rows x seeds of configs/ablation.py, as JSON.

  python -m benchmarks.ablation --workdir runs/ablation --rows 3 5 6 --seeds 0 1 2 --steps 2000 --out ablation.json

The runs go one after another, each in its own process, seed by seed, so that an unfinished table holds whole seeds.
Started again the program goes on where it was; `--collect` only reads what is there. For every row: mean, spread
(standard deviation with n - 1) and the values of its seeds, and the differences to the first row, seed by seed.
A seed decides the initial parameters and the order of the data.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

from configs import ablation, common
from glipv2_jax.train import checkpoint
from launch.train import METRICS

# metric -> the entry of eval.sources (configs/ablation.py) and its metric in the report of a run
VALUES = {
  "AP": ("pairs", "AP"),
  "AP50": ("pairs", "AP50"),
  "unseen_AP": ("unseen", "unseen_AP"),
  "unseen_AP50": ("unseen", "unseen_AP50"),
  "recall_at_1": ("captions", "R@1"),
}


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", type=pathlib.Path, required=True, help="holds one run folder per row and seed")
  parser.add_argument("--rows", nargs="+", default=["3", "5", "6"], choices=sorted(common.TABLE_4))
  parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
  parser.add_argument("--steps", type=int, default=2000)
  parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="further fields: optim.lr=5e-4")
  parser.add_argument("--cpu_devices", type=int, default=2)
  parser.add_argument("--collect", action="store_true", help="train nothing")
  parser.add_argument("--out", type=pathlib.Path)
  options = parser.parse_args(argv)
  if not options.collect:
    for seed in options.seeds:
      for row in options.rows:
        train(options, row, seed)
  report = collect(options.workdir, options.rows, options.seeds, options.steps)
  text = json.dumps(report, indent=2)
  print(text)
  if options.out:
    options.out.write_text(text + "\n")
  return 0


def folder(workdir: pathlib.Path, row: str, seed: int) -> pathlib.Path:
  return workdir / f"row{row}_seed{seed}"


def train(options: argparse.Namespace, row: str, seed: int) -> None:
  """Runs `glipv2 train`, which continues an unfinished run and does nothing in a finished one."""
  run = folder(options.workdir, row, seed)
  if _finished(run, options.steps):
    return
  fields = (f"train.total_steps={options.steps}", f"train.seed={seed}", f"data.seed={seed}", *options.set)
  command = [sys.executable, "-m", "launch.train", f"--config={ablation.__file__}:row={row}", f"--workdir={run}"]
  command += [f"--cpu_devices={options.cpu_devices}", *(f"--config.{field}" for field in fields)]
  cache = {"JAX_COMPILATION_CACHE_DIR": str((options.workdir / "compiled").resolve())}
  subprocess.run(command, check=True, env={**cache, **os.environ})


def collect(workdir: pathlib.Path, rows: list[str], seeds: list[int], steps: int) -> dict:
  """The table of the runs that are finished; `missing` names the others."""
  found = {
    row: {
      seed: json.loads((folder(workdir, row, seed) / METRICS).read_text())["sources"]
      for seed in seeds
      if _finished(folder(workdir, row, seed), steps)
    }
    for row in rows
  }
  values = {
    row: {name: {seed: runs[seed][source][key] for seed in runs} for name, (source, key) in VALUES.items()}
    for row, runs in found.items()
  }
  first = values[rows[0]]
  table = {}
  for row in rows:
    differences = {
      name: [value - first[name][seed] for seed, value in of_seed.items() if seed in first[name]]
      for name, of_seed in values[row].items()
    }
    table[row] = {
      "terms": common.TABLE_4[row],
      "seeds": list(found[row]),
      **{name: summary(list(of_seed.values())) for name, of_seed in values[row].items()},
      **({f"minus_row_{rows[0]}": {n: summary(d) for n, d in differences.items()}} if row != rows[0] else {}),
    }
  missing = [folder(workdir, row, seed).name for row in rows for seed in seeds if seed not in found[row]]
  return {"steps": steps, "rows": table, "missing": missing, "runs": _origin(workdir, found)}


def summary(values: list[float]) -> dict | None:
  """Mean, spread and the values themselves; None of nothing."""
  if not values:
    return None
  spread = statistics.stdev(values) if len(values) > 1 else None
  return {"mean": round(statistics.mean(values), 4), "spread": spread and round(spread, 4), "values": values}


def _finished(run: pathlib.Path, steps: int) -> bool:
  path = run / METRICS
  return path.exists() and json.loads(path.read_text())["step"] == steps


def _origin(workdir: pathlib.Path, found: dict) -> dict:
  """What the first of the runs was trained with."""
  runs = [folder(workdir, row, seed) for row, seeds in found.items() for seed in seeds]
  if not runs:
    return {}
  meta = checkpoint.read_meta(runs[0])
  return {"git": meta.git, "batch": meta.config["data"]["batch"], "optim": meta.config["optim"]}


if __name__ == "__main__":
  sys.exit(main())

"""The host pipeline beside bare JPEG decoding and a PyTorch DataLoader, its memory and its start-up, as JSON.

  python -m benchmarks.pipeline speed [--photos DIR] [--tokenizer vocab.txt] [--workers 2]
  python -m benchmarks.pipeline padding
  python -m benchmarks.pipeline memory [--examples 200000]
  python -m benchmarks.pipeline index [--rows 10000000]

speed: examples per second and core on JPEGs of COCO's sizes in pixels and bytes (photos of --photos resized to them,
else noise), by stage and as a whole, with the prompts of pre-training, on its canvases, where most pictures are
enlarged, and on canvases of COCO's size, where few are. In the same run, by turns (medians), (a) decoding alone, full
size, with the fastest decoder: the limit; the same with resizing onto the canvas, which no pipeline can leave out;
(b) torch.utils.data.DataLoader doing the same work with Pillow and transformers. Both give uint8 pictures on the same
canvases, tokens and positive maps. With --workers both also run in so many processes.
padding: the share of pixels without a picture for COCO's shapes, batches of one shape and mixed batches.
memory: resident memory of this process and its worker over many examples.
index: start-up, seeking and memory with many rows, as json lines and as ArrayRecord shards.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import io
import itertools
import json
import multiprocessing
import pathlib
import pickle
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator

import cv2
import jax
import numpy as np
import simplejpeg
from PIL import Image

from benchmarks import torch_loader
from benchmarks.coco_like import COCO_SIZES, write_coco
from configs import common
from launch import data
from pipelines import build, images, mixture, prompts
from pipelines.collate import collate
from pipelines.prepare_example import Prepare
from pipelines.words import load_words

ROUNDS = 5  # everything is measured so many times, by turns: the speed of a machine drifts
PER_SHARD = 2000  # records


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("part", choices=PARTS)
  parser.add_argument("--photos", type=pathlib.Path, help="folder of JPEGs to make the pictures from")
  parser.add_argument("--tokenizer", default="shapes")
  parser.add_argument("--pictures", type=int, default=128)
  parser.add_argument("--workers", type=int, default=0)
  parser.add_argument("--seconds", type=float, default=10.0, help="of every measurement")
  parser.add_argument("--examples", type=int, default=200_000)
  parser.add_argument("--rows", type=int, default=10_000_000)
  parser.add_argument("--out", type=pathlib.Path)
  options = parser.parse_args(argv)
  with tempfile.TemporaryDirectory() as folder:
    report = {"part": options.part, **PARTS[options.part](pathlib.Path(folder), options)}
  text = json.dumps(report, indent=2)
  print(text)
  if options.out:
    options.out.write_text(text + "\n", encoding="utf-8")
  return 0


def config(source: build.SourceEntry, tokenizer: str, **changes) -> build.DataConfig:
  """As configs/common.py has it, with this source."""
  c = common.base().data
  given = dict(
    sources=(source,), tokenizer=tokenizer, max_tokens=c.max_tokens, canvases=c.canvases, batch=16, pixels=c.pixels
  )
  return build.DataConfig(**given | changes)


# Speed.


def speed(folder: pathlib.Path, options: argparse.Namespace) -> dict:
  source = write_coco(folder, options.pictures, options.photos)
  files = [(folder / f"{i}.jpg").read_bytes() for i in range(options.pictures)]
  cfg = config(source, options.tokenizer)
  canvases = {"pretraining canvases": cfg, "480x640": dataclasses.replace(cfg, canvases=((480, 640), (640, 480)))}
  work: dict[str, tuple[Iterable, int]] = {
    f"decode: {name}": (map(decoder, itertools.cycle(files)), 1) for name, decoder in DECODERS.items()
  }
  for name, one in canvases.items():
    work[f"decode and resize: {name}"] = _decode_and_resize(one), 1
    work[f"pipeline: {name}"] = _one_core(one), cfg.batch
    work[f"torch: {name}"] = torch_loader.load(one, 0), cfg.batch
  work["pipeline: pretraining canvases, exact pixels"] = _one_core(dataclasses.replace(cfg, pixels="exact")), cfg.batch
  found = rates(work, options.seconds)
  report = {
    "pictures": options.pictures,
    "kilobytes_per_picture": round(sum(map(len, files)) / len(files) / 1000, 1),
    "examples_per_second_and_core": found,
    "pipeline": {
      name: {
        "of_decoding": round(found[f"pipeline: {name}"] / found["decode: simplejpeg"], 2),
        "of_decoding_and_resizing": round(found[f"pipeline: {name}"] / found[f"decode and resize: {name}"], 2),
        "limit_of_decoding": round(found[f"decode and resize: {name}"] / found["decode: simplejpeg"], 2),
        "times_torch": round(found[f"pipeline: {name}"] / found[f"torch: {name}"], 2),
      }
      for name in canvases
    },
    "milliseconds_by_stage": {
      name: stages(dataclasses.replace(cfg, pixels=name), options.seconds) for name in ("fast", "exact")
    },
  }
  if options.workers:
    many = dataclasses.replace(cfg, workers=options.workers)
    per_second = functools.partial(
      rate, seconds=options.seconds, each=cfg.batch, warm=4 * options.workers, clock=time.perf_counter
    )
    with build.train_batches(many) as batches:
      pipeline = per_second(batches)
    torch_many = per_second(torch_loader.load(cfg, options.workers))
    report["examples_per_second_in_processes"] = {
      "processes": options.workers, "pipeline": pipeline, "torch": torch_many, "times": round(pipeline / torch_many, 2),
    }  # fmt: skip
  return report


def rates(work: dict[str, tuple[Iterable, int]], seconds: float) -> dict[str, float]:
  """The median rate of each, measured by turns for `seconds` in all. Values of `work`: items, examples in each."""
  iterators = {name: (iter(items), each) for name, (items, each) in work.items()}
  found: dict[str, list[float]] = {name: [] for name in work}
  for _ in range(ROUNDS):
    for name, (items, each) in iterators.items():
      found[name].append(rate(items, seconds / ROUNDS, each))
  return {name: statistics.median(values) for name, values in found.items()}


def rate(
  items: Iterable, seconds: float, each: int = 1, warm: int = 2, clock: Callable[[], float] = time.process_time
) -> float:
  """Items per second, times `each`: seconds of one core at work, or with time.perf_counter of the clock on the wall."""
  items = iter(items)
  for _ in range(warm):
    next(items)
  began, count = clock(), 0
  while clock() - began < seconds:
    next(items)
    count += each
  return round(count / (clock() - began), 1)


def _simplejpeg(data: bytes) -> np.ndarray:
  return simplejpeg.decode_jpeg(data, "RGB")


def _opencv(data: bytes) -> np.ndarray:
  return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


def _pillow(data: bytes) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


DECODERS = {"simplejpeg": _simplejpeg, "opencv": _opencv, "pillow": _pillow}


def _decode_and_resize(cfg: build.DataConfig) -> Iterator[None]:
  """Decodes the pictures of training and resizes them onto their canvas, over and over, and nothing else."""
  (source,) = sources = build.open_sources(cfg, load_words(cfg.tokenizer, cfg.max_tokens))
  place = build.mix(cfg, sources)
  places = [place(k) for k in range(64 * cfg.batch)]
  files = [source[i].image for i in range(len(source))]
  geometries = [images.fit(images.size_of(files[p.record]), p.canvas) for p in places]
  canvases = {canvas: np.zeros((*canvas, 3), np.uint8) for canvas in cfg.canvases}
  for p, geometry in itertools.cycle(zip(places, geometries, strict=True)):
    geometry.draw(images.decode(files[p.record], at_least=geometry.size), canvases[p.canvas], fast=True)
    yield


def _one_core(cfg: build.DataConfig) -> Iterable:
  """The batches of training, made one after the other in this thread."""
  words = load_words(cfg.tokenizer, cfg.max_tokens)
  sources = build.open_sources(cfg, words)
  place = build.mix(cfg, sources)
  examples = mixture.stream(place).map_with_index(Prepare(sources, words, cfg.prepare(), place))
  batches = mixture.local_batches(
    examples, functools.partial(collate, max_boxes=cfg.max_boxes), batch=cfg.batch, host=0, hosts=1
  )
  return (batches[n] for n in itertools.count())


def stages(cfg: build.DataConfig, seconds: float) -> dict[str, float]:
  """Milliseconds per example of every stage, each by itself on one core."""
  words = load_words(cfg.tokenizer, cfg.max_tokens)
  sources = build.open_sources(cfg, words)
  place, prepare_cfg, fast = build.mix(cfg, sources), cfg.prepare(), cfg.pixels == "fast"
  prepare = Prepare(sources, words, prepare_cfg, place)
  places = [place(k) for k in range(4 * cfg.batch)]
  examples = [sources[0][p.record] for p in places]
  rng = np.random.default_rng(0)
  geometries = [
    images.fit(images.size_of(e.image), p.canvas, flipped=bool(i % 2)) for i, (e, p) in enumerate(zip(examples, places))
  ]
  enough = [geometry.size if fast else None for geometry in geometries]
  decoded = [images.decode(e.image, at_least=size) for e, size in zip(examples, enough)]
  canvas = {size: np.empty((*size, 3), np.uint8) for size in cfg.canvases}
  ready = [prepare(k, p) for k, p in enumerate(places[: cfg.batch])]
  host = collate(ready, cfg.max_boxes)
  drawn = [dataclasses.replace(p, draw=lambda out: None) for p in ready]  # stacking all the rest
  device = jax.devices()[0]

  def per_example(step: Callable[[int], object], count: int = len(places), each: int = 1) -> float:
    return round(1000 / rate(map(step, itertools.cycle(range(count))), seconds / 5, each), 3)

  classes = sources[0].classes
  return {
    "order": per_example(place),
    "read": per_example(lambda i: sources[0][places[i].record]),
    "prompt": per_example(lambda i: prompts.prompt_example(examples[i], classes, rng, words, cfg.prompt)),
    "decode": per_example(lambda i: images.decode(examples[i].image, at_least=enough[i])),
    "resize": per_example(lambda i: geometries[i].draw(decoded[i], canvas[places[i].canvas], fast)),
    "collate": per_example(lambda i: collate(drawn, cfg.max_boxes), each=cfg.batch),
    "transfer": per_example(
      lambda i: jax.block_until_ready(jax.device_put(host.batch, device, may_alias=False)), each=cfg.batch
    ),
  }


# Padding.


def padding(folder: pathlib.Path, options: argparse.Namespace) -> dict:
  """Exact arithmetic on sizes: no picture is read."""
  del folder
  rng = np.random.default_rng(0)
  sizes, frequencies = zip(*COCO_SIZES, strict=True)
  drawn = np.array(sizes, np.int32)[rng.choice(len(sizes), size=20_000, p=frequencies)]
  former = common.landscape_and_portrait((480, 832), (560, 960), (640, 1088), (720, 1216), (800, 1344))
  canvases = config(("shapes", 1.0, ()), options.tokenizer).canvases

  def share(canvases: tuple, known: np.ndarray | None) -> float:
    place = mixture.Mixture([len(drawn)], [1.0], canvases, 16, 0, sizes=lambda source: known)
    filled = total = 0
    for k in range(16 * 1000):
      found = place(k)
      filled += np.prod(images.fit(tuple(drawn[found.record].tolist()), found.canvas).size)
      total += np.prod(found.canvas)
    return round(float(1 - filled / total), 3)

  return {
    "canvases of configs/common.py, batches of one shape": share(canvases, drawn),
    "the same, sizes unknown": share(canvases, None),
    "canvases of the authors' longest sides, batches of one shape": share(former, drawn),
  }


# Memory.


def resident() -> float:
  """MiB of this process and its children, what they share counted once each."""
  pids = [str(pathlib.Path("/proc/self").resolve().name)]
  for task in pathlib.Path("/proc/self/task").iterdir():
    pids += (task / "children").read_text().split()
  kilobytes = 0
  for pid in pids:
    lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kilobytes += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
  return round(kilobytes / 1024, 1)


def memory(folder: pathlib.Path, options: argparse.Namespace) -> dict:
  """Small pictures, so that many pass; one worker process, as in training."""
  source = write_coco(folder, 200, None, small=64)
  cfg = config(source, options.tokenizer, canvases=((64, 64),), batch=100, workers=1)
  curve, began = {}, time.perf_counter()
  with build.train_batches(cfg) as batches:
    for n in range(options.examples // cfg.batch):
      next(batches)
      if n % max(1, options.examples // cfg.batch // 20) == 0:
        curve[(n + 1) * cfg.batch] = resident()
    curve[options.examples] = resident()
  seconds = time.perf_counter() - began
  values = list(curve.values())
  half = len(values) // 2
  return {
    "examples": options.examples,
    "seconds": round(seconds, 1),
    "mebibytes": curve,
    "growth_in_second_half": round(values[-1] - values[half], 1),
  }


# Start-up.


LINE = {
  "filename": "0.jpg", "height": 64, "width": 64,
  "grounding": {
    "caption": "a red circle left of a blue square", "regions": [
      {"phrase": "a red circle", "bbox": [1, 1, 30, 30], "tokens_positive": [[0, 12]]},
      {"phrase": "a blue square", "bbox": [20, 20, 60, 60], "tokens_positive": [[21, 34]]},
    ]
  },
}  # fmt: skip


def index(folder: pathlib.Path, options: argparse.Namespace) -> dict:
  """A grounding set in ODVG's json lines, one line over and over, and the same as shards of ArrayRecord, links to one
  file. Each is opened in a process of its own."""
  Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / "0.jpg")
  lines = write_lines(folder, options.rows)
  sets = {"json lines": lines, "array_record": write_shards(folder, options.rows)}
  report: dict = {"rows": options.rows, "file_gigabytes": round((folder / "rows.jsonl").stat().st_size / 1e9, 2)}
  for name, entry in sets.items():
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
      report[name] = process.submit(_start, entry, options.rows).result()
  return report


def write_lines(folder: pathlib.Path, rows: int, name: str = "rows.jsonl") -> build.SourceEntry:
  block = (json.dumps(LINE) + "\n").encode() * PER_SHARD
  with (folder / name).open("wb") as file:
    for _ in range(rows // PER_SHARD):
      file.write(block)
  return ("odvg_jsonl", 1.0, (("annotations", str(folder / name)), ("images", str(folder))))


def write_shards(folder: pathlib.Path, rows: int) -> build.SourceEntry:
  kind, _, options = write_lines(folder, PER_SHARD, "shard.jsonl")
  out = folder / "shards"
  words = [f"{key}={value}" for key, value in options]
  if data.main(["prepare", "--source", kind, *words, "--per-shard", str(PER_SHARD), "--out", str(out)]):
    raise RuntimeError("the shard could not be written")
  manifest = json.loads((out / "manifest.json").read_text())
  (shard,) = manifest["shards"]
  manifest["shards"] = [shard | {"file": f"{number}.array_record"} for number in range(rows // PER_SHARD)]
  for copy in manifest["shards"]:
    (out / copy["file"]).hardlink_to(out / shard["file"])
  (out / "manifest.json").write_text(json.dumps(manifest))
  np.save(out / "sizes.npy", np.tile(np.load(out / "sizes.npy"), (rows // PER_SHARD, 1)))
  return ("array_record", 1.0, (("data", str(out)),))


def _start(entry: build.SourceEntry, rows: int) -> dict:
  before, began = resident(), time.perf_counter()
  cfg = config(entry, "shapes", max_tokens=64, canvases=((64, 64),))
  with build.train_batches(cfg) as batches:
    next(batches)
  first = time.perf_counter() - began
  words = load_words("shapes", 64)
  sources = build.open_sources(cfg, words)
  began = time.perf_counter()
  with build.train_batches(cfg, start_step=rows // 2 // cfg.batch, words=words, sources=sources) as batches:
    next(batches)
  return {
    "seconds_to_first_batch": round(first, 2),
    "seconds_to_a_batch_in_the_middle": round(time.perf_counter() - began, 3),
    "mebibytes_before": before,
    "mebibytes": resident(),
    "mebibytes_at_most": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    "index_bytes_per_row": round(_pickled(sources[0]) / rows, 2),
  }


def _pickled(source: object) -> int:
  return len(pickle.dumps(source))


PARTS = {"speed": speed, "padding": padding, "memory": memory, "index": index}

if __name__ == "__main__":
  sys.exit(main())

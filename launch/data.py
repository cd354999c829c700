"""`glipv2 data`: look at a data set before it is trained on, or put it into shards.

  glipv2 data check --source coco_json annotations=train.json images=train \\
    --evaluation coco_json annotations=val.json images=val --out report
  glipv2 data stats --source odvg_jsonl annotations=a.jsonl images=pictures --out report
  glipv2 data inspect --source shapes task=grounding --count 12 --out report
  glipv2 data prepare --source coco_json annotations=a.json images=train --processes 8 --out shards
  glipv2 data prepare --source coco_json annotations=/d/a.json images=/d/train --out /d/shards --beam --runner Flink

A source is its kind and options (`pipelines/sources`), as in a configuration; values are Python literals or plain text.
The first three write JSON or PNG files into the folder of --out and print a table; `prepare` writes shards that the
source `array_record` reads, and goes on where it was when it is started again. Its shards are the same bytes whether
one process, several or Apache Beam (`--beam`, its in-process runner unless --runner follows) make them.
"""

import argparse
import functools
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

from launch.source_option import add_source, parse_source
from pipelines.prepare import ranges, shards
from pipelines.prepare.check import Findings, Hashes, check_part
from pipelines.prepare.ranges import SourceSpec
from pipelines.prepare.statistics import Statistics, count_part
from pipelines.records import BadRecord, Source

PART = 256  # records that a process takes at a time
T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; mistakes of the user end with one line and status 1. `check` ends with status 3 for faults."""
  options = _parser().parse_args(argv)
  try:
    return options.run(options)
  except (OSError, ValueError, ImportError, BadRecord) as error:
    print(f"glipv2 data {options.command}: {error}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="glipv2 data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  commands = parser.add_subparsers(dest="command", required=True)

  def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    sub = commands.add_parser(name, help=text, description=text)
    sub.set_defaults(run=run)
    add_source(sub, "the data set")
    sub.add_argument("--out", required=True, metavar="DIR", help="folder for what is written")
    return sub

  check = command("check", run_check, "broken records, ids that occur twice, pictures of an evaluation split")
  check.add_argument(
    "--evaluation", nargs="+", action="append", default=[], metavar="...", help="a split to keep out; may be repeated"
  )
  stats = command("stats", run_stats, "histograms of classes, sizes and caption lengths")
  prepare = command("prepare", run_prepare, "writes shards for the source array_record")
  prepare.add_argument("--per-shard", type=int, default=2000, help="records of the source in a shard (default 2000)")
  prepare.add_argument("--skip-limit", type=float, default=0.05, help="share that may be left out (default 0.05)")
  prepare.add_argument("--verify", action="store_true", help="compute the checksums of finished shards again")
  prepare.add_argument("--tfds", default="", metavar="SPLIT", help="write this split of a TFDS data set, for tfds_data")
  prepare.add_argument(
    "--beam", nargs=argparse.REMAINDER, metavar="...", help="work on Apache Beam; all that follows are Beam's options"
  )
  for long in (check, stats, prepare):
    long.add_argument("--processes", type=int, default=0, help="that read (default 0: this one)")
    long.add_argument("--limit", type=int, help="only the first so many records")
  inspect = command("inspect", run_inspect, "draws examples with boxes, phrases and masks")
  inspect.add_argument("--count", type=int, default=12, help="examples (default 12)")
  inspect.add_argument("--seed", type=int, default=0, help="of the draw (default 0)")
  return parser


def run_check(options: argparse.Namespace) -> int:
  """Writes check.json. Status 0, or 3 when there are faults."""
  splits = map(parse_source, options.evaluation)
  evaluation = Hashes.joined(part for split in splits for part in _over(split, Hashes.of, options.processes))
  spec, found = parse_source(options.source), Findings()
  for part in _over(spec, functools.partial(check_part, evaluation=evaluation), options.processes, options.limit):
    found.add(part)
  found.count_duplicates(ranges.opened(spec).name)
  summary = found.summary()
  _write(options.out, "check.json", summary)
  rows = [(reason, str(fault["count"]), fault["first"][0]) for reason, fault in summary["faults"].items()]
  print(f"{found.records} records, {found.boxes} boxes, {len(evaluation.records)} evaluation pictures compared")
  _print_table(("fault", "records", "for example"), rows or [("none", "0", "")])
  return 3 if rows else 0


def run_stats(options: argparse.Namespace) -> int:
  """Writes statistics.json and statistics.png."""
  from launch import plots  # matplotlib is in the extra `demo`

  numbers = Statistics()
  for part in _over(parse_source(options.source), count_part, options.processes, options.limit):
    numbers.add(part)
  summary = numbers.summary()
  _write(options.out, "statistics.json", summary)
  plots.histograms(summary, pathlib.Path(options.out) / "statistics.png")
  boxes = sum(numbers.classes.values())
  print(f"{numbers.records} records, {sum(numbers.unusable.values())} unusable {dict(numbers.unusable)}")
  _print_table(
    ("class", "boxes", "share"), [(name, str(n), f"{n / boxes:.1%}") for name, n in numbers.classes.most_common(20)]
  )
  return 0


def run_prepare(options: argparse.Namespace) -> int:
  """Writes the shards that are not finished, then manifest.json."""
  if options.processes and options.beam is not None:
    raise ValueError("--processes and --beam exclude each other; Beam has --direct_num_workers for its own runner")
  spec = parse_source(options.source)
  job = shards.start(spec, ranges.opened(spec), options.out, options.per_shard, options.limit, options.tfds)
  work = functools.partial(shards.write_shard, job=job, verify=options.verify)
  parts = ranges.split(job.length, job.per_shard)
  if options.beam is not None:
    ranges.on_beam(spec, work, parts, options.beam)
  else:
    for _ in tqdm(ranges.over(spec, work, parts, options.processes), total=len(parts), unit="shard", desc=spec.kind):
      pass
  manifest = shards.finish(job, options.skip_limit)
  print(
    f"{manifest['records']} records in {len(manifest['shards'])} shards, left out: {manifest['left_out'] or 'none'}"
  )
  return 0


def run_inspect(options: argparse.Namespace) -> int:
  """Writes examples.png."""
  from launch import examples

  source = parse_source(options.source).open()
  sheet, skipped = examples.draw(source, options.count, options.seed)
  out = pathlib.Path(options.out)
  out.mkdir(parents=True, exist_ok=True)
  sheet.save(out / "examples.png")
  for error in skipped:
    print(f"left out: {error}", file=sys.stderr)
  print(out / "examples.png")
  return 0


def _over(
  spec: SourceSpec, work: Callable[[Source, range], T], processes: int, limit: int | None = None
) -> Iterator[T]:
  length = len(ranges.opened(spec))
  parts = ranges.split(length if limit is None else min(limit, length), PART)
  return iter(tqdm(ranges.over(spec, work, parts, processes), total=len(parts), unit="part", desc=spec.kind))


def _write(folder: str, name: str, content: Mapping[str, Any]) -> None:
  path = pathlib.Path(folder) / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
  widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head) - 1)]
  for row in (head, *rows):
    print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[-1]]).rstrip())


if __name__ == "__main__":
  sys.exit(main())

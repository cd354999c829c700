"""Any source -> ArrayRecord shards, each written by one call of `write_shard`, which depends on nothing but its number.

  plan.json                       what is prepared: source, options, length, records per shard
  data-00000-of-00012.array_record, .json   a shard, and beside it its counts, bytes and SHA-256 (written last)
  sizes.npy                       height and width of every picture (not beside TFDS's records)
  manifest.json                   all of them: written when every shard is there

A shard whose json is there is finished and is not made again, so work that was cut off goes on where it was; several
machines may share the folder, and the last one to write a shard wins, with the same bytes. Bad records are left out and
counted by reason. Records are Examples (`pipelines/example_bytes.py`) or those of TFDS (`tfds_form.py`).
"""

import collections
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from pipelines import images
from pipelines.example_bytes import to_bytes
from pipelines.prepare import tfds_form
from pipelines.prepare.ranges import SourceSpec
from pipelines.records import BadRecord, Source
from pipelines.sources.array_record import MANIFEST, SIZES, VERSION

NAMED = 5  # records that a shard names for each reason
PLAN = "plan.json"


@dataclasses.dataclass(frozen=True)
class Job:
  """What is prepared, and where. Make it with `start`."""

  spec: SourceSpec
  out: str
  length: int
  per_shard: int
  tfds: str = ""  # the split of TFDS that the shards are; "": records are Examples

  @property
  def parts(self) -> int:
    return -(-self.length // self.per_shard)

  def file(self, number: int) -> pathlib.Path:
    return pathlib.Path(self.out) / f"data-{number:05d}-of-{self.parts:05d}.array_record"

  def finished(self, number: int, verify: bool = False) -> Mapping[str, Any] | None:
    """The json of a shard that is complete, None otherwise. `verify` computes its SHA-256 again."""
    path = self.file(number)
    try:
      shard = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
      whole = path.stat().st_size == shard["bytes"] and len(_sizes(shard)) == shard["records"]
      whole = whole and (not verify or _sha256(path) == shard["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
      return None
    return shard if whole else None


def start(spec: SourceSpec, source: Source, out: str, per_shard: int, limit: int | None = None, tfds: str = "") -> Job:
  """Writes plan.json, or goes on with that of an earlier start.

  Raises ValueError when the folder holds another plan, naming what differs, and as `tfds_form.check` does.
  """
  length = len(source) if limit is None else min(limit, len(source))
  if per_shard < 1 or length < 1:
    raise ValueError(f"{length} records in shards of {per_shard}: both have to be at least 1")
  plan = {
    "version": VERSION,
    "source": spec.kind,
    "options": dict(spec.options),
    "name": source.name,
    "kind": source.kind,
    "classes": list(source.classes),
    "length": length,
    "per_shard": per_shard,
  }
  if tfds:
    tfds_form.check(source, tfds)
    plan["tfds"] = tfds
  plan, path = json.loads(json.dumps(plan)), pathlib.Path(out) / PLAN
  if path.is_file():
    earlier = json.loads(path.read_text(encoding="utf-8"))
    other = [key for key in plan | earlier if earlier.get(key) != plan.get(key)]
    if other:
      changes = ", ".join(f"{key} {earlier.get(key)!r:.60} -> {plan.get(key)!r:.60}" for key in other)
      raise ValueError(f"{path} was begun with other settings ({changes}); use another folder, or remove this one")
  else:
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_json(path, plan)
  return Job(spec, out, length, per_shard, tfds)


def write_shard(source: Source, part: range, job: Job, verify: bool = False) -> Mapping[str, Any]:
  """Writes the shard of the records `part` unless it is finished, and returns its json.

  Every picture is decoded once, so that a broken one is left out here; its bytes are kept as they are.
  """
  number = part.start // job.per_shard
  if done := job.finished(number, verify):
    return done
  path, counts, named, sizes = job.file(number), collections.Counter(), {}, []
  unfinished = _unfinished(path)
  encode = tfds_form.encoder(source) if job.tfds else to_bytes
  writer = ArrayRecordWriter(str(unfinished), "group_size:1")
  try:
    for index in part:
      try:
        example = source[index]
        size = images.decode(example.image, example.record).shape[:2]
      except BadRecord as error:
        counts[error.reason] += 1
        named.setdefault(error.reason, []).append(str(error))
        continue
      writer.write(encode(example))
      sizes.append(size)
    writer.close()
    shard = {
      "file": path.name,
      "first": part.start,
      "records": len(sizes),
      "bytes": unfinished.stat().st_size,
      "sha256": _sha256(unfinished),
      "left_out": dict(counts),
      "for_example": {reason: messages[:NAMED] for reason, messages in named.items()},
      "sizes": " ".join(f"{height}x{width}" for height, width in sizes),
    }
    os.replace(unfinished, path)
  finally:
    unfinished.unlink(missing_ok=True)
  _write_json(path.with_suffix(".json"), shard)
  return shard


def finish(job: Job, skip_limit: float) -> Mapping[str, Any]:
  """Writes sizes.npy, or the metadata of TFDS where the shards are TFDS's, and manifest.json; returns the manifest.

  Raises ValueError when a shard is missing, or a larger share than `skip_limit` of the records was left out.
  """
  shards, sizes = [], []
  for number in range(job.parts):
    shard = job.finished(number)
    sizes.append(None if shard is None else _sizes(shard))
    shards.append(shard and {key: value for key, value in shard.items() if key != "sizes"})
  missing = [number for number, shard in enumerate(shards) if shard is None]
  if missing:
    raise ValueError(f"{len(missing)} of {job.parts} shards are missing, first {job.file(missing[0])}; prepare again")
  left_out = sum((collections.Counter(shard["left_out"]) for shard in shards), collections.Counter())
  share = sum(left_out.values()) / job.length
  if share > skip_limit:
    worst = next(shard["for_example"] for shard in shards if shard["left_out"])
    raise ValueError(
      f"{share:.1%} of {job.length} records cannot be used ({dict(left_out)}), more than {skip_limit:.1%}, for example "
      f"{worst}; repair the source, or allow it with --skip-limit"
    )
  plan = json.loads((pathlib.Path(job.out) / PLAN).read_text(encoding="utf-8"))
  short = [{key: shard[key] for key in ("file", "first", "records", "bytes", "sha256")} for shard in shards]
  manifest = plan | {"records": sum(s["records"] for s in shards), "left_out": dict(left_out), "shards": short}
  if job.tfds:
    tfds_form.write_metadata(job.out, manifest)
  else:
    stream = io.BytesIO()
    np.save(stream, np.concatenate(sizes))
    _write(pathlib.Path(job.out) / SIZES, stream.getvalue())
  _write_json(pathlib.Path(job.out) / MANIFEST, manifest)
  return manifest


def _unfinished(path: pathlib.Path) -> pathlib.Path:
  """Where a file is written before it gets its name: two workers may make the same one at the same time."""
  return path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.unfinished")


def _sha256(path: pathlib.Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _sizes(shard: Mapping[str, Any]) -> np.ndarray:
  """n 2 int32, height and width of a shard's pictures."""
  return np.array([size.split("x") for size in shard["sizes"].split()], np.int32).reshape(-1, 2)


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  data = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
  _write(path, data.encode())


def _write(path: pathlib.Path, data: bytes) -> None:
  unfinished = _unfinished(path)
  unfinished.write_bytes(data)
  os.replace(unfinished, path)

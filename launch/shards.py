"""The predictions of one source on disk, written while they come, so that a killed evaluation goes on where it was.

  OUT/NAME.json        the finished file: a JSON list of records in the order of the plan, in an official format
  OUT/.NAME/           about.json (whose predictions these are), the shards, and done.json once they are merged

Every process writes shards of its own, one line for each global batch, whole or not at all. A batch is done when the
parts of all processes of one start are there; the next start predicts the others, with any number of processes. All
processes must see the same folder.
"""

import json
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

BATCHES = 16  # in a shard
_NAME = re.compile(r"(?P<first>\d+)\.(?P<host>\d+)-of-(?P<hosts>\d+)\.jsonl")
Row = tuple[int, list[Any]]  # number of the row in the plan, its records


class Shards:
  """Use `missing`, `add` for each batch in that order, then `finish`; all processes do the same."""

  def __init__(self, out: pathlib.Path, name: str, about: Mapping[str, Any], resume: bool):
    """`about`: JSON-able description of everything that the predictions depend on.

    What an earlier start left is kept if `resume`, and must then be about the same; otherwise it is thrown away.
    Raises ValueError naming what differs.
    """
    self.target, self.folder = out / f"{name}.json", out / f".{name}"
    self.host, self.hosts = jax.process_index(), jax.process_count()
    self._waiting: list[tuple[int, str]] = []
    if self.host == 0:
      about = json.loads(json.dumps(about))
      kept = self.folder / "about.json"
      if not resume and self.folder.exists():
        shutil.rmtree(self.folder)
      if kept.is_file():
        _compare(json.loads(kept.read_text(encoding="utf-8")), about, out)
      else:
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(kept, json.dumps(about, indent=2))
    _together("about")

  def missing(self, batches: int) -> np.ndarray:
    """Numbers of the batches 0 .. `batches` - 1 that are still to be predicted, on every process the same."""
    done = np.zeros(batches, bool)
    if self.host == 0:
      done[:] = True if self.done() else np.isin(np.arange(batches), list(self._complete()))
    if self.hosts > 1:
      done = multihost_utils.broadcast_one_to_all(done)
    return np.flatnonzero(~np.asarray(done))

  def add(self, batch: int, rows: Sequence[Row], skipped: Sequence[tuple[str, str]]) -> None:
    """This process's rows of a batch, and the records (reason, record) that it could not predict."""
    self._waiting.append((batch, json.dumps({"batch": batch, "rows": rows, "skipped": skipped})))
    if len(self._waiting) == BATCHES:
      self._flush()

  def finish(self) -> dict[str, Any] | None:
    """Merges the shards of all processes into OUT/NAME.json. On process 0 {"images", "skipped": by reason}."""
    self._flush()
    _together("shards")
    if self.host:
      return None
    if (done := self.done()) is None:
      done = self._merge()
      _write(self.folder / "done.json", json.dumps(done))
      for shard in self.folder.glob("*.jsonl"):
        shard.unlink()
    return done

  def done(self) -> dict[str, Any] | None:
    """What `finish` of an earlier start returned, if that is still true."""
    path = self.folder / "done.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() and self.target.is_file() else None

  def _flush(self) -> None:
    if self._waiting:
      name = f"{self._waiting[0][0]:08d}.{self.host}-of-{self.hosts}.jsonl"
      _write(self.folder / name, "".join(line + "\n" for _, line in self._waiting))
      self._waiting = []

  def _complete(self) -> dict[int, list[tuple[pathlib.Path, int]]]:
    """Where the parts of every whole batch stand: file and position of the line."""
    parts: dict[tuple[int, int], dict[int, tuple[pathlib.Path, int]]] = {}
    for path in sorted(self.folder.glob("*.jsonl")):
      match = _NAME.fullmatch(path.name)
      at = 0
      with path.open("rb") as file:
        for line in file:
          batch = int(re.match(rb'\{"batch": (\d+)', line)[1])
          parts.setdefault((batch, int(match["hosts"])), {})[int(match["host"])] = path, at
          at += len(line)
    return {batch: list(found.values()) for (batch, hosts), found in sorted(parts.items()) if len(found) == hosts}

  def _merge(self) -> dict[str, Any]:
    images, skipped, part = 0, {}, self.target.with_suffix(".part")
    with part.open("w", encoding="utf-8") as out:
      between = "[\n"
      for line in _lines(self._complete()):
        images += len(line["rows"])
        for reason, _ in line["skipped"]:
          skipped[reason] = skipped[reason] + 1 if reason in skipped else 1
        for _, records in sorted(line["rows"], key=lambda row: row[0]):
          for record in records:
            out.write(between + json.dumps(record))
            between = ",\n"
      out.write("[]\n" if between == "[\n" else "\n]\n")
    part.replace(self.target)
    return {"images": images, "skipped": skipped}


def _lines(complete: Mapping[int, Sequence[tuple[pathlib.Path, int]]]) -> Iterator[dict[str, Any]]:
  """Every whole batch, its parts joined."""
  for parts in complete.values():
    lines = []
    for path, at in parts:
      with path.open("rb") as file:
        file.seek(at)
        lines.append(json.loads(file.readline()))
    yield {key: [item for line in lines for item in line[key]] for key in ("rows", "skipped")}


def _compare(kept: Mapping[str, Any], about: Mapping[str, Any], out: pathlib.Path) -> None:
  for key in sorted(kept.keys() | about.keys()):
    before, now = (side[key] if key in side else None for side in (kept, about))
    if before != now:
      raise ValueError(
        f"{out} holds predictions with another {key} ({before!r}, now {now!r}); give another folder, or remove this one"
      )


def _write(path: pathlib.Path, text: str) -> None:
  """Whole or not at all."""
  part = path.with_name(path.name + ".part")
  part.write_text(text, encoding="utf-8")
  part.replace(path)


def _together(what: str) -> None:
  """Waits for all processes."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f"evaluation {what}")

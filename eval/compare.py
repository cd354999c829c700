"""Runs beside the paper: which of the paper's numbers a run has measured, and how far it is from them."""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from eval import phrasecut_words
from eval.paper import Column, Table, baseline, value

# A metrics file that does not name its task is known by the first of these that it has, in this order.
_TELLING = {
  "CIDEr": "captions",
  "accuracy": "vqa",
  "cIoU": "phrasecut",
  "oIoU": "refexp",
  "P@1": "refexp",
  "R@1": "flickr",
  "sets": "odinw",
  "APr": "lvis",
  "AP": "coco",
}
_ODINW_SETS = 13  # of the paper's mean
_BY_SHAPE = ("coco", "lvis", "lvis_fixed")  # boxes and masks have columns of their own
TASKS = (*_BY_SHAPE, "odinw", "flickr", "phrasecut", "vqa", "captions", "grounded_captions")  # that the paper reports


@dataclasses.dataclass(frozen=True)
class Result:
  """The metrics of one task on one data set, and the files that they came from."""

  data: str  # what people call the data set
  task: str  # of eval.tasks, or a foreign name
  shape: str  # bbox or segm
  numbers: Mapping[str, Any]  # as the evaluators name them
  annotations: pathlib.Path | None = None
  predictions: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True)
class Run:
  """Everything that one run, or one metrics file, has measured."""

  name: str
  results: tuple[Result, ...]
  variant: str | None = None  # of the network
  weights: Mapping[str, float] | None = None  # of the loss terms


@dataclasses.dataclass(frozen=True)
class Cell:
  """A run's number, in percent, in a column of the paper, and the paper's own there; None: there is none."""

  number: float | None
  difference: float | None
  measure: str = ""  # which of the column's measures it is
  data: str = ""


def task_of(numbers: Mapping[str, Any]) -> str:
  """The task of a metrics file. Raises ValueError when nothing in it tells."""
  if "task" in numbers:
    return str(numbers["task"])
  found = [task for key, task in _TELLING.items() if key in numbers]
  if not found:
    raise ValueError(f"none of the known metrics ({', '.join(_TELLING)}) is among {', '.join(map(str, numbers))[:200]}")
  return found[0]


def flat(numbers: Mapping[str, Any]) -> dict[str, float | int | None]:
  """The plain numbers of a metrics file, in its order."""
  keep = {}
  for key, number in numbers.items():
    if number is None or isinstance(number, int | float) and not isinstance(number, bool):
      keep[key] = number
  return keep


def scale(task: str, key: str, number: Any) -> int:
  """What a number is multiplied with to stand in percent; 1 for counts, seconds and what is in percent already."""
  counted = not isinstance(number, float) or key in ("seconds", "accuracy") or key.endswith("seeds")
  return 1 if counted or task in ("vqa", "") else 100


def measured(results: Iterable[Result]) -> dict[str, tuple[float, str]]:
  """{measure of `eval.paper.Column`: (number in percent, data set)}, the first result of each kind.

  Detection on a data set of COCO's form is COCO's number only where the categories are COCO's 80 or the file says
  "benchmark": "coco", ODinW's mean only over 13 sets; the other tasks have one data set each.
  """
  found: dict[str, tuple[float, str]] = {}
  for result in results:
    prefix = _benchmark(result)
    for key, number in flat(result.numbers).items() if prefix else ():
      if isinstance(number, float):
        found.setdefault(f"{prefix}/{key}", (scale(result.task, key, number) * number, result.data))
  return found


def _benchmark(result: Result) -> str | None:
  """What the measures of a result begin with; None where its numbers are not the paper's."""
  numbers, task = result.numbers, result.task
  if task not in TASKS:
    return None
  if task == "coco":
    named = "benchmark" in numbers and numbers["benchmark"] == "coco"
    same = "per_category" in numbers and set(numbers["per_category"]) == phrasecut_words.COCO
    return f"coco/{result.shape}" if named or same else None
  if task == "odinw":
    runs = numbers["runs"].values() if "runs" in numbers else [numbers]
    return "odinw" if {run["sets"] for run in runs if "sets" in run} == {_ODINW_SETS} else None
  return f"{task}/{result.shape}" if task in _BY_SHAPE else task


def beside(table: Table, run: Run, setting: str | None = None) -> tuple[str, list[Cell]]:
  """The paper's row that a run is compared with, and a cell for each column of the table.

  `setting`: how the run was evaluated (`eval.paper.SETTINGS`); None leaves it open, and every column is filled.
  """
  row = baseline(table, run.variant, run.weights)
  known, paper = measured(run.results), table.row(row)
  cells = []
  for column, quoted in zip(table.columns, paper, strict=True):
    measure = _measure(column, known) if setting in (None, column.setting) else None
    if measure is None:
      cells.append(Cell(None, None))
      continue
    number, data = known[measure]
    theirs = value(quoted)
    cells.append(Cell(number, None if theirs is None else number - theirs, measure, data))
  return row, cells


def _measure(column: Column, known: Mapping[str, Any]) -> str | None:
  return next((measure for measure in column.measures if measure in known), None)

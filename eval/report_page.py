"""A report as one HTML page that needs nothing else: styles, scripts, charts and pictures are in it.

Numbers stand rounded for people, in percent; `data-value` of their cell has the number of the metrics file in full.
Nothing of the files is trusted: every text is escaped, and the page's policy lets it load nothing.
"""

import dataclasses
import html
import pathlib
from collections.abc import Sequence
from typing import Any

from eval import errors
from eval.compare import Result, Run, beside, flat, scale
from eval.paper import TABLES, Table, value
from eval.report import Analysis
from eval.report_charts import Series, line_chart
from eval.report_tables import bar, cell, code, difference, percent, row, table, text

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
SECTIONS = {
  "summary": "Results",
  "paper": "Beside the paper",
  "curves": "Precision and recall",
  "sizes": "Sizes",
  "categories": "Categories",
  "errors": "Errors",
  "worst": "Worst pictures",
  "training": "Training",
  "about": "How to read this",
}
LONG = 20  # rows from which a table can be searched


@dataclasses.dataclass(frozen=True)
class Drawn:
  """A picture with its truth and with what was found: data URIs, what they show, and a line about them."""

  about: str
  truth: str
  truth_shows: str
  found: str
  found_shows: str


@dataclasses.dataclass(frozen=True)
class Part:
  """The detections of one run on one data set, taken apart."""

  run: str
  result: Result
  analysis: Analysis
  drawn: Sequence[Drawn] = ()
  not_drawn: str = ""  # why there are no pictures


@dataclasses.dataclass(frozen=True)
class Training:
  """The curves of a run: losses and evaluations over the steps."""

  run: str
  losses: Sequence[Series]
  evaluations: Sequence[Series]


def page(
  runs: Sequence[Run],
  parts: Sequence[Part] = (),
  trainings: Sequence[Training] = (),
  *,
  setting: str | None = None,
  version: str = "",
) -> str:
  """The whole page. `setting` as in `eval.compare.beside`."""
  folder = pathlib.Path(__file__).parent
  style, script = ((folder / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
  title = "Report: " + ", ".join(run.name for run in runs)
  contents = {
    "summary": _summary(runs),
    "paper": _paper(runs, setting),
    "curves": _curves(parts),
    "sizes": _sizes(parts),
    "categories": _categories(parts),
    "errors": _errors(parts),
    "worst": _worst(parts),
    "training": _training(trainings),
    "about": _ABOUT,
  }
  links = "".join(f'<li><a href="#{key}">{name}</a></li>' for key, name in SECTIONS.items())
  sections = "\n".join(
    f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{SECTIONS[key]}</h2>\n'
    f"{content}\n</section>"
    for key, content in contents.items()
  )
  return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{text(title)}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header><h1>{text(title)}</h1><p class="soft">{_subtitle(runs, parts)}</p></header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main id="content">
{sections}
</main>
<footer>{text(f"Made by glipv2_jax {version}.".replace(" .", "."))}</footer>
<script>
{script}</script>
</body>
</html>
"""


def _subtitle(runs: Sequence[Run], parts: Sequence[Part]) -> str:
  data = sorted({result.data for run in runs for result in run.results})
  taken = f"; the predictions of {len(parts)} of them taken apart" if parts else ""
  count = sum(len(run.results) for run in runs)
  return text(f"{count} result{'s' * (count != 1)} on {', '.join(data) or 'no data set'}{taken}.")


def _summary(runs: Sequence[Run]) -> str:
  """One table for each data set and task, a row per run."""
  groups: dict[tuple[str, str, str], list[tuple[str, Result]]] = {}
  for run in runs:
    for result in run.results:
      groups.setdefault((result.data, result.task, result.shape), []).append((run.name, result))
  if not groups:
    return '<p class="nothing">These runs have not been evaluated yet.</p>'
  content = ["<p>In percent, counts as they are. A dash: nothing to score, or not measured.</p>"]
  for (data, task, _), results in groups.items():
    keys = list(dict.fromkeys(key for _, result in results for key in flat(result.numbers)))
    rows = []
    for name, result in results:
      numbers = flat(result.numbers)
      rows.append(row(name, [_number(task, key, numbers[key] if key in numbers else None) for key in keys]))
    content.append(_title(data, results[0][1]))
    content.append(table(f"Metrics of {task} on {data}", ["run", *keys], rows))
  return "\n".join(content)


def _kind(result: Result) -> str:
  return f"{result.task}, masks" if result.shape == "segm" else result.task


def _title(words: str, result: Result) -> str:
  return f'<h3>{text(words)} <span class="soft">({text(_kind(result))})</span></h3>'


def _number(task: str, key: str, number: float | int | None) -> str:
  if number is None or isinstance(number, int):
    return cell(number, None if number is None else str(number))
  return cell(number, f"{number * scale(task, key, number):.1f}")


def _paper(runs: Sequence[Run], setting: str | None) -> str:
  how = (
    f"The runs are {setting}, and stand in those columns only."
    if setting
    else "How the runs came to their numbers (zero-shot, prompt-tuned, fine-tuned) is not known here, so a number "
    "stands in every column of its benchmark; <code>--setting</code> tells."
  )
  intro = (
    "<p>Tables 1 to 6 of <cite>GLIPv2: Unifying Localization and Vision-Language Understanding</cite> "
    "(arXiv 2206.05836), quoted. Marked rows are the runs here; below each of their numbers is its distance to the "
    f"paper's, of the row that is named. {how} The paper's splits are in the heads; on what a run was measured "
    "stands in its row.</p>"
  )
  blocks = [_paper_table(one, runs, setting) for one in TABLES]
  if not any(filled for filled, _ in blocks):
    intro += '<p class="nothing">None of the runs has measured a benchmark of the paper.</p>'
  return intro + "\n".join(block for _, block in blocks)


def _paper_table(one: Table, runs: Sequence[Run], setting: str | None) -> tuple[bool, str]:
  """Whether a run has a number in the table, and the table, folded away where none has."""
  ours, compared = [], set()
  for run in runs:
    label, cells = beside(one, run, setting)
    if any(found.number is not None for found in cells):
      compared.add(label)
      data = ", ".join(sorted({found.data for found in cells if found.data}))
      about = f'<small class="soft">on {text(data)}; minus {text(label)}</small>'
      values = [difference(found.number, found.difference, found.measure) for found in cells]
      ours.append(row(run.name, values, about, "run"))
  theirs = [
    row(label, [cell(value(quoted), quoted) for quoted in cells], kind="baseline" if label in compared else "paper")
    for label, cells in one.rows
  ]
  mixed = len({column.setting for column in one.columns}) > 1
  heads = [f"{column.title}\n{column.setting}" if mixed else column.title for column in one.columns]
  name = f"Table {one.number}: {one.title}"
  note = f'<p class="note">{text(one.note)}</p>' if one.note else ""
  content = table(name, ["model", *heads], ours + theirs, sort=False)
  return bool(ours), f"<details{' open' if ours else ''}><summary>{text(name)}</summary>{content}{note}</details>"


def _by_data(parts: Sequence[Part]) -> dict[str, list[Part]]:
  groups: dict[str, list[Part]] = {}
  for part in parts:
    groups.setdefault(f"{part.result.data} ({_kind(part.result)})", []).append(part)
  return groups


_NO_PARTS = (
  '<p class="nothing">No predictions and annotations are known for these runs. Name them: '
  "<code>glipv2 evaluate --task coco ... --out metrics.json</code> writes them into its metrics file.</p>"
)


def _curves(parts: Sequence[Part]) -> str:
  if not parts:
    return _NO_PARTS
  content = []
  for data, group in _by_data(parts).items():
    charts = []
    if len(group) > 1:
      series = [(part.run, *_curve(part.analysis, "0.50")) for part in group]
      charts.append(line_chart("All runs at IoU 0.50", "recall", "precision", series, (0, 1)))
    for part in group:
      series = [
        (f"IoU {name}" if name != "mean" else "mean of 0.50 to 0.95", *_curve(part.analysis, name))
        for name in part.analysis.precision
      ]
      charts.append(line_chart(part.run, "recall", "precision", series, (0, 1)))
    content.append(f"<h3>{text(data)}</h3><div class='charts'>{''.join(charts)}</div>")
    rows = [row(part.run, _operating(part.analysis)) for part in group]
    heads = ["run", "score threshold", "precision", "recall", "F1"]
    content.append("<p>Where F1 over all categories is highest (IoU 0.50):</p>")
    content.append(table(f"Best score threshold on {data}", heads, rows))
  return "<p>Precision, mean of the categories, at each recall, as AP averages it.</p>" + "\n".join(content)


def _curve(analysis: Analysis, name: str) -> tuple[Any, Any]:
  precision = analysis.precision[name]
  return [k / 100 for k in range(len(precision))], precision


def _operating(analysis: Analysis) -> list[str]:
  best = analysis.operating
  if best is None:
    return [cell(None)] * 4
  return [cell(best.score, f"{best.score:.3f}"), percent(best.precision), percent(best.recall), percent(best.f1)]


def _sizes(parts: Sequence[Part]) -> str:
  if not parts:
    return _NO_PARTS
  content = [
    "<p>By area: small below 32&times;32 pixels, large above 96&times;96. AR: highest recall, mean of the IoUs.</p>"
  ]
  for data, group in _by_data(parts).items():
    rows = []
    for part in group:
      for size in part.analysis.sizes:
        values = [cell(size["objects"], str(size["objects"])), *(percent(size[key]) for key in ("AP", "AP50", "AR"))]
        rows.append(row(f"{part.run}, {size['size']}" if len(group) > 1 else size["size"], values))
    content.append(f"<h3>{text(data)}</h3>")
    content.append(table(f"Sizes on {data}", ["size", "objects", "AP", "AP50", "AR"], rows))
  return "\n".join(content)


def _categories(parts: Sequence[Part]) -> str:
  if not parts:
    return _NO_PARTS
  content = [
    "<p>A category without objects has no AP. Errors are counted at the category of the detection, missed objects at "
    "their own.</p>"
  ]
  counted = ("objects", "images", "detections", "found", *errors.TYPES)
  for i, part in enumerate(parts):
    rows = []
    for of in part.analysis.categories:
      numbers = [percent(of[key]) for key in ("AP", "AP50", "AR")]
      rows.append(row(of["category"], [*numbers, *(cell(of[key], str(of[key])) for key in counted)]))
    name = f"Categories of {part.run} on {part.result.data}"
    content.append(_title(f"{part.run} on {part.result.data}", part.result))
    if len(rows) >= LONG:
      content.append(f'<label>Find a category: <input type="search" data-table="categories-{i}"></label>')
    content.append(table(name, ["category", "AP", "AP50", "AR", *counted], rows, name=f"categories-{i}"))
  return "\n".join(content)


def _errors(parts: Sequence[Part]) -> str:
  if not parts:
    return _NO_PARTS
  content = [
    "<p>How many errors there are of each type, and the AP50 that would be gained if those of one type alone were "
    'mended. The types are <a href="#about">defined below</a>.</p>'
  ]
  for data, group in _by_data(parts).items():
    content.append(f"<h3>{text(data)}</h3>")
    for part in group:
      counts, costs = part.analysis.errors.counts(), part.analysis.costs
      most = max((cost for cost in costs.values() if cost), default=1)
      rows = [row(kind, [cell(counts[kind], str(counts[kind])), bar(costs[kind], most)]) for kind in errors.TYPES]
      found = int(part.analysis.errors.objects(errors.FOUND).sum())
      objects = int((~part.analysis.errors.objects(errors.CROWD)).sum())
      now = part.analysis.errors.ap50()
      about = f"{part.run}: {found} of {objects} objects found; AP50 is {'-' if now is None else f'{100 * now:.1f}'}"
      content.append(table(about, ["type", "errors", "AP50 they cost"], rows, caption=True))
      content.append(_confusions(part))
  return "\n".join(content)


def _confusions(part: Part) -> str:
  """The categories that are taken for another most often."""
  names, found = part.analysis.names, part.analysis.errors.confusions()
  if not found:
    return ""
  rows = [
    row(names[said], [code(names[true]), cell(count, str(count))]) for (said, true), count in list(found.items())[:10]
  ]
  name = f"{part.run}: what is taken for something else"
  return f"<details><summary>{text(name)}</summary>{table(name, ['found as', 'is', 'times'], rows)}</details>"


def _worst(parts: Sequence[Part]) -> str:
  if not parts:
    return _NO_PARTS
  content = [
    "<p>The pictures with the most errors, detections below the best score threshold left out. Truth: "
    "<b>green</b> objects were found, <b>red</b> ones not, white ones are crowds. Found: <b>green</b> is correct; "
    "wrong ones say why.</p>"
  ]
  for part in parts:
    content.append(_title(f"{part.run} on {part.result.data}", part.result))
    if part.not_drawn:
      content.append(f'<p class="nothing">{text(part.not_drawn)}</p>')
    figures = [_figure(drawn) for drawn in part.drawn]
    content.append(f'<div class="worst">{"".join(figures)}</div>')
  return "\n".join(content)


def _figure(drawn: Drawn) -> str:
  images = "".join(
    f'<div><span class="soft">{name}</span><img src="{html.escape(source, quote=True)}" '
    f'alt="{html.escape(shows, quote=True)}" loading="lazy"></div>'
    for name, source, shows in (("truth", drawn.truth, drawn.truth_shows), ("found", drawn.found, drawn.found_shows))
  )
  return f'<figure><figcaption>{text(drawn.about)}</figcaption><div class="pair">{images}</div></figure>'


def _training(trainings: Sequence[Training]) -> str:
  if not trainings:
    return '<p class="nothing">None of these runs has a log of its training (metrics.jsonl).</p>'
  content = []
  if len(trainings) > 1:
    series = [(run.run, x, y) for run in trainings for name, x, y in run.losses if name == "loss"]
    content.append(line_chart("Loss of all runs", "step", "loss", series, log=True))
  for run in trainings:
    content.append(line_chart(f"{run.run}: loss and its terms", "step", "loss", run.losses, log=True))
    if run.evaluations:
      content.append(line_chart(f"{run.run}: evaluations", "step", "fraction", run.evaluations, (0, 1)))
  return f'<div class="charts">{"".join(content)}</div>'


_ABOUT = """
<p>Metrics are those of the official evaluators; <code>eval/</code> says which and how. AP is COCO's mean over the IoUs
0.50, 0.55 ... 0.95 and the categories with objects; a category without any has no AP and takes no part in a mean.</p>
<p>Error types (TIDE, Bolya et al., ECCV 2020), with IoU to objects that are no crowds. Detections are matched as for
AP50: per category, best score first, each with the free object that it overlaps most, by 0.5 or more. One without match
is the first of these that fits:</p>
<dl>
<dt>localisation</dt><dd>0.1 &le; IoU &le; 0.5 with an object of its own category</dd>
<dt>classification</dt><dd>IoU &ge; 0.5 with an object of another category</dd>
<dt>duplicate</dt><dd>IoU &ge; 0.5 with an object of its own category that a better detection has taken</dd>
<dt>background</dt><dd>IoU &le; 0.1 with every object</dd>
<dt>both</dt><dd>what is left: wrong place and wrong category</dd>
<dt>missed</dt><dd>an object without match on which no localisation or classification error lies that would find it</dd>
</dl>
<p>Mended means: the best-scored localisation or classification error on an object that nothing found becomes a correct
detection of it, all other wrong detections of the type are removed, missed objects are no longer counted. AP50 is then
computed again. Detections on crowds are no errors; of a category and picture the best 100 detections count.</p>
"""

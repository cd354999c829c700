"""`glipv2 report`: the page read by an HTML parser (everywhere) and by a real browser (where one is installed)."""

import html.parser
import json
import re
import subprocess
import sys

import pytest
from PIL import Image

from eval import coco, errors
from eval.compare import flat
from eval.report_page import SECTIONS
from glipv2_jax.train import metrics
from launch import evaluate, history, report
from pipelines.sources.shapes import Shapes, coco_dataset
from tests import browser
from tests.noisy import noisy

NASTY = '</table><script>alert("1")</script>&amp;'
VOID = {"meta", "link", "br", "img", "input", "line", "polyline"}


class Page(html.parser.HTMLParser):
  """What a page holds: its elements, its cells and texts; wrong nesting is an error."""

  def __init__(self, path):
    super().__init__()
    self.elements, self.open, self.texts = [], [], []
    self.rows, self._cell = [], None  # [(attributes, text) of each cell]
    self.feed(path.read_text(encoding="utf-8"))
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)
    if tag == "tr":
      self.rows.append([])
    if tag in ("td", "th"):
      self._cell = [dict(attrs), ""]
      self.rows[-1].append(self._cell)

  def handle_startendtag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag, (tag, self.getpos())
    if tag in ("td", "th"):
      self._cell = None

  def handle_data(self, data):
    self.texts.append(data)
    if self._cell is not None:
      self._cell[1] += data

  def all(self, tag):
    return [attrs for found, attrs in self.elements if found == tag]

  def row(self, head):
    """Cells after the head of the first row that begins with it."""
    return next(row[1:] for row in self.rows if row and row[0][1].startswith(head))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
  """A run folder with its log, a metrics file with its predictions, results of a second detector, pictures."""
  folder = tmp_path_factory.mktemp("report")
  truth, records = noisy(5, images=12)
  truth["categories"][0]["name"] = NASTY
  (folder / "pictures").mkdir()
  (folder / "ours").mkdir()
  for image in truth["images"]:
    image["file_name"] = f"pictures/{image['id']}.png"
    Image.new("RGB", (200, 200), (20 * image["id"], 120, 160)).save(folder / image["file_name"])
  (folder / "truth.json").write_text(json.dumps(truth))
  (folder / "ours.json").write_text(json.dumps(records))
  (folder / "theirs.json").write_text(json.dumps(records[::2]))
  files = ["--annotations", str(folder / "truth.json"), "--predictions", str(folder / "ours.json")]
  assert evaluate.main(["--task", "coco", *files, "--out", str(folder / "ours" / "metrics.json")]) == 0
  run = folder / "run"
  run.mkdir()
  lines = [{"step": s, "loss": 3.0 / s, "intra": 1.0 / s, "lr": 1e-3, "seconds": 1.0 * s} for s in range(1, 900)]
  lines += [{"step": s, "eval": {"AP50": s / 1000, "val/AP50": 0.1}} for s in (300, 600, 899)]
  (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 900, "lo')
  sources = {
    "val": {"task": "coco", **coco.evaluate_boxes(truth, records[1::2])},
    "lvis": {"AP": 0.25, "APr": 0.1, "task": "lvis_fixed"},
    "phrases": {"R@1": 0.72, "R@5": None, "phrases": 9},
  }
  (run / "metrics.json").write_text(json.dumps({"step": 899, "sources": sources, "AP": 0.25}))
  config = {"model": {"variant": "glipv2_b"}, "loss": {"weights": {"intra": 1.0, "inter": 1.0, "mlm": 0.0}}}
  val = {"kind": "coco_json", "annotations": "{root}/truth.json", "images": "{root}/pictures"}
  config |= {"eval": {"sources": {"val": val}}, "data": {"root": f"{folder}/"}}
  (run / "config.json").write_text(json.dumps(config))
  (run / "predictions").mkdir()
  (run / "predictions/val.json").write_text(json.dumps(records[1::2]))
  return folder


@pytest.fixture(scope="module")
def made(work):
  return make(work, "report.html")


def make(work, name, *more):
  runs = [str(work / run) for run in ("run", "ours/metrics.json", "theirs.json")]
  out = work / name
  images = ["--annotations", str(work / "truth.json"), "--images", str(work)]
  assert report.main([*runs, *images, "--out", str(out), *(more or ("--worst", "3"))]) == 0
  return out


def test_page_is_whole_and_needs_nothing_else(made):
  page = Page(made)
  assert {attrs["id"] for attrs in page.all("section")} == set(SECTIONS)
  ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
  assert len(ids) == len(set(ids))
  for _, attrs in page.elements:
    for key in ("src", "href"):
      if key in attrs:
        assert attrs[key].startswith("data:") or attrs[key][1:] in ids and attrs[key][0] == "#", attrs[key][:80]
    assert not {"srcset", "action", "onclick", "onload", "onerror", "poster", "background"} & attrs.keys()
  assert {tag for tag, _ in page.elements}.isdisjoint({"iframe", "object", "embed", "base", "form"})
  text = made.read_text()
  assert not re.search(r"url\(|@import|https?:|//\w", re.sub(r"data:[^\"]*|// [A-Z].*", "", text))
  assert [attrs["content"] for attrs in page.all("meta") if "http-equiv" in attrs][0].startswith("default-src 'none'")
  assert len(page.all("script")) == 1 and NASTY in page.texts  # the name of a category is text
  images = page.all("img")
  assert len(images) == 3 * 2 * 3  # three detectors, three pictures, truth and found
  assert all("Not found: " in attrs["alt"] or "Wrong: " in attrs["alt"] for attrs in images)
  assert all(attrs["role"] != "img" or attrs["aria-label"] for attrs in page.all("svg") if "role" in attrs)
  assert all("scope" in attrs for attrs in page.all("th"))


def test_numbers_are_those_of_the_metrics(work, made):
  page = Page(made)
  numbers = json.loads((work / "ours/metrics.json").read_text())
  assert numbers["task"] == "coco" and numbers["predictions"] == ["../ours.json"]
  assert numbers["annotations"] == ["../truth.json"] and numbers["iou_type"] == "bbox"
  shown = [float(cell["data-value"]) if cell["data-value"] else None for cell, _ in page.row("ours")]
  assert shown == list(flat(numbers).values())
  for name, file in (("ours", "ours.json"), ("theirs", "theirs.json")):
    official = coco.evaluate_boxes(work / "truth.json", work / file)
    cells = dict(zip(coco.STATS, page.row(name), strict=True))
    values = {k: float(cell["data-value"]) if cell["data-value"] else None for k, (cell, _) in cells.items()}
    assert values == {k: official[k] for k in coco.STATS}
    assert cells["AP"][1] == f"{100 * official['AP']:.1f}"
  per_category = numbers["per_category"][NASTY]
  of_category = [row[1:3] for row in page.rows if row and row[0][1].startswith(NASTY)][1]  # the run's own comes first
  assert [float(cell["data-value"]) for cell, _ in of_category] == [per_category["AP"], per_category["AP50"]]
  assert {kind for kind in errors.TYPES if page.row(kind)} == set(errors.TYPES)


def test_runs_stand_beside_the_paper(work, made):
  rows = [row for row in Page(made).rows if row and row[0][1].startswith("run")]
  quoted = [row for row in rows if "minus" in row[0][1]]
  assert [row[0][1].split("minus ")[1] for row in quoted] == [
    "GLIPv2-B",
    "GLIPv2-B",
    "5 + L_loc + L_intra + L_inter",
    "O365, GoldG, Cap12M, with L_inter",
  ]
  lvis = next(cell for cell in quoted[0] if cell[0].get("data-measure") == "lvis_fixed/bbox/AP")
  assert float(lvis[0]["data-value"]) == 25.0 and lvis[1] == "25.0-32.3"  # 57.3 in the paper
  tuned = make(work, "tuned.html", "--setting", "fine-tuned", "--worst", "0")
  only = [row for row in Page(tuned).rows if row and "minus" in row[0][1]]
  assert [row[0][1].split("minus ")[1] for row in only] == ["GLIPv2-B"]


def test_history_is_what_training_writes(work):
  assert history.JSON_LINES == metrics.JSON_LINES
  run = history.read(work / "run")
  assert set(run.losses()) == {"loss", "intra"} and run.losses()["loss"][0][-1] == 899
  assert run.metric("AP50") == ([300, 600, 899], [0.3, 0.6, 0.899])
  broken = work / "broken"
  broken.mkdir(exist_ok=True)
  (broken / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, \n{"step": 3, "loss": 1.0}\n')
  with pytest.raises(ValueError, match="line 2 is not JSON"):
    history.read(broken)


def test_mistakes_end_with_one_line(work, tmp_path, capsys):
  def fails(*arguments):
    assert report.main([*map(str, arguments), "--out", str(tmp_path / "r.html")]) == 1
    return capsys.readouterr().err

  assert "does not exist" in fails(tmp_path / "nothing.json")
  assert "tell with --annotations" in fails(work / "theirs.json")
  assert "given twice" in fails(work / "run", work / "run")
  assert "neither metrics.json nor metrics.jsonl" in fails(tmp_path)
  (tmp_path / "odd.json").write_text('{"speed": 3}')
  assert "odd.json: none of the known metrics" in fails(tmp_path / "odd.json")
  (tmp_path / "gone.json").write_text('{"AP": 0.5, "predictions": ["gone/p.json"]}')
  assert report.main([str(tmp_path / "gone.json"), "--out", str(tmp_path / "r.html")]) == 0
  assert "warning: " in (said := capsys.readouterr().err) and "gone/p.json, which do not exist" in said
  assert "No predictions and annotations are known" in (tmp_path / "r.html").read_text()


def test_pictures_outside_the_folder_stay_closed(work):
  find = report.report_pictures.in_folders([work / "pictures"])
  assert find({"file_name": "pictures/3.png"}).size == (200, 200)
  assert find({"file_name": "../truth.json"}) is None and find({"id": 3}) is None
  assert find({"file_name": str(work / "pictures" / "3.png")}).size == (200, 200)


def test_scenes_of_the_embedded_data_are_drawn_anew(tmp_path):
  """A run folder as `glipv2 train` leaves it: the truth lies beside the predictions, the pictures nowhere."""
  source = Shapes(split="val", task="detection", names="kind", size=(96, 128))
  truth = coco_dataset(source, 4)
  records = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.5} for a in truth["annotations"]]
  numbers = {"task": "coco", **coco.evaluate_boxes(truth, records[1:])}
  options = dict(kind="shapes", weight=1.0, split="val", task="detection", names="kind", size=[96, 128])
  config = {"model": {"variant": "demo"}, "loss": {"weights": {}}, "data": {"root": ""}}
  config["eval"] = {"sources": {"kinds": options}}
  (tmp_path / "predictions").mkdir()
  files = {"metrics": {"sources": {"kinds": numbers}}, "config": config, "predictions/kinds": records[1:]}
  for name, content in (files | {"predictions/kinds.truth": truth}).items():
    (tmp_path / f"{name}.json").write_text(json.dumps(content))
  assert report.main([str(tmp_path), "--out", str(tmp_path / "report.html")]) == 0
  images = Page(tmp_path / "report.html").all("img")
  assert len(images) == 2  # only the first scene has an error
  missed = source.classes[truth["annotations"][0]["category_id"] - 1]
  assert f"Not found: {missed}. Found: " in images[0]["alt"] and "Wrong: none" in images[1]["alt"]


def test_no_jax_is_needed(work):
  code = "import sys; from launch import report; assert report.main(sys.argv[1:]) == 0; assert 'jax' not in sys.modules"
  command = [sys.executable, "-c", code, str(work / "theirs.json"), "--annotations", str(work / "truth.json")]
  subprocess.run([*command, "--images", str(work), "--out", str(work / "plain.html")], check=True, timeout=600)


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
  command = browser.installed()
  if command is None:
    pytest.skip(f"needs a browser ({' or '.join(browser.NAMES)}), which this machine does not have")
  opened = browser.Browser(command, tmp_path_factory.mktemp("profile"))
  yield opened
  opened.close()


@pytest.mark.parametrize("width,scheme", [(1280, "light"), (390, "dark")])
def test_page_in_a_browser(made, tab, width, scheme):
  """No errors, no requests, nothing wider than the screen, every section and picture there, columns that sort."""
  size = dict(width=width, height=844, deviceScaleFactor=1, mobile=width < 500)
  tab("Emulation.setDeviceMetricsOverride", **size)
  tab("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
  url = made.as_uri()
  tab.open(url)
  requested = [p["request"]["url"] for method, p in tab.events if method == "Network.requestWillBeSent"]
  assert {name if name == url else name[:5] for name in requested} <= {url, "data:"} and url in requested
  bad = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
  assert [parameters for method, parameters in tab.events if method in bad] == []
  assert tab.run("document.documentElement.scrollWidth") <= width
  background = tab.run("getComputedStyle(document.body).backgroundColor")
  assert (max(map(int, re.findall(r"\d+", background))) < 60) == (scheme == "dark")
  shown = f"{json.dumps(list(SECTIONS))}.filter(id => document.getElementById(id).getBoundingClientRect().height < 40)"
  assert tab.run(shown) == []
  tab.run("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
  decoded = "Promise.all([...document.images].map(image => image.decode())).then(all => all.length)"
  assert tab.run(decoded) == 18
  for _ in range(2):
    tab.run("document.querySelectorAll('#errors table.sort')[0].tHead.rows[0].cells[1].querySelector('button').click()")
    order = "[...document.querySelector('#errors table.sort').tBodies[0].rows].map(r => +r.cells[1].dataset.value)"
    sort = tab.run("document.querySelector('#errors table.sort').tHead.rows[0].cells[1].getAttribute('aria-sort')")
    assert tab.run(order) == sorted(tab.run(order), reverse=sort == "descending")
  assert sort == "ascending"

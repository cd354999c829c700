"""The worst pictures of a report: truth and detections drawn side by side, as data URIs."""

import base64
import io
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from eval import errors, report
from eval.files import Detections
from eval.report_page import Drawn
from launch import drawing

LONG_SIDE = 720  # pixels; larger pictures are reduced to it
Finder = Callable[[Mapping[str, Any]], Image.Image | None]  # COCO's record of an image -> the picture
# Places in drawing.COLOURS.
GREEN, RED, WHITE = 1, 0, 19
COLOURS = {"classification": 5, "localisation": 4, "both": 7, "duplicate": 6, "background": RED}


def in_folders(folders: Sequence[pathlib.Path]) -> Finder:
  """Looks for file_name in each of the folders, then for its last part; nothing outside them is opened."""

  def find(image: Mapping[str, Any]) -> Image.Image | None:
    name = str(image["file_name"]) if "file_name" in image else ""
    for folder in folders:
      for candidate in (folder / name, folder / pathlib.Path(name).name):
        inside = candidate.resolve().is_relative_to(folder.resolve())
        if name and inside and candidate.is_file():
          return Image.open(candidate).convert("RGB")
    return None

  return find


def worst(analysis: report.Analysis, find: Finder, count: int) -> tuple[list[Drawn], str]:
  """The `count` worst pictures, and why there are fewer ('' where there are not)."""
  score = analysis.operating.score if analysis.operating is not None else 0.0
  drawn, lacking = [], []
  bad = [p for p in report.pictures(analysis, score) if len(p.wrong) + len(p.missing)]
  for picture in bad[:count]:
    image = find(picture.image)
    if image is None:
      lacking.append(str(picture.image["file_name"] if "file_name" in picture.image else picture.image["id"]))
    else:
      drawn.append(draw(analysis, picture, image, score))
  if lacking:
    return drawn, (
      f"{len(lacking)} of the {len(bad[:count])} worst pictures were not found ({', '.join(lacking[:3])}); "
      "give their folder with --images"
    )
  return drawn, "" if bad else "No picture has an error."


def draw(analysis: report.Analysis, picture: report.Picture, image: Image.Image, score: float) -> Drawn:
  """One picture twice: with its objects and with the detections of at least `score`."""
  wrong, names = analysis.errors, analysis.names
  ratio = min(1.0, LONG_SIDE / max(image.size))
  small = image.resize((max(1, round(image.width * ratio)), max(1, round(image.height * ratio))))
  crowd = np.flatnonzero(wrong.objects(errors.CROWD) & (wrong.truth.image_id == picture.image["id"]))
  groups = ((picture.missing, RED), (picture.found, GREEN), (crowd, WHITE))
  truth = [_mark(wrong.truth, i, ratio, names, colour) for rows, colour in groups for i in rows]
  found = []
  for i in picture.wrong:
    kind = errors.VERDICTS[wrong.verdict[i]]
    found.append(_mark(wrong.detections, i, ratio, names, COLOURS[kind], kind))
  found += [_mark(wrong.detections, i, ratio, names, GREEN, "") for i in picture.correct]
  name = picture.image["file_name"] if "file_name" in picture.image else f"image {picture.image['id']}"
  about = f"{name}: {len(picture.missing)} not found, {len(picture.wrong)} wrong, {len(picture.correct)} correct"
  return Drawn(
    f"{about} (scores from {score:.3f})",
    _uri(drawing.annotate(small, truth)),
    f"Objects of {name}. Not found: {_listed(wrong.truth, picture.missing, names)}. "
    f"Found: {_listed(wrong.truth, picture.found, names)}.",
    _uri(drawing.annotate(small, found)),
    f"Detections on {name}. Wrong: {_listed(wrong.detections, picture.wrong, names)}. "
    f"Correct: {_listed(wrong.detections, picture.correct, names)}.",
  )


def _mark(of: Detections, i: int, ratio: float, names, colour: int, kind: str | None = None) -> drawing.Mark:
  """`kind`: of the error, '' for a correct detection, None for an object."""
  x, y, w, h = of.bbox_xywh_px[i] if of.segmentation is None else rle.toBbox(of.segmentation[i])
  label = names[int(of.category_id[i])]
  if kind is not None:
    label += f" {of.score[i]:.2f}" + (f" {kind}" if kind else "")
  return drawing.Mark([v * ratio for v in (x, y, x + w - 1, y + h - 1)], label, colour)


def _listed(of: Detections, rows: np.ndarray, names: Mapping[int, str]) -> str:
  """'2 person, dog', most frequent first."""
  ids, counts = np.unique(of.category_id[rows], return_counts=True)
  order = np.argsort(-counts, kind="stable")
  words = [names[int(ids[k])] if counts[k] == 1 else f"{counts[k]} {names[int(ids[k])]}" for k in order]
  return ", ".join(words) or "none"


def _uri(image: Image.Image) -> str:
  data = io.BytesIO()
  image.save(data, "JPEG", quality=80, optimize=True)
  return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")

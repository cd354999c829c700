"""Tables 1 to 6 of the GLIPv2 paper (arXiv 2206.05836), quoted, and where a measured number belongs in them.

Cells are written as in the paper, marks and brackets included; a cell of two numbers ("bbox / segm", "zero-shot /
fine-tuned", "test-dev / test-std") stands in two columns. `value` gives the number that a cell begins with.
"""

import dataclasses
import re
from collections.abc import Mapping

ZERO_SHOT, PROMPT, FULL = SETTINGS = ("zero-shot", "prompt-tuned", "fine-tuned")
TERMS = ("intra", "inter", "mlm")  # of the loss; L_loc comes with L_intra


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of numbers, all in percent.

  `measures`: what a run must have measured for it, as BENCHMARK/METRIC or BENCHMARK/SHAPE/METRIC, the first that it
  has; () where the paper's number comes from a test server that nobody else can ask.
  """

  title: str
  measures: tuple[str, ...]
  setting: str


@dataclasses.dataclass(frozen=True)
class Table:
  """`rows`: label and one cell for each column; `terms`: (row, its loss terms) where the table is about them."""

  number: int
  title: str
  columns: tuple[Column, ...]
  rows: tuple[tuple[str, tuple[str, ...]], ...]
  note: str = ""
  terms: tuple[tuple[str, tuple[str, ...]], ...] = ()

  def row(self, label: str) -> tuple[str, ...]:
    """The cells of a row. Raises KeyError."""
    return dict(self.rows)[label]


def value(cell: str) -> float | None:
  """The number that a cell begins with; None for '-'."""
  match = re.match(r"\d+(\.\d+)?", cell)
  return float(match[0]) if match else None


def baseline(table: Table, variant: str | None, weights: Mapping[str, float] | None) -> str:
  """The row to compare a run with: of its loss terms where the table is about them, else of its network's size.

  `variant`: name of the network, `weights`: of the loss terms; None where they are not known (GLIPv2-T, all terms).
  """
  labels = [label for label, _ in table.rows]
  if table.terms:
    used = {term for term in TERMS if weights is None or (term in weights and weights[term] > 0)}
    same = [label for label, terms in table.terms if set(terms) == used]
    return (same or [table.terms[-1][0]])[-1]
  size = (variant or "")[-1:].upper()
  named = [label for label in labels if (variant or "").startswith("glipv2_") and label == f"GLIPv2-{size}"]
  return (named or ["GLIPv2-T"])[0]


def _rows(text: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
  lines = [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]
  return tuple((line[0], tuple(line[1:])) for line in lines)


_BOXES, _MASKS = "coco/bbox/AP", "coco/segm/AP"
_LVIS = ("lvis_fixed/bbox/AP", "lvis/bbox/AP")
_LVIS_MASKS = ("lvis_fixed/segm/AP", "lvis/segm/AP")
_ODINW, _ODINW_ZERO, _ODINW_FULL = "odinw/AP", "odinw/zero/AP", "odinw/full/AP"

TABLE_1 = Table(
  1,
  "One model architecture",
  (
    Column("COCO-Det test-dev", (_BOXES,), FULL),
    Column("ODinW test", (_ODINW_FULL, _ODINW), FULL),
    Column("LVIS minival bbox", _LVIS, FULL),
    Column("LVIS minival segm", _LVIS_MASKS, FULL),
    Column("COCO-Mask test-dev bbox", (_BOXES,), FULL),
    Column("COCO-Mask test-dev segm", (_MASKS,), FULL),
    Column("Flickr30K test R@1", ("flickr/R@1",), FULL),
    Column("PhraseCut test mIoU", ("phrasecut/mIoU",), FULL),
    Column("VQA test-dev", ("vqa/accuracy",), FULL),
    Column("VQA test-std", (), FULL),
    Column("Captioning Karpathy-test CIDEr", ("captions/CIDEr",), FULL),
  ),
  _rows("""
    Mask R-CNN | 39.8 | - | 33.3 | - | - | 37.1 | - | - | - | - | -
    DETR | 42.0 | - | 17.8 | - | - | - | - | - | - | - | -
    DyHead-T | 49.7 | 60.8 | - | - | - | - | - | - | - | - | -
    DyHead-L | 60.3* | - | - | - | - | - | - | - | - | - | -
    VisualBERT | - | - | - | - | - | - | 71.33 | - | 70.8 | 71.0 | -
    UNITER | - | - | - | - | - | - | - | - | 73.8 | 74.0 | -
    VinVL | - | - | - | - | - | - | - | - | 76.5 | 76.6 | 130.8
    GPV | - | - | - | - | - | - | - | - | 62.5 | - | 102.3
    UniT | 42.3 | - | - | - | - | - | - | - | 67.6 | - | -
    MDETR | - | - | 24.2 | - | - | - | 84.3 | 53.7 | 70.6 | 70.6 | -
    Unicorn | - | - | - | - | - | - | 80.4 | - | 69.2 | 69.4 | 119.1
    GLIP-T | 55.2 | 64.9 | - | - | - | - | 85.7 | - | - | - | -
    GLIP-L | 61.5* | 68.9 | - | - | - | - | 87.1 | - | - | - | -
    GLIPv2-T | 55.5 | 66.5 | 50.6 | 41.4 | 53.5 | 42.0 | 86.5 | 59.4 | 71.6 | 71.8 | 122.1
    GLIPv2-B | 58.8 | 69.4 | 57.3 | 46.2 | 59.0 | 45.8 | 87.5 | 61.3 | 73.1 | 73.3 | 128.5
    GLIPv2-H | 60.6 (62.4*) | 70.4 | 59.8 | 48.8 | 59.8 | 48.9 | 87.7 | 61.3 | 74.6 | 74.8 | 131.0
  """),
  "* multi-scale evaluation. Models are fine-tuned on each task. ODinW is the mean AP of 13 sets.",
)

TABLE_2 = Table(
  2,
  "One set of weights",
  (
    Column("COCO-Mask minival bbox", (_BOXES,), ZERO_SHOT),
    Column("COCO-Mask minival segm", (_MASKS,), ZERO_SHOT),
    Column("ODinW test", (_ODINW_ZERO, _ODINW), ZERO_SHOT),
    Column("LVIS-Det minival", _LVIS, ZERO_SHOT),
    Column("Flickr30K minival R@1", ("flickr/R@1",), ZERO_SHOT),
    Column("COCO-Det test-dev", (_BOXES,), PROMPT),
    Column("ODinW test", (_ODINW_FULL, _ODINW), PROMPT),
    Column("LVIS minival bbox", _LVIS, PROMPT),
    Column("LVIS minival segm", _LVIS_MASKS, PROMPT),
    Column("COCO-Mask test-dev bbox", (_BOXES,), PROMPT),
    Column("COCO-Mask test-dev segm", (_MASKS,), PROMPT),
    Column("PhraseCut test mIoU", ("phrasecut/mIoU",), PROMPT),
  ),
  _rows("""
    GLIP-T | 46.6 | - | 46.5 | 26.0 | 85.7 | - | 46.5 | - | - | - | - | -
    GLIP-L | 49.8 | - | 52.1 | 37.3 | 87.1 | 58.8 | 67.9 | - | - | - | - | -
    GLIPv2-T | 47.3 | 35.7 | 48.5 | 29.0 | 86.0 | 53.4 (-2.1) | 64.8 (-1.7) | 49.3 (-1.3) | 34.8 (-6.6) | 53.2 (-0.3) | 41.2 (-0.8) | 49.4
    GLIPv2-B | 61.9† | 43.4 | 54.2 | 48.5 | 87.2 | 59.0 (+0.2) | 67.3 (-2.1) | 56.8 (-0.5) | 41.7 (-4.5) | 58.8 (-0.2) | 44.9 (-0.9) | 55.9
    GLIPv2-H | 64.1† | 47.4 | 55.5 | 50.1 | 87.7 | 60.2 (-0.4) / 61.9* (-0.5) | 69.1 (-1.3) | 59.2 (-0.6) | 43.2 (-5.7) | 59.8 (-0.0) | 47.2 (-1.7) | 56.1
  """),  # noqa: E501
  "* multi-scale evaluation. In brackets the difference to full fine-tuning (Table 1). † high because COCO-minival "
  "overlaps Visual Genome's training pictures. LVIS and Flickr30K of GLIPv2-B and -H are not zero-shot.",
)

TABLE_3 = Table(
  3,
  "Data efficiency on ODinW",
  (
    Column("0 shots", (_ODINW_ZERO, _ODINW), ZERO_SHOT),
    *(Column(f"{k} shot{'s' * (k > 1)}", (f"odinw/shot{k}/AP",), FULL) for k in (1, 3, 5, 10)),
    Column("all", (_ODINW_FULL, _ODINW), FULL),
  ),
  _rows("""
    DyHead-T O365 | - | - | - | - | - | -
    L_loc + L_intra (GLIP-T) | 46.5 | 49.9 | 53.7 | 55.5 | 56.6 | 62.4
    L_loc + L_intra + L_inter | 48.4 | 52.1 | 55.6 | 56.7 | 58.3 | 62.9
    L_loc + L_intra + L_inter + L_mlm | 48.5 | 51.4 | 55.3 | 56.6 | 59.5 | 66.3
  """),
  "Mean AP of 13 sets; zero-shot, prompt tuning and full fine-tuning.",
  (
    ("L_loc + L_intra (GLIP-T)", ("intra",)),
    ("L_loc + L_intra + L_inter", ("intra", "inter")),
    ("L_loc + L_intra + L_inter + L_mlm", ("intra", "inter", "mlm")),
  ),
)

TABLE_4 = Table(
  4,
  "Pre-training losses (GLIPv2-T)",
  (
    Column("COCO zero-shot", (_BOXES,), ZERO_SHOT),
    Column("COCO fine-tuned", (_BOXES,), FULL),
    Column("ODinW zero-shot", (_ODINW_ZERO, _ODINW), ZERO_SHOT),
    Column("ODinW fine-tuned", (_ODINW_FULL, _ODINW), FULL),
    Column("LVIS", _LVIS, ZERO_SHOT),
    Column("Flickr30K R@1", ("flickr/R@1",), ZERO_SHOT),
    Column("VQA", ("vqa/accuracy",), FULL),
    Column("Captioning CIDEr", ("captions/CIDEr",), FULL),
  ),
  _rows("""
    1 No pre-train | - | 50.6 | - | 60.8 | - | - | 64.6 | 111.5
    2 + L_mlm | - | 48.5 | - | 37.4 | - | - | 64.6 | 110.9
    3 + L_loc + L_intra | 46.6 | 55.2 | 46.5 | 64.9 | 26.0 | 85.7 | 69.4 | 119.7
    4 + L_loc + L_intra + L_mlm | 47.0 | 55.2 | 47.6 | 66.2 | 28.5 | 86.5 | 69.8 | 120.7
    5 + L_loc + L_intra + L_inter | 47.1 | 55.4 | 48.4 | 66.3 | 28.6 | 85.8 | 68.7 | 120.4
    6 + L_loc + L_intra + L_inter + L_mlm | 47.3 | 55.5 | 48.5 | 66.5 | 29.0 | 86.3 | 70.7 | 122.1
  """),
  "",
  (
    ("2 + L_mlm", ("mlm",)),
    ("3 + L_loc + L_intra", ("intra",)),
    ("4 + L_loc + L_intra + L_mlm", ("intra", "mlm")),
    ("5 + L_loc + L_intra + L_inter", ("intra", "inter")),
    ("6 + L_loc + L_intra + L_inter + L_mlm", ("intra", "inter", "mlm")),
  ),
)

TABLE_5 = Table(
  5,
  "Pre-training data (GLIPv2-B, last checkpoint)",
  (
    Column("COCO", (_BOXES,), ZERO_SHOT),
    Column("ODinW", (_ODINW_ZERO, _ODINW), ZERO_SHOT),
    Column("LVIS", _LVIS, ZERO_SHOT),
    Column("Flickr30K R@1", ("flickr/R@1",), ZERO_SHOT),
  ),
  _rows("""
    O365, GoldG | 48.06 | 43.14 | 25.6 | 84.36
    O365, GoldG, with L_inter | 48.59 | 42.64 | 26.9 | 83.90
    O365, GoldG, Cap4M | 48.21 | 51.35 | 34.2 | 85.56
    O365, GoldG, Cap4M, with L_inter | 48.79 | 52.70 | 35.0 | 85.50
    O365, GoldG, Cap12M | 48.50 | 49.32 | 35.5 | 85.79
    O365, GoldG, Cap12M, with L_inter | 49.26 | 53.15 | 36.6 | 85.84
  """),
  "A run is compared with the row of the most data that has its loss; which data a run saw is not known here.",
  (
    ("O365, GoldG, Cap12M", ("intra",)),
    ("O365, GoldG, Cap12M", ("intra", "mlm")),
    ("O365, GoldG, Cap12M, with L_inter", ("intra", "inter")),
    ("O365, GoldG, Cap12M, with L_inter", ("intra", "inter", "mlm")),
  ),
)

TABLE_6 = Table(
  6,
  "Captioning and grounding at the same time",
  (
    Column("COCO caption B4", ("grounded_captions/BLEU-4",), FULL),
    Column("COCO caption CIDEr", ("grounded_captions/CIDEr",), FULL),
    Column("COCO caption SPICE", ("grounded_captions/SPICE",), FULL),
    Column("Flickr30K R@1", ("grounded_captions/R@1",), FULL),
    Column("Flickr30K R@5", ("grounded_captions/R@5",), FULL),
    Column("Flickr30K R@10", ("grounded_captions/R@10",), FULL),
  ),
  _rows("""
    GLIPv2-T | 36.5 | 119.8 | 21.6 | 80.8 | 94.4 | 96.5
    GLIPv2-B | 37.4 | 123.0 | 21.9 | 81.0 | 94.5 | 96.5
  """),
)

TABLES = (TABLE_1, TABLE_2, TABLE_3, TABLE_4, TABLE_5, TABLE_6)

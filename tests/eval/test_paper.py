"""eval/paper.py: every cell against the text of the paper, and which row a run is compared with."""

import re

import pytest

from eval import paper

NUMBER = re.compile(r"\d+\.\d+")
BRACKETS = re.compile(r"\([-+][^)]*\)")  # differences, which the paper writes once for two numbers


def rows_of(text, number):
  """The rows of one of the paper's tables: the lines before its caption, back to its header."""
  before = text[: text.index(f"Table {number}: ")].rstrip().split("\n")
  rows = []
  for line in reversed(before):
    if "\t" not in line:
      break
    rows.append(line)
  return [row for row in reversed(rows) if NUMBER.search(row)]


@pytest.mark.parametrize("table", paper.TABLES, ids=lambda table: f"table{table.number}")
def test_numbers_are_those_of_the_paper(shared, table):
  text = (shared / "reference/glipv2_paper.md").read_text(encoding="utf-8")
  cells = [" ".join(cells) for _, cells in table.rows if any(map(paper.value, cells))]
  ours, theirs = [NUMBER.findall(row) for row in cells], [NUMBER.findall(row) for row in rows_of(text, table.number)]
  assert [sorted(row) for row in ours] == [sorted(row) for row in theirs]
  outside = [[NUMBER.findall(BRACKETS.sub("", row)) for row in rows] for rows in (cells, rows_of(text, table.number))]
  assert outside[0] == outside[1]  # and in the paper's order
  assert all(len(cells) == len(table.columns) for _, cells in table.rows)


def test_value_of_a_cell():
  assert [paper.value(cell) for cell in ("60.6 (62.4*)", "61.9†", "53.4 (-2.1)", "-")] == [60.6, 61.9, 53.4, None]


@pytest.mark.parametrize(
  "table,variant,weights,row",
  [
    (paper.TABLE_1, "glipv2_b", None, "GLIPv2-B"),
    (paper.TABLE_1, "glip_t", None, "GLIPv2-T"),
    (paper.TABLE_6, "glipv2_h", None, "GLIPv2-T"),  # the paper has no such row
    (paper.TABLE_4, None, {"intra": 1.0, "inter": 0.0, "box": 2.0, "mlm": 0.25}, "4 + L_loc + L_intra + L_mlm"),
    (paper.TABLE_4, "glipv2_t", {"intra": 1.0, "mlm": 0.0}, "3 + L_loc + L_intra"),
    (paper.TABLE_3, None, None, "L_loc + L_intra + L_inter + L_mlm"),
    (paper.TABLE_5, None, {"intra": 1.0, "inter": 1.0, "mlm": 0.0}, "O365, GoldG, Cap12M, with L_inter"),
  ],
)
def test_row_to_compare_with(table, variant, weights, row):
  assert paper.baseline(table, variant, weights) == row
  assert row in dict(table.rows)

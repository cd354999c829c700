"""Pieces of a report's tables: cells that carry their number in full, rows, heads that sort."""

import html
from collections.abc import Sequence

ABSENT = "–"


def text(words: object) -> str:
  """Any text, escaped."""
  return html.escape(str(words), quote=True)


def cell(number: float | int | None, shown: str | None = None, after: str = "") -> str:
  """A number as people read it; `after`: HTML that follows it."""
  value = "" if number is None else f' data-value="{number!r}"'
  if number is None and shown in (None, "-"):
    value = ' data-value=""'  # sorts last
  return f"<td{value}>{text(ABSENT if shown in (None, '-') else shown)}{after}</td>"


def percent(fraction: float | None) -> str:
  """A fraction, shown in percent."""
  return cell(fraction, None if fraction is None else f"{100 * fraction:.1f}")


def code(words: str) -> str:
  """A cell of text."""
  return f"<td>{text(words)}</td>"


def bar(fraction: float | None, most: float) -> str:
  """A fraction in percent beside a bar whose full length is `most`."""
  if fraction is None:
    return cell(None)
  drawn = f'<span class="bar" style="--w:{100 * fraction / most:.1f}%" aria-hidden="true"></span>'
  return f'<td class="bars" data-value="{fraction!r}">{drawn}<span class="number">{100 * fraction:.1f}</span></td>'


def difference(number: float | None, gap: float | None, measure: str) -> str:
  """A number in percent with its distance to the paper's below it."""
  if number is None:
    return cell(None)
  after = ""
  if gap is not None:
    direction = "up" if gap >= 0 else "down"
    after = f'<small class="{direction}" data-difference="{gap!r}">{gap:+.1f}</small>'
  return f'<td data-value="{number!r}" data-measure="{text(measure)}">{number:.1f}{after}</td>'


def row(head: str, cells: Sequence[str], after: str = "", kind: str = "") -> str:
  """`after`: HTML below the head."""
  of_kind = f' class="{kind}"' if kind else ""
  return f'<tr{of_kind}><th scope="row">{text(head)}{after}</th>{"".join(cells)}</tr>'


def _head(words: str, sort: bool) -> str:
  first, _, rest = words.partition("\n")
  shown = f'<button type="button">{text(first)}</button>' if sort else text(first)
  return shown + (f"<small>{text(rest)}</small>" if rest else "")


def table(
  about: str, heads: Sequence[str], rows: Sequence[str], *, sort: bool = True, caption: bool = False, name: str = ""
) -> str:
  """A table in a frame that scrolls; `about` is read out, and with `caption` shown. A line break in a head makes the
  rest small print."""
  head = "".join(f'<th scope="col">{_head(words, sort)}</th>' for words in heads)
  shown = f"<caption>{text(about)}</caption>" if caption else ""
  marks = (' class="sort"' if sort else "") + (f' id="{name}"' if name else "")
  return (
    f'<div class="scroll" role="region" tabindex="0" aria-label="{text(about)}"><table{marks}>{shown}'
    f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
  )

"""Pictures with boxes and labels that can be read, and sheets of them (Pillow).

Small pictures are enlarged before drawing, the font follows the picture, every label lies inside it on a filled
background, and labels move aside for each other while there is room.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Twenty colours that stay apart on photographs; phrase number modulo twenty chooses.
COLOURS = (
  *((230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48), (145, 30, 180), (70, 240, 240)),
  *((240, 50, 230), (210, 245, 60), (250, 190, 212), (0, 128, 128), (220, 190, 255), (170, 110, 40), (255, 250, 200)),
  *((128, 0, 0), (170, 255, 195), (128, 128, 0), (255, 215, 180), (0, 0, 128), (255, 255, 255)),
)
SHORT_SIDE = 480  # pictures with a shorter side are enlarged to about this
Rectangle = tuple[int, int, int, int]  # x1, y1, x2, y2, half-open


@dataclasses.dataclass(frozen=True)
class Mark:
  """One box to draw: pixels of the picture, its text, and the number that chooses its colour."""

  box_xyxy_px: Sequence[float]
  text: str
  colour: int = 0


def annotate(picture: Image.Image | np.ndarray, marks: Sequence[Mark], title: str = "") -> Image.Image:
  """A copy of `picture` (RGB, enlarged when small) with every mark drawn, the first mark on top.

  `title` is written on a strip below the picture.
  """
  image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture.convert("RGB")
  zoom = max(1, round(SHORT_SIDE / min(image.size)))
  image = image.resize((image.width * zoom, image.height * zoom), Image.Resampling.BICUBIC)
  font, line = font_for(image.size), max(2, round(min(image.size) / 240))
  drawing = ImageDraw.Draw(image)
  boxes = [_inside(mark.box_xyxy_px, zoom, image.size) for mark in marks]
  for mark, box in reversed(list(zip(marks, boxes))):
    drawing.rectangle(box, outline=COLOURS[mark.colour % len(COLOURS)], width=line)
  texts = [shorten(mark.text, font, image.width - 2 * padding(font)) for mark in marks]
  sizes = [label_size(text, font) for text in texts]
  places = place_labels(boxes, sizes, image.size)
  for mark, text, place in reversed(list(zip(marks, texts, places))):
    _label(drawing, text, place, COLOURS[mark.colour % len(COLOURS)], font)
  return _with_title(image, title, font) if title else image


def tinted(picture: np.ndarray, region: np.ndarray, colour: int = 0) -> np.ndarray:
  """A copy of `picture` h w 3 uint8 with the region h w bool shaded in a colour."""
  shaded = picture.copy()
  shaded[region] = (picture[region] * 0.55 + np.array(COLOURS[colour % len(COLOURS)]) * 0.45).astype(np.uint8)
  return shaded


def font_for(size: tuple[int, int]) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
  """The font whose size fits a picture of `size` (width, height): a thirtieth of the short side, 13 to 40 pixels."""
  return ImageFont.load_default(int(np.clip(min(size) / 30, 13, 40)))


def padding(font) -> int:
  """Pixels between a label's text and its edge."""
  return max(2, int(getattr(font, "size", 12)) // 6)


def label_size(text: str, font) -> tuple[int, int]:
  """Width and height of a label; equal height for all texts, so that rows of labels align."""
  ascent, descent = font.getmetrics()
  return int(np.ceil(font.getlength(text))) + 2 * padding(font), ascent + descent + 2 * padding(font)


def shorten(text: str, font, width: float) -> str:
  """`text` on one line of at most `width` pixels, cut with an ellipsis where it must be."""
  text = " ".join(text.split())
  if font.getlength(text) <= width:
    return text
  while text and font.getlength(text + "…") > width:
    text = text[:-1]
  return text.rstrip() + "…"


def place_labels(
  boxes: Sequence[Rectangle], sizes: Sequence[tuple[int, int]], picture: tuple[int, int]
) -> list[Rectangle]:
  """Where each label goes, in order: inside the picture (width, height), covering no earlier label where possible.

  Tried in turn: above the box, inside its top, below it, inside its bottom (each left- then right-aligned), then rows
  further down along the box; when all overlap, the place with the least overlap. Labels larger than the picture are
  placed at its edge.
  """
  placed: list[Rectangle] = []
  for box, (w, h) in zip(boxes, sizes, strict=True):
    spots = [_moved_inside(x, y, w, h, picture) for x, y in _spots(box, w, h)]
    placed.append(min(spots, key=lambda spot: sum(_shared(spot, other) for other in placed)))  # the first minimum
  return placed


def _spots(box: Rectangle, w: int, h: int):
  x1, y1, x2, y2 = box
  for y in (y1 - h, y1, y2, y2 - h):
    yield from ((x1, y), (x2 - w, y))
  for row in range(1, 9):
    yield from ((x1, y1 + row * h), (x1, y1 - (row + 1) * h), (x2, y1 + (row - 1) * h), (x1 - w, y1 + (row - 1) * h))


def _moved_inside(x: int, y: int, w: int, h: int, picture: tuple[int, int]) -> Rectangle:
  x, y = max(0, min(x, picture[0] - w)), max(0, min(y, picture[1] - h))
  return x, y, x + w, y + h


def _shared(a: Rectangle, b: Rectangle) -> int:
  return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _inside(box: Sequence[float], zoom: int, size: tuple[int, int]) -> Rectangle:
  """An inclusive box of the original picture as corners to draw on the enlarged one."""
  x1, y1 = (int(np.clip(np.floor(v * zoom), 0, side - 1)) for v, side in zip(box[:2], size))
  x2, y2 = (int(np.clip(np.ceil((v + 1) * zoom) - 1, 0, side - 1)) for v, side in zip(box[2:], size))
  return x1, y1, max(x1, x2), max(y1, y2)


def _label(drawing: ImageDraw.ImageDraw, text: str, place: Rectangle, colour, font) -> None:
  drawing.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=colour)
  pad = padding(font)
  drawing.text((place[0] + pad, place[1] + pad), text, fill=text_colour(colour), font=font)


def text_colour(background: tuple[int, int, int]) -> tuple[int, int, int]:
  """Black or white, whichever stands out more on `background` (WCAG relative luminance)."""
  linear = [(v / 255 / 12.92) if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in background]
  luminance = float(np.dot((0.2126, 0.7152, 0.0722), linear))
  return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def _with_title(image: Image.Image, title: str, font) -> Image.Image:
  lines = _wrap(title, font, image.width - 2 * padding(font))
  height = sum(font.getmetrics()) + padding(font)
  taller = Image.new("RGB", (image.width, image.height + height * len(lines) + 2 * padding(font)), (255, 255, 255))
  taller.paste(image)
  drawing = ImageDraw.Draw(taller)
  for i, text in enumerate(lines):
    drawing.text((padding(font), image.height + padding(font) + i * height), text, fill=(0, 0, 0), font=font)
  return taller


def _wrap(text: str, font, width: int) -> list[str]:
  lines = [""]
  for word in text.split():
    longer = f"{lines[-1]} {word}".strip()
    if font.getlength(longer) <= width or not lines[-1]:
      lines[-1] = longer
    else:
      lines.append(word)
  return [shorten(line, font, width) for line in lines]


def sheet(pictures: Sequence[Image.Image], columns: int, gap: int = 12) -> Image.Image:
  """One picture of many, row by row in `columns` columns of equal width; nothing is cropped.

  Raises ValueError without pictures or with fewer than one column.
  """
  if not pictures or columns < 1:
    raise ValueError(f"a sheet of {len(pictures)} pictures in {columns} columns is empty; give at least one of each")
  width = max(picture.width for picture in pictures)
  scaled = [p.resize((width, round(p.height * width / p.width)), Image.Resampling.LANCZOS) for p in pictures]
  rows = [scaled[i : i + columns] for i in range(0, len(scaled), columns)]
  heights = [max(picture.height for picture in row) for row in rows]
  columns = min(columns, len(scaled))
  whole = Image.new("RGB", (columns * (width + gap) + gap, sum(heights) + gap * (len(rows) + 1)), (255, 255, 255))
  y = gap
  for row, height in zip(rows, heights):
    for column, picture in enumerate(row):
      whole.paste(picture, (gap + column * (width + gap), y))
    y += height + gap
  return whole

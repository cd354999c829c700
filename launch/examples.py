"""Examples of a data set as pictures: boxes with their classes or phrases, masks, captions and questions."""

import numpy as np
from PIL import Image

from launch import drawing
from pipelines import images
from pipelines.records import BadRecord, Example, Source

COLUMNS = 4


def draw(source: Source, count: int, seed: int) -> tuple[Image.Image, list[BadRecord]]:
  """A sheet of `count` records drawn without repetition (all of a smaller source), and those that cannot be shown.

  Raises ValueError for a count below 1, and when no record can be shown.
  """
  if count < 1:
    raise ValueError(f"--count {count}: draw at least one example")
  rng = np.random.default_rng(seed)
  chosen = np.sort(rng.choice(len(source), min(count, len(source)), replace=False))
  pictures, skipped = [], []
  for index in chosen.tolist():
    try:
      pictures.append(picture_of(source[index]))
    except BadRecord as error:
      skipped.append(error)
  if not pictures:
    raise ValueError(f"none of the {len(chosen)} records drawn can be shown, for example {skipped[0]}; see data check")
  return drawing.sheet(pictures, COLUMNS), skipped


def picture_of(example: Example) -> Image.Image:
  """The picture with everything that the example says about it. Raises BadRecord when it cannot be decoded."""
  pixels = images.decode(example.image, example.record)
  boxes = example.boxes_xyxy_px
  if example.kind == "detection":
    texts = example.labels
    names = {name: i for i, name in enumerate(dict.fromkeys(texts))}
  else:
    texts = tuple(" … ".join(example.caption[a:b] for a, b in sorted(spans)) for spans in example.spans)
    names = {text: i for i, text in enumerate(dict.fromkeys(texts))}
  fine = np.isfinite(boxes).all(axis=1)
  marks = [
    drawing.Mark(box.tolist(), text, names[text]) for box, text, keep in zip(boxes, texts, fine, strict=True) if keep
  ]
  for mask, text in zip(example.masks or (), texts):
    if mask is not None and mask.size == pixels.shape[:2]:
      pixels = drawing.tinted(pixels, mask.pixels(), names[text])
  asked = " ".join(f"{question.text} [{' / '.join(dict.fromkeys(question.answers))}]" for question in example.questions)
  return drawing.annotate(pixels, marks, " ".join(filter(None, (f"{example.record}:", example.caption, asked))))

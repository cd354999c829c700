"""What benchmarks/pipeline.py measures against: torch.utils.data.DataLoader with the tools of GLIP's own loader.

Pillow decodes, resizes and flips, transformers' fast tokenizer counts and encodes. Pictures, canvases, the rules of
prompts and what comes out (uint8 pixels, tokens, positive map) are those of the pipeline: both do the same work.
"""

import dataclasses
import functools
import io
import pathlib
from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image
from transformers import BertTokenizerFast

from pipelines import build, mixture
from pipelines.prepare_example import PrepareConfig
from pipelines.records import Source
from pipelines.words import load_words

SHAPES = str(pathlib.Path(build.__file__).parent / "vocab" / "shapes.txt")


def load(cfg: build.DataConfig, workers: int) -> Iterable:
  """Batches of the one source of `cfg`."""
  (source,) = build.open_sources(cfg, load_words(cfg.tokenizer, cfg.max_tokens))
  tokenizer = BertTokenizerFast(vocab_file=SHAPES if cfg.tokenizer == "shapes" else cfg.tokenizer)
  torch.set_num_threads(1)
  return torch.utils.data.DataLoader(
    Examples(source, tokenizer, build.mix(cfg, (source,)), cfg.prepare(), cfg.max_tokens),
    batch_size=cfg.batch,
    num_workers=workers,
    collate_fn=functools.partial(collate, max_boxes=cfg.max_boxes),
    multiprocessing_context="spawn" if workers else None,
  )


@dataclasses.dataclass
class Examples(torch.utils.data.Dataset):
  """The stream of `place`, so that pictures and canvases are the same."""

  source: Source
  tokenizer: BertTokenizerFast
  place: mixture.Mixture
  cfg: PrepareConfig
  max_tokens: int

  def __len__(self) -> int:
    return 10**7

  def __getitem__(self, k: int) -> dict:
    place = self.place(k)
    example, canvas = self.source[place.record], place.canvas
    picture = Image.open(io.BytesIO(example.image)).convert("RGB")
    scale = min(canvas[0] / picture.height, canvas[1] / picture.width)
    size = (round(picture.width * scale), round(picture.height * scale))
    boxes = torch.as_tensor(example.boxes_xyxy_px) * torch.tensor(
      [size[0] / picture.width, size[1] / picture.height] * 2
    )
    picture = picture.resize(size, Image.Resampling.BILINEAR)
    rng = np.random.default_rng(k)
    if rng.random() < self.cfg.flip:
      picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
      boxes = torch.stack([size[0] - boxes[:, 2] - 1, boxes[:, 1], size[0] - boxes[:, 0] - 1, boxes[:, 3]], 1)
    text, spans = self._prompt(example.labels, rng)
    encoded = self.tokenizer(
      text, max_length=self.max_tokens, padding="max_length", truncation=True, return_tensors="pt"
    )
    positive = torch.zeros(len(boxes), self.max_tokens, dtype=torch.bool)
    for row, label in zip(positive, example.labels, strict=True):
      begin, end = spans[label]
      first, last = encoded.char_to_token(0, begin), encoded.char_to_token(0, end - 1)
      if first is not None and last is not None:
        row[first : last + 1] = True
    return dict(
      image=torch.from_numpy(np.array(picture)), canvas=canvas, boxes=boxes, positive=positive,
      tokens=encoded.input_ids[0], tokens_valid=encoded.attention_mask[0],
    )  # fmt: skip

  def _prompt(self, labels: tuple[str, ...], rng: np.random.Generator) -> tuple[str, dict]:
    """Positives and drawn negatives within the budget, every length asked of the tokenizer, as GLIP does it."""
    positives = list(dict.fromkeys(labels))
    room = self.max_tokens - 2 - sum(len(self.tokenizer.tokenize(name + ". ")) for name in positives)
    count = 85 if rng.random() < 0.5 else int(rng.integers(1, 86))
    names = list(positives)
    for name in rng.permutation(self.source.classes)[:count].tolist():
      if name not in positives:
        room -= len(self.tokenizer.tokenize(name + ". "))
        if room <= 0:
          break
        names.append(name)
    text, spans = "", {}
    for name in rng.permutation(names).tolist():
      text += ". " if text else ""
      spans[name] = (len(text), len(text) + len(name))
      text += name
    return text, spans


def collate(rows: list[dict], max_boxes: int) -> dict:
  image = torch.zeros(len(rows), *rows[0]["canvas"], 3, dtype=torch.uint8)
  boxes = torch.zeros(len(rows), max_boxes, 4)
  positive = torch.zeros(len(rows), max_boxes, rows[0]["positive"].shape[1], dtype=torch.bool)
  for i, row in enumerate(rows):
    height, width = row["image"].shape[:2]
    image[i, :height, :width] = row["image"]
    boxes[i, : len(row["boxes"])] = row["boxes"]
    positive[i, : len(row["boxes"])] = row["positive"]
  stacked = {name: torch.stack([row[name] for row in rows]) for name in ("tokens", "tokens_valid")}
  return dict(image=image, boxes=boxes, positive=positive, **stacked)

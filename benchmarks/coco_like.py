"""A folder in COCO's format with pictures of COCO's sizes, for benchmarks/pipeline.py."""

import json
import pathlib

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from pipelines import build

# Height, width and frequency of the most common sizes of COCO's pictures; together they are about its mix.
COCO_SIZES = (
  ((480, 640), 0.40),
  ((427, 640), 0.27),
  ((640, 480), 0.13),
  ((640, 427), 0.08),
  ((375, 500), 0.06),
  ((360, 640), 0.03),
  ((640, 640), 0.03),
)
CLASSES = 80
BOXES = 7  # per picture
QUALITY = {"noise": 92, "photos": 97}  # give about COCO's 160 kB per picture


def write_coco(folder: pathlib.Path, pictures: int, photos: pathlib.Path | None, small: int = 0) -> build.SourceEntry:
  """A COCO-format folder. `small`: squares of so many pixels instead of COCO's sizes."""
  rng = np.random.default_rng(0)
  files = sorted(photos.rglob("*.jpg")) if photos else []
  content = {
    "images": [],
    "annotations": [],
    "categories": [{"id": k + 1, "name": f"{'large small red blue'.split()[k % 4]} thing {k}"} for k in range(CLASSES)],
  }
  for i in range(pictures):
    sizes, frequencies = zip(*COCO_SIZES, strict=True)
    height, width = (small, small) if small else sizes[rng.choice(len(sizes), p=frequencies)]
    pixels = _photo(files[i % len(files)], height, width) if files else _noise(rng, height, width)
    quality = QUALITY["photos" if files else "noise"]
    (folder / f"{i}.jpg").write_bytes(simplejpeg.encode_jpeg(pixels, quality, "RGB", "420"))
    content["images"].append({"id": i, "file_name": f"{i}.jpg", "height": height, "width": width})
    for _ in range(BOXES):
      w, h = rng.uniform(0.05, 0.6, 2) * (width, height)
      x, y = rng.random(2) * (width - w, height - h)
      number = len(content["annotations"]) + 1
      category = int(rng.integers(CLASSES)) + 1
      content["annotations"].append({"id": number, "image_id": i, "category_id": category, "bbox": [x, y, w, h]})
  (folder / "a.json").write_text(json.dumps(content))
  return ("coco_json", 1.0, (("annotations", str(folder / "a.json")), ("images", str(folder))))


def _photo(path: pathlib.Path, height: int, width: int) -> np.ndarray:
  with Image.open(path) as picture:
    return np.asarray(picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))


def _noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
  """Structure at all scales, like a photo's."""
  out = np.full((height, width, 3), 128.0)
  for cell in (4, 16, 64):
    coarse = rng.normal(0, 6 * cell**0.5, (height // cell + 2, width // cell + 2, 3))
    out += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
  return np.clip(out, 0, 255).astype(np.uint8)

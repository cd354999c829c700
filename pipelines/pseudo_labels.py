"""Captions and a teacher's detections -> GLIP's caption dialect (TSV, version 2), shard by shard (reference 11.7).

The host's half of `glipv2 pseudo-label`: what is asked of the teacher, which of its boxes stay, and the files. Of a
shard's files NAME.json is written last, so where it is the shard is finished. `pipelines/sources/glip_tsv.py` reads
NAME.train.yaml, which a shard without any row does not have.
"""

import base64
import collections
import dataclasses
import hashlib
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from glipv2_jax.boxes import iou
from pipelines import images
from pipelines.prepare_example import PrepareConfig, evaluation_example
from pipelines.prompts import Prompt
from pipelines.records import BadRecord, Example, Prepared, Source, Span
from pipelines.taggers import Finder
from pipelines.words import Words

SAME_PLACE = 0.5  # overlap from which a pseudo box counts as the true one

Boxes = list[tuple[list[float], float]]  # box and score, best first


@dataclasses.dataclass(frozen=True)
class Rules:
  """Which boxes stay."""

  threshold: float = 0.5  # boxes that score above stay
  per_phrase: int = 20  # at most so many boxes for one phrase, the best


@dataclasses.dataclass(frozen=True)
class Asked:
  """One caption ready for the teacher."""

  example: Example
  spans: tuple[Span, ...]  # of the phrases, as in prepared.phrases
  prepared: Prepared  # image_id: the index in the source
  beyond: int  # phrases beyond the network's tokens, which cannot be asked for


def ask(source: Source, index: int, find: Finder, words: Words, cfg: PrepareConfig) -> Asked:
  """The picture on the canvas where it becomes largest, and its caption with the noun phrases to ground.

  Raises BadRecord: whatever the source raises, 'no_phrase' (none found, or all beyond the network's tokens) and
  'undecodable_image'.
  """
  example = source[index]
  spans = tuple(dict.fromkeys(find(example.caption)))
  encoded = words.encode(example.caption)
  last = int(encoded.offsets.max())
  known = tuple((begin, end) for begin, end in spans if end <= last)
  if not known:
    raise BadRecord("no_phrase", example.record, example.caption[:80])
  size = images.size_of(example.image, example.record, cfg.max_pixels)
  canvas = max(cfg.canvases, key=lambda canvas: np.prod(images.fit(size, canvas).size))
  prompt = Prompt(example.caption, tuple((example.caption[begin:end], (begin, end)) for begin, end in known))
  plain = dataclasses.replace(
    example, image_id=index, text_id=None, kind="detection", boxes_xyxy_px=np.zeros((0, 4), np.float32), masks=None
  )
  return Asked(example, known, evaluation_example(plain, words, cfg, canvas, prompt=prompt), len(spans) - len(known))


def choose(
  boxes_xyxy_px: np.ndarray, scores: np.ndarray, labels: np.ndarray, phrases: int, rules: Rules, counts: dict[str, int]
) -> list[Boxes]:
  """The boxes of each phrase. k 4, k and k are the detections of one picture, best first; labels index the phrases.

  Counts boxes below the threshold or beyond the cap, and phrases that have none left.
  """
  scores = np.round(scores.astype(np.float64), 4)  # as they are written: who reads them compares again
  strong = scores > rules.threshold
  counts["boxes_below_threshold"] += int((~strong).sum())
  found: list[Boxes] = [[] for _ in range(phrases)]
  for box, score, label in zip(boxes_xyxy_px[strong].tolist(), scores[strong].tolist(), labels[strong], strict=True):
    if len(found[label]) == rules.per_phrase:
      counts["boxes_over_cap"] += 1
    else:
      found[label].append(([round(x, 2) for x in box], score))
  counts["phrases"] += phrases
  counts["phrases_kept"] += sum(map(bool, found))
  counts["boxes_kept"] += sum(map(len, found))
  return found


def row(asked: Asked, found: Sequence[Boxes]) -> dict[str, Any]:
  """Version 2 of the caption dialect: an entry for each phrase that has boxes, with the spans of its words."""
  height, width = asked.prepared.original_size
  kept = [(span, boxes) for span, boxes in zip(asked.spans, found, strict=True) if boxes]
  return {
    "img_h": height,
    "img_w": width,
    "caption": asked.example.caption,
    "tokens_positive": [_words(asked.example.caption, span) for span, _ in kept],
    "bboxes": [[box for box, _ in boxes] for _, boxes in kept],
    "scores": [[score for _, score in boxes] for _, boxes in kept],
  }


def _words(caption: str, span: Span) -> list[list[int]]:
  spans, at = [], span[0]
  for word in caption[slice(*span)].split():
    begin = caption.index(word, at)
    at = begin + len(word)
    spans.append([begin, at])
  return spans


def compare(asked: Asked, found: Sequence[Boxes], counts: dict[str, int]) -> None:
  """For captions that come with true boxes (kind 'grounding'): counts true boxes, and pseudo boxes that are right.

  A pseudo box is right when it overlaps a true box by half that has a phrase in common with its own; each true box
  answers for one.
  """
  example = asked.example
  counts["true_boxes"] += len(example.boxes_xyxy_px)
  taken: set[int] = set()
  flat = [(score, box, span) for span, boxes in zip(asked.spans, found, strict=True) for box, score in boxes]
  for _, box, (begin, end) in sorted(flat, key=lambda one: -one[0]):
    overlap = iou(np.array([box], np.float32), example.boxes_xyxy_px)[0]
    for i in np.argsort(-overlap):
      shared = any(b < end and begin < e for b, e in example.spans[i])
      if overlap[i] >= SAME_PLACE and shared and int(i) not in taken:
        taken.add(int(i))
        break
  counts["right_boxes"] += len(taken)


def _encoded(picture: bytes | np.ndarray) -> bytes:
  if isinstance(picture, bytes):
    return picture
  stream = io.BytesIO()
  Image.fromarray(picture).save(stream, "PNG")
  return stream.getvalue()


def write_shard(
  folder: pathlib.Path, name: str, rows: Sequence[tuple[int, Asked, dict]], about: Mapping[str, Any]
) -> None:
  """The files of one shard: rows are (index in the source, what was asked, label), in the order they are to have.

  `about` (counts, seconds) goes into NAME.json together with the checksums of the files.
  """
  content = {
    "images": ((str(index), base64.b64encode(_encoded(asked.example.image)).decode()) for index, asked, _ in rows),
    "label": ((str(index), json.dumps(label)) for index, _, label in rows),
    "hw": ((str(i), json.dumps([{"height": x["img_h"], "width": x["img_w"]}])) for i, _, x in rows),
  }
  sums = {}
  for part, lines in content.items():
    sums[f"{name}.{part}.tsv"] = _write_tsv(folder / f"{name}.{part}.tsv", lines)
  files = {"img": "images", "label": "label", "hw": "hw"}
  if rows:
    _replace(folder / f"{name}.train.yaml", "".join(f"{key}: {name}.{part}.tsv\n" for key, part in files.items()))
  _replace(folder / f"{name}.json", json.dumps({**about, "blake2b": sums}, indent=2) + "\n")


def _write_tsv(path: pathlib.Path, rows: Any) -> str:
  """A TSV file with its lineidx; returns the checksum of the first."""
  digest, begins, at = hashlib.blake2b(digest_size=16), [], 0
  part = path.with_suffix(".part")
  with open(part, "wb") as file:
    for columns in rows:
      line = "\t".join(columns).encode() + b"\n"
      begins.append(at)
      at += file.write(line)
      digest.update(line)
  _replace(path.with_suffix(".lineidx"), "".join(f"{begin}\n" for begin in begins))
  part.replace(path)
  return digest.hexdigest()


def _replace(path: pathlib.Path, text: str) -> None:
  """Whole or not at all."""
  part = path.with_name(path.name + ".part")
  part.write_text(text)
  part.replace(path)


def shard_name(number: int, shards: int) -> str:
  return f"{number:05d}-of-{shards:05d}"


def unfinished(folder: pathlib.Path, shards: int, host: int, hosts: int) -> list[int]:
  """The shards of this host (every `hosts`-th) that are not finished."""
  mine = range(host, shards, hosts)
  return [number for number in mine if not (folder / f"{shard_name(number, shards)}.json").is_file()]


def claim(folder: pathlib.Path, settings: Mapping[str, Any]) -> None:
  """For start-up: the settings of a folder are written once and every later start must have the same.

  Raises ValueError naming the first that differs.
  """
  path = folder / "settings.json"
  folder.mkdir(parents=True, exist_ok=True)
  if not path.is_file():
    _replace(path, json.dumps(settings, indent=2, sort_keys=True) + "\n")
  known, wanted = json.loads(path.read_text()), json.loads(json.dumps(settings))
  for key in sorted(known.keys() | wanted.keys()):
    if known.get(key) != wanted.get(key):
      raise ValueError(
        f"{folder} was begun with {key} = {known.get(key)!r:.200}, now it is {wanted.get(key)!r:.200}; go on with the "
        "same settings, or write to another folder"
      )


def manifest(folder: pathlib.Path, shards: int, settings: Mapping[str, Any]) -> dict[str, Any] | None:
  """All shards together, written as manifest.json: counts, checksums, settings. None while some are unfinished."""
  parts = [folder / f"{shard_name(number, shards)}.json" for number in range(shards)]
  if unfinished(folder, shards, 0, 1):
    return None
  abouts = [json.loads(part.read_text()) for part in parts]
  counts: collections.Counter = collections.Counter()
  for about in abouts:
    counts.update(about["counts"])
  whole: dict[str, Any] = {"settings": dict(settings), "counts": dict(sorted(counts.items()))}
  if "true_boxes" in counts:
    whole["against_truth"] = {
      "precision": counts["right_boxes"] / max(1, counts["boxes_kept"]),
      "recall": counts["right_boxes"] / max(1, counts["true_boxes"]),
      "iou": SAME_PLACE,
    }
  whole["seconds"] = round(sum(about["seconds"] for about in abouts), 1)
  whole["pictures_per_second"] = round(counts["captions"] / max(whole["seconds"], 1e-9), 2)
  whole["shards"] = {part.stem: about["blake2b"] for part, about in zip(parts, abouts, strict=True)}
  _replace(folder / "manifest.json", json.dumps(whole, indent=2) + "\n")
  return whole

"""What `glipv2 export-onnx` and `glipv2 export-stablehlo` share: their options, and what both files carry along."""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import tokenizers

from glipv2_jax.models import glipv2
from glipv2_jax.models.variants import ModelConfig
from glipv2_jax.train import checkpoint
from launch import experiment
from pipelines.words import load_words


@dataclasses.dataclass(frozen=True)
class Source:
  """A checkpoint, read."""

  model: ModelConfig
  params: Any
  canvas: tuple[int, int]
  about: dict[str, str]  # variant, config (JSON), tokenizer (the JSON that tokenizers.Tokenizer.from_str takes)


def add_options(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--checkpoint", required=True, metavar="DIR", help="run folder")
  parser.add_argument("--out", required=True, type=pathlib.Path, metavar="FILE")
  parser.add_argument(
    "--canvas", nargs=2, type=int, metavar=("H", "W"), help="pixels (default: the first canvas the run evaluates on)"
  )
  parser.add_argument(
    "--ema",
    action=argparse.BooleanOptionalAction,
    help="running average of the parameters (default: as the run evaluates)",
  )


def read(options: argparse.Namespace) -> Source:
  """The checkpoint of --checkpoint; makes the folder of --out.

  Raises FileNotFoundError, CheckpointMismatch or ValueError, which say what is missing.
  """
  trained = experiment.from_checkpoint(options.checkpoint)
  canvas = tuple(options.canvas or trained.evaluation.canvases[0])
  if min(canvas) < 1:
    raise ValueError(f"--canvas {canvas[0]} {canvas[1]} is no size of a picture; give height and width in pixels")
  if options.batch is not None and options.batch < 1:
    raise ValueError(f"--batch {options.batch} holds no picture; give 1 or more")
  ema = trained.train.evaluate_ema if options.ema is None else options.ema
  params = checkpoint.restore_params(options.checkpoint, glipv2.abstract_params(trained.model), ema=ema)
  about = {"variant": trained.variant, "config": json.dumps(trained.record)}
  if trained.model.text is not None:
    try:
      about["tokenizer"] = tokenizer(trained.data.tokenizer, trained.model.max_tokens)
    except (OSError, ValueError) as error:  # who has it elsewhere can use the file all the same
      print(f"{options.out} goes without its tokenizer: {error}", file=sys.stderr)
  options.out.parent.mkdir(parents=True, exist_ok=True)
  return Source(trained.model, params, canvas, about)


def summary(source: Source, files: Sequence[pathlib.Path]) -> str:
  """The line that ends both commands."""
  height, width = source.canvas
  size = sum(file.stat().st_size for file in files)
  return f"{source.about['variant']}, canvas {height} x {width}, {size / 1e6:,.0f} MB -> {', '.join(map(str, files))}"


def tokenizer(name: str, max_tokens: int) -> str:
  """JSON of the tokenizer `name` (pipelines.words) that also cuts and pads to `max_tokens`."""
  words = load_words(name, max_tokens)
  engine = tokenizers.Tokenizer.from_str(words.tokenizer.to_str())
  engine.enable_truncation(max_tokens)
  engine.enable_padding(length=max_tokens, pad_id=words.pad_id, pad_token=engine.id_to_token(words.pad_id))
  return engine.to_str()

"""Caption metrics by pycocoevalcap: BLEU-1..4, METEOR, ROUGE-L, CIDEr, SPICE (reference 11.3).

METEOR, SPICE and the tokeniser are Java programs. Without Java the words come from eval/ptb.py, which METEOR and
SPICE cannot use: they are None then, with the reason under 'absent', and the others are given all the same.
"""

import contextlib
import importlib.util
import io
import pathlib
import shutil
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from eval import ptb
from eval.files import Source, fields, read_json, read_texts

METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE")
Texts = dict[int, list[str]]  # image id -> its captions, as tokens joined by blanks
_CORENLP = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")  # SPICE's parser, left to the user
_CORENLP_ZIP = "https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"


def load_references(annotations: str | pathlib.Path | Mapping[str, Any]) -> dict[int, list[str]]:
  """References by image id, from COCO's captions file or from the test split of Karpathy's dataset_coco.json."""
  content = annotations if isinstance(annotations, Mapping) else read_json(annotations, "captions file")
  if "annotations" not in content and "sentences" not in (content["images"] or [{}])[0]:
    raise ValueError(
      "the captions file has no 'annotations'; give COCO's captions_*.json or Karpathy's dataset_coco.json"
    )
  references: dict[int, list[str]] = {}
  if "annotations" in content:
    for i, annotation in enumerate(content["annotations"]):
      image_id, caption = fields(annotation, i, "captions", "image_id", "caption")
      references.setdefault(image_id, []).append(caption)
  else:
    for image in content["images"]:
      if image["split"] == "test":
        references[image["cocoid"]] = [sentence["raw"] for sentence in image["sentences"]]
  return references


def evaluate(
  annotations: str | pathlib.Path | Mapping[str, Any], predictions: Source, *, java: bool | None = None
) -> dict[str, Any]:
  """The numbers of METRICS over all images with references, as pycocoevalcap defines them.

  `predictions`: a file or its records {image_id, caption}, one for each image. An image without caption counts as
  captioned with nothing, and in 'missing'. `java`: False does without, None uses it where it is. 'absent' tells
  which metrics are None and why; 'tokenizer' which tokeniser ran. Raises ValueError naming the record that is wrong,
  ImportError without pycocoevalcap.
  """
  references = load_references(annotations)
  found = read_texts(predictions, references, "image", "image_id", "caption")
  captions = {i: [found[i] if i in found else ""] for i in references}
  if importlib.util.find_spec("pycocoevalcap") is None:
    raise ImportError("caption metrics need pycocoevalcap; pip install 'glipv2_jax[captions]'")
  java = shutil.which("java") is not None if java is None else java
  result: dict[str, Any] = dict.fromkeys(METRICS)
  absent = {}
  if references:
    numbers, absent = score(tokenised(references, java), tokenised(captions, java), java)
    result |= {key: value for key, (value, _) in numbers.items()}
  for metric, reason in absent.items():
    warnings.warn(f"{metric} is not computed: {reason}", stacklevel=2)
  counts = {"images": len(references), "missing": len(references) - len(found)}
  return {**result, **counts, "tokenizer": "PTBTokenizer (Java)" if java else "eval/ptb.py", "absent": absent}


def score(references: Texts, captions: Texts, java: bool) -> tuple[dict[str, tuple[float, Sequence]], dict[str, str]]:
  """(corpus number, numbers per image) of each metric on tokenised texts, and the reason for each that is left out."""
  from pycocoevalcap.bleu.bleu import Bleu
  from pycocoevalcap.cider.cider import Cider
  from pycocoevalcap.rouge.rouge import Rouge

  numbers: dict[str, tuple[float, Sequence]] = {}
  absent: dict[str, str] = {}
  with contextlib.redirect_stdout(io.StringIO()):
    bleu, per_image = Bleu(4).compute_score(references, captions)
    numbers |= {f"BLEU-{k + 1}": (float(bleu[k]), per_image[k]) for k in range(4)}
    for metric, scorer in (("ROUGE-L", Rouge()), ("CIDEr", Cider())):
      value, per_image = scorer.compute_score(references, captions)
      numbers[metric] = (float(value), per_image)
    for metric in ("METEOR", "SPICE"):
      reason = _hindrance(metric, java)
      try:
        if reason is None:
          value, per_image = _java_scorer(metric).compute_score(references, captions)
          numbers[metric] = (float(value), per_image)
      except (OSError, ValueError, subprocess.CalledProcessError) as error:  # how the wrappers meet a program that died
        reason = f"its Java program failed ({error!r}); try another Java version"
      if reason is not None:
        absent[metric] = reason
  return numbers, absent


def _hindrance(metric: str, java: bool) -> str | None:
  if not java:
    return "it is a Java program and no java was found; install a Java runtime (version 8 or newer)"
  if metric == "SPICE":
    import pycocoevalcap

    folder = pathlib.Path(next(iter(pycocoevalcap.__path__))) / "spice" / "lib"
    lacking = [name for name in _CORENLP if not (folder / name).is_file()]
    if lacking:  # without them pycocoevalcap would download in the middle of an evaluation
      return f"it needs {' and '.join(lacking)} of {_CORENLP_ZIP}, which no package index has; put them into {folder}"
  return None


def _java_scorer(metric: str) -> Any:
  if metric == "METEOR":
    from pycocoevalcap.meteor.meteor import Meteor

    return Meteor()
  from pycocoevalcap.spice.spice import Spice

  return Spice()


def tokenised(texts: Mapping[int, list[str]], java: bool) -> Texts:
  """The captions of each image as tokens joined by blanks, without punctuation."""
  if not java:
    return {i: [" ".join(ptb.tokenize(text)) for text in of_image] for i, of_image in texts.items()}
  from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

  # A line break or an empty line would shift the tool's lines against the images.
  lines = {i: [{"caption": " ".join(text.split()) or "."} for text in of_image] for i, of_image in texts.items()}
  tokens = PTBTokenizer().tokenize(lines)
  if [len(of_image) for of_image in tokens.values()] != [len(of_image) for of_image in lines.values()]:
    raise ValueError("the Java tokeniser of pycocoevalcap lost captions; run it by hand to see why, or do without Java")
  return tokens

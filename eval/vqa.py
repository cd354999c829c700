"""VQA v2 accuracy: the official answer normalisation and the average over the ten annotators (reference 11.2).

An answer is right to the degree min(1, matches / 3), averaged over the ten sets of nine annotators that leave one out.
Both sides are normalised (punctuation, number words, articles, contractions) unless all ten answers are the same.
"""

import pathlib
import re
import statistics
from collections.abc import Mapping
from typing import Any

from eval.files import Source, fields, read_json, read_texts, unique

NUMBERS = dict(
  zip("none zero one two three four five six seven eight nine ten".split(), "0 0 1 2 3 4 5 6 7 8 9 10".split())
)
ARTICLES = ("a", "an", "the")
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# Written with one apostrophe too few, these are put right (VQAEval's table; it works on lower case).
CONTRACTIONS = """
  ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
  he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
  o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
  someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
  there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
  what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
  wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
_CORRECTIONS = {
  word[:i] + word[i + 1 :]: word for word in CONTRACTIONS for i, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd"}
_PERIOD = re.compile(
  r"(?!<=\d)\.(?!\d)"
)  # the official pattern, slip included: it means a literal "<=", not a look-behind
_THOUSANDS = re.compile(r"\d,\d")


def normalise(answer: str) -> str:
  """The official form of an answer: punctuation, then number words, articles and contractions."""
  text = answer
  for mark in PUNCTUATION:
    glued = mark + " " not in answer and " " + mark not in answer and _THOUSANDS.search(answer) is None
    text = text.replace(mark, " " if glued else "")
  text = _PERIOD.sub("", text, count=32)  # the official code passes re.UNICODE (32) as the count
  words = [NUMBERS[word] if word in NUMBERS else word for word in text.lower().split()]
  return " ".join(_CORRECTIONS[word] if word in _CORRECTIONS else word for word in words if word not in ARTICLES)


def accuracy(answer: str, annotators: list[str]) -> float:
  """Accuracy in [0, 1] of one answer against the annotators' answers."""
  answer, annotators = _flat(answer), [_flat(other) for other in annotators]
  if len(set(annotators)) > 1:
    answer, annotators = normalise(answer), [normalise(other) for other in annotators]
  matches = sum(other == answer for other in annotators)
  return statistics.fmean(min(1.0, (matches - (other == answer)) / 3) for other in annotators)


def accuracies(annotations: str | pathlib.Path | Mapping[str, Any], predictions: Source) -> dict[int, float | None]:
  """Percent right of every question of the annotations, by its id; None where the predictions lack it."""
  return _accuracies(*_load(annotations, predictions))


def evaluate(annotations: str | pathlib.Path | Mapping[str, Any], predictions: Source) -> dict[str, Any]:
  """'accuracy' in percent, 'per_answer_type' (yes/no, number, other) and 'per_question_type'.

  `annotations`: the official v2_mscoco_*_annotations.json (or its content); `predictions`: a file or its records
  {question_id, answer}. A question without answer counts as wrong and in 'missing'. Not rounded (the official tool
  rounds to two decimals). Raises ValueError naming the record that is wrong.
  """
  truth, found = _load(annotations, predictions)
  scores = _accuracies(truth, found)
  result = {
    "accuracy": _mean(scores.values()),
    "questions": len(scores),
    "missing": sum(score is None for score in scores.values()),
  }
  for field in ("answer_type", "question_type"):
    groups: dict[str, list[float | None]] = {}
    for i, item in truth.items():
      groups.setdefault(item[field], []).append(scores[i])
    result[f"per_{field}"] = {name: _mean(group) for name, group in sorted(groups.items())}
  return result


def _load(annotations: Any, predictions: Source) -> tuple[dict[int, Mapping[str, Any]], dict[int, str]]:
  content = annotations if isinstance(annotations, Mapping) else read_json(annotations, "VQA annotations")
  if "annotations" not in content:
    raise ValueError("VQA annotations have no 'annotations'; give v2_mscoco_*_annotations.json, not the questions")
  known = {}
  unique([item["question_id"] for item in content["annotations"]], "VQA annotations", "annotation")
  for i, item in enumerate(content["annotations"]):
    known[fields(item, i, "VQA annotations", "question_id", "answers", "answer_type", "question_type")[0]] = item
  return known, read_texts(predictions, known, "question", "question_id", "answer")


def _accuracies(truth: Mapping[int, Mapping[str, Any]], found: Mapping[int, str]) -> dict[int, float | None]:
  answers = {i: [given["answer"] for given in item["answers"]] for i, item in truth.items()}
  return {i: 100 * accuracy(found[i], answers[i]) if i in found else None for i in truth}


def _flat(answer: str) -> str:
  return answer.replace("\n", " ").replace("\t", " ").strip()


def _mean(scores: Any) -> float | None:
  scores = [score or 0.0 for score in scores]
  return statistics.fmean(scores) if scores else None

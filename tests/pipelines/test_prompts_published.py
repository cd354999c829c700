"""Prompts against what the authors' code made from the same draws, draw for draw."""

import collections
import dataclasses
import json

import numpy as np
import pytest

from pipelines import prompts
from pipelines.concepts import concept_id
from pipelines.prompts import PromptConfig

PUBLISHED = PromptConfig(distinct=False, draw_background=True, pack=20, pack_own=True)


class Recorded:
  """Stands in for np.random.Generator: gives out the recorded draws of each kind in their order."""

  def __init__(self, draws, show=lambda value: value, leave_out_shuffle=None):
    calls = collections.defaultdict(list)
    for draw in draws:
      single = draw["call"] == "numpy.random.choice" and draw["size"] is None
      calls["integers" if single else draw["call"]].append(draw)
    self.randoms, self.numbers = calls["random.random"], calls["integers"]
    self.choices, self.shuffles = calls["numpy.random.choice"], calls["random.shuffle"]
    self.show = show
    if leave_out_shuffle is not None:
      self.shuffles.pop(leave_out_shuffle)

  def random(self):
    return self.randoms.pop(0)["value"]

  def integers(self, high):
    draw = self.numbers.pop(0)
    assert draw["population"] == high
    return draw["value"]

  def choice(self, a, size, replace):
    draw = self.choices.pop(0)
    assert (draw["population"], draw["size"], draw["replace"]) == (len(a), size, replace)
    return np.array([self.show(value) for value in draw["value"]], object)

  def permutation(self, x):
    draw = self.shuffles.pop(0)
    assert sorted(x) == sorted(map(self.show, draw["before"]))
    return np.array([self.show(value) for value in draw["after"]], object)

  def used_up(self):
    return not (self.numbers or self.choices or self.shuffles)


def read(golden, name):
  return json.loads((golden / name).read_text())


def boxes_left(rows, size_wh):
  """Rows whose box is not empty once clipped to the image (reference 6.3, 1)."""
  width, height = size_wh
  left = []
  for row in rows:
    x1, y1, x2, y2 = row["rect"]
    x1, x2 = (min(max(x, 0), width - 1) for x in (x1, x2))
    y1, y2 = (min(max(y, 0), height - 1) for y in (y1, y2))
    if x2 > x1 and y2 > y1:
      left.append(row)
  return left


def positions(positive_map):
  return [np.flatnonzero(row).tolist() for row in positive_map]


@pytest.mark.parametrize("number", range(20))
def test_detection_prompts_as_published(golden, bert, vocabularies, number):
  content = read(golden, "prompts_od.json")
  assert len(content["results"]) == 20
  result = content["results"][number]
  key, settings = result["classes"], result["settings"]
  classes = vocabularies[key]
  names = dict(enumerate([prompts.BACKGROUND, *classes]))
  rows = boxes_left(content["rows"][key][result["row"]], content["image_sizes_wh"][key][result["row"]])
  labels = [row["class"] for row in rows]
  assert len(labels) == result["boxes_after_clipping"]
  ordered = settings.get("disable_shuffle", False)
  cfg = dataclasses.replace(
    PUBLISHED,
    mode="all" if ordered else "sample",
    shuffle=False,
    prefix="object detection : " if settings.get("add_detection_prompt") else "",
    control_probabilities=tuple(settings.get("control_probabilities", (0.0, 0.0, 0.5, 0.0))),
  )
  # The authors shuffle the positives by themselves before they shuffle everything: the second of their shuffles.
  draws = Recorded([] if ordered else result["draws"], names.get, None if ordered else 1)
  prompt, kept = prompts.detection_prompt(labels, classes, draws, bert, cfg)
  assert draws.used_up()
  assert prompt.text == result["caption"]
  assert [(name, list(span)) for name, span in prompt.spans] == [
    (names[label], span) for label, span in result["label_to_positions"]
  ]
  assert kept.sum() == result["boxes_after_overflow_check"]
  kept_labels = [label for label, keep in zip(labels, kept, strict=True) if keep]
  assert kept_labels == [names[label] for label in result["labels"]]

  encoding = bert.encode(prompt.text)
  assert encoding.tokens_valid.sum() == result["tokens_in_caption"]
  named = prompts.name_boxes(prompt, encoding, labels)
  np.testing.assert_array_equal(named.kept, kept)
  assert positions(named.positive_map) == result["positive_map"]
  concepts = {token: concept_id(names[label]) for token, label in result["positive_map_for_od_labels"]}
  assert {int(i): int(named.token_concept[i]) for i in np.flatnonzero(named.token_concept >= 0)} == concepts
  assert named.box_concept.tolist() == [concept_id(label) for label in kept_labels]


# 11 tries again with another row, 17 is an error of the authors' code, 18 removes boxes by NMS.
@pytest.mark.parametrize("number", [i for i in range(20) if i not in (11, 17, 18)])
def test_packed_captions_as_published(golden, bert, number):
  content = read(golden, "prompts_caption.json")
  result = content["results"][number]
  settings = result["settings"]
  row = content[f"rows_{result['version']}"][result["row"]]
  spans = confident_spans(row, result["version"])
  length = settings.get("max_query_len", 256)
  words = dataclasses.replace(bert, max_tokens=length)
  roomy = words if settings.get("safeguard_positive_caption", True) else dataclasses.replace(bert, max_tokens=10_000)
  cfg = dataclasses.replace(PUBLISHED, pack=settings.get("pack_random_caption_number", 20))
  prompt, shift = prompts.grounding_prompt(row["caption"], spans), 0
  if cfg.pack:
    draws = PackingRecord(result["draws"])
    prompt, shift = prompts.packed_prompt(prompt, content["captions"], draws, roomy, cfg)
    assert draws.used_up()
  assert prompt.text == result["caption"]
  moved = [[[begin + shift, end + shift] for begin, end in box] for box in spans]
  assert moved[: len(result["tokens_positive"])] == result["tokens_positive"]
  encoding = words.encode(prompt.text)
  assert encoding.tokens_valid.sum() == result["tokens_in_caption"]
  named = prompts.name_boxes_by_spans(prompt.text, encoding, moved)
  assert named.kept.all()
  assert positions(named.positive_map)[: len(result["positive_map"])] == result["positive_map"]
  assert (named.token_concept == -1).all() and (named.box_concept == -1).all()


class PackingRecord(Recorded):
  """The authors shuffle the numbers of the other captions (without their length check: nothing), then all captions."""

  def __init__(self, draws):
    super().__init__(draws)
    self.orders = [self.shuffles.pop(0)["after"] if len(self.shuffles) == 2 else None]

  def permutation(self, x):
    if not self.orders:
      return super().permutation(x)
    order = self.orders.pop()
    return np.array(x if order is None else [x[i] for i in order], object)


def confident_spans(row, version):
  """One list of spans per box with a score above 0.5 (reference 6.6)."""
  if version == "v1":
    return [span for span, score in zip(row["tokens_positive"], row["scores"], strict=True) if score > 0.5]
  entities = zip(row["tokens_positive"], row["scores"], strict=True)
  return [span for span, scores in entities for score in scores if score > 0.5]


def test_coco_vocabulary_is_one_prompt(golden, bert, clip, vocabularies):
  content = read(golden, "prompts_queries.json")
  for words, case in ((bert, content["coco"]), (clip, content["coco_clip_tokenizer"])):
    (prompt,) = prompts.all_classes_prompts(vocabularies["coco"], words)
    encoding = words.encode(prompt.text)
    assert prompt.text == content["coco"]["query"]
    assert encoding.tokens_valid.sum() == case["tokens"] and not encoding.truncated
    found = [[i + 1, list(phrase.tokens)] for i, phrase in enumerate(prompts.phrases(prompt, encoding))]
    assert found == case["label_to_tokens"]
    if "input_ids" in case:
      assert encoding.tokens[encoding.tokens_valid].tolist() == case["input_ids"]


def test_lvis_chunks_of_forty(golden, bert, vocabularies):
  expected = read(golden, "prompts_queries.json")["lvis_chunks_of_40"]
  chunks = prompts.all_classes_prompts(vocabularies["lvis"], bert, per_prompt=40)
  assert len(chunks) == len(expected) == 31
  for prompt, case in zip(chunks, expected, strict=True):
    encoding = bert.encode(prompt.text)
    assert prompt.text == case["query"] and encoding.tokens_valid.sum() == case["tokens"]
    found = [list(phrase.tokens) for phrase in prompts.phrases(prompt, encoding)]
    assert found == [tokens for _, tokens in case["label_to_tokens"]]


def test_simple_prompts_as_published(golden, bert):
  case = read(golden, "prompts_queries.json")["simple"]
  classes = list(case["names"].values())
  labels = [classes[label - 1] for label in (2, 4, 2)]
  assert len(case["results_simple"]) == 5
  for result in case["results_simple"]:
    settings = result["settings"]
    worded = settings.get("caption_prompt", [])
    cfg = PromptConfig(
      mode="all",
      shuffle=not settings["disable_shuffle"],
      prefix="object detection : " if settings.get("add_detection_prompt") else "",
      wordings=tuple((w["prefix"], w["name"], w["suffix"]) for w in worded),
    )
    draws = Recorded(result["draws"], lambda i: classes[i - 1])
    prompt, kept = prompts.detection_prompt(labels, classes, draws, bert, cfg)
    assert prompt.text == result["caption"] and kept.all()
    places = dict(prompt.spans)
    assert [[list(places[label])] for label in labels] == result["tokens_positive"]
    named = prompts.name_boxes(prompt, bert.encode(prompt.text), labels)
    assert positions(named.positive_map) == result["positive_map"]

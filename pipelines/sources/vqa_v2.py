"""VQA v2: questions about COCO's pictures with ten people's answers, a record for each question (kind 'vqa').

The test files have questions only; their answers are kept back.
"""

import pathlib
from array import array

import numpy as np

from pipelines.records import BadRecord, Example, Question, record_name
from pipelines.sources.index import Record, Strings, positions, read_json, unique
from pipelines.sources.pictures import Pictures

_NO_BOXES = np.zeros((0, 4), np.float32)


class VqaV2:
  """Random access to the questions of one split.

  Attributes:
    kind: 'vqa'; classes: ().
  """

  kind, classes = "vqa", ()

  def __init__(
    self,
    questions: str,
    images: str,
    *,
    annotations: str = "",
    file_name: str = "COCO_train2014_{image_id:012d}.jpg",
    name: str = "vqa_v2",
  ):
    """Reads the index.

    Args:
      questions: `v2_OpenEnded_mscoco_*_questions.json`.
      images: the folder of the pictures.
      annotations: `v2_mscoco_*_annotations.json`; '' for a test set.
      file_name: the name of a picture in the folder; `{image_id:012d}` is its id with zeros in front.
      name: of this data set, for messages and counts.

    Raises:
      FileNotFoundError, ValueError: a file or folder is missing or not of this form, or a question lacks its answers.
    """
    self.name, path = name, pathlib.Path(questions)
    ids, image_ids, texts = array("q"), array("q"), []
    for entry in read_json(path, ("questions",), "questions", "the questions of VQA v2"):
      ids.append(entry.whole("question_id"))
      image_ids.append(entry.whole("image_id"))
      texts.append(entry.text("question"))
    self._ids, self._texts = np.array(ids, np.int64), Strings(texts)
    unique(path, self._ids, "question")
    if not len(self):
      raise ValueError(f"{path} has no question")
    self._image_ids, self._image = np.unique(np.array(image_ids, np.int64), return_inverse=True)
    names = [_named(file_name, i) for i in self._image_ids.tolist()]
    self._pictures = Pictures.found(images, (names,), self._image)
    self._read_answers(pathlib.Path(annotations) if annotations else None)

  def _read_answers(self, path: pathlib.Path | None) -> None:
    """Question i has the answers _words[_answers[_ends[i] : _ends[i + 1]]]."""
    words, questions, ends, answers = {}, array("q"), [0], array("i")
    if path is not None:
      for entry in read_json(path, ("annotations",), "annotations", "the answers of VQA v2"):
        questions.append(entry.whole("question_id"))
        for number, answer in enumerate(entry.items("answers")):
          part = Record(entry.path, f"annotations[{entry.number}].answers", number, answer)
          answers.append(words.setdefault(part.text("answer"), len(words)))
        ends.append(len(answers))
    given = np.array(questions, np.int64)
    if path is not None:
      unique(path, given, "question")
      positions(path, given, self._ids, "question")
      if len(lacking := np.setdiff1d(self._ids, given)):
        raise ValueError(
          f"{path} has no answers for {len(lacking)} of {len(self)} questions, such as question_id {lacking[0]}; "
          "questions and annotations have to be of the same split"
        )
    self._words, self._answers, self._ends = Strings(words), np.array(answers, np.int32), np.array(ends, np.int64)
    self._row = positions(path, self._ids, given, "question") if path is not None else None

  def __len__(self) -> int:
    return len(self._ids)

  def __getitem__(self, index: int) -> Example:
    """Raises BadRecord('missing_image'), 'empty_question', and 'no_answer' where the file of the answers has none."""
    question_id, image = int(self._ids[index]), int(self._image[index])
    image_id, answers = int(self._image_ids[image]), ()
    record = record_name(self.name, image_id, question_id)
    if not self._texts[index].strip():
      raise BadRecord("empty_question", record)
    if self._row is not None:
      row = self._row[index]
      answers = tuple(self._words[i] for i in self._answers[self._ends[row] : self._ends[row + 1]])
      if not answers:
        raise BadRecord("no_answer", record)
    return Example(
      source=self.name,
      image_id=image_id,
      text_id=question_id,
      kind="vqa",
      image=self._pictures.read(image, record),
      boxes_xyxy_px=_NO_BOXES,
      questions=(Question(self._texts[index], answers, question_id),),
    )


def _named(file_name: str, image_id: int) -> str:
  try:
    return file_name.format(image_id=image_id)
  except (KeyError, ValueError, IndexError) as error:
    raise ValueError(f"file_name {file_name!r} is no pattern of image_id, such as '{{image_id:012d}}.jpg'") from error

"""`shapes`: the embedded data set. Scenes are drawn from their index, so there are no files and no downloads.

Scene n of a split is a pure function of (split, n, size): a picture of up to eight things (kind, colour, size, texture)
on a noisy background, partly covering each other, with exact boxes and masks. The task chooses the annotation:
class names ("red circle") or a caption with the spans of its phrases. The split `zero_shot` shows colour-kind pairs
that `train` and `val` never show, neither as objects nor in the text. Drawing: shapes_scene.py and shapes_draw.py;
language: shapes_text.py.
"""

import dataclasses

import numpy as np

from pipelines.masks import from_pixels
from pipelines.records import Example, Question, Span
from pipelines.sources.shapes_scene import COLOURS, HELD_OUT, KINDS, SEEN, Scene, Thing, make_scene
from pipelines.sources.shapes_text import write_caption, write_questions

SPLITS = ("train", "val", "zero_shot")  # a split's position seeds it: append only
LENGTHS = (1_000_000, 512, 512)
TASKS = ("detection", "grounding")
NAMES = ("pair", "kind", "colour")  # class names of detection: "red circle", "circle", "red"
NAMESPACE = 0x5A9E5  # keeps these streams apart from everybody else's


@dataclasses.dataclass(frozen=True)
class ShapesConfig:
  """Which scenes, of what size, with which annotation.

  Raises ValueError for an unknown split or task, a picture below 64 pixels, a range upside down, a length below 1.
  """

  split: str = "train"  # one of SPLITS
  task: str = "detection"  # one of TASKS
  names: str = "pair"  # one of NAMES; for the task detection
  size: tuple[int, int] = (128, 128)  # height, width in pixels
  max_size: tuple[int, int] | None = None  # given: height and width are drawn per scene from size..max_size
  length: int | None = None  # scenes in the split; None: LENGTHS
  name: str = ""  # of this data set, for messages and counts; '': shapes_SPLIT

  def __post_init__(self):
    for field, known in (("split", SPLITS), ("task", TASKS), ("names", NAMES)):
      if (value := getattr(self, field)) not in known:
        raise ValueError(f"shapes: {field} {value!r} is not known; known: {', '.join(known)}")
    if len(self.size) != 2 or min(self.size) < 64:
      raise ValueError(f"shapes: size {self.size} must be (height, width) with at least 64 pixels each")
    if self.max_size is not None and (len(self.max_size) != 2 or np.less(self.max_size, self.size).any()):
      raise ValueError(f"shapes: max_size {self.max_size} must be (height, width), not below size {self.size}")
    if self.length is not None and self.length < 1:
      raise ValueError(f"shapes: length {self.length} must be at least 1 (None for the split's usual length)")


class Shapes:
  """Random access to the scenes of one split; follows `records.Source`.

  Attributes:
    classes: detection: the names of the split's pairs (for `zero_shot` the unseen ones first), of the kinds or of the
      colours; grounding: ().
    unseen_classes: those of them that training never shows: pairs of the split `zero_shot`; () otherwise.
  """

  def __init__(self, config: ShapesConfig | None = None, **options):
    """Takes a config, or the fields of one as keywords."""
    if config is not None and options:
      raise ValueError(f"shapes: give a config or its fields, not both (fields: {', '.join(options)})")
    self.config = config or ShapesConfig(**options)
    self.name = self.config.name or f"shapes_{self.config.split}"
    self.kind = self.config.task
    zero_shot = self.config.split == "zero_shot"
    self._pairs = frozenset(HELD_OUT + SEEN if zero_shot else SEEN)
    pairs = self.config.names == "pair"
    self.unseen_classes = tuple(map(" ".join, HELD_OUT)) if zero_shot and pairs else ()
    seen = tuple(map(" ".join, SEEN)) if pairs else KINDS if self.config.names == "kind" else COLOURS
    self.classes = self.unseen_classes + seen if self.config.task == "detection" else ()

  def __len__(self) -> int:
    return self.config.length or LENGTHS[SPLITS.index(self.config.split)]

  def sizes(self) -> np.ndarray:
    """n 2 int32: height and width of every picture, 0 0 where they are drawn with the scene."""
    return np.tile(np.int32(self.config.size if self.config.max_size is None else (0, 0)), (len(self), 1))

  def caption(self, index: int) -> str:
    """The text of a grounding example."""
    scene = self.scene(index)
    return write_caption(scene.things, min(scene.image.shape[:2]), self._rng(int(index), 1))[0]

  def _rng(self, index: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng((NAMESPACE, SPLITS.index(self.config.split), index, purpose))

  def scene(self, index: int) -> Scene:
    """The scene with all its attributes; the same for both tasks. Raises IndexError outside the split."""
    if not 0 <= index < len(self):
      raise IndexError(f"{self.name} has scenes 0..{len(self) - 1}, not {index}")
    rng = self._rng(int(index), 0)
    low, high = self.config.size, self.config.max_size
    size = tuple(low) if high is None else tuple(int(rng.integers(a, b + 1)) for a, b in zip(low, high, strict=True))
    return make_scene(rng, size, held_out=self.config.split == "zero_shot")

  def _label(self, thing: Thing) -> str:
    return {"pair": f"{thing.colour} {thing.kind}", "kind": thing.kind, "colour": thing.colour}[self.config.names]

  def __getitem__(self, index: int) -> Example:
    """Detection: every thing. Grounding: the things that the caption names, each with the spans that name it."""
    scene = self.scene(index)
    side = min(scene.image.shape[:2])
    common = dict(
      source=self.name,
      image_id=int(index),
      kind=self.config.task,
      image=scene.image,
      questions=tuple(
        Question(question, (answer,))
        for question, answer in write_questions(scene.things, side, self._pairs, self._rng(int(index), 2))
      ),
    )
    boxes = np.array([thing.box for thing in scene.things], np.float32).reshape(-1, 4)
    masks = tuple(map(from_pixels, scene.masks))
    if self.config.task == "detection":
      labels = tuple(self._label(thing) for thing in scene.things)
      return Example(**common, boxes_xyxy_px=boxes, labels=labels, masks=masks)
    caption, mentions = write_caption(scene.things, side, self._rng(int(index), 1))
    spans = [tuple(m.span for m in mentions if i in m.things) for i in range(len(boxes))]
    named = [i for i, found in enumerate(spans) if found]
    return Example(
      **common,
      boxes_xyxy_px=boxes[named],
      caption=caption,
      spans=tuple(spans[i] for i in named),
      masks=tuple(masks[i] for i in named),
    )


def phrase_boxes(example: Example) -> tuple[tuple[str, Span, np.ndarray], ...]:
  """The phrases of a grounding example in the order of the text: (words, character span, boxes k 4 float32)."""
  order = sorted({span for spans in example.spans for span in spans})
  rows = [np.array([span in spans for spans in example.spans]) for span in order]
  return tuple(
    (example.caption[span[0] : span[1]], span, example.boxes_xyxy_px[row])
    for span, row in zip(order, rows, strict=True)
  )


def coco_dataset(source: Shapes, count: int | None = None) -> dict:
  """The first `count` scenes of a detection source (None: all) in COCO's format, for evaluation and for other tools.

  Ids: image = scene index, category = position in `source.classes` + 1, annotation from 1. bbox is x y w h with
  w = x2 - x1 + 1; area counts mask pixels; segmentation is compressed RLE with text counts.
  Raises ValueError for a source with another task.
  """
  if source.config.task != "detection":
    raise ValueError(f"{source.name} has task {source.config.task!r}; COCO's format needs task='detection'")
  number = {name: i for i, name in enumerate(source.classes, 1)}
  images, annotations = [], []
  for index in range(len(source) if count is None else count):
    example = source[index]
    height, width = example.image.shape[:2]
    images.append({"id": index, "file_name": f"{source.name}/{index:06d}.png", "height": height, "width": width})
    for box, label, mask in zip(example.boxes_xyxy_px.tolist(), example.labels, example.masks, strict=True):
      annotations.append(
        {
          "id": len(annotations) + 1,
          "image_id": index,
          "category_id": number[label],
          "bbox": [box[0], box[1], box[2] - box[0] + 1, box[3] - box[1] + 1],
          "area": int(mask.pixels().sum()),
          "iscrowd": 0,
          "segmentation": mask.to_coco(),
        }
      )
  categories = [{"id": i, "name": name} for name, i in number.items()]
  return {"images": images, "annotations": annotations, "categories": categories}


def mdetr_dataset(source: Shapes, count: int | None = None) -> dict:
  """The first `count` scenes of a grounding source (None: all) as captions in MDETR's form, for evaluation.

  Ids as in `coco_dataset`; every box has the `tokens_positive` that name it. Raises ValueError for another task.
  """
  if source.config.task != "grounding":
    raise ValueError(f"{source.name} has task {source.config.task!r}; MDETR's form needs task='grounding'")
  images, annotations = [], []
  for index in range(len(source) if count is None else count):
    example = source[index]
    height, width = example.image.shape[:2]
    file = f"{source.name}/{index:06d}.png"
    images.append({"id": index, "file_name": file, "height": height, "width": width, "caption": example.caption})
    for box, spans in zip(example.boxes_xyxy_px.tolist(), example.spans, strict=True):
      width, height = box[2] - box[0] + 1, box[3] - box[1] + 1
      annotations.append(
        {
          "id": len(annotations) + 1,
          "image_id": index,
          "category_id": 1,
          "bbox": [*box[:2], width, height],
          "area": width * height,
          "iscrowd": 0,
          "tokens_positive": [list(span) for span in spans],
        }
      )
  return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}

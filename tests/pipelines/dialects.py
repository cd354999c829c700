"""Small data sets in the dialects of texts, written by the tests, and what every source has to keep.

`write_KIND(folder)` writes one and returns the options of the source. Pictures: `picture(i)` has the grey value i.
"""

import base64
import io
import json
import pickle
import tarfile

import numpy as np
from PIL import Image

from pipelines import images
from pipelines.records import KINDS, BadRecord
from pipelines.sources import open_source

HEIGHT, WIDTH = 20, 30


def picture(i: int, kind: str = "PNG") -> bytes:
  stream = io.BytesIO()
  Image.fromarray(np.full((HEIGHT, WIDTH, 3), i, np.uint8)).save(stream, kind)
  return stream.getvalue()


def write_pictures(folder, count: int, name: str = "{}.png"):
  for i in range(count):
    path = folder / name.format(i)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(i))


def write_json(path, content):
  path.write_text(json.dumps(content))
  return str(path)


def write_mdetr(folder, **parts):
  write_pictures(folder, 3)
  text = {"height": "20", "width": "30", "caption": "a dog, a dog and a cat", "dataset_name": "flickr"}
  box = {"area": 1.0, "iscrowd": 0, "category_id": 1}
  content = {
    "info": [],
    "images": [
      text | {"id": 0, "file_name": "0.png", "original_img_id": 6959556104, "sentence_id": 3},
      text | {"id": 1, "file_name": "1.png", "original_id": "17", "height": 20, "width": 30},
      text | {"id": 2, "file_name": "2.png", "original_id": "n17", "caption": "nothing here"},
    ],
    "annotations": [
      box | {"id": 0, "image_id": 1, "bbox": [3, 4, 10.0, 5], "tokens_positive": [[17, 22]]},
      box | {"id": 1, "image_id": 0, "bbox": [0, 0, 30, 20], "tokens_positive": [[0, 5], [7, 12]]},
      box | {"id": 2, "image_id": 1, "bbox": [1, 2, 3, 4], "tokens_positive": [[0, 1], [2, 5]]},
      box | {"id": 3, "image_id": 2, "bbox": [0, 0, 30, 20], "tokens_positive": [[0, 7]], "iscrowd": 1},
    ],
    "categories": [],
  } | parts
  return dict(annotations=write_json(folder / "a.json", content), images=str(folder))


SENTENCES = {
  8000000001: "[/EN#1/people A man] with [/EN#2/other/scene a hat] waves at [/EN#0/notvisual him] .\n"
  "# 8 [/EN#3/scene a park]\n",
  12: "[/EN#4/people Two dogs # 8] and [/EN#4/people the dogs]\n",
}
BOXES = {
  8000000001: [(("1",), (1, 1, 10, 20)), (("2", "1"), (11, 3, 20, 9)), (("3",), None)],
  12: [(("4",), (1, 1, 5, 5)), (("4",), (10, 10, 30, 20))],
}


def write_flickr(folder, sentences=SENTENCES, boxes=BOXES):
  for part in ("Sentences", "Annotations", "pictures/train"):
    (folder / part).mkdir(parents=True, exist_ok=True)
  for i, text in sentences.items():
    (folder / f"Sentences/{i}.txt").write_text(text)
    (folder / f"pictures/train/{i}.jpg").write_bytes(picture(7))
  for i, things in boxes.items():
    corners = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
    objects = "".join(
      "<object>"
      + "".join(f"<name>{n}</name>" for n in names)
      + (corners.format(*box) if box else "<scene>1</scene><nobndbox>0</nobndbox>")
      + "</object>"
      for names, box in things
    )
    (folder / f"Annotations/{i}.xml").write_text(f"<annotation><filename>{i}.jpg</filename>{objects}</annotation>")
  (folder / "train.txt").write_text("".join(f"{i}\n" for i in sentences))
  return dict(root=str(folder), images=str(folder / "pictures"), split="train")


def write_tsv_file(path, rows, lineidx=True):
  lines = [b"\t".join(x if isinstance(x, bytes) else str(x).encode() for x in row) + b"\n" for row in rows]
  path.write_bytes(b"".join(lines))
  if lineidx:
    begins = np.cumsum([0, *map(len, lines)])[:-1]
    path.with_suffix(".lineidx").write_text("".join(f"{b}\n" for b in begins))


def write_tsv(folder, labels, name="a", columns=2, hw=True, lineidx=True, **more):
  """`labels`: the content of each row; `more`: further lines of the yaml."""
  keys = [f"k{i}" for i in range(len(labels))]
  pictures = [(key, *["x"] * (columns - 2), base64.b64encode(picture(i))) for i, key in enumerate(keys)]
  write_tsv_file(folder / f"{name}.images.tsv", pictures, lineidx)
  write_tsv_file(folder / f"{name}.label.tsv", [(k, json.dumps(x)) for k, x in zip(keys, labels)], lineidx)
  text = {"img": f"{name}.images.tsv", "label": f"{name}.label.tsv"} | more
  if hw:
    sizes = ['[{"height": 20, "width": 30}]', '{"height": 20, "width": 30}', "20 30"]
    write_tsv_file(folder / f"{name}.hw.tsv", [(k, sizes[i % 3]) for i, k in enumerate(keys)], lineidx)
    text["hw"] = f"{name}.hw.tsv"
  (folder / f"{name}.train.yaml").write_text("".join(f"{k}: {v}\n" for k, v in text.items()))
  return dict(data=str(folder / f"{name}.train.yaml"))


OBJECTS = [
  [{"class": "dog", "rect": [1.5, 2, 10, 12]}, {"class": "Cat", "rect": [0, 0, 29, 19]}],
  {"objects": [{"class": "dog", "rect": [3, 3, 4, 4], "conf": 1.0}], "relations": []},
  [],
]
CAPTIONS_V1 = [
  {
    "img_h": HEIGHT,
    "img_w": WIDTH,
    "caption": "two dogs",
    "tokens_positive": [[[0, 3], [4, 8]], [[0, 3], [4, 8]], [[4, 8]]],
    "bboxes": [[1.0, 1, 9, 9], [1, 1, 9, 10], [20, 1, 28, 9]],
    "scores": [0.9, 0.8, 0.3],
  }
] * 2
CAPTIONS_V2 = [
  {
    "img_h": HEIGHT,
    "img_w": WIDTH,
    "caption": "two dogs",
    "tokens_positive": [[[0, 3], [4, 8]], [[4, 8]]],
    "bboxes": [[[1.0, 1, 9, 9], [1, 1, 9, 10]], [[20, 1, 28, 9]]],
    "scores": [[0.9, 0.8], [0.3]],
  }
] * 2


def write_detection_tsv(folder):
  (folder / "map.json").write_text('{"label_to_idx": {"__background__": 0, "dog": 2, "Cat": 1}}')
  return write_tsv(folder, OBJECTS, labelmap="map.json")


def write_caption_tsv(folder, rows=CAPTIONS_V2):
  return write_tsv(folder, rows)


def write_odvg(folder, lines=None):
  write_pictures(folder, 2)
  region = {"bbox": [1, 2, 11, 12], "phrase": "a dog"}
  lines = lines or [
    {"caption": "a dog on a sofa", "regions": [region, {"bbox": [0, 0, 30, 20], "phrase": "a sofa"}, region]},
    {
      "caption": "a dog on a sofa",
      "regions": [
        {"bbox": [[1, 2, 3, 4], [5, 6, 7, 8]], "phrase": ["a", "dog"], "tokens_positive": [[0, 1], [2, 5]]},
      ],
    },
  ]
  rows = [{"filename": f"{i}.png", "height": 20, "width": 30, "grounding": x} for i, x in enumerate(lines)]
  (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return dict(annotations=str(folder / "a.jsonl"), images=str(folder))


def write_odvg_detection(folder, instances=None):
  write_pictures(folder, 1)
  instances = instances or [
    {"bbox": [1, 2, 11, 12], "label": 1, "category": "dog"},
    {"bbox": [0, 0, 30, 20], "label": 0},
  ]
  row = {"filename": "0.png", "height": 20, "width": 30, "detection": {"instances": instances}}
  (folder / "d.jsonl").write_text(json.dumps(row) + "\n\n")
  (folder / "map.json").write_text('{"1": "dog", "0": "cat"}')
  return dict(annotations=str(folder / "d.jsonl"), images=str(folder), label_map=str(folder / "map.json"))


def write_coco_captions(folder, **parts):
  write_pictures(folder, 2)
  content = {
    "images": [{"id": 2**33 + i, "file_name": f"{i}.png", "height": 20, "width": 30} for i in range(2)],
    "annotations": [
      {"image_id": 2**33 + 1, "id": 900100005001, "caption": " a dog\n on a  sofa \n"},
      {"image_id": 2**33, "id": 2, "caption": "a cat"},
      {"image_id": 2**33 + 1, "id": 3, "caption": "a dog"},
    ],
  } | parts
  return dict(annotations=write_json(folder / "c.json", content), images=str(folder))


def write_karpathy(folder):
  write_pictures(folder / "val2014", 3)
  content = {
    "dataset": "coco",
    "images": [
      {
        "filepath": "val2014",
        "filename": f"{i}.png",
        "imgid": i,
        "cocoid": 100 + i,
        "split": split,
        "sentids": [i],
        "sentences": [{"tokens": ["a"], "raw": f" A {split} \n", "imgid": i, "sentid": 50 + i}],
      }
      for i, split in enumerate(("train", "test", "restval"))
    ],
  }
  return dict(annotations=write_json(folder / "k.json", content), images=str(folder))


def write_vqa(folder, **parts):
  write_pictures(folder, 2, "COCO_train2014_{:012d}.jpg")
  questions = [
    {"image_id": 1, "question": "Is it?", "question_id": 1002},
    {"image_id": 0, "question": "How many?", "question_id": 2},
    {"image_id": 1, "question": "What?", "question_id": 1001},
  ]
  people = [{"answer": a, "answer_confidence": "yes", "answer_id": i + 1} for i, a in enumerate(["yes"] * 9 + ["no"])]
  annotations = [
    {"question_id": q, "image_id": q // 1000, "answers": people[k:], "answer_type": "other"}
    for k, q in enumerate((2, 1001, 1002))
  ]
  content = dict(questions=questions, annotations=annotations) | parts
  return dict(
    questions=write_json(folder / "q.json", {"data_subtype": "train2014", "questions": content["questions"]}),
    annotations=write_json(folder / "n.json", {"info": {}, "annotations": content["annotations"]}),
    images=str(folder),
  )


def write_tar(path, members):
  """`members`: (name, bytes), or a TarInfo."""
  with tarfile.open(path, "w") as tar:
    for member in members:
      info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member[0])
      data = b"" if isinstance(member, tarfile.TarInfo) else member[1]
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))


def write_tars(folder):
  for shard in range(2):
    members = []
    for i in range(10 * shard, 10 * shard + 3):
      parts = (".PNG", picture(i)), (".txt", f" text {i}\n".encode()), (".json", b'{"text": "of json"}')
      members += [(f"./x/{i}{suffix}", data) for suffix, data in parts]
    write_tar(folder / f"{shard:05d}.tar", members)
  return dict(shards=str(folder / "*.tar"))


def write_list(folder):
  write_pictures(folder, 3, "pictures/{:09d}.jpg")
  (folder / "pictures/000000001.jpg").unlink()
  (folder / "cc.tsv").write_text("a dog\thttp://a\na cat\thttp://b\n a  bird \thttp://c\n")
  return dict(annotations=str(folder / "cc.tsv"), images=str(folder / "pictures"))


WRITERS = {  # name -> (kind of source, writer, options)
  "mdetr": ("mdetr_json", write_mdetr, {}),
  "flickr": ("flickr30k", write_flickr, {}),
  "tsv_detection": ("glip_tsv", write_detection_tsv, {}),
  "tsv_v1": ("glip_tsv", lambda folder: write_caption_tsv(folder, CAPTIONS_V1), {}),
  "tsv_v2": ("glip_tsv", write_caption_tsv, {}),
  "tsv_inference": ("glip_tsv", lambda folder: write_tsv(folder, [[{"caption": "a"}], {"captions": ["b", "c"]}]), {}),
  "odvg": ("odvg_jsonl", write_odvg, {}),
  "odvg_detection": ("odvg_jsonl", write_odvg_detection, {}),
  "coco_captions": ("coco_captions", write_coco_captions, {}),
  "karpathy": ("karpathy_captions", write_karpathy, {}),
  "vqa": ("vqa_v2", write_vqa, {}),
  "tars": ("webdataset_tars", write_tars, {}),
  "list": ("caption_list", write_list, {}),
}


def open_dialect(name, folder):
  kind, write, options = WRITERS[name]
  return open_source(kind, **write(folder), **options)


def check_example(example, source):
  """What every record of every source has to keep, whatever bytes it was made of."""
  assert example.kind == source.kind in KINDS and example.source == source.name
  assert type(example.image_id) is int and isinstance(example.image, bytes)
  boxes = example.boxes_xyxy_px
  assert isinstance(boxes, np.ndarray) and boxes.dtype == np.float32 and boxes.shape == (len(boxes), 4)
  assert isinstance(example.caption, str) and example.caption.encode() is not None
  if example.kind == "detection":
    assert len(example.labels) == len(boxes) and set(example.labels) <= set(source.classes)
  if example.kind == "grounding":
    assert len(example.spans) == len(boxes) and source.classes == ()
    assert all(type(x) is int for spans in example.spans for span in spans for x in span)
  if example.kind == "caption":
    assert len(boxes) == 0 and example.caption.strip()
  if example.kind == "vqa":
    ((question),) = example.questions
    assert question.text.encode() is not None and all(isinstance(a, str) for a in question.answers)


def read_all(source):
  """Every record: Examples, or the BadRecord that it raises."""
  found = []
  for index in range(len(source)):
    try:
      found.append(source[index])
      check_example(found[-1], source)
    except BadRecord as error:
      found.append(error)
  return found


def same(a, b) -> bool:
  if isinstance(a, BadRecord) or isinstance(b, BadRecord):
    return isinstance(a, BadRecord) and isinstance(b, BadRecord) and a.reason == b.reason
  fields = (
    "image_id",
    "text_id",
    "kind",
    "image",
    "caption",
    "labels",
    "spans",
    "questions",
    "image_size",
    "absent",
    "unsure",
  )
  alike = all(getattr(a, f) == getattr(b, f) for f in fields)
  return alike and np.array_equal(a.boxes_xyxy_px, b.boxes_xyxy_px, equal_nan=True) and regions(a) == regions(b)


def regions(example):
  """The masks of an example in a form that can be compared."""
  return example.masks and [mask and mask.to_coco() for mask in example.masks]


def copied(source):
  return pickle.loads(pickle.dumps(source))


def grey(example) -> int:
  return int(images.decode(example.image)[0, 0, 0])

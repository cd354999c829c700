"""Small data sets in the dialects of boxes and regions, written by the tests. Pictures: 20 x 30, grey value i."""

import json
import pickle

from tests.pipelines.dialects import picture, write_json, write_pictures

SQUARE = [2, 3, 6, 3, 6, 8, 2, 8]  # covers 4 x 5 pixels


def write_coco(folder, **parts):
  write_pictures(folder, 3)
  box = {"iscrowd": 0, "segmentation": [SQUARE]}
  content = {
    "images": [{"id": 2**40 + i, "file_name": f"{i}.png", "height": 20, "width": 30} for i in range(3)],
    "categories": [{"id": 90, "name": "dog"}, {"id": 7, "name": "cat"}],
    "annotations": [
      box | {"id": 0, "image_id": 2**40 + 1, "category_id": 90, "bbox": [2, 3, 4, 5]},
      box | {"id": 1, "image_id": 2**40, "category_id": 7, "bbox": [0, 0, 30.0, 20]},
      {
        "id": 900100005001,
        "image_id": 2**40 + 1,
        "category_id": 7,
        "bbox": [0, 0, 30, 20],
        "iscrowd": 1,
        "segmentation": {"size": [20, 30], "counts": [20, 40, 540]},
      },
      box | {"id": 2, "image_id": 2**40 + 2, "category_id": 7, "bbox": [1.5, 2, 8, 8]},
    ],
  } | parts
  return dict(annotations=write_json(folder / "a.json", content), images=str(folder), masks=True)


def write_lvis(folder):
  options = write_coco(folder)
  content = json.loads((folder / "a.json").read_text())
  for i, image in enumerate(content["images"]):
    image["coco_url"] = f"http://images.cocodataset.org/val2017/{image.pop('file_name')}"
    image["neg_category_ids"], image["not_exhaustive_category_ids"] = [[7], [], [90]][i], []
  for annotation in content["annotations"]:
    del annotation["iscrowd"]
  (folder / "val2017").mkdir(exist_ok=True)
  for i in range(3):
    (folder / f"val2017/{i}.png").write_bytes(picture(i))
  return options | dict(annotations=write_json(folder / "lvis.json", content))


CLASSES = "/m/1,Person\n/m/2,Boy\n/m/3,Dog\n/m/4,Traffic light\n"
HEADER = (
  "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
)
BOXES = (
  "ff01eeaf4aed83f9,xclick,/m/3,1,0.5,1,0.25,0.5,0,0,0,0,0\n"
  "0000000000000001,xclick,/m/2,1,0,1,0,1,0,0,0,0,0\n"
  "ff01eeaf4aed83f9,xclick,/m/4,1,0.0,0.5,0.0,0.25,0,-1,1,0,0\n"
  "0000000000000002,xclick,/m/4,1,0.0,0.5,0.0,0.25,0,0,1,0,0\n"
)
IMAGE_LABELS = (
  "ImageID,Source,LabelName,Confidence\n"
  "0000000000000001,verification,/m/2,1\n"
  "0000000000000001,verification,/m/3,0\n"
  "0000000000000001,verification,/m/4,1\n"
  "00000000000000aa,verification,/m/3,0\n"
)
HIERARCHY = {
  "LabelName": "/m/0bl9f",
  "Subcategory": [
    {"LabelName": "/m/1", "Subcategory": [{"LabelName": "/m/2", "Part": [{"LabelName": "/m/4"}]}]},
    {"LabelName": "/m/3"},
  ],
}


def write_openimages(folder, boxes=BOXES, classes=CLASSES, header=HEADER):
  (folder / "pictures").mkdir(exist_ok=True)
  for i, name in enumerate(("0000000000000001", "0000000000000002", "ff01eeaf4aed83f9")):
    (folder / f"pictures/{name}.jpg").write_bytes(picture(i))
  (folder / "boxes.csv").write_text(header + boxes)
  (folder / "classes.csv").write_text(classes)
  return dict(
    annotations=str(folder / "boxes.csv"),
    class_descriptions=str(folder / "classes.csv"),
    images=str(folder / "pictures"),
  )


def write_openimages_known(folder):
  (folder / "labels.csv").write_text(IMAGE_LABELS)
  hierarchy = write_json(folder / "hierarchy.json", HIERARCHY)
  return write_openimages(folder) | dict(image_labels=str(folder / "labels.csv"), hierarchy=hierarchy)


def write_genome(folder, **parts):
  for i in (1, 2, 3):
    path = folder / f"VG_100K{'_2' * (i == 2)}/{i}.jpg"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(picture(i))
  url = "https://cs.stanford.edu/people/rak248/VG_100K{}/{}.jpg"
  data = [
    {"image_id": i, "url": url.format("_2" * (i == 2), i), "width": 30, "height": 20, "coco_id": c, "flickr_id": None}
    for i, c in ((1, None), (2, 139), (3, 785))
  ]
  thing = {"x": 1, "y": 2, "w": 10, "h": 5, "synsets": [], "merged_object_ids": []}
  objects = [
    {
      "image_id": 3,
      "objects": [thing | {"object_id": 1, "names": [" Dog "]}, thing | {"object_id": 2, "names": ["leg"]}],
    },
    {"image_id": 1, "objects": [thing | {"object_id": 3, "names": ["dog", "animal"], "x": 0}]},
    {"image_id": 2, "objects": [thing | {"object_id": 4, "names": ["leg"]}, thing | {"object_id": 5, "names": []}]},
  ]
  region = {"image_id": 1, "x": 0, "y": 0, "width": 30, "height": 20, "synsets": []}
  regions = [
    {"id": 2, "regions": [region | {"region_id": 2**33, "phrase": " a dog \n"}]},
    {
      "id": 1,
      "regions": [region | {"region_id": 7, "phrase": "grass"}, region | {"region_id": 8, "phrase": "the grüne"}],
    },
  ]
  content = dict(data=data, objects=objects, regions=regions) | parts
  paths = {key: write_json(folder / f"{key}.json", value) for key, value in content.items()}
  return dict(annotations=paths["objects"], image_data=paths["data"], images=str(folder))


def write_genome_regions(folder):
  return write_genome(folder) | dict(annotations=str(folder / "regions.json"), task="grounding")


THING = (
  "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>"
  "</bndbox><part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>"
)
SIZE = "<size><width>30</width><height>20</height><depth>3</depth></size>"


def xml(things, size=SIZE, filename="x"):
  return f"<annotation><filename>{filename}</filename>{size}{''.join(THING.format(*t) for t in things)}</annotation>"


def write_voc(folder, **files):
  for part in ("Annotations", "JPEGImages"):
    (folder / part).mkdir(exist_ok=True)
  content = {
    "2008_000002": xml([("dog", 0, 1, 1, 30, 20), ("person", 1, 2, 3, 4.5, 6)]),
    "2008_000001": xml([("cat", 0, 11, 3, 20, 9)]),
  } | files
  for i, (stem, text) in enumerate(content.items()):
    (folder / f"Annotations/{stem}.xml").write_text(text)
    (folder / f"JPEGImages/{stem}.jpg").write_bytes(picture(i))
  return dict(annotations=str(folder / "Annotations"), images=str(folder / "JPEGImages"))


SYNSETS = "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\nn02508021 raccoon, racoon\n"


def write_imagenet(folder):
  for part, suffix in (("Annotations", ".xml"), ("Data", ".JPEG")):
    for i, synset in enumerate(("n02508021", "n03126707")):
      path = folder / part / synset / f"{synset}_1004{i}{suffix}"
      path.parent.mkdir(parents=True, exist_ok=True)
      text = xml([(synset, 0, 1, 1, 15, 20), (synset, 0, 16, 1, 30, 20)], filename=path.stem)
      path.write_bytes(picture(i) if part == "Data" else text.encode())
  (folder / "LOC_synset_mapping.txt").write_text(SYNSETS)
  return dict(
    annotations=str(folder / "Annotations"),
    images=str(folder / "Data"),
    synsets=str(folder / "LOC_synset_mapping.txt"),
  )


def write_phrasecut(folder, **parts):
  write_pictures(folder, 3, "pictures/{}.jpg")
  square = [[x, y] for x, y in zip(SQUARE[::2], SQUARE[1::2], strict=True)]
  other = [[x + 10, y] for x, y in square]
  task = {"ann_ids": [1], "phrase_structure": {"name": "dog", "attributes": [], "type": "name"}}
  tasks = [
    task
    | {
      "task_id": "2__1_2",
      "image_id": 2,
      "instance_boxes": [[2, 3, 14, 5], [0.5, 0, 3, 2]],
      "Polygons": [[square, other], [square]],
      "phrase": "two grüne dogs",
    },
    task
    | {"task_id": "0__1", "image_id": 0, "instance_boxes": [[2, 3, 4, 5]], "Polygons": [[square]], "phrase": "dog"},
  ]
  tasks[0] |= parts
  return dict(annotations=write_json(folder / "refer.json", tasks), images=str(folder / "pictures"), masks=True)


def refs():
  def sentence(i, text):
    return {"tokens": text.split(), "raw": text.title(), "sent_id": i, "sent": text}

  ref = {"sent_ids": [0], "file_name": "COCO_train2014_000000000001_1.jpg", "ref_id": 0, "category_id": 7}
  return [
    ref | {"ann_id": 2, "image_id": 2**40 + 2, "split": "train", "sentences": [sentence(2**33, "cat on the left")]},
    ref | {"ann_id": 0, "image_id": 2**40 + 1, "split": "val", "sentences": [sentence(1, "dog"), sentence(2, "a")]},
    ref | {"ann_id": 1, "image_id": 2**40, "split": "train", "sentences": [sentence(4, "big cat"), sentence(5, "cat")]},
  ]


def write_refcoco(folder):
  coco = write_coco(folder)
  (folder / "refs(unc).p").write_bytes(pickle.dumps(refs(), protocol=2))
  return dict(
    refs=str(folder / "refs(unc).p"),
    instances=coco["annotations"],
    images=coco["images"],
    split="train",
    masks=True,
  )


def write_refcoco_json(folder):
  return write_refcoco(folder) | dict(refs=write_json(folder / "refs.json", refs()))


BOX_WRITERS = {  # name -> (kind of source, writer, options)
  "coco": ("coco_json", write_coco, {}),
  "lvis": ("coco_json", write_lvis, {}),
  "openimages": ("openimages", write_openimages, {}),
  "openimages_known": ("openimages", write_openimages_known, {}),
  "genome": ("visual_genome", write_genome, {}),
  "genome_regions": ("visual_genome", write_genome_regions, {}),
  "voc": ("voc_xml", write_voc, {}),
  "imagenet": ("imagenet_boxes", write_imagenet, {}),
  "phrasecut": ("phrasecut", write_phrasecut, {}),
  "refcoco": ("refcoco", write_refcoco, {}),
  "refcoco_json": ("refcoco", write_refcoco_json, {}),
}

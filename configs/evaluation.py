"""The data sets that the paper's tables are measured on, for a network that is trained: one name after the colon.

  glipv2 evaluate --checkpoint RUN --config=configs/evaluation.py:lvis --config.data.root=/data --predictions-out found

`coco`, `lvis` (minival, AP "fixed"), `odinw13`, `odinw35`, `flickr`, `refcoco`, `phrasecut`. Everything but `eval`,
`infer` and `data.root` is the checkpoint's. Paths are those of the data sets' own distributions under `{root}`, of
MDETR's annotations and of GLIP's `odinw` folder. PhraseCut is scored by boxes; masks need a head that is not there yet.
"""

from configs import common

MEMBERS = ("coco", "lvis", "odinw13", "odinw35", "flickr", "refcoco", "phrasecut")
MDETR = "{root}/mdetr_annotations"

# Folder of the pictures under odinw/ of every set of the 35, its annotation file, and whether it is one of the 13.
PLAIN, EXPORT = "annotations_without_background.json", "test_annotations_without_background.json"
ODINW = {
  "AerialMaritimeDrone_large": ("AerialMaritimeDrone/large/test", PLAIN, True),
  "AerialMaritimeDrone_tiled": ("AerialMaritimeDrone/tiled/test", PLAIN, False),
  "AmericanSignLanguageLetters": (
    "AmericanSignLanguageLetters/American Sign Language Letters.v1-v1.coco/test",
    PLAIN,
    False,
  ),
  "Aquarium": ("Aquarium/Aquarium Combined.v2-raw-1024.coco/test", PLAIN, True),
  "BCCD": ("BCCD/BCCD.v3-raw.coco/test", PLAIN, False),
  "boggleBoards": ("boggleBoards/416x416AutoOrient/export", EXPORT, False),
  "brackishUnderwater": ("brackishUnderwater/960x540/test", PLAIN, False),
  "ChessPieces": ("ChessPieces/Chess Pieces.v23-raw.coco/test", PLAIN, False),
  "CottontailRabbits": ("CottontailRabbits/test", PLAIN, True),
  "dice": ("dice/mediumColor/export", EXPORT, False),
  "DroneControl": ("DroneControl/Drone Control.v3-raw.coco/test", PLAIN, False),
  "EgoHands_generic": ("EgoHands/generic/test", PLAIN, True),
  "EgoHands_specific": ("EgoHands/specific/test", PLAIN, False),
  "HardHatWorkers": ("HardHatWorkers/raw/test", PLAIN, False),
  "MaskWearing": ("MaskWearing/raw/test", PLAIN, False),
  "MountainDewCommercial": ("MountainDewCommercial/test", PLAIN, False),
  "NorthAmericaMushrooms": ("NorthAmericaMushrooms/North American Mushrooms.v1-416x416.coco/test", PLAIN, True),
  "openPoetryVision": ("openPoetryVision/512x512/test", PLAIN, False),
  "OxfordPets_by_breed": ("OxfordPets/by-breed/test", PLAIN, False),
  "OxfordPets_by_species": ("OxfordPets/by-species/test", PLAIN, False),
  "Packages": ("Packages/Raw/test", PLAIN, True),
  "PascalVOC": ("PascalVOC/valid", PLAIN, True),
  "pistols": ("pistols/export", EXPORT, True),
  "PKLot": ("PKLot/640/test", PLAIN, False),
  "plantdoc": ("plantdoc/416x416/test", PLAIN, False),
  "pothole": ("pothole/test", PLAIN, True),
  "Raccoon": ("Raccoon/Raccoon.v2-raw.coco/test", PLAIN, True),
  "selfdrivingCar": ("selfdrivingCar/fixedLarge/export", EXPORT, False),
  "ShellfishOpenImages": ("ShellfishOpenImages/raw/test", PLAIN, True),
  "ThermalCheetah": ("ThermalCheetah/test", PLAIN, False),
  "thermalDogsAndPeople": ("thermalDogsAndPeople/test", PLAIN, True),
  "UnoCards": ("UnoCards/raw/test", PLAIN, False),
  "VehiclesOpenImages": ("VehiclesOpenImages/416x416/test", PLAIN, True),
  "websiteScreenshots": ("websiteScreenshots/test", PLAIN, False),
  "WildfireSmoke": ("WildfireSmoke/test", PLAIN, False),
}
# Of the 35 the authors ask some classes in other words than the files have, and some with words around them.
NAMES = {
  "CottontailRabbits": ("rabbit",),
  "NorthAmericaMushrooms": ("flat mushroom", "yellow mushroom"),
}
WORDINGS = {
  "Aquarium": (
    (" ", "fish", ""),
    ("", "jellyfish", ""),
    ("", "penguin", " , which is black and white"),
    ("", "puffin", " with orange beaks "),
    ("", "shark", ""),
    ("", "starfish", ""),
    ("", "stingray", " which is flat and round"),
  ),
  "EgoHands_generic": ((" ", "hand", " of a person"),),
  "Packages": (("there is a ", "package", " on the porch"),),
  "pothole": (("there are some ", "holes", " on the road"),),
}


def get_config(arg: str | None = None):
  member, _ = common.parse_arg(arg, MEMBERS)
  c = common.base()
  if member == "coco":
    c.eval.sources.coco = common.scored(
      common.coco_json("{root}/coco/annotations/instances_val2017.json", "{root}/coco/val2017", "coco"), "coco"
    )
  elif member == "lvis":
    annotations = "{root}/lvis/lvis_v1_minival_inserted_image_name.json"
    c.eval.sources.lvis = common.scored(common.coco_json(annotations, "{root}/coco", "lvis"), "lvis_fixed")
    c.eval.per_prompt = 40
    c.infer.max_detections = 300  # of each prompt
  elif member.startswith("odinw"):
    for name, (folder, file, in_thirteen) in ODINW.items():
      if member == "odinw35" or in_thirteen:
        entry = common.coco_json(f"{{root}}/odinw/{folder}/{file}", f"{{root}}/odinw/{folder}", name)
        entry.class_names = NAMES.get(name, ()) if member == "odinw35" else ()
        wordings = WORDINGS.get(name, ()) if member == "odinw35" else ()
        c.eval.sources[name] = common.scored(entry, "odinw", wordings=wordings)
  elif member == "flickr":
    c.eval.sources.flickr = common.scored(
      common.mdetr_json(f"{MDETR}/final_flickr_separateGT_test.json", "{root}/flickr30k/flickr30k-images", "flickr"),
      "flickr",
      truth="{root}/flickr30k_entities/test.txt",
    )
  elif member == "refcoco":
    for data, split in (
      *(("refcoco", split) for split in ("val", "testA", "testB")),
      *(("refcoco+", split) for split in ("val", "testA", "testB")),
      *(("refcocog", split) for split in ("val", "test")),
    ):
      name = f"{data.replace('+', '_plus')}_{split}"
      entry = common.mdetr_json(f"{MDETR}/finetune_{data}_{split}.json", "{root}/coco/train2014", name)
      c.eval.sources[name] = common.scored(entry, "refexp")
  else:
    c.eval.sources.phrasecut = common.scored(
      common.mdetr_json(f"{MDETR}/finetune_phrasecut_test.json", "{root}/VGPhraseCut_v0/images", "phrasecut"),
      "phrasecut",
      truth="{root}/VGPhraseCut_v0/refer_test.json",
    )
  return c

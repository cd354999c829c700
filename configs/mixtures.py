"""The paper's pre-training data, as named mixtures of `sources`: `configs/pretrain.py:t,data=o365_goldg_cap4m`.

Every record is equally likely: the weight of a data set is its number of records, as in the published code, which
concatenates them. Everything lies under `{root}`; the folders are those of the data sets' own archives.
"""

from ml_collections import config_dict

from configs import common

# Data set -> (kind of source and its options, thousands of records).
DATA_SETS = {
  "objects365": (
    common.coco_json("{root}/objects365/annotations/zhiyuan_objv2_train.json", "{root}/objects365/train", "objects365"),
    1742,
  ),
  "coco": (
    common.coco_json("{root}/coco/annotations/instances_train2017.json", "{root}/coco/train2017", "coco"),
    118,
  ),
  # GoldG: Flickr30k Entities and GQA with phrases; the second without the pictures of COCO.
  "goldg_flickr": (
    common.mdetr_json(
      "{root}/mdetr_annotations/final_flickr_separateGT_train.json", "{root}/flickr30k/flickr30k-images", "goldg_flickr"
    ),
    149,
  ),
  "goldg_mixed": (
    common.mdetr_json("{root}/mdetr_annotations/final_mixed_train_no_coco.json", "{root}/gqa/images", "goldg_mixed"),
    621,
  ),
  # Captions with boxes of a teacher (`*`: all files of a sharded set).
  "cap4m": (common.glip_tsv("{root}/cap4m/*.yaml", "cap4m"), 4000),
  "cap12m": (common.glip_tsv("{root}/cap12m/*.yaml", "cap12m"), 12000),
}

GOLDG = ("goldg_flickr", "goldg_mixed")
# 'od' is detection data in COCO's format alone. The others are those of the paper's Table 5; the T of its other tables
# is trained on the second (reference 11.5).
MIXTURES = {
  "od": ("objects365", "coco"),
  "o365_goldg": ("objects365", *GOLDG),
  "o365_goldg_cap4m": ("objects365", *GOLDG, "cap4m"),
  "o365_goldg_cap12m": ("objects365", *GOLDG, "cap12m"),
}


def sources(mixture: str) -> config_dict.ConfigDict:
  """The entries of `data.sources`; their weights add up to 1."""
  total = sum(DATA_SETS[name][1] for name in MIXTURES[mixture])
  entries = config_dict.ConfigDict()
  for name in MIXTURES[mixture]:
    entry, records = DATA_SETS[name]
    entries[name] = config_dict.ConfigDict({**entry.to_dict(), "weight": round(records / total, 4)})
  return entries

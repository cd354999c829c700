"""The paper's pre-training data, as named mixtures of `sources`: `configs/pretrain.py:t,data=o365_goldg_cap4m`.

Every record is equally likely: the weight of a data set is its number of records, as in the published code, which
concatenates them. Everything lies under `{root}`; the folders are those of the data sets' own archives.
"""

from ml_collections import config_dict

from configs import common

# Table 5's are the last three; the T of the paper's other tables is trained on the one with cap4m (reference 11.5).
MIXTURES = {
  "od": ("objects365", "coco"),
  "five_ods": ("objects365", "coco", "openimages", "visual_genome", "imagenet_boxes"),
  "o365_goldg": ("objects365", "goldg_flickr", "goldg_mixed"),
  "o365_goldg_cap4m": ("objects365", "goldg_flickr", "goldg_mixed", "cap4m"),
  "o365_goldg_cap12m": ("objects365", "goldg_flickr", "goldg_mixed", "cap12m"),
}


def data_sets() -> config_dict.ConfigDict:
  """All of them as entries of `sources`; weights: thousands of records."""
  c = common.five_ods()
  # GoldG: Flickr30k Entities, and GQA with phrases, the second without the pictures of COCO.
  c.goldg_flickr = common.mdetr_json(
    "{root}/mdetr_annotations/final_flickr_separateGT_train.json",
    "{root}/flickr30k/flickr30k-images",
    "goldg_flickr",
    149.0,
  )
  c.goldg_mixed = common.mdetr_json(
    "{root}/mdetr_annotations/final_mixed_train_no_coco.json", "{root}/gqa/images", "goldg_mixed", 621.0
  )
  # Captions with boxes of a teacher (*: all files of a sharded set).
  c.cap4m = common.glip_tsv("{root}/cap4m/*.yaml", "cap4m", 4000.0)
  c.cap12m = common.glip_tsv("{root}/cap12m/*.yaml", "cap12m", 12_000.0)
  return c


def sources(mixture: str) -> config_dict.ConfigDict:
  """The entries of `data.sources`."""
  everything = data_sets()
  return config_dict.ConfigDict({name: everything[name] for name in MIXTURES[mixture]})

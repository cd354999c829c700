"""Pre-training at the sizes of the paper: `:t` (GLIPv2-T), `:b` (GLIPv2-B), `:h` (GLIPv2-H); reference 1.1, 11.5, 11.6.

  glipv2 train --config=configs/pretrain.py:t --workdir=DIR --config.data.root=/data

All four losses are on (paper equation 2); `--config.loss.weights.mlm=0.0` removes one with its computation.
`:t,data=o365_goldg_cap4m` chooses a mixture of configs/mixtures.py. Without it detection data is read: Objects365 and
COCO for T; for B and H the paper's FiveODs, which adds OpenImages, Visual Genome and ImageNet's boxes.

The paper's ablations:

  Table 4, rows 1 to 6       :t,data=o365_goldg_cap4m,row=1 ... row=6 (row 1, no pre-training, only makes the start)
           row 6, stage 2    :t,data=o365_goldg,stage=2 --config.train.init_from=RUN_OF_ROW_6 (without L_mlm)
  Table 5, without L_inter   :b,data=MIXTURE,row=4 for o365_goldg, o365_goldg_cap4m and o365_goldg_cap12m
           with L_inter      :b,data=MIXTURE,row=6
"""

from ml_collections import config_dict

from configs import common, mixtures


def get_config(arg: str | None = None):
  member, switches = common.parse_arg(
    arg, ("t", "b", "h"), {"data": mixtures.MIXTURES, "row": common.TABLE_4, "stage": ("2",)}
  )
  c = common.base()
  c.model.variant = f"glipv2_{member}"
  c.model.inter_dim = 64
  c.model.mlm = True
  c.loss.weights.inter = 1.0
  c.loss.weights.mlm = 1.0
  default = "od" if member == "t" else "five_ods"
  c.data.sources = mixtures.sources(switches["data"] if "data" in switches else default)
  c.eval.sources.coco_val = common.coco_json(
    "{root}/coco/annotations/instances_val2017.json", "{root}/coco/val2017", "coco_val"
  )
  c.train.eval_every = 10_000
  if member != "t":  # the pre-LN text transformer of B and H reads CLIP's BPE (reference 3.3)
    c.data.tokenizer = "openai/clip-vit-base-patch32"
    c.optim.weight_decay = 0.01  # and its schedule: GLIP-L's (reference 1.1)
    c.optim.decay_ratio = 0.667
    c.model.remat = ("swin", "text", "dyconv")
    c.train.total_steps = 1_000_000
  if "stage" in switches:  # from stage 1, on data that people have labelled (reference 11.6)
    c.loss.weights.mlm = 0.0
    c.optim.lr = 1e-5
    c.train.total_steps //= 5
  if "row" in switches:
    common.train_only(c, switches["row"])
  if "debug" in switches:  # the same network on embedded data: traces and runs anywhere with enough memory
    c.data.sources, c.eval.sources = config_dict.ConfigDict(), config_dict.ConfigDict()
    c.data.sources.shapes = common.shapes("train", "grounding", 1.0)
    c.eval.sources.shapes = common.shapes("val", "grounding", 1.0)
    c.data.canvases = c.eval.canvases = ((128, 128),)
    c.data.tokenizer = "shapes"
    c.data.batch = c.eval.batch = 2
    c.data.workers = c.eval.workers = 0
    c.train.total_steps = min(c.train.total_steps, 2)
    c.eval.limit = 2
  return c

"""Pre-training at the sizes of the paper: `:t` (GLIPv2-T), `:b` (GLIPv2-B), `:h` (GLIPv2-H); reference 1.1, 11.5, 11.6.

  glipv2 train --config=configs/pretrain.py:t --workdir=DIR --config.data.root=/data

All four losses are on (paper equation 2); `--config.loss.weights.mlm=0.0` removes one with its computation.
Detection data under `{root}`: Objects365 and COCO for T; for B and H the paper's FiveODs, which adds OpenImages, Visual
Genome and ImageNet's boxes.
"""

from ml_collections import config_dict

from configs import common


def get_config(arg: str | None = None):
  member, switches = common.parse_arg(arg, ("t", "b", "h"))
  c = common.base()
  c.model.variant = f"glipv2_{member}"
  c.model.inter_dim = 64
  c.model.mlm = True
  c.loss.weights.inter = 1.0
  c.loss.weights.mlm = 1.0
  c.data.sources = common.five_ods()
  if member == "t":
    for name in ("openimages", "visual_genome", "imagenet_boxes"):
      del c.data.sources[name]
    c.data.sources.objects365.weight, c.data.sources.coco.weight = 0.85, 0.15
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
  if "debug" in switches:  # the same network on embedded data: traces and runs anywhere with enough memory
    c.data.sources, c.eval.sources = config_dict.ConfigDict(), config_dict.ConfigDict()
    c.data.sources.shapes = common.shapes("train", "grounding", 1.0)
    c.eval.sources.shapes = common.shapes("val", "grounding", 1.0)
    c.data.canvases = c.eval.canvases = ((128, 128),)
    c.data.tokenizer = "shapes"
    c.data.batch = c.eval.batch = 2
    c.data.workers = c.eval.workers = 0
    c.train.total_steps = 2
    c.eval.limit = 2
  return c

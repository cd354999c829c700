"""Pre-training at the sizes of the paper: `:t` (GLIPv2-T), `:b` (GLIPv2-B), `:h` (GLIPv2-H); reference 1.1, 11.5, 11.6.

  glipv2 train --config=configs/pretrain.py:t --workdir=DIR --config.data.root=/data

All four losses are on (paper equation 2); `--config.loss.weights.mlm=0.0` removes one with its computation.
Detection data in COCO's format under `{root}`: Objects365 and COCO. The other sources of the paper are not read yet
(README, status).
"""

from configs import common


def get_config(arg: str | None = None):
  member, switches = common.parse_arg(arg, ("t", "b", "h"))
  c = common.base()
  c.model.variant = f"glipv2_{member}"
  c.model.inter_dim = 64
  c.model.mlm = True
  c.loss.weights.inter = 1.0
  c.loss.weights.mlm = 1.0
  c.data.sources.objects365 = common.coco_json(
    "{root}/objects365/annotations/zhiyuan_objv2_train.json", "{root}/objects365/train", "objects365", 0.85
  )
  c.data.sources.coco = common.coco_json(
    "{root}/coco/annotations/instances_train2017.json", "{root}/coco/train2017", "coco", 0.15
  )
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
    del c.data.sources.objects365, c.data.sources.coco, c.eval.sources.coco_val
    c.data.sources.shapes = common.shapes("train", "grounding", 1.0)
    c.eval.sources.shapes = common.shapes("val", "grounding", 1.0)
    c.data.canvases = c.eval.canvases = ((128, 128),)
    c.data.tokenizer = "shapes"
    c.data.batch = c.eval.batch = 2
    c.data.workers = c.eval.workers = 0
    c.train.total_steps = 2
    c.eval.limit = 2
  return c

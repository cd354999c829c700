"""Detection on any COCO-format folder, with any class names.

  glipv2 train --config=configs/finetune_coco.py --workdir=runs/mine --config.data.root=/path/to/folder

expects `annotations/train.json`, `annotations/val.json` and `images/` in the folder; other names are options:

  --config.data.sources.train.annotations='{root}/train/_annotations.coco.json'
  --config.data.sources.train.images='{root}/train'
  --config.data.sources.train.shots=5 --config.data.sources.train.shots_seed=3    (few-shot: five pictures a class)

`:demo` (the default) trains the small network from scratch on a CPU; `:t` is GLIPv2-T on an accelerator, to be
started from pre-trained weights with --config.train.init_from=RUN (reference 9.1: lr 1e-5, batch 32, all classes in
the prompt).
"""

from configs import common


def get_config(arg: str | None = None):
  member, switches = common.parse_arg(arg, ("demo", "t"))
  c = common.base()
  c.data.root = "."
  c.data.sources.train = common.coco_json("{root}/annotations/train.json", "{root}/images", "train")
  c.data.sources.train.update(shots=0, shots_seed=0)
  c.eval.sources.val = common.coco_json("{root}/annotations/val.json", "{root}/images", "val")
  c.prompt.mode = "all"
  if member == "demo":
    common.small(c)
    c.data.canvases = ((256, 256),)  # neutral; set it to the shape of your pictures
    c.data.batch = 8
    c.data.max_boxes = 64
    c.data.workers = 1
    c.eval.canvases = ((256, 256),)
    c.eval.batch = 8
    c.model.mask_padding = True
    c.optim.warmup_steps = 100
    c.optim.ema_decay = 0.995
    c.train.total_steps = 1500
    c.train.checkpoint_every = 250
    c.train.evaluate_ema = True
  else:
    c.model.variant = "glipv2_t"
    c.data.batch = 32
    c.optim.lr = 1e-5
    c.optim.rules = ((r".*bias.*", 2.0, 0.0), (r".*", 1.0, 1.0))
    c.train.total_steps = 90_000
  if "debug" in switches:
    c.train.total_steps = 2
    c.data.batch = 2
    c.eval.batch = 2
    c.eval.limit = 2
  return c

"""A student of `glipv2 pseudo-label` on the embedded data: captions with the boxes that the demo network found.

  glipv2 pseudo-label --checkpoint runs/demo --source shapes task=grounding length=4000 --threshold 0.4 --out runs/boxes
  glipv2 train --config=configs/student.py --workdir=runs/student --config.data.root=runs/boxes
  glipv2 train --config=configs/student.py:truth --workdir=runs/truth     (the same pictures with their true boxes)

Evaluation: captions of held-out scenes.
"""

from ml_collections import config_dict

from configs import common, demo


def get_config(arg: str | None = None):
  boxes, switches = common.parse_arg(arg, ("pseudo", "truth"))
  c = demo.get_config("debug" if "debug" in switches else None)
  c.data.sources = config_dict.ConfigDict()
  if boxes == "truth":
    c.data.sources.captions = common.shapes("train", "grounding", 1.0)
    c.data.sources.captions.length = 4000
  else:
    c.data.sources.captions = common.glip_tsv("{root}/*.train.yaml", "pseudo")
    c.data.sources.captions.confidence = 0.4
  c.eval.sources = config_dict.ConfigDict(dict(captions=common.shapes("val", "grounding", 1.0)))
  for part in (c.data, c.eval):  # small, for two short runs
    part.canvases = ((96, 96),)
  c.optim.warmup_steps = 50
  c.optim.ema_decay = 0.98
  c.train.total_steps = min(c.train.total_steps, 400)
  return c

"""The losses of the paper's Table 4 on the embedded data: the demo network, `:row=1` to `:row=6` (without: all losses).

  glipv2 train --config=configs/ablation.py:row=5 --workdir=runs/row5
  python -m benchmarks.ablation --workdir=runs/ablation --rows 3 5 6 --seeds 0 1 2     (many, with mean and spread)

As in the paper one detection vocabulary ("red circle. blue star. ...") is mixed with captions. Evaluation: held-out
scenes, and the split whose colour-kind pairs are never trained (`unseen_AP`).
"""

from ml_collections import config_dict

from configs import common, demo


def get_config(arg: str | None = None):
  _, switches = common.parse_arg(arg, ("demo",), {"row": common.TABLE_4})
  c = demo.get_config("debug" if "debug" in switches else None)
  c.model.inter_dim = 64
  c.model.inter_temperature = 0.07  # short runs have no time to learn it from 1
  c.model.mlm = True
  c.loss.weights.inter = 1.0
  c.loss.weights.mlm = 1.0
  c.data.sources = config_dict.ConfigDict()
  c.data.sources.pairs = common.shapes("train", "detection", 0.5)
  c.data.sources.captions = common.shapes("train", "grounding", 0.5)
  c.eval.sources = config_dict.ConfigDict()
  c.eval.sources.captions = common.shapes("val", "grounding", 1.0)
  c.eval.sources.pairs = common.shapes("val", "detection", 1.0)
  c.eval.sources.unseen = common.shapes("zero_shot", "detection", 1.0)
  for part in (c.data, c.eval):  # small pictures: the table is many runs
    part.canvases = ((96, 96),)
    for source in part.sources.values():
      source.size = (96, 96)
  c.eval.limit = min(c.eval.limit, 192)
  c.optim.warmup_steps = 50
  c.optim.ema_decay = 0.98
  if "row" in switches:
    common.train_only(c, switches["row"])
  return c

"""The demo: a network of a few million parameters on the embedded `shapes` data, from scratch on a laptop CPU.

  make demo
  glipv2 train --config=configs/demo.py --workdir=runs/demo

The rows are detection prompts that name kinds ("circle. star. ...") or colours ("red. blue. ..."), and captions with
grounded phrases. Evaluation: kinds and captions of held-out scenes.
"""

from configs import common


def get_config(arg: str | None = None):
  _, switches = common.parse_arg(arg, ("demo",))
  c = common.base()
  common.small(c)
  c.data.sources.kinds = common.shapes("train", "detection", 0.4, "kind")
  c.data.sources.colours = common.shapes("train", "detection", 0.15, "colour")
  c.data.sources.captions = common.shapes("train", "grounding", 0.45)
  c.data.canvases = ((128, 128),)
  c.data.batch = 16
  c.data.max_boxes = 8
  c.eval.sources.captions = common.shapes("val", "grounding", 1.0)
  c.eval.sources.kinds = common.shapes("val", "detection", 1.0, "kind")
  c.eval.canvases = ((128, 128),)
  c.eval.batch = 32
  c.eval.limit = 256
  c.optim.warmup_steps = 100
  c.optim.ema_decay = 0.995
  c.train.total_steps = 2000
  c.train.checkpoint_every = 250
  c.train.evaluate_ema = True
  if "debug" in switches:
    c.train.total_steps = 2
    c.data.batch = 2
    c.eval.batch = 2
    c.eval.limit = 2
  return c

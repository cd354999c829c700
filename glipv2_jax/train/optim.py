"""The optimizer: AdamW, learning-rate schedule and per-parameter rules by path (reference 1.2).

Order in a step (reference 13.6): gradients -> zero for frozen parameters -> clip by global norm -> AdamW -> EMA.
A parameter's learning rate is schedule(step) x the multiplier of the first rule that matches its path; a frozen
parameter has no moments.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from glipv2_jax.models.variants import ModelConfig
from glipv2_jax.parallel.rules import path_name

Schedule = Callable[[Any], jax.Array]

# (pattern, learning-rate multiplier, weight-decay multiplier), first match wins, matched against the whole path.
# Anything with "bias" in its name gets twice the learning rate and no decay, relative position bias tables and the
# head's bias_lang included; the text encoder learns at a tenth of the rate; norm weights do decay (reference 1.2).
AUTHORS_RULES = (
  (r"text/.*bias.*", 0.2, 0.0),
  (r"text/.*", 0.1, 1.0),
  (r".*bias.*", 2.0, 0.0),
  (r".*", 1.0, 1.0),
)


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """Defaults are the authors' (reference 1.1)."""

  lr: float = 1e-4
  schedule: str = "step"  # 'step' | 'cosine'
  milestones: tuple[float, ...] = (0.67, 0.89)  # 'step': fractions of the run
  gamma: float = 0.1
  warmup_steps: int = 2000
  warmup_factor: float = 0.001
  weight_decay: float = 1e-4
  decay_ratio: float = 0.0  # weight decay too falls by gamma, at this fraction of each milestone; 0: never
  beta1: float = 0.9
  beta2: float = 0.999
  eps: float = 1e-8
  clip_norm: float = 1.0  # 0: no clipping
  ema_decay: float = 0.999  # 0: no average is kept
  rules: tuple[tuple[str, float, float], ...] = AUTHORS_RULES
  frozen: tuple[str, ...] = ()  # patterns of whole paths, in addition to what the model itself freezes


@dataclasses.dataclass(frozen=True)
class Group:
  """How one parameter is updated: multipliers of the scheduled learning rate and of the weight decay."""

  lr: float
  decay: float


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """`tx` turns clipped gradients into updates; `groups` is a tree like the parameters, None = frozen."""

  tx: optax.GradientTransformation
  schedule: Schedule
  groups: Any
  clip_norm: float
  ema_decay: float

  def clip(self, grads: Any) -> tuple[Any, jax.Array]:
    """Gradients of frozen parameters set to zero, the rest scaled to a global norm of at most `clip_norm`.

    Returns (gradients, norm before clipping). The coefficient is torch's: min(1, limit / (norm + 1e-6)).
    """
    grads = jax.tree.map(
      lambda group, g: jnp.zeros_like(g) if group is None else g, self.groups, grads, is_leaf=is_group
    )
    norm = optax.tree.norm(grads)
    if not self.clip_norm:
      return grads, norm
    scale = jnp.minimum(1.0, self.clip_norm / (norm + 1e-6))
    return jax.tree.map(lambda g: g * scale, grads), norm

  def average(self, ema: Any, params: Any) -> Any:
    """ema <- decay * ema + (1 - decay) * params, without warm-up of the decay (reference 1.2); frozen ones stay."""
    decay = self.ema_decay
    return jax.tree.map(
      lambda group, e, p: e if group is None else decay * e + (1 - decay) * p,
      self.groups,
      ema,
      params,
      is_leaf=is_group,
    )


def model_frozen(model: ModelConfig) -> tuple[str, ...]:
  """Patterns of what the published recipes never train: the unused classifier of a network with text, and the first
  Swin stages of GLIP-L (FREEZE_CONV_BODY_AT, reference 1.1 and 1.2)."""
  classifier = (r".*cls_logits/.*",) if model.text is not None else ()
  patches = (r"swin/patch_embed/.*",) if model.freeze_stages >= 0 else ()
  stages = tuple(rf"swin/stages/{i}/.*" for i in range(model.freeze_stages - 1))
  return classifier + patches + stages


def make_optimizer(cfg: OptimConfig, abstract_params: Any, total_steps: int, frozen: tuple[str, ...] = ()) -> Optimizer:
  """Raises ValueError listing parameters that no rule covers and `frozen` patterns that match nothing."""
  groups = parameter_groups(cfg, abstract_params, frozen)
  schedule = make_schedule(cfg, total_steps)
  labels = jax.tree.map(lambda group: "frozen" if group is None else "trained", groups, is_leaf=is_group)
  adamw = optax.chain(
    optax.scale_by_adam(cfg.beta1, cfg.beta2, cfg.eps), _decay_and_scale(groups, schedule, make_decay(cfg, total_steps))
  )
  tx = optax.partition({"trained": adamw, "frozen": optax.set_to_zero()}, labels)
  return Optimizer(tx=tx, schedule=schedule, groups=groups, clip_norm=cfg.clip_norm, ema_decay=cfg.ema_decay)


def parameter_groups(cfg: OptimConfig, abstract_params: Any, frozen: tuple[str, ...] = ()) -> Any:
  """Tree of parameters -> tree of `Group`, None where frozen. `frozen` is added to `cfg.frozen`."""
  names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(abstract_params)]
  idle = [pattern for pattern in cfg.frozen + frozen if not any(re.fullmatch(pattern, name) for name in names)]
  if idle:
    raise ValueError(f"frozen patterns that match no parameter: {idle}; paths look like {names[0]!r}")
  uncovered = [name for name in names if not any(re.fullmatch(pattern, name) for pattern, *_ in cfg.rules)]
  if uncovered:
    raise ValueError(f"no optimizer rule covers: {', '.join(uncovered)}; end the rules with ('.*', 1.0, 1.0)")

  def group(path, _):
    name = path_name(path)
    if any(re.fullmatch(pattern, name) for pattern in cfg.frozen + frozen):
      return None
    return next(Group(lr, decay) for pattern, lr, decay in cfg.rules if re.fullmatch(pattern, name))

  return jax.tree_util.tree_map_with_path(group, abstract_params)


def make_schedule(cfg: OptimConfig, total_steps: int) -> Schedule:
  """Learning rate of step 0, 1, 2, ... (a function of an integer, traced or not).

  Linear warm-up w(t) = f(1 - a) + a with a = t / warmup_steps; 'step' multiplies by gamma at round(fraction x steps)
  (reference 1.2), 'cosine' by (1 + cos(pi t / steps)) / 2.
  """
  if cfg.schedule not in ("step", "cosine"):
    raise ValueError(f"schedule {cfg.schedule!r} is not known; known: 'step', 'cosine'")
  milestones = jnp.asarray(_milestones(cfg, total_steps), jnp.int32)
  # Exact products on the host: 1e-4 * 0.1 * 0.1 in float32 steps would already be an ulp off.
  levels = jnp.asarray([cfg.lr * cfg.gamma**i for i in range(len(cfg.milestones) + 1)], jnp.float32)

  def schedule(step):
    step = jnp.asarray(step, jnp.int32)
    a = jnp.minimum(step / max(cfg.warmup_steps, 1), 1.0) if cfg.warmup_steps else 1.0
    warmup = cfg.warmup_factor * (1 - a) + a
    if cfg.schedule == "step":
      return warmup * levels[jnp.sum(milestones <= step)]
    return warmup * cfg.lr * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step / total_steps, 1.0)))

  return schedule


def make_decay(cfg: OptimConfig, total_steps: int) -> Schedule:
  """Weight decay of step 0, 1, 2, ...; GLIP-L lowers it before the learning rate (`decay_ratio` 0.667, reference 1.1).

  Raises ValueError for a `decay_ratio` outside 0..1, or one without the milestones of a 'step' schedule.
  """
  if not 0 <= cfg.decay_ratio <= 1 or (cfg.decay_ratio and cfg.schedule != "step"):
    raise ValueError(
      f"decay_ratio is {cfg.decay_ratio} with schedule {cfg.schedule!r}; it is a fraction, of the milestones of 'step'"
    )
  if not cfg.decay_ratio:
    return lambda step: cfg.weight_decay
  drops = jnp.asarray([math.ceil(m * cfg.decay_ratio) for m in _milestones(cfg, total_steps)], jnp.int32)
  levels = jnp.asarray([cfg.weight_decay * cfg.gamma**i for i in range(len(cfg.milestones) + 1)], jnp.float32)
  return lambda step: levels[jnp.sum(drops <= step)]


def _milestones(cfg: OptimConfig, total_steps: int) -> list[int]:
  return [round(fraction * total_steps) for fraction in cfg.milestones]


def _decay_and_scale(groups: Any, schedule: Schedule, decay: Schedule) -> optax.GradientTransformation:
  """Adam's direction u -> -lr (u + decay p), torch's decoupled decay p (1 - lr decay), with the group's own lr."""

  def init(params):
    del params
    return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

  def update(updates, state, params):
    lr, weight_decay = schedule(state.count), decay(state.count)

    def one(group, u, p):
      if group is None or isinstance(u, optax.MaskedNode):
        return u
      return -(lr * group.lr) * (u + weight_decay * group.decay * p)

    updates = jax.tree.map(one, groups, updates, params, is_leaf=is_group)
    return updates, optax.ScaleByScheduleState(count=state.count + 1)

  return optax.GradientTransformation(init, update)


def is_group(x: Any) -> bool:
  """Where trees of groups end: at a Group, or at None for a frozen parameter."""
  return x is None or isinstance(x, Group | optax.MaskedNode)

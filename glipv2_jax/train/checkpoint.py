"""Checkpoints: the only file that knows Orbax.

A checkpoint holds two items: `state` (the whole TrainState) and `meta` (JSON: step, examples, seconds of training so
far, variant, config, git revision, skipped and reduced records). Saving is asynchronous and atomic: a killed run leaves
either the whole checkpoint or none. Restoring names shape, dtype and sharding of every array, so the mesh may have any
shape.
"""

import dataclasses
import pathlib
import subprocess
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from glipv2_jax.parallel.rules import path_name
from glipv2_jax.train.state import TrainState

FOLDER = "checkpoints"  # inside the run's folder
LISTED = 20  # paths that an error message names before it says "and N more"


class CheckpointMismatch(ValueError):
  """The checkpoint does not fit the network it is asked for."""


@dataclasses.dataclass(frozen=True)
class Meta:
  """What is known about a checkpoint besides its arrays."""

  step: int
  examples: int
  seconds: float
  variant: str
  config: dict[str, Any]
  git: str
  skipped: dict[str, int]  # records passed over, by reason
  reduced: dict[str, int]  # records used without some of their boxes, by reason


def manager(
  folder: pathlib.Path | str,
  keep: int = 1,
  keep_every: int | None = None,
  params_only: bool = False,
  writing_gb: float = 96,
) -> ocp.CheckpointManager:
  """Builds every CheckpointManager there is: readers and writers must agree about names on disk.

  Keeps the newest `keep` checkpoints and those at multiples of `keep_every` steps. `params_only`: a reader that may
  restore a part of `state`. `writing_gb`: arrays that are written at once hold so many gigabytes (each array must fit);
  while it is written an array takes its memory a second time.
  """
  preserve = [checkpoint_managers.LatestN(keep)]
  if keep_every:
    preserve.append(checkpoint_managers.EveryNSteps(keep_every))
  options = ocp.CheckpointManagerOptions(
    preservation_policy=checkpoint_managers.AnyPreservationPolicy(preserve),
    step_format_fixed_length=8,
    enable_async_checkpointing=True,
    read_only=params_only,
  )
  state = ocp.PyTreeCheckpointHandler() if params_only else ocp.StandardCheckpointHandler(save_concurrent_gb=writing_gb)
  return ocp.CheckpointManager(
    pathlib.Path(folder).resolve(), options=options, item_handlers={"state": state, "meta": ocp.JsonCheckpointHandler()}
  )


def save(checkpoints: ocp.CheckpointManager, state: TrainState, meta: Meta) -> None:
  """Starts writing and returns; the state may be donated to the next step at once. An existing step stays."""
  if checkpoints.latest_step() == meta.step:
    return
  items = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(dataclasses.asdict(meta)))
  checkpoints.save(meta.step, args=items)


def restore(checkpoints: ocp.CheckpointManager, abstract: TrainState, variant: str) -> tuple[TrainState, Meta] | None:
  """The newest checkpoint as `abstract` describes it (shapes, dtypes, shardings), or None when there is none.

  Raises CheckpointMismatch for another variant, and for differing paths, shapes or dtypes, which it lists.
  """
  step = checkpoints.latest_step()
  if step is None:
    return None
  meta = _meta(checkpoints, step)
  where = f"checkpoint {checkpoints.directory}/{step:08d}"
  if meta.variant != variant:
    raise CheckpointMismatch(
      f"{where} was written by variant {meta.variant!r}, this run is {variant!r}; "
      "use another run folder or that variant"
    )
  _compare(where, _stored(checkpoints, step), _described(abstract))
  found = checkpoints.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))
  return found.state, meta


def read_meta(folder: pathlib.Path | str, step: int | None = None) -> Meta:
  """What is known about a checkpoint (default: the newest) of a run folder. Raises FileNotFoundError."""
  with manager(_folder(folder), params_only=True) as checkpoints:
    return _meta(checkpoints, _step(checkpoints, step))


def restore_params(folder: pathlib.Path | str, abstract_params: Any, ema: bool = False, step: int | None = None) -> Any:
  """Parameters only (`ema`: their running average), for inference or to start another run.

  `abstract_params` gives shapes, dtypes and, where the leaves have one, shardings; without them arrays go to the first
  device. Raises FileNotFoundError when there is no such checkpoint, CheckpointMismatch listing what does not fit.
  """
  name = "ema" if ema else "params"
  one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  abstract = {
    name: jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or one_device),
      abstract_params,
    )
  }
  with manager(_folder(folder), params_only=True) as checkpoints:
    step = _step(checkpoints, step)
    where = f"checkpoint {checkpoints.directory}/{step:08d}"
    stored = {path: x for path, x in _stored(checkpoints, step).items() if path.startswith(f"{name}/")}
    if not stored:
      raise CheckpointMismatch(f"{where} holds no {name!r}; the run kept no running average (optim.ema_decay = 0)")
    _compare(where, stored, _described(abstract))
    args = ocp.args.PyTreeRestore(
      item=abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract), partial_restore=True
    )
    return checkpoints.restore(step, args=ocp.args.Composite(state=args)).state[name]


def git_revision() -> str:
  """Revision of this source tree, with '+changes' when files differ from it; 'unknown' outside a git checkout."""
  try:
    changes = "+changes" if _git("status", "--porcelain") else ""
    return _git("rev-parse", "HEAD") + changes
  except (OSError, subprocess.CalledProcessError):
    return "unknown"


def _git(*arguments: str) -> str:
  here = pathlib.Path(__file__).parent
  return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()


def _folder(folder: pathlib.Path | str) -> pathlib.Path:
  """A run folder or its checkpoint folder -> the checkpoint folder."""
  folder = pathlib.Path(folder)
  folder = folder / FOLDER if (folder / FOLDER).is_dir() else folder
  if not folder.is_dir():
    raise FileNotFoundError(f"no checkpoint folder at {folder}; give the run folder that holds {FOLDER!r}")
  return folder


def _step(checkpoints: ocp.CheckpointManager, step: int | None) -> int:
  steps = checkpoints.all_steps()
  if not steps or (step is not None and step not in steps):
    wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
    raise FileNotFoundError(f"{wanted} in {checkpoints.directory}; steps there: {sorted(steps) or 'none'}")
  return max(steps) if step is None else step


def _meta(checkpoints: ocp.CheckpointManager, step: int) -> Meta:
  found = checkpoints.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
  return Meta(**found.meta)


def _stored(checkpoints: ocp.CheckpointManager, step: int) -> dict[str, tuple]:
  """path -> (shape, dtype) of the arrays on disk."""
  tree = checkpoints.item_metadata(step).state.tree
  return _described(tree)


def _described(tree: Any) -> dict[str, tuple]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {path_name(path): (tuple(x.shape), jnp.dtype(x.dtype).name) for path, x in leaves}


def _compare(where: str, stored: dict[str, tuple], wanted: dict[str, tuple]) -> None:
  """Orbax casts dtypes silently and names only some paths; this names them all."""
  lines = [f"missing in the checkpoint: {path} {_show(wanted[path])}" for path in sorted(wanted.keys() - stored.keys())]
  lines += [f"not in the network: {path} {_show(stored[path])}" for path in sorted(stored.keys() - wanted.keys())]
  lines += [
    f"{path}: checkpoint {_show(stored[path])}, network {_show(wanted[path])}"
    for path in sorted(stored.keys() & wanted.keys())
    if stored[path] != wanted[path]
  ]
  if lines:
    more = [f"and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    raise CheckpointMismatch("\n  ".join([f"{where} does not fit this network:", *lines[:LISTED], *more]))


def _show(array: tuple) -> str:
  shape, dtype = array
  return f"{dtype}{list(shape)}"

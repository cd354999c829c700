"""What a compiled training step costs, by part of the model: cycles, FLOPs, memory and collectives, from its text.

A part is known by the source lines that its instructions come from: forward, recomputed and backward instructions of a
layer all carry the traceback of the layer. A fusion counts where its result belongs.
"""

import collections
import re
from typing import Any

from glipv2_jax.parallel import hlo
from glipv2_jax.parallel.slices import Chip

# part <- 'file:function' prefixes, looked for along the whole traceback; the first row with a match decides.
PARTS = (
  ("inter", ("losses/inter.py", "losses/pairs.py", "models/heads.py:InterHead", "models/glipv2.py:GLIPv2.embed")),
  ("deform", ("models/deform",)),
  ("dyconv", ("models/dyhead.py",)),
  ("fusion", ("models/fusion.py", "models/glipv2.py:TowerStage.fuse")),
  ("mlm", ("losses/mlm.py", "models/heads.py:MlmHead")),
  ("heads", ("models/heads.py",)),
  ("swin", ("models/swin.py", "models/glipv2.py:normalise_image")),
  ("fpn", ("models/fpn.py",)),
  ("tower_text", ("models/glipv2.py:TowerStage",)),
  ("tower_loop", ("models/glipv2.py:GLIPv2.fuse",)),
  ("text", ("models/bert.py", "models/clip_text.py", "models/glipv2.py:GLIPv2.encode_text")),
  ("losses", ("losses/", "assign.py", "boxes.py", "train/objective.py")),
  ("update", ("train/optim.py", "train/step.py")),
)
OTHER = "other"
# Custom calls that take no time of their own.
_BOOKKEEPING = frozenset(
  "AllocateBuffer ConcatBitcast Sharding SPMDFullToShardShape SPMDShardToFullShape X64Combine".split()
)


def part_of(trace: tuple[str, ...]) -> str:
  """The part of a traceback, innermost 'file:function' first."""
  names = [frame.rsplit("glipv2_jax/", 1)[1] for frame in trace if "glipv2_jax/" in frame]
  for part, prefixes in PARTS:
    if any(name.startswith(prefixes) for name in names):
      return part
  return OTHER


def profile(text: str, chip: Chip, model_flops: float) -> dict[str, Any]:
  """JSON-able report of one chip's share of a step. `model_flops`: what the step has to compute on this chip.

  Seconds (None where the compiler estimates none, on GPUs): the cycles, and for the instructions that have no estimate
  (gathers, scatters, sorts, foreign kernels; listed under 'not_estimated') at least the time that their bytes take
  through the HBM. Collectives and asynchronous copies are taken to run beside the computation; their bytes are listed.
  Of a condition the cheaper branch counts; 'at_most' says what the dearer ones come to (places of the deformable
  convolution that leave their windows in every stage).
  """
  program = hlo.Program(text)
  uses = program.uses()
  cycles, floors, silent = _cycles(program, uses, chip)
  flops, gathered = collections.Counter(), collections.Counter()
  collectives: dict[str, dict[str, int]] = {}
  for use in uses:
    flops[part_of(program.source(use))] += use.times * program.flops(use)
    for inner in program.collectives(use):
      kind, size = inner.instruction.collective, program.collective_bytes(inner)
      _count(collectives, kind, use.times, size)
      if kind == "all-gather":
        shape = re.sub(r"\{[^}]*\}", "", inner.instruction.shape)
        gathered[part_of(program.source(inner)), size, shape] += use.times

  def totals(cycles, floors):
    total, floor = sum(cycles.values()), round(sum(floors.values()))
    seconds = (total + floor) / chip.hertz if chip.hertz else None
    return {"estimated_cycles": total, "floor_cycles": floor, "estimated_seconds": seconds}

  found = totals(cycles, floors)
  seconds = found["estimated_seconds"]
  return {
    **found,
    "mfu": model_flops / (seconds * chip.flops) if seconds else None,
    "at_most": totals(*_cycles(program, program.uses(costly=True), chip)[:2]),
    "flops": {"model": model_flops, "compiled": sum(flops.values())},
    "parts": {
      part: {"cycles": cycles[part], "floor_cycles": round(floors[part]), "flops": flops[part]}
      for part in sorted(cycles | floors | flops, key=lambda part: -cycles[part] - floors[part])
    },
    "not_estimated": silent,
    "collectives": collectives,
    "all_gathers": [
      {"part": part, "count": count, "bytes": size, "shape": shape}
      for (part, size, shape), count in sorted(gathered.items())
    ],
    "loops_of_unknown_length": sorted(set(program.unknown_loops)),
  }


def _cycles(program: hlo.Program, uses: list[hlo.Use], chip: Chip):
  """(cycles by part, floors by part, what has no estimate by kind)."""
  cycles, floors = collections.Counter(), collections.Counter()
  silent: dict[str, dict[str, int]] = {}
  for use in uses:
    part = part_of(program.source(use))
    if use.instruction.cycles is not None:
      cycles[part] += use.times * use.instruction.cycles
    elif chip.hertz and (kind := _silent_kind(program, use)) is not None:
      size = program.bytes_in(use) + hlo.shape_bytes(use.instruction.shape)
      _count(silent, kind, use.times, size)
      floors[part] += use.times * size / chip.bandwidth * chip.hertz
  return cycles, floors, silent


def _count(table: dict[str, dict[str, int]], kind: str, times: int, size: int) -> None:
  entry = table.setdefault(kind, {"count": 0, "bytes": 0})
  entry["count"] += times
  entry["bytes"] += times * size


def _silent_kind(program: hlo.Program, use: hlo.Use) -> str | None:
  """What to call work that the compiler gives no estimate for; None for scalars, bookkeeping and what runs beside."""
  instruction = use.instruction
  if instruction.collective or instruction.opcode in ("copy-start", "slice-start"):
    return None
  inside = {inner.instruction.opcode for inner in program.inside(use)}
  for kind in ("scatter", "gather", "sort"):
    if kind in inside:
      return kind
  if instruction.opcode == "custom-call":
    target = instruction.rest.split('custom_call_target="')[1].split('"')[0]
    return None if target in _BOOKKEEPING else target
  return instruction.opcode if hlo.shape_bytes(instruction.shape) > 1024 else None


def memory(analysis: Any, chip: Chip) -> dict[str, Any]:
  """Bytes per chip, from `Compiled.memory_analysis()`. Donated arguments become outputs in place ('aliased')."""
  whole = analysis.argument_size_in_bytes + analysis.output_size_in_bytes + analysis.temp_size_in_bytes
  return {
    "arguments": analysis.argument_size_in_bytes,
    "outputs": analysis.output_size_in_bytes,
    "aliased": analysis.alias_size_in_bytes,
    "temporaries": analysis.temp_size_in_bytes,
    "code": analysis.generated_code_size_in_bytes,
    "peak": analysis.peak_memory_in_bytes or whole - analysis.alias_size_in_bytes,
    "limit": chip.hbm,
  }

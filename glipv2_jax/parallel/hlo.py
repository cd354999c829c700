"""A compiled program read from its text: its instructions, how often each runs, what it costs, where it comes from.

`jax.jit(f).lower(...).compile().as_text()` is what the chip will do, after sharding, fusion and layout. Its own summary
(`cost_analysis`) counts the body of a loop once; here loops are multiplied by their length. On TPU the compiler leaves
its cycle estimate in most instructions; gathers, scatters, sorts and foreign kernels have none (see `Use.estimated`).
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
# Instructions that move or compute nothing.
FREE = frozenset(
  "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id opt-barrier iota domain".split()
)
_SHAPE = re.compile(r"(pred|bf16|[a-z]+\d+\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|body|to_apply|called_computations)=\{?(%[\w.\-]+)")
_PRODUCT = re.compile(r'custom_call_target="(__cublas\$(?:lt\$)?(?:gemm|matmul)|__cudnn\$conv[A-Z]\w*)"')
_CONTRACTED = re.compile(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)')
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=(%[\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of the text."""

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  rest: str  # attributes

  @property
  def cycles(self) -> int | None:
    found = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
    return int(found[1]) if found else None

  @property
  def frame(self) -> int | None:
    found = re.search(r"stack_frame_id=(\d+)", self.rest)
    return int(found[1]) if found else None

  @property
  def called(self) -> str | None:
    """The computation of a fusion, call or loop body."""
    found = _CALLED.search(self.rest)
    return found[1] if found else None

  @property
  def product(self) -> str | None:
    """What kind of matrix product or convolution this is; on GPUs many are calls of NVIDIA's libraries."""
    if self.opcode == "custom-call":
      found = _PRODUCT.search(self.rest)
      return found[1] if found else None
    return self.opcode if self.opcode in ("dot", "convolution") else None

  @property
  def collective(self) -> str | None:
    """The kind; the `-start` of an asynchronous one counts, its `-done` does not."""
    kind = self.opcode.removesuffix("-start")
    return kind if kind in COLLECTIVES else None


@dataclasses.dataclass(frozen=True)
class Use:
  """An instruction, how often it runs in one execution of the program, and the computation it stands in."""

  instruction: Instruction
  times: int
  computation: str


def shape_bytes(shape: str) -> int:
  """Bytes of an array, or of all arrays of a tuple, without the padding of layouts: 'f32[8,128]{1,0}' -> 4096."""
  return sum(math.prod(dims) * bits // 8 for bits, dims in _arrays(shape))


def shapes(shape: str) -> list[tuple[int, ...]]:
  """The dimensions of an array or of all arrays of a tuple."""
  return [dims for _, dims in _arrays(shape)]


def _arrays(shape: str) -> Iterator[tuple[int, tuple[int, ...]]]:
  for dtype, dims in _SHAPE.findall(re.sub(r"\{[^}]*\}", "", shape)):
    digits = re.search(r"\d+", dtype)
    yield (int(digits[0]) if digits else 8), tuple(int(x) for x in dims.split(",") if x)


def _closing(text: str, start: int) -> int:
  """Index of the bracket that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == "(") - (text[i] == ")")
    if depth == 0:
      return i
  raise ValueError(f"unbalanced brackets in {text[:80]!r}")


class Program:
  """The parsed text. Raises ValueError when it holds no entry computation."""

  def __init__(self, text: str):
    self.computations: dict[str, dict[str, Instruction]] = {}
    self.roots: dict[str, str] = {}
    self.entry = None
    self._tables = {"FileNames": {}, "FunctionNames": {}, "FileLocations": {}, "StackFrames": {}}
    table = here = None
    for line in text.splitlines():
      if line in self._tables:
        table = self._tables[line]
      elif table is not None and line[:1].isdigit():
        number, content = line.split(" ", 1)
        table[int(number)] = content
      elif line.endswith("{") and " -> " in line and line[:1] in "%E":
        name = line.removeprefix("ENTRY ").split(" ", 1)[0]
        here = self.computations[name] = {}
        self.entry = name if line.startswith("ENTRY") else self.entry
        computation, table = name, None
      elif line.startswith("  ") and here is not None and " = " in line:
        instruction = self._instruction(line.strip())
        here[instruction.name] = instruction
        if line.startswith("  ROOT "):
          self.roots[computation] = instruction.name
    if self.entry is None:
      raise ValueError("the text holds no ENTRY computation; give what `Compiled.as_text()` returns")
    self.unknown_loops: list[str] = []

  @staticmethod
  def _instruction(line: str) -> Instruction:
    name, rest = line.removeprefix("ROOT ").split(" = ", 1)
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    end = _closing(rest, opening)
    operands = tuple(re.findall(r"%[\w.\-]+", rest[opening:end]))
    if rest.startswith("constant("):
      operands = (rest[opening + 1 : end],)
    return Instruction(name, shape, rest[:opening], operands, rest[end + 1 :])

  # What runs.

  def uses(self, costly: bool = False) -> list[Use]:
    """Everything that one execution runs, outside of fusions. Of a conditional, the branch with the fewest cycles, or
    the most."""
    return list(self._uses(self.entry, 1, max if costly else min))

  def _uses(self, name: str, times: int, choose) -> Iterator[Use]:
    for instruction in self.computations[name].values():
      if instruction.opcode == "while":
        trips = self.trips(name, instruction)
        yield from self._uses(instruction.called, times * trips, choose)
        yield from self._uses(_condition(instruction), times * (trips + 1), choose)
      elif instruction.opcode == "conditional":
        branches = [list(self._uses(branch, times, choose)) for branch in _branches(instruction)]
        yield from choose(branches, key=lambda uses: sum(u.times * (u.instruction.cycles or 0) for u in uses))
      elif instruction.opcode in ("call", "async-start"):
        yield from self._uses(instruction.called, times, choose)
      elif instruction.opcode not in FREE and not instruction.opcode.endswith(("-done", "-update")):
        yield Use(instruction, times, name)

  def inside(self, use: Use) -> Iterator[Use]:
    """The use itself and, of a fusion, all that is fused."""
    yield use
    if use.instruction.opcode == "fusion":
      name = use.instruction.called
      for inner in self.computations[name].values():
        yield from self.inside(Use(inner, use.times, name))

  def collectives(self, use: Use) -> Iterator[Use]:
    """The collectives of a use. One of which many fusions do a piece each counts where it starts."""
    for inner in self.inside(use):
      if inner.instruction.collective:
        piece = "chain_id=" in inner.instruction.rest
        if not piece or any("AsyncCollectiveStart" in i.rest for i in self.computations[inner.computation].values()):
          yield inner

  def trips(self, computation: str, loop: Instruction) -> int:
    """How often a loop runs. One whose bound is not a constant counts once and is listed in `unknown_loops`."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest)
    if known:
      return int(known[1])
    condition = _condition(loop)
    root = self.computations[condition][self.roots[condition]]
    bounds = [self._bound(computation, loop, name) for name in root.operands]
    if root.opcode == "fusion":  # a comparison of the fusion's parameters, or of one with a constant
      inner = self.computations[root.called]
      parameters = [name for name, i in inner.items() if i.opcode == "parameter"]
      sides = inner[self.roots[root.called]].operands
      bounds = [bounds[parameters.index(x)] if x in parameters else self._constant(root.called, x) for x in sides]
    if len(bounds) == 2 and None not in bounds:
      return abs(bounds[1] - bounds[0])
    self.unknown_loops.append(loop.name)
    return 1

  def _bound(self, computation: str, loop: Instruction, name: str) -> int | None:
    """A number in a loop's condition: a constant there, or the first value of what the loop carries."""
    condition = _condition(loop)
    instruction = self.computations[condition][name]
    if instruction.opcode == "get-tuple-element":
      index = int(re.search(r"index=(\d+)", instruction.rest)[1])
      start = self.computations[computation][loop.operands[0]]
      if start.opcode != "tuple":
        return None
      return self._constant(computation, start.operands[index])
    return self._constant(condition, name)

  def _constant(self, computation: str, name: str) -> int | None:
    instruction = self.computations[computation][name]
    while instruction.opcode in ("copy", "bitcast", "convert", "copy-done", "copy-start"):
      instruction = self.computations[computation][instruction.operands[0]]
    if instruction.opcode == "constant" and re.fullmatch(r"-?\d+", instruction.operands[0]):
      return int(instruction.operands[0])
    return None

  # What it costs.

  def bytes_in(self, use: Use) -> int:
    """Bytes of all operands of one run."""
    known = self.computations[use.computation]
    return sum(shape_bytes(known[name].shape) for name in use.instruction.operands if name in known)

  def collective_bytes(self, use: Use) -> int:
    """Bytes of the whole array that a collective makes or takes on one device, whichever is larger."""
    shape = use.instruction.shape
    if use.instruction.opcode.endswith("-start"):  # its result holds the operands too
      arrays = [math.prod(dims) * bits // 8 for bits, dims in _arrays(shape)]
      return max(self.bytes_in(use), sum(arrays) - self.bytes_in(use))
    return max(self.bytes_in(use), shape_bytes(shape))

  def flops(self, use: Use) -> int:
    """Of the matrix products and convolutions of one run (2 per multiplication), padding and holes left out."""
    return sum(self._product(u.computation, u.instruction) for u in self.inside(use) if u.instruction.product)

  def _product(self, computation: str, instruction: Instruction) -> int:
    lhs, rhs = (next(_arrays(self.computations[computation][name].shape))[1] for name in instruction.operands[:2])
    out = next(_arrays(instruction.shape))[1]
    contracted = _CONTRACTED.search(instruction.rest)
    if contracted:
      return 2 * math.prod(out) * math.prod(lhs[int(i)] for i in re.findall(r"\d+", contracted[1]))
    # The gradients of a convolution are described as the convolution that they belong to.
    if instruction.product == "__cudnn$convBackwardFilter":
      rhs, out = out, rhs
    elif instruction.product == "__cudnn$convBackwardInput":
      lhs, out = out, lhs
    return _convolution(lhs, rhs, out, instruction.rest)

  # Where it comes from.

  def source(self, use: Use) -> tuple[str, ...]:
    """'file:function' of the innermost frame of an instruction's traceback and of those that called it.

    An instruction without traceback (a copy that the compiler put in) belongs to its first operand that has one.
    """
    known, instruction, seen = self.computations[use.computation], use.instruction, set()
    waiting = collections.deque([instruction])
    while waiting:
      instruction = waiting.popleft()
      if instruction.frame is not None:
        return self._trace(instruction.frame)
      if instruction.opcode == "fusion":
        frames = [i.frame for i in self.computations[instruction.called].values() if i.frame is not None]
        if frames:
          return self._trace(frames[-1])
      for name in instruction.operands:
        if name in known and name not in seen and len(seen) < 50:
          seen.add(name)
          waiting.append(known[name])
    return ()

  def _trace(self, frame: int) -> tuple[str, ...]:
    found = []
    while frame:
      # The text counts parents from 1 and stands for "none" with 1: a frame never calls itself.
      location, parent = map(int, re.findall(r"=(\d+)", self._tables["StackFrames"][frame]))
      numbers = dict(re.findall(r"(\w+)=(\d+)", self._tables["FileLocations"][location]))
      file, function = (
        self._tables[table][int(numbers[key])].strip('"')
        for table, key in (("FileNames", "file_name_id"), ("FunctionNames", "function_name_id"))
      )
      found.append(f"{file}:{function}")
      frame = parent - 1
    return tuple(found)


def _condition(loop: Instruction) -> str:
  return re.search(r"condition=(%[\w.\-]+)", loop.rest)[1]


def _branches(instruction: Instruction) -> list[str]:
  return [
    name for pair in _BRANCHES.findall(instruction.rest) for part in pair for name in re.findall(r"%[\w.\-]+", part)
  ]


def _convolution(lhs, rhs, out, rest: str) -> int:
  """FLOPs of a convolution: per spatial axis only the pairs of output and kernel positions that meet an input count."""
  lhs_labels, rhs_labels, out_labels = re.split("_|->", re.search(r"dim_labels=([^,\s]+)", rest)[1])
  window = re.search(r"window=\{([^}]*)\}", rest)
  window = dict(part.split("=") for part in window[1].split()) if window else {}
  groups = re.search(r"batch_group_count=(\d+)", rest)
  spatial = sorted(label for label in rhs_labels if label.isdigit())

  def numbers(key, default):
    return window[key].split("x") if key in window else [default] * len(spatial)

  pairs = 1
  options = zip(numbers("stride", "1"), numbers("pad", "0_0"), numbers("lhs_dilate", "1"), numbers("rhs_dilate", "1"))
  for label, (stride, pad, lhs_dilate, rhs_dilate) in zip(spatial, options):
    size, kernel, positions = (
      shape[labels.index(label)] for shape, labels in ((lhs, lhs_labels), (rhs, rhs_labels), (out, out_labels))
    )
    low, hole, stride, step = int(pad.split("_")[0]), int(lhs_dilate), int(stride), int(rhs_dilate)
    at = (o * stride + k * step - low for o in range(positions) for k in range(kernel))
    pairs *= sum(1 for x in at if 0 <= x <= (size - 1) * hole and x % hole == 0)
  batch = lhs[lhs_labels.index("b")] // (int(groups[1]) if groups else 1)
  return 2 * batch * out[out_labels.index("f")] * rhs[rhs_labels.index("i")] * pairs

"""Weight files of others -> NumPy arrays: .safetensors, and PyTorch's .pth, .pt, .bin.

Files come from strangers: nothing in them is executed. Arrays of safetensors are views of the mapped file; those of
PyTorch are each in memory of their own, which is free again once nobody holds the array.
"""

import dataclasses
import json
import logging
import pathlib
import zipfile
from collections.abc import Mapping

import ml_dtypes
import numpy as np

SAFETENSORS = {
  "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
  "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
HEADER_LIMIT = 100 * 2**20  # bytes; the limit of the safetensors library
TORCH = (".pth", ".pt", ".bin")
log = logging.getLogger(__name__)


class BadWeights(ValueError):
  """The file cannot be read, or does not fit the network."""


@dataclasses.dataclass(frozen=True)
class WeightFile:
  """Names without a leading 'module.'; `variant` where the file says it."""

  path: pathlib.Path
  state: Mapping[str, np.ndarray]
  variant: str | None = None


def read(path: pathlib.Path | str, ema: bool = False) -> WeightFile:
  """Reads a file. `ema`: the running average, which only a checkpoint of training holds (`model_ema`).

  Raises FileNotFoundError, and BadWeights for files that are damaged, hold code, or are of another kind.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"no weight file at {path}")
  if path.suffix == ".safetensors":
    if ema:
      raise BadWeights(f"{path} is a safetensors file, which holds one set of weights; leave out --ema")
    return _read_safetensors(path)
  if path.suffix not in TORCH:
    raise BadWeights(f"{path} ends in {path.suffix!r}; weights are read from .safetensors, {', '.join(TORCH)}")
  return WeightFile(path, _arrays(path, _unwrap(path, _load_torch(path), ema)))


def _read_safetensors(path: pathlib.Path) -> WeightFile:
  """The format: 8 bytes length of the header, the header in JSON (name -> dtype, shape, byte range), the bytes."""
  size = path.stat().st_size
  damaged = f"{path} is truncated or no safetensors file; get it again"
  with path.open("rb") as file:
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(HEADER_LIMIT, size - 8):
      raise BadWeights(damaged)
    try:
      header = json.loads(file.read(length))
      metadata = header.pop("__metadata__", {})
      end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise BadWeights(damaged) from error
  start = 8 + length
  if start + end != size:
    raise BadWeights(damaged)
  content = np.memmap(path, np.uint8, "r")
  state = {}
  for name, entry in header.items():
    if entry["dtype"] not in SAFETENSORS:
      raise BadWeights(f"{name} in {path} has dtype {entry['dtype']}; readable: {', '.join(SAFETENSORS)}")
    first, last = entry["data_offsets"]
    kind, shape = np.dtype(SAFETENSORS[entry["dtype"]]), tuple(entry["shape"])
    if not 0 <= first <= last or last - first != kind.itemsize * int(np.prod(shape, dtype=np.int64)):
      raise BadWeights(damaged)
    state[name] = content[start + first : start + last].view(kind).reshape(shape)
  return WeightFile(path, stripped(state), metadata.get("variant"))


def _load_torch(path: pathlib.Path):
  try:
    import torch  # the one optional dependency of this file
  except ImportError as error:
    needs = f'{path} needs PyTorch to be read: pip install "glipv2_jax[torch]"; .safetensors files need none'
    raise BadWeights(needs) from error
  with path.open("rb") as file:
    zipped = file.read(4) == b"PK\x03\x04"
  if zipped and not zipfile.is_zipfile(path):
    raise BadWeights(f"{path} is truncated; get it again")
  try:
    return torch.load(path, map_location="cpu", weights_only=True)
  except Exception as error:  # torch raises whatever its readers meet in a damaged file
    first = str(error).strip().split("\n")[0]
    message = f"{path} is truncated, no weight file of PyTorch, or holds code, which is never executed"
    raise BadWeights(f"{message} ({type(error).__name__}: {first[:200]})") from error


def _unwrap(path: pathlib.Path, content, ema: bool):
  """A file of training holds the weights below a name, beside optimizer and schedule."""
  wanted = ("model_ema",) if ema else ("model", "state_dict")
  if isinstance(content, Mapping):
    for name in wanted:
      if isinstance(content.get(name), Mapping):
        return content[name]
    if not ema:
      return content
    raise BadWeights(f"{path} has no 'model_ema'; it holds {sorted(map(str, content))[:10]}; leave out --ema")
  raise BadWeights(f"{path} holds a {type(content).__name__}, not named weights")


def _arrays(path: pathlib.Path, state: Mapping) -> dict[str, np.ndarray]:
  import torch

  odd = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
  if odd or not state:
    raise BadWeights(f"{path} holds {[str(name) for name in odd[:10]] or 'nothing'} instead of named weights")

  def array(tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:  # NumPy has no such type of its own
      return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.detach().numpy()

  return stripped({str(name): array(tensor) for name, tensor in state.items()})


def stripped(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """DistributedDataParallel puts 'module.' before every name (reference 10.1)."""
  if all(name.startswith("module.") for name in state):
    return {name.removeprefix("module."): value for name, value in state.items()}
  return state


def not_finite(value: np.ndarray) -> int:
  """How many numbers are NaN or infinite."""
  return value.size - np.count_nonzero(np.isfinite(value))


def warn_of_not_finite(counts: Mapping[str, int]) -> None:
  """One warning for all parameters (path -> `not_finite`) that hold such numbers."""
  broken = {path: count for path, count in counts.items() if count}
  if broken:
    numbers, names = sum(broken.values()), ", ".join(broken)
    log.warning("%d numbers in %d parameters are NaN or infinite: %s", numbers, len(broken), names)

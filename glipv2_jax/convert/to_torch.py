"""Our parameters -> weight files for PyTorch: the authors' names, MMDetection's, or safetensors with the config inside.

Entries that the other network holds and this one computes (index tables, anchors, BERT's position ids; reference 10.4)
are written too, so that a strict `load_state_dict` finds all it needs.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from glipv2_jax.convert import dialects, files, names
from glipv2_jax.convert.files import BadWeights
from glipv2_jax.models.glipv2 import param_paths
from glipv2_jax.models.variants import ModelConfig

FORMATS = ("glip", "mmdet", "safetensors")


def state_dict(params: dict, cfg: ModelConfig, naming: str = "glip") -> dict[str, np.ndarray]:
  """Our nested parameters -> a complete state_dict (float32, buffers included), without 'module.'.

  `naming` 'glip' or 'mmdet'. Raises ValueError for the parameters of another network.
  """
  dialect = {"glip": dialects.glip, "mmdet": dialects.mmdet}[naming](cfg)
  paths, wanted = param_paths(params), list(names.shapes(cfg))
  if paths != wanted:
    different = sorted(set(paths) ^ set(wanted))
    raise ValueError(f"the parameters are not those of this network; paths on one side only: {different}")
  values = dict(zip(paths, jax.tree.leaves(params), strict=True))
  state = {}
  for entry in names.expand(dialect.rows, cfg):
    value = np.asarray(values[entry.path], np.float32)
    if value.shape != tuple(entry.shape):
      raise ValueError(f"{entry.path} has shape {value.shape}, this network has {entry.shape}")
    state.update(zip(entry.names, entry.to_torch(value), strict=True))
  state |= {copy: state[original].copy() for copy, original in names.COPIES.items() if original in state}
  return state | names.buffers(cfg, dialect.buffers)


def write(
  path: pathlib.Path | str, params: dict, cfg: ModelConfig, form: str, *, variant: str, config: Mapping[str, Any]
) -> int:
  """Writes a weight file whole or not at all; returns the number of entries.

  `form` 'glip': {"model": state_dict} as the authors' checkpointer reads it; 'mmdet': {"state_dict": ..., "meta": ...};
  'safetensors': the authors' names, with variant and config as JSON in the metadata. The first two need PyTorch.
  NaN and infinite numbers are written as they are and warned of. Raises BadWeights where PyTorch is absent, ValueError
  for an unknown form or foreign parameters.
  """
  if form not in FORMATS:
    raise ValueError(f"format {form!r} is not known; known: {', '.join(FORMATS)}")
  path = pathlib.Path(path)
  if form == "safetensors" and path.suffix != ".safetensors":
    raise ValueError(f"{path}: a safetensors file must end in .safetensors")
  state = state_dict(params, cfg, "mmdet" if form == "mmdet" else "glip")
  leaves = zip(param_paths(params), jax.tree.leaves(params), strict=True)
  files.warn_of_not_finite({name: files.not_finite(value) for name, value in leaves})
  part = path.with_name(path.name + ".part")
  path.parent.mkdir(parents=True, exist_ok=True)
  about = {"variant": variant, "config": json.dumps(config)}
  if form == "safetensors":
    from safetensors.numpy import save_file

    save_file(state, part, metadata={"format": "pt", **about})
  else:
    torch = _torch()
    tensors = {name: torch.from_numpy(np.require(value, requirements="W")) for name, value in state.items()}
    torch.save({"model": tensors} if form == "glip" else {"meta": about, "state_dict": tensors}, part)
  part.replace(path)
  return len(state)


def _torch():
  try:
    import torch
  except ImportError as error:
    needs = 'this format needs PyTorch: pip install "glipv2_jax[torch]"; the format safetensors needs none'
    raise BadWeights(needs) from error
  return torch

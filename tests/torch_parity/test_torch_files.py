"""Files of PyTorch: every wrapping is read, nothing in them is executed."""

import pickle

import jax
import numpy as np
import pytest

from glipv2_jax.convert import files, from_torch, resize, to_torch
from glipv2_jax.convert.files import BadWeights
from glipv2_jax.models.glipv2 import abstract_params, param_paths
from tests import tiny

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install "glipv2_jax[torch]"')

CFG = tiny.model()


def random_params():
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), abstract_params(CFG))


def tensors(state):
  return {name: torch.from_numpy(value) for name, value in state.items()}


WRAPPINGS = {
  "model": lambda state: {"model": state, "optimizer": {"lr": 0.1}, "iteration": 3},
  "state_dict": lambda state: {"state_dict": state},
  "bare": lambda state: state,
  "module": lambda state: {"model": {f"module.{name}": value for name, value in state.items()}},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("legacy", [False, True])
def test_wrappings_round_trip_bit_exact(tmp_path, wrapping, legacy):
  params = random_params()
  state = to_torch.state_dict(params, CFG)
  torch.save(WRAPPINGS[wrapping](tensors(state)), tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
  found = dict(from_torch.load([tmp_path / "x.pth"], CFG).arrays())
  assert list(found) == param_paths(params)
  again = to_torch.state_dict(from_torch.parameters(files.read(tmp_path / "x.pth").state, CFG), CFG)
  assert again.keys() == state.keys()
  for name, value in state.items():
    assert again[name].dtype == value.dtype
    np.testing.assert_array_equal(again[name], value)


@pytest.mark.parametrize("form", ["glip", "mmdet", "safetensors"])
def test_written_files_are_what_torch_reads(tmp_path, form):
  params = random_params()
  path = tmp_path / ("x.safetensors" if form == "safetensors" else "x.pth")
  to_torch.write(path, params, CFG, form, variant="tiny", config={"model": {"variant": "tiny"}})
  if form == "safetensors":
    from safetensors import safe_open
    from safetensors.torch import load_file

    found = load_file(path)
    with safe_open(path, "pt") as file:
      assert file.metadata() == {"format": "pt", "variant": "tiny", "config": '{"model": {"variant": "tiny"}}'}
  else:
    found = torch.load(path, weights_only=True)[{"glip": "model", "mmdet": "state_dict"}[form]]
  want = to_torch.state_dict(params, CFG, "mmdet" if form == "mmdet" else "glip")
  assert found.keys() == want.keys()
  for name, value in want.items():
    np.testing.assert_array_equal(found[name].numpy(), value)
  assert not list(tmp_path.glob("*.part"))


def test_running_average(tmp_path):
  state = to_torch.state_dict(random_params(), CFG)
  average = {name: value * 2 for name, value in state.items() if value.dtype == np.float32}
  torch.save({"model": tensors(state), "model_ema": tensors(average)}, tmp_path / "x.pth")
  np.testing.assert_array_equal(
    files.read(tmp_path / "x.pth", ema=True).state["rpn.head.bias0"], average["rpn.head.bias0"]
  )
  torch.save({"model": tensors(state)}, tmp_path / "y.pth")
  with pytest.raises(BadWeights, match="no 'model_ema'"):
    files.read(tmp_path / "y.pth", ema=True)


def test_half_types(tmp_path):
  value = torch.linspace(-3, 3, 12).reshape(3, 4)
  torch.save({"a": value.to(torch.bfloat16), "b": value.half().T}, tmp_path / "x.bin")
  state = files.read(tmp_path / "x.bin").state
  np.testing.assert_array_equal(state["a"].astype(np.float32), value.to(torch.bfloat16).float().numpy())
  np.testing.assert_array_equal(state["b"].astype(np.float32), value.half().float().numpy().T)


class Evil:
  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return (open, (self.path, "w"))


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_code_is_refused_and_not_executed(tmp_path, how):
  content = {"model": {"a": torch.zeros(2), "b": Evil(str(tmp_path / "executed"))}}
  path = tmp_path / "x.pth"
  if how == "pickle":
    path.write_bytes(pickle.dumps(content))
  else:
    torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
  with pytest.raises(BadWeights, match="holds code, which is never executed") as error:
    files.read(path)
  assert not (tmp_path / "executed").exists() and "\n" not in str(error.value)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kept", [0, 3, 100, 0.5, -1])
def test_truncated_files_are_refused(tmp_path, kept, legacy):
  path = tmp_path / "x.pth"
  torch.save(tensors(to_torch.state_dict(random_params(), CFG)), path, _use_new_zipfile_serialization=not legacy)
  content = path.read_bytes()
  path.write_bytes(content[: int(len(content) * kept) if kept == 0.5 else kept])
  with pytest.raises(BadWeights, match="truncated") as error:
    files.read(path)
  assert "\n" not in str(error.value)


def test_what_is_no_state_dict_is_refused(tmp_path):
  for content in ([1, 2], {}, {"a": 1}, torch.zeros(2)):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(BadWeights, match="holds"):
      files.read(tmp_path / "x.pth")


@pytest.mark.parametrize("window", [4, 6, 12])
def test_interpolation_of_tables_is_torch(window):
  table = torch.randn(13 * 13, 3, generator=torch.Generator().manual_seed(0))
  plane, side = table.T.reshape(1, 3, 13, 13), 2 * window - 1
  want = torch.nn.functional.interpolate(plane.double(), (side, side), mode="bicubic", align_corners=False)
  np.testing.assert_allclose(resize.bias_table(table.numpy(), window), want.reshape(3, -1).T, atol=2e-6)


@pytest.mark.parametrize("length", [16, 256])
def test_interpolation_of_positions_is_torch(length):
  table = torch.randn(77, 8, generator=torch.Generator().manual_seed(0))
  column = table.T.reshape(1, 8, 77, 1)
  want = torch.nn.functional.interpolate(column.double(), (length, 1), mode="bilinear", align_corners=False)
  np.testing.assert_allclose(resize.positions(table.numpy(), length), want.reshape(8, length).T, atol=1e-6)

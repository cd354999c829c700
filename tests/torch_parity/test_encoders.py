"""Encoders as Hugging Face saves them: imported, they compute what its models compute."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx

from glipv2_jax.convert import from_torch
from glipv2_jax.models.glipv2 import abstract_params, graphdef, init_params, normalise_image, param_paths
from tests import tiny

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install "glipv2_jax[torch]"')
transformers = pytest.importorskip("transformers")


def model(kind="bert"):
  cfg = tiny.model()
  swin = dataclasses.replace(cfg.swin, depths=(2, 2, 2, 1), heads=(1, 2, 2, 4))  # odd blocks shift their windows
  return dataclasses.replace(cfg, swin=swin, text=dataclasses.replace(cfg.text, kind=kind, layers=2))


def network(weights, cfg):
  params = jax.jit(functools.partial(init_params, cfg))(jax.random.key(0))
  values = dict(zip(param_paths(params), jax.tree.leaves(params), strict=True)) | dict(weights.arrays())
  return nnx.merge(graphdef(cfg), jax.tree.unflatten(jax.tree.structure(abstract_params(cfg)), list(values.values())))


def noisy(module):
  """Biases, norms and tables away from their initial zeros and ones."""
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for parameter in module.parameters():
      parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
  return module.eval()


@pytest.mark.parametrize("form", ["safetensors", "classifier.bin"])
def test_swin(tmp_path, form):
  cfg = model()
  theirs = transformers.SwinConfig(
    image_size=128, embed_dim=8, depths=list(cfg.swin.depths), num_heads=list(cfg.swin.heads), window_size=4, num_labels=3
  )  # fmt: skip
  if form == "safetensors":
    swin = noisy(transformers.SwinModel(theirs, add_pooling_layer=False))
    torch.nn.init.ones_(swin.layernorm.weight), torch.nn.init.zeros_(swin.layernorm.bias)  # new here
    swin.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
  else:
    classifier = noisy(transformers.SwinForImageClassification(theirs))
    torch.nn.init.ones_(classifier.swin.layernorm.weight), torch.nn.init.zeros_(classifier.swin.layernorm.bias)
    file, swin = tmp_path / "x.bin", classifier.swin
    torch.save(classifier.state_dict(), file)
  weights = from_torch.load([file], cfg)
  assert not [path for path in weights.fresh if path.startswith("swin") and "norms" not in path]
  image = np.random.default_rng(0).integers(0, 256, (1, 128, 128, 3), np.uint8)
  ours = network(weights, cfg).swin(normalise_image(image, np.array([[128, 128]]), cfg))[3]
  pixels = (torch.from_numpy(image) / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
  with torch.no_grad():
    want = swin(pixels.permute(0, 3, 1, 2)).last_hidden_state
  np.testing.assert_allclose(np.asarray(ours).reshape(1, 16, -1), want, atol=3e-5)


@pytest.mark.parametrize("form", ["safetensors", "masked.bin", "gamma.bin"])
def test_bert(tmp_path, form):
  cfg = model()
  theirs = transformers.BertConfig(
    vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=16
  )  # fmt: skip
  if form == "safetensors":
    bert = noisy(transformers.BertModel(theirs))
    bert.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
  else:
    masked = noisy(transformers.BertForMaskedLM(theirs))
    file, bert, state = tmp_path / "x.bin", masked.bert, masked.state_dict()
    if form == "gamma.bin":  # as the first files of BERT, in the format of their time
      state = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
               for n, v in state.items()}  # fmt: skip
    torch.save(state, file, _use_new_zipfile_serialization=False)
  weights = from_torch.load([file], cfg)
  assert not [path for path in weights.fresh if path.startswith("text")]
  tokens = np.random.default_rng(0).integers(0, 64, (2, 8))
  valid = np.arange(8) < np.array([[8], [5]])
  ours = network(weights, cfg).text(tokens, valid)
  with torch.no_grad():
    want = bert(torch.from_numpy(tokens), attention_mask=torch.from_numpy(valid).long()).last_hidden_state
  np.testing.assert_allclose(np.asarray(ours)[valid], want.numpy()[valid], atol=1e-5)


def test_clip(tmp_path):
  """Theirs looks back only, ours both ways: on a single word they agree."""
  cfg = model("clip")
  theirs = transformers.CLIPTextConfig(
    vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=16, layer_norm_eps=1e-12, bos_token_id=0, eos_token_id=1, pad_token_id=1
  )  # fmt: skip
  clip = noisy(transformers.CLIPTextModel(theirs))
  state = {n if n.startswith("text_model.") else f"text_model.{n}": v for n, v in clip.state_dict().items()}
  torch.save(state, tmp_path / "x.pt")
  weights = from_torch.load([tmp_path / "x.pt"], cfg)
  assert not [path for path in weights.fresh if path.startswith("text")]
  tokens = np.arange(2, 8)[:, None]
  ours = network(weights, cfg).text(tokens, np.ones((6, 1), bool))
  with torch.no_grad():
    want = clip(torch.from_numpy(tokens)).last_hidden_state
  np.testing.assert_allclose(np.asarray(ours), want, atol=1e-5)

"""Encoders as Hugging Face saves them: imported, they compute what its models compute."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from glipv2_jax.convert import from_torch
from glipv2_jax.convert.names import shapes
from glipv2_jax.models.glipv2 import abstract_params, graphdef, normalise_image
from glipv2_jax.train.state import RUN_ONCE
from tests import tiny

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install "glipv2_jax[torch]"')
transformers = pytest.importorskip("transformers")
load_file = pytest.importorskip("safetensors.torch").load_file


def model(kind="bert"):
  cfg = tiny.model()
  swin = dataclasses.replace(cfg.swin, depths=(2, 2, 2, 1), heads=(1, 2, 2, 4))  # odd blocks shift their windows
  return dataclasses.replace(cfg, swin=swin, text=dataclasses.replace(cfg.text, kind=kind, layers=2))


def network(weights, cfg):
  """Norms that no file holds have scale 1, everything else that is absent is 0."""
  values = {path: np.full(shape, float(path.endswith("scale")), np.float32) for path, shape in shapes(cfg).items()}
  values |= dict(weights.arrays())
  return nnx.merge(graphdef(cfg), jax.tree.unflatten(jax.tree.structure(abstract_params(cfg)), list(values.values())))


def run(module, *args):
  """A jitted call, compiled quickly: eager operations are compiled one by one."""
  definition, params = nnx.split(module)
  return jax.jit(lambda p, *args: nnx.merge(definition, p)(*args), compiler_options=RUN_ONCE)(params, *args)


def published(module, folder):
  """The weights as files hold them: the modules of newer versions have other names in memory."""
  module.save_pretrained(folder)
  return load_file(folder / "model.safetensors")


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
    image_size=128, embed_dim=8, depths=list(cfg.swin.depths), num_heads=list(cfg.swin.heads), window_size=4,
    num_labels=3
  )  # fmt: skip
  if form == "safetensors":
    swin = noisy(transformers.SwinModel(theirs, add_pooling_layer=False))
    torch.nn.init.ones_(swin.layernorm.weight), torch.nn.init.zeros_(swin.layernorm.bias)  # new here
    published(swin, tmp_path)
    file = tmp_path / "model.safetensors"
  else:
    classifier = noisy(transformers.SwinForImageClassification(theirs))
    torch.nn.init.ones_(classifier.swin.layernorm.weight), torch.nn.init.zeros_(classifier.swin.layernorm.bias)
    file, swin = tmp_path / "x.bin", classifier.swin
    torch.save(published(classifier, tmp_path), file)
  weights = from_torch.load([file], cfg)
  assert not [path for path in weights.fresh if path.startswith("swin") and "norms" not in path]
  image = np.random.default_rng(0).integers(0, 256, (1, 128, 128, 3), np.uint8)
  ours = run(network(weights, cfg).swin, normalise_image(image, np.array([[128, 128]]), cfg))[3]
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
    published(bert, tmp_path)
    file = tmp_path / "model.safetensors"
  else:
    masked = noisy(transformers.BertForMaskedLM(theirs))
    file, bert, state = tmp_path / "x.bin", masked.bert, published(masked, tmp_path)
    if form == "gamma.bin":  # as the first files of BERT, in the format of their time
      state = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
               for n, v in state.items()}  # fmt: skip
    torch.save(state, file, _use_new_zipfile_serialization=False)
  weights = from_torch.load([file], cfg)
  assert not [path for path in weights.fresh if path.startswith("text")]
  tokens = np.random.default_rng(0).integers(0, 64, (2, 8))
  valid = np.arange(8) < np.array([[8], [5]])
  ours = run(network(weights, cfg).text, tokens, valid)
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
  torch.save(published(clip, tmp_path), tmp_path / "x.pt")
  weights = from_torch.load([tmp_path / "x.pt"], cfg)
  assert not [path for path in weights.fresh if path.startswith("text")]
  tokens = np.arange(2, 8)[:, None]
  ours = run(network(weights, cfg).text, tokens, np.ones((6, 1), bool))
  with torch.no_grad():
    want = clip(torch.from_numpy(tokens)).last_hidden_state
  np.testing.assert_allclose(np.asarray(ours), want, atol=1e-5)

"""L_inter with the options of the published code against recordings of that code, one process and two.

Features are ours under the authors' weights (tests/golden/condense_inter.py); their recorded similarities confirm them.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from glipv2_jax.losses import inter
from glipv2_jax.models import variants
from glipv2_jax.models.heads import InterHead
from glipv2_jax.models.layers import Keys
from glipv2_jax.parallel.mesh import make_mesh
from glipv2_jax.schema import Batch

IMAGES = {"zero": 3, "sampled": 3, "before_fusion": 3, "zero4": 4, "two_processes": 4}
PUBLISHED = inter.InterConfig(drop_first_box=True)


@pytest.fixture(scope="module")
def numbers(golden):
  with np.load(golden / "glip" / "inter.npz") as file:
    return dict(file)


@functools.cache
def head():
  return nnx.split(InterHead(variants.get("glip_t", inter_dim=64), rngs=Keys(jax.random.key(0))))[0]


def params(numbers):
  def layer(name):
    name = f"weight/contrastive_projection_{name}"
    return {"kernel": numbers[f"{name}.weight"].T, "bias": numbers[f"{name}.bias"]}

  return {
    "projection_image": layer("image"),
    "projection_text": layer("text"),
    "log_scale": numbers["weight/log_scale"],
  }


def features(numbers, case):
  """Cells b n d, zero where no case looks; words b m e, zero in the padding."""
  images = IMAGES[case]
  cells = np.zeros((images, numbers["matched"].shape[1], 256), np.float32)
  words = np.zeros((images, numbers["tokens_valid"].shape[1], 768), np.float32)
  for b in range(images):
    cells[b, numbers[f"cells_at/{b}"]] = numbers[f"cells/{b}"]
    found = numbers[f"words_before_fusion/{b}" if case == "before_fusion" else f"words/{b}"]
    words[b, : len(found)] = found
  return cells, words


def batch(numbers, case):
  n = IMAGES[case]
  fields = {f.name: None for f in dataclasses.fields(Batch)}
  names = ("tokens_valid", "positive_map", "box_concept", "token_concept")
  return Batch(**fields | {name: numbers[name][:n] for name in names} | {"example_valid": np.ones(n, bool)})


def regions(numbers, case):
  """The recorded choice of the authors, with one more row of padding."""
  chosen = [numbers[f"{'zero4' if case == 'two_processes' else case}/locations/{b}"] for b in range(IMAGES[case])]
  location = np.zeros((len(chosen), max(map(len, chosen)) + 1), np.int32)
  valid = np.zeros(location.shape, bool)
  for b, found in enumerate(chosen):
    location[b, : len(found)], valid[b, : len(found)] = found, True
  box = np.take_along_axis(numbers["matched"][: len(chosen)], location, 1)
  return inter.Regions(location, np.where(valid & (box > 0), box, -1), valid)


def embed(weights, numbers, case):
  cells, words = features(numbers, case)
  return nnx.merge(head(), weights)([cells[:, None]], words, regions(numbers, case).location)


@pytest.mark.parametrize("case", ["zero", "zero4", "before_fusion"])
def test_the_choice_of_regions_drops_the_first_box(numbers, case):
  found = inter.choose(numbers["matched"][: IMAGES[case]], np.ones(IMAGES[case], bool), PUBLISHED, None)
  for b, location in enumerate(found.location):
    np.testing.assert_array_equal(np.sort(location[found.valid[b]]), numbers[f"{case}/locations/{b}"])


def test_similarities_of_regions_and_words(numbers):
  found = embed(params(numbers), numbers, "zero")
  rows = found.regions[:, :-1].reshape(-1, 64)[regions(numbers, "zero").valid[:, :-1].ravel()]
  columns = found.words.reshape(-1, 64)[numbers["tokens_valid"][:3].ravel()]
  theirs = numbers["zero/logits"]
  theirs = theirs[theirs[:, 0] > -1e5]  # without their padding
  np.testing.assert_allclose(rows @ columns.T / np.exp(found.log_scale), theirs, atol=2e-5)


@pytest.mark.parametrize("case", IMAGES)
def test_loss_and_gradients(numbers, case):
  """Two processes: each goes without gradient to the other's features, the average of both is what a step applies."""
  cfg = dataclasses.replace(PUBLISHED, negatives=case == "sampled", detach_remote=case == "two_processes")
  processes = 2 if case == "two_processes" else 1
  data, chosen = batch(numbers, case), regions(numbers, case)

  @jax.jit
  @jax.value_and_grad
  def loss(weights):
    embeddings = embed(weights, numbers, case)
    return inter.inter_term(embeddings, data, chosen, numbers["matched"][: IMAGES[case]], cfg).mean()

  with jax.set_mesh(make_mesh(processes, devices=jax.devices()[:processes])):
    value, gradient = loss(jax.tree.map(jnp.asarray, params(numbers)))
  np.testing.assert_allclose(value, numbers[f"{case}/loss"], rtol=2e-6)
  if processes == 1:
    np.testing.assert_allclose(value, numbers[f"{case}/loss_float64"], rtol=2e-6)
  ours = {"log_scale": gradient["log_scale"]}
  for name in ("image", "text"):
    layer = gradient[f"projection_{name}"]
    ours |= {f"contrastive_projection_{name}.weight": layer["kernel"].T}
    ours |= {f"contrastive_projection_{name}.bias": layer["bias"]}
  compared = 0
  for key, theirs in numbers.items():
    if key.startswith(f"{case}/grad/"):
      name, step = key.removeprefix(f"{case}/grad/").split("@s")
      values = np.asarray(ours[name]).reshape(-1)
      np.testing.assert_allclose(np.linalg.norm(values), numbers[f"{case}/norm/{name}"], rtol=1e-4, err_msg=name)
      found = values[:: int(step)][:8]
      np.testing.assert_allclose(found, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max(), err_msg=name)
      compared += 1
  assert compared == 5

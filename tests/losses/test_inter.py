"""L_inter against its dense twin, which forms the whole similarity and target matrices on one device."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glipv2_jax.losses import inter
from glipv2_jax.parallel.mesh import make_mesh
from glipv2_jax.schema import Embeddings
from pipelines.concepts import concept_id

IMAGES, REGIONS, TOKENS, DIM = 16, 6, 10, 8
MESHES = {"(1,)": (1, 1), "(8,)": (8, 1), "(2, 4)": (2, 4)}
FORMS = ("gathered", "ring")


def dense(embeddings, known):
  """Equations 4 and 5 as they are written; targets sum to one in every row, and every column, that has any."""
  b, r = known.region_concept.shape
  regions, words = (x.reshape(-1, x.shape[-1]) for x in (embeddings.regions, embeddings.words))
  similarity = regions @ words.T / jnp.exp(embeddings.log_scale)
  concept, word_concept = known.region_concept.reshape(-1, 1), known.word_concept.reshape(1, -1)
  target = (concept == word_concept) & (concept >= 0)
  blocks = target.reshape(b, r, b, -1)
  for i in range(b):
    blocks = blocks.at[i, :, i].set(known.region_named[i])
  live = known.region_valid.reshape(-1, 1) & known.word_valid.reshape(1, -1)
  target = (blocks.reshape(similarity.shape) & live).astype(similarity.dtype)
  similarity = jnp.where(live, similarity, -1e9)
  total = 0.0
  for axis in (0, 1):
    share = target / jnp.maximum(target.sum(axis, keepdims=True), 1)
    total -= (share * jax.nn.log_softmax(similarity, axis)).sum()
  return total / 2


def example(seed=0, case="mixed"):
  """Embeddings and labels of a batch: uneven numbers of regions, an image without any, detection and sentences."""
  rng = np.random.default_rng(seed)
  unit = lambda *shape: (lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True))(rng.normal(size=shape))  # noqa: E731
  counts = rng.integers(0, REGIONS + 1, IMAGES)
  counts[:3] = 0, REGIONS, 1
  detection = rng.random(IMAGES) < 0.6
  lengths = rng.integers(3, TOKENS + 1, IMAGES)
  named = rng.random((IMAGES, REGIONS, TOKENS)) < 0.2
  named[..., 1] = True  # every region has a word
  if case == "sentences":
    detection[:] = False
  if case == "nothing positive":
    named[:], detection[:] = False, False
  if case == "no regions":
    counts[:] = 0
  ids = rng.integers(0, 5, IMAGES * (REGIONS + TOKENS)) * 700_000_001 // 5  # five classes that all data sets share
  if case == "two data sets":  # that spell the same classes differently
    spelled = ("Traffic_Light", "Dog", "tissue ", "cup", "Horse"), ("traffic light", "dog", "Tissue", "Cup", "horse")
    numbers = np.array([[concept_id(name) for name in names] for names in spelled])
    of_image = np.concatenate([np.repeat(np.arange(IMAGES) % 2, n) for n in (REGIONS, TOKENS)])
    ids = numbers[of_image, rng.integers(0, 5, len(of_image))]
  region_concept, word_concept = np.split(ids.astype(np.int32), [IMAGES * REGIONS])
  word_concept = np.where(rng.random(IMAGES * TOKENS) < 0.6, word_concept, -1).reshape(IMAGES, TOKENS)
  valid = np.arange(REGIONS) < counts[:, None]
  known = inter.Labels(
    region_concept=np.where(detection[:, None] & valid, region_concept.reshape(IMAGES, REGIONS), -1),
    region_named=named & valid[..., None],
    region_valid=valid,
    word_concept=np.where(detection[:, None], word_concept, -1),
    word_valid=np.arange(TOKENS) < lengths[:, None],
  )
  embeddings = Embeddings(
    unit(IMAGES, REGIONS, DIM).astype(np.float32),
    unit(IMAGES, TOKENS, DIM).astype(np.float32),
    np.full(1, -1.5, np.float32),
  )
  return jax.tree.map(jnp.asarray, (embeddings, known))


twin = jax.jit(jax.value_and_grad(dense))


@functools.cache
def program(cfg, mesh):
  compiled = jax.jit(jax.value_and_grad(functools.partial(inter.cross_entropies, cfg)))
  if mesh is None:
    return compiled
  devices = make_mesh(*MESHES[mesh], devices=jax.devices()[: np.prod(MESHES[mesh])])

  def run(*arguments):
    with jax.set_mesh(devices):
      return compiled(*arguments)

  return run


def check(found, wanted):
  (value, gradient), (wanted_value, wanted_gradient) = found, wanted
  np.testing.assert_allclose(value, wanted_value, rtol=1e-5)
  for name in ("regions", "words", "log_scale"):
    ours, theirs = getattr(gradient, name), getattr(wanted_gradient, name)
    assert float(jnp.abs(ours - theirs).max()) <= 1e-5 * float(jnp.abs(theirs).max()), name


def test_the_twin_itself_against_loops():
  embeddings, known = jax.tree.map(np.asarray, example())
  regions = list(itertools.product(range(IMAGES), range(REGIONS)))
  words = list(itertools.product(range(IMAGES), range(TOKENS)))
  logits, target = np.zeros((len(regions), len(words))), np.zeros((len(regions), len(words)), bool)
  for (x, (i, r)), (y, (j, m)) in itertools.product(enumerate(regions), enumerate(words)):
    logits[x, y] = np.float64(embeddings.regions[i, r]) @ embeddings.words[j, m] * np.exp(1.5)
    if i == j:
      target[x, y] = known.region_named[i, r, m]
    else:
      target[x, y] = known.region_concept[i, r] == known.word_concept[j, m] != -1
  live_rows = [known.region_valid[i, r] for i, r in regions]
  live_columns = [known.word_valid[j, m] for j, m in words]
  logits, target = (x[live_rows][:, live_columns] for x in (logits, target))
  total = 0.0
  for l, t in ((logits, target), (logits.T, target.T)):
    for row, positive in zip(l, t, strict=True):
      if positive.any():
        total += np.log(np.exp(row).sum()) - row[positive].mean()
  assert 0 < target.sum() < target.size / 4
  np.testing.assert_allclose(twin(*example())[0], total / 2, rtol=1e-5)


@pytest.mark.parametrize("case", ["mixed", "two data sets", "sentences", "nothing positive", "no regions"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mesh", MESHES)
def test_value_and_gradient_equal_the_twin(mesh, form, case):
  arguments = example(case=case)
  found = program(inter.InterConfig(form=form, pairs=4), mesh)(*arguments)
  check(found, twin(*arguments))
  if case in ("nothing positive", "no regions"):
    assert float(found[0]) == 0 and all(not x.any() for x in jax.tree.leaves(found[1]))
  else:
    assert float(found[0]) > 1


def test_padding_may_hold_anything():
  embeddings, known = example()
  dirty = Embeddings(
    jnp.where(known.region_valid[..., None], embeddings.regions, jnp.nan),
    jnp.where(known.word_valid[..., None], embeddings.words, jnp.nan),
    embeddings.log_scale,
  )
  clean = program(inter.InterConfig(pairs=4), None)(embeddings, known)
  jax.tree.map(np.testing.assert_array_equal, program(inter.InterConfig(pairs=4), None)(dirty, known), clean)


def test_equal_names_of_two_data_sets_attract_each_other():
  _, known = jax.tree.map(np.asarray, example(case="two data sets"))
  same = known.region_concept[::2, :, None, None] == known.word_concept[1::2]  # regions of one, words of the other
  assert (same & (known.region_concept[::2, :, None, None] >= 0)).any()


@pytest.mark.parametrize("form", FORMS)
def test_no_matrix_of_all_pairs_exists(form):
  """Not even for moments: no array of the program, forward or backward, is as large as a hundredth of it."""
  images, cfg = 256, inter.InterConfig(form=form, pairs=4)
  arguments = jax.tree.map(lambda x: np.zeros((images, *x.shape[1:]), x.dtype) if x.ndim > 1 else x, example())
  with jax.set_mesh(make_mesh(8)):
    program = jax.make_jaxpr(jax.value_and_grad(functools.partial(inter.cross_entropies, cfg)))(*arguments)
  largest = max(x.size for x in arrays(program.jaxpr))
  assert images * TOKENS * DIM <= largest < images * REGIONS * images * TOKENS / 100


def arrays(jaxpr):
  """What every equation computes, those inside loops and shard_map included."""
  for equation in jaxpr.eqns:
    yield from (x.aval for x in equation.outvars)
    for value in equation.params.values():
      for inner in value if isinstance(value, tuple | list) else (value,):
        if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
          yield from arrays(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize("pairs", [1, 7, 64, 256])
def test_the_size_of_tiles_changes_nothing(pairs):
  arguments = example(1)
  check(program(inter.InterConfig(pairs=pairs), None)(*arguments), twin(*arguments))


MATCHED = np.full((4, 40), -1, np.int32)
MATCHED[0, [3, 5, 30]] = 0, 2, 2
MATCHED[1, 10:30] = np.arange(20) % 3
MATCHED[3, :20] = 1
EVERYBODY = np.array([True, True, True, False])


@pytest.mark.parametrize("key", [None, 0])
def test_all_assigned_anchors_are_chosen_up_to_k(key):
  key = None if key is None else jax.random.key(key)
  found = inter.choose(MATCHED, EVERYBODY, inter.InterConfig(regions=8), key)
  np.testing.assert_array_equal(found.valid.sum(1), [3, 8, 0, 0])  # the last image is padding
  assert set(np.asarray(found.location[0])[np.asarray(found.valid[0])]) == {3, 5, 30}
  for b, n in zip(*np.nonzero(found.valid), strict=True):
    assert found.box[b, n] == MATCHED[b, found.location[b, n]]
  assert len(set(found.location[1].tolist())) == 8
  np.testing.assert_array_equal(np.asarray(found.box)[~np.asarray(found.valid)], -1)


def test_a_random_choice_is_fair_and_differs_between_steps():
  choices = [
    inter.choose(MATCHED, EVERYBODY, inter.InterConfig(regions=8), jax.random.key(i)).location[1] for i in range(50)
  ]
  counts = np.bincount(np.concatenate(choices), minlength=40)
  assert counts[10:30].min() >= 8 and counts.sum() == counts[10:30].sum()  # 20 on average


def test_negatives_fill_up_without_a_box():
  cfg = inter.InterConfig(regions=8, negatives=True)
  found = inter.choose(MATCHED, EVERYBODY, cfg, jax.random.key(0))
  np.testing.assert_array_equal(found.valid.sum(1), [8, 8, 8, 0])
  np.testing.assert_array_equal((found.box >= 0).sum(1), [3, 8, 0, 0])
  added = np.asarray(found.location[0])[np.asarray(found.box[0]) < 0]
  assert len(set(added)) == 5 and (MATCHED[0, added] < 0).all()


def test_unknown_form_is_named():
  with pytest.raises(ValueError, match="'dense'; known: gathered, ring"):
    inter.InterConfig(form="dense")

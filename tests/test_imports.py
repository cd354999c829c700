"""The cheapest architecture document: who may import whom, compared with every import statement in the tree."""

import ast
import importlib.util
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("glipv2_jax", "pipelines", "eval", "configs", "launch", "benchmarks")

# Importer -> what of ours it may import. Longest matching prefix wins on both sides.
ALLOWED = {
  "glipv2_jax": (),  # schema, boxes, anchors, assign: the geometry at the bottom
  "glipv2_jax.anchors": ("glipv2_jax.boxes",),
  "glipv2_jax.assign": ("glipv2_jax.boxes", "glipv2_jax.anchors"),
  # on a mesh activations stay with the devices that share the batch
  "glipv2_jax.models": ("glipv2_jax.schema", "glipv2_jax.models", "glipv2_jax.parallel.mesh"),
  "glipv2_jax.losses": (
    "glipv2_jax.schema",
    "glipv2_jax.boxes",
    "glipv2_jax.anchors",
    "glipv2_jax.assign",
    "glipv2_jax.models",
    "glipv2_jax.parallel",  # L_inter goes over the devices that share the batch
    "glipv2_jax.losses",
  ),
  "glipv2_jax.parallel": ("glipv2_jax.schema", "glipv2_jax.parallel"),
  "glipv2_jax.convert": ("glipv2_jax.models", "glipv2_jax.convert"),
  "glipv2_jax.convert.run_elsewhere": (
    "glipv2_jax.schema",
    "glipv2_jax.boxes",
    "glipv2_jax.anchors",
    "glipv2_jax.models",
  ),
  "glipv2_jax.train": ("glipv2_jax",),
  "glipv2_jax.augment": ("glipv2_jax.infer", "glipv2_jax.boxes"),
  "glipv2_jax.infer": ("glipv2_jax.schema", "glipv2_jax.boxes", "glipv2_jax.anchors"),
  "pipelines": ("glipv2_jax.schema", "glipv2_jax.boxes", "pipelines"),
  "eval": ("eval",),  # metric files take arrays and files, so they serve any detector
  "configs": ("configs",),
  "launch": ("glipv2_jax", "pipelines", "eval", "configs", "launch"),
  "benchmarks": ("glipv2_jax", "pipelines", "eval", "configs", "launch", "benchmarks"),
}
# Third-party packages that must stay out of a part.
FORBIDDEN = {
  "glipv2_jax": ("torch", "tensorflow", "grain", "transformers", "ml_collections", "PIL", "pycocotools"),
  "pipelines": ("torch", "tensorflow", "jax", "flax", "ml_collections"),
  "eval": ("torch", "tensorflow", "jax", "flax"),
  "configs": ("jax", "flax", "numpy", "torch"),
  "launch": ("tensorflow",),
}
# Module -> what it may import all the same, inside functions: weight files of PyTorch are read and written by PyTorch.
LAZY = {"glipv2_jax.convert.files": ("torch",), "glipv2_jax.convert.to_torch": ("torch",)}


def modules():
  for package in PACKAGES:
    for path in sorted((ROOT / package).rglob("*.py")):
      parts = path.relative_to(ROOT).with_suffix("").parts
      yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path, top_level=False):
  """Absolute names imported anywhere in a file, function bodies included unless `top_level`."""
  tree = ast.parse(path.read_text())
  for node in tree.body if top_level else ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import; write the absolute name"
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def longest_prefix(name, table):
  found = [key for key in table if name == key or name.startswith(key + ".")]
  return max(found, key=len) if found else None


@pytest.mark.parametrize("module,path", list(modules()), ids=lambda x: x if isinstance(x, str) else "")
def test_imports_run_one_way(module, path):
  allowed = ALLOWED[longest_prefix(module, ALLOWED)]
  forbidden = FORBIDDEN.get(module.split(".")[0], ())
  for name in imports(path):
    top = name.split(".")[0]
    lazy = top in LAZY.get(module, ()) and name not in imports(path, top_level=True)
    assert top not in forbidden or lazy, f"{module} imports {name}: {top} must stay out of {module.split('.')[0]}"
    if top in PACKAGES:
      assert longest_prefix(name, allowed), f"{module} imports {name}; it may import {allowed or 'nothing of ours'}"


@pytest.mark.parametrize("package", PACKAGES)
def test_package_names_resolve_inside_the_repository(package):
  """`eval` and `configs` are generic names: a foreign package of that name on the path would shadow ours."""
  assert pathlib.Path(importlib.util.find_spec(package).origin).is_relative_to(ROOT)

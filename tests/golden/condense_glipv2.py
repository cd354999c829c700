"""How tests/golden/glip/inter.npz and mlm.npz were made: `python -m tests.golden.condense_glipv2 FOLDER` from the root.

FOLDER holds the full recordings glip/. They have no features from before the fusion, so those come from this project's
network under the authors' weights; the recorded similarities of regions and words, compared here and in the test, say
whether they are right. Kept are the regions and words that take part; for L_mlm the hidden words that are predicted.
"""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from glipv2_jax.models import variants
from tests import authors
from tests.golden import condense

CASES = {  # ours: images, recording, summary
  "zero": (3, "train_shallow_zero", "shallow_zero"),
  "sampled": (3, "train_shallow_neg", "shallow_neg"),
  "before_fusion": (3, "train_shallow_prefusion", "shallow_prefusion"),
  "zero4": (4, "train_shallow_zero4", "shallow_zero4"),
}
MLM = "rpn.head.mlm_head."
MLM_PARAMETERS = (
  "bias", "decoder.weight", "transform.dense.weight", "transform.dense.bias",
  "transform.LayerNorm.weight", "transform.LayerNorm.bias",
)  # fmt: skip
PREFIX = "rpn.loss_evaluator.shallow_"
PARAMETERS = ("log_scale", *(f"contrastive_projection_{s}.{t}" for s in ("image", "text") for t in ("weight", "bias")))


def features(root, given, tokens=None):
  """Cells b n d of the pyramid before the fusion, words b m e after and before it, b m bool; other tokens if given."""
  network, given = authors.network(variants.get("glip_t")), condense.inputs(root / f"{given}.npz")
  given["tokens"] = given["tokens"] if tokens is None else tokens
  image, size, tokens, valid = (jnp.asarray(given[k]) for k in ("image", "image_size", "tokens", "tokens_valid"))

  @jax.jit
  def run(network):
    pyramid, text = network.encode_image(image, size), network.encode_text(tokens, valid)
    _, fused = network.fuse(pyramid, text, valid, size)
    cells = jnp.concatenate([x.reshape(x.shape[0], -1, x.shape[-1]) for x in pyramid], 1)
    return cells, fused.hidden, text.embedded

  with jax.default_matmul_precision("highest"):
    return [np.asarray(x) for x in run(network)], np.asarray(valid)


def labels(root, images=4, boxes=4):
  z = np.load(root / "train4_inputs.npz")
  positive_map, concept, row = np.zeros((images, boxes, 256), bool), np.full((images, boxes), -1, np.int32), 0
  for b in range(images):
    found = z[f"target/{b}/original_od_label"]
    positive_map[b, : len(found)] = z["positive_map"][row : row + len(found)] > 0
    concept[b, : len(found)] = np.maximum(found, -1)  # the authors write -10 for sentences
    row += len(found)
  words = np.stack([z[f"target/{b}/positive_map_for_od_labels"] for b in range(images)]).astype(np.int32)
  return positive_map, concept, words


def gradients(z, norms, prefix=PREFIX, parameters=PARAMETERS):
  found = {}
  for name in parameters:
    (key,) = (k for k in z.files if k.startswith(f"grad/{prefix}{name}@"))
    found[f"grad/{name}@{key.split('@')[1]}"] = z[key]
    found[f"norm/{name}"] = np.float64(norms[prefix + name])
  return found


def mlm(root):
  z = np.load(root / "train_mlm.npz")
  (_, fused, _), _ = features(root, "train_inputs", z["masked_input_ids"].astype(np.int32))
  labels = z["extra/mlm_labels"]
  found = {"labels": labels[labels >= 0].astype(np.int32), "words": fused[labels >= 0]}
  losses = json.loads((root / "train_summary.json").read_text())["mlm"]
  found["loss"], found["loss_float64"] = (np.float64(losses[k]["mlm_loss"]) for k in ("losses", "losses_float64"))
  norms = json.loads((root / "train_mlm_grad_norms.json").read_text())["per_parameter"]
  return found | gradients(z, norms, MLM, MLM_PARAMETERS)


def inter(root):
  (cells, fused, embedded), valid = features(root, "train4_inputs")
  positive_map, box_concept, token_concept = labels(root)
  base = np.load(root / "train_shallow_zero4.npz")
  matched = base["assign/matched_gt"].astype(np.int32)
  summary = json.loads((root / "train_summary.json").read_text())
  m = int(valid.sum(1).max())
  found = {"matched": matched, "box_concept": box_concept, "token_concept": token_concept[:, :m]}
  found |= {"positive_map": positive_map[..., :m], "tokens_valid": valid[:, :m]}
  taking_part = [set(np.flatnonzero(row >= 0)) for row in matched]
  for name, (images, file, variant) in CASES.items():
    z = np.load(root / f"{file}.npz")
    # What they sampled: first nothing, then fill for the images with fewer regions than the one with most.
    most = max(len(z[f"extra/shallow_positive_index_{b}"]) for b in range(images))
    fills = [z[f"extra/random_sample_{i}"] for i in range(9) if f"extra/random_sample_{i}" in z]
    fills = [x for x in fills if len(x)]
    for b in range(images):
      chosen = list(z[f"extra/shallow_positive_index_{b}"])
      if fills and len(chosen) < most:
        chosen += list(fills.pop(0))
      found[f"{name}/locations/{b}"] = np.array(chosen, np.int32)
      taking_part[b] |= set(chosen)
    norms = json.loads((root / f"{file}_grad_norms.json").read_text())["per_parameter"]
    found |= {f"{name}/{k}": v for k, v in gradients(z, norms).items()}
    if name == "zero":
      live = np.flatnonzero(valid[:images].ravel())
      found["zero/logits"] = z["extra/shallow_image_logits"][0][:, live]
    losses, exact = summary[variant]["losses"], summary[variant]["losses_float64"]
    found[f"{name}/loss"] = np.float64(losses["loss_shallow_contrastive"])
    found[f"{name}/loss_float64"] = np.float64(exact["loss_shallow_contrastive"])
  ranks = json.loads((root / "ddp2_summary.json").read_text())
  norms = ranks["averaged_grad_norm_per_parameter"]
  found |= {f"two_processes/{k}": v for k, v in gradients(np.load(root / "ddp2_grads.npz"), norms).items()}
  found["two_processes/loss"] = np.float64(ranks["mean_losses"]["loss_shallow_contrastive"])
  for b, rows in enumerate(taking_part):
    rows = np.array(sorted(rows))
    found[f"cells_at/{b}"], found[f"cells/{b}"] = rows.astype(np.int32), cells[b, rows]
    length = valid[b].sum()
    found[f"words/{b}"], found[f"words_before_fusion/{b}"] = fused[b, :length], embedded[b, :length]
  shapes = {"log_scale": (1,), "contrastive_projection_image": (64, 256), "contrastive_projection_text": (64, 768)}
  for name in PARAMETERS:
    shape = shapes[name.split(".")[0]]
    found[f"weight/{name}"] = authors.weight(PREFIX + name, shape[:1] if name.endswith("bias") else shape)
  return found


def main(root):
  np.savez_compressed(condense.OUT / "inter.npz", **inter(root))
  np.savez_compressed(condense.OUT / "mlm.npz", **mlm(root))


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]) / "glip")

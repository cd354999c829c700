"""How tests/golden/glip/*.npz were made from the full recordings: `python tests/golden/condense.py FOLDER` (README.md).

FOLDER holds glip/ and glip_more/. Images go back to the uint8 RGB that they were; long arrays keep every p-th value.
"""

import json
import math
import pathlib
import re
import sys

import numpy as np

OUT = pathlib.Path(__file__).parent / "glip"
LIMIT = 4096  # values per array
PRIMES = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103)
CASES = {  # ours: folder, inputs, recordings, statistics (shapes)
  "pair": ("glip", "pair_inputs", ("pair_backbone", "pair_text", "pair_tower", "pair_head"), "pair_stats"),
  "odd": ("glip", "odd_inputs", ("odd_backbone", "odd_text", "odd_tower", "odd_head"), "odd_stats"),
  "glip_a": ("glip", "pair_inputs", ("pair_glip_t_a_head",), "pair_glip_t_a_stats"),
  "clip_text": (
    "glip_more", "clip_text_inputs", ("clip_text_text", "clip_text_tower", "clip_text_head"), "clip_text_stats",
  ),
  "glip_l": ("glip_more", "glip_l_inputs", ("glip_l_features", "glip_l_head"), "glip_l_stats"),
}  # fmt: skip
UNUSED = r"anchors/.*|text/masks|text/aggregate|head/mlm.*|clip/block0_.*"
WHOLE = {  # compared or fed entirely
  "pair": r"det/.*|tower/17_DyConv/visual_p[567]|head/(bbox|centerness|dot_product.*\[).*",
  "glip_a": r"det/.*|head/.*",
}
FED = r"tower/(17_DyConv/visual_p[34]|16_BertEncoderLayer/text.*)"  # the head is fed with image 0 of `pair`
MEAN, STD = np.array([103.530, 116.280, 123.675]), np.array([57.375, 57.120, 58.395])  # BGR


def inputs(path):
  z = np.load(path)
  pixels = np.moveaxis(z["images"].astype(np.float64), 1, 3) * STD + MEAN
  image = np.round(pixels[..., ::-1]).astype(np.uint8)
  for b, (h, w) in enumerate(z["image_sizes"]):
    assert np.abs(pixels[b, :h, :w, ::-1] - image[b, :h, :w]).max() < 1e-4
    image[b, h:], image[b, :, w:] = 0, 0
  found = {
    "image": image,
    "image_size": z["image_sizes"].astype(np.int32),
    "tokens": z["input_ids"].astype(np.int32),
    "tokens_valid": z["attention_mask"] > 0,
  }
  if "positive_map_json" in z:  # label, from 1 -> tokens; of caption 0, used for every image
    labels = json.loads(str(z["positive_map_json"]))
    found["phrases"] = np.zeros((len(labels), z["input_ids"].shape[1]), bool)
    for label, tokens in labels.items():
      found["phrases"][int(label) - 1, tokens] = True
  return found


def thin(key, value, shape):
  """(key, value) with at most LIMIT values; the step shares no factor with an axis, so that every axis is visited."""
  if value.size <= LIMIT:
    return key, value
  name, window, step = re.fullmatch(r"(.*?)(\[.*\])?(?:@s(\d+))?", key).groups()
  more = next(p for p in PRIMES if value.size <= p * LIMIT and not any(axis % p == 0 for axis in shape))
  return f"{name}{window or ''}@s{more * int(step or 1)}", value.reshape(-1)[::more]


def case(root, name):
  folder, given, files, stats = CASES[name]
  shapes = {k: v["shape"] for k, v in json.loads((root / folder / f"{stats}.json").read_text()).items()}
  found = inputs(root / folder / f"{given}.npz")
  for file in files:
    for key, value in np.load(root / folder / f"{file}.npz").items():
      plain = re.fullmatch(r"(.*?)(\[.*\])?(@s\d+)?", key)
      if re.fullmatch(UNUSED, key):
        continue
      if name == "pair" and re.fullmatch(FED, key):
        found[key.replace("[:,", "[:1,") if plain[2] else f"{key}[:1]"] = value[:1]
      elif name in WHOLE and re.fullmatch(WHOLE[name], key) or key.startswith("det/"):
        found[key] = value
      else:
        key, value = thin(key, value, [n for n in shapes.get(plain[1], value.shape)])
        found[key] = value
  return found


def train(root):
  z, base = np.load(root / "glip/train_inputs.npz"), np.load(root / "glip/train_base.npz")
  found = inputs(root / "glip/train_inputs.npz")
  found["positive_map"] = z["positive_map"] > 0
  for b in range(3):
    found[f"boxes/{b}"] = z[f"target/{b}/boxes"]
  found |= {k: v for k, v in base.items() if re.match("anchors|assign|extra|head/(bbox|centerness|dot)", k)}
  summary = json.loads((root / "glip/train_summary.json").read_text())["base"]
  for precision in ("", "_float64"):
    for name, value in summary[f"losses{precision}"].items():
      found[f"losses{precision}/{name}"] = np.float64(value)
    found[f"grad_norm{precision}"] = np.float64(summary[f"grad_norm{precision}"])
  return found


def two_processes(root):
  """Boxes and centerness only: head outputs of all four images, losses of the processes that had two each."""
  z, one = np.load(root / "glip/train4_inputs.npz"), np.load(root / "glip/train_shallow_zero4.npz")
  found = {k: v for k, v in one.items() if re.match("assign/matched_gt|head/(bbox|centerness)", k)}
  found |= {"image_size": z["image_sizes"].astype(np.int32), "positive_map": z["positive_map"] > 0}
  found |= {f"boxes/{b}": z[f"target/{b}/boxes"] for b in range(4)}
  for rank, recorded in enumerate(json.loads((root / "glip/ddp2_summary.json").read_text())["ranks"]):
    for name in ("loss_reg", "loss_centerness"):
      found[f"losses/{rank}/{name}"] = np.float64(recorded["losses"][name])
  return found


def step(root):
  """Eight values per tensor, joined in the order of `names`: tensor i gives counts[i] values, strides[i] apart."""
  norms = json.loads((root / "glip/train_base_grad_norms.json").read_text())
  z, amplified = (np.load(root / f"glip_more/optimizer_step{suffix}.npz") for suffix in ("", "_amplified"))
  keys = [k.removeprefix("grad/") for k in z if k.startswith("grad/")]
  names = [k.split("@")[0] for k in keys]
  found = {
    "names": np.array("\n".join(names)),
    "strides": np.array([int(k.split("@s")[1]) if "@" in k else 1 for k in keys], np.int32),
    "counts": np.array([z[f"grad/{k}"].size for k in keys], np.int32),
    "zero_in_theory": np.array([n in norms["mathematically_zero"] for n in names]),
    "norm_torch_float32": np.float64(
      json.loads((root / "glip_more/optimizer_summary.json").read_text())["global_norm_torch_float32"]
    ),
  }
  for precision in ("", "_float64"):
    table = norms[f"per_parameter{precision}"]
    found[f"grad_norms{precision}"] = np.array([table[n] for n in names])
  for source in (z, amplified):
    for prefix in sorted({k.removesuffix(f"/{keys[0]}") for k in source if k.endswith(f"/{keys[0]}")}):
      found[prefix] = np.concatenate([source[f"{prefix}/{k}"].reshape(-1) for k in keys])
  assert math.prod(found["before"].shape) == found["counts"].sum()
  return found


def main(root):
  OUT.mkdir(exist_ok=True)
  for name in CASES:
    np.savez_compressed(OUT / f"{name}.npz", **case(root, name))
  np.savez_compressed(OUT / "train.npz", **train(root))
  np.savez_compressed(OUT / "ddp2.npz", **two_processes(root))
  np.savez_compressed(OUT / "step.npz", **step(root))


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))

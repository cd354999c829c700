"""The complete tree that every configuration starts from: the authors' settings for GLIP-T (reference 1.1).

Each section is one frozen dataclass of the library (named beside it), which documents the fields. Rules of the house:
every field is present with its final type; ordered things are tuples; `{root}` inside a source option is replaced by
`data.root`; a config file changes values and never adds keys, so `--config.section.field=value` fails on a typo.
"""

from collections.abc import Collection, Mapping
from types import MappingProxyType

from ml_collections import config_dict

# The paper's Table 4: the terms of equation 2 that each row trains. L_loc is two of ours.
TABLE_4 = {
  "1": (),  # no pre-training: the network it would start from
  "2": ("mlm",),
  "3": ("box", "centerness", "intra"),
  "4": ("box", "centerness", "intra", "mlm"),
  "5": ("box", "centerness", "intra", "inter"),
  "6": ("box", "centerness", "intra", "inter", "mlm"),
}


def parse_arg(
  arg: str | None, choices: tuple[str, ...], options: Mapping[str, Collection[str]] = MappingProxyType({})
) -> tuple[str, dict[str, str]]:
  """'b,row=3,debug' -> ('b', {'row': '3', 'debug': 'true'}): the family member, the first of `choices` when none is
  named, and switches: 'debug' and the `options`, name -> values.

  Raises ValueError for a word that is none of these.
  """
  words = [word for word in (arg or "").split(",") if word]
  member = words.pop(0) if words and words[0] in choices else choices[0]
  known = ["debug", *(f"{name}={value}" for name, values in options.items() for value in values)]
  for word in words:
    if word not in known:
      raise ValueError(f"{word!r} is not known after the colon; known: {', '.join([*choices, *known])}")
  return member, {name: value or "true" for name, _, value in (word.partition("=") for word in words)}


def base() -> config_dict.ConfigDict:
  """Unlocked; `--config` locks what `get_config` returns."""
  c = config_dict.ConfigDict()

  c.model = config_dict.ConfigDict()  # glipv2_jax.models.variants
  c.model.variant = "glip_t"
  c.model.compute_dtype = "bfloat16"
  c.model.mask_padding = False
  c.model.deform = "gather"
  c.model.fusion = "heads"
  c.model.loop = False
  c.model.remat = ("dyconv",)
  c.model.mlm = False  # the head of L_mlm
  c.model.inter_dim = 0  # 64: the network has the head of L_inter
  c.model.inter_fused = False
  c.model.inter_temperature = 1.0

  c.data = config_dict.ConfigDict()  # pipelines.build.DataConfig
  c.data.root = ""
  c.data.sources = config_dict.ConfigDict()  # name -> kind, weight and the options of that kind of source
  c.data.tokenizer = "bert-base-uncased"
  c.data.max_tokens = 256
  c.data.weighting = "share"  # weights are proportions, or "repeats" of each source
  c.data.temperature = 1.0
  c.data.canvases = landscape_and_portrait((480, 672), (576, 800), (640, 896), (736, 1024), (800, 1120))
  c.data.batch = 64
  c.data.max_boxes = 100
  c.data.flip = 0.5
  c.data.swap_sides = True
  c.data.workers = 8
  c.data.pixels = "fast"
  c.data.seed = 0
  c.data.skip_limit = 0.01
  c.data.accept_changed = False

  c.prompt = config_dict.ConfigDict()  # pipelines.prompts.PromptConfig
  c.prompt.mode = "sample"
  c.prompt.separator = ". "
  c.prompt.prefix = ""
  c.prompt.shuffle = True
  c.prompt.random_negatives = 85
  c.prompt.control_probabilities = (0.0, 0.0, 0.5, 0.0)
  c.prompt.pack = 0
  c.prompt.synonyms = False

  c.masking = config_dict.ConfigDict()  # pipelines.masking.MaskingConfig; words are hidden only for L_mlm
  c.masking.kinds = ("detection", "grounding")
  c.masking.probability = 0.15
  c.masking.masked = 0.8
  c.masking.random = 0.1
  c.masking.own_caption_only = False

  c.loss = config_dict.ConfigDict()  # glipv2_jax.losses.grounding.LossConfig
  # 0.0 removes a term and its computation.
  c.loss.weights = config_dict.ConfigDict(dict(intra=1.0, inter=0.0, box=2.0, centerness=1.0, mlm=0.0))
  c.loss.background_token = True
  c.loss.inter = config_dict.ConfigDict()  # glipv2_jax.losses.inter.InterConfig
  c.loss.inter.regions = 100
  c.loss.inter.negatives = False
  c.loss.inter.form = "gathered"
  c.loss.inter.pairs = 64
  c.loss.inter.drop_first_box = False
  c.loss.inter.detach_remote = False

  c.optim = config_dict.ConfigDict()  # glipv2_jax.train.optim.OptimConfig
  c.optim.lr = 1e-4
  c.optim.schedule = "step"
  c.optim.milestones = (0.67, 0.89)
  c.optim.gamma = 0.1
  c.optim.warmup_steps = 2000
  c.optim.weight_decay = 1e-4
  c.optim.decay_ratio = 0.0
  c.optim.beta2 = 0.999
  c.optim.clip_norm = 1.0
  c.optim.ema_decay = 0.999
  # (path pattern, learning-rate multiplier, weight-decay multiplier), first match wins (reference 1.2).
  c.optim.rules = (
    (r"text/.*bias.*", 0.2, 0.0),
    (r"text/.*", 0.1, 1.0),
    (r".*bias.*", 2.0, 0.0),
    (r".*", 1.0, 1.0),
  )
  c.optim.frozen = ()

  c.train = config_dict.ConfigDict()  # glipv2_jax.train.loop.TrainConfig
  c.train.total_steps = 330_000
  c.train.seed = 0
  c.train.accumulate = 1  # microbatches per update; L_inter finds its negatives within one of them,
  c.train.global_negatives = False  # or in all of them, for one more pass of the encoders
  c.train.data = -1  # mesh: devices that only split the batch, -1 what is left
  c.train.fsdp = 1  # mesh: devices that also split parameters and moments
  c.train.log_every = 20
  c.train.checkpoint_every = 2500
  c.train.keep = 2
  c.train.keep_every = config_dict.placeholder(int)
  c.train.eval_every = config_dict.placeholder(int)
  c.train.evaluate_ema = False
  c.train.init_from = config_dict.placeholder(str)

  c.eval = config_dict.ConfigDict()  # launch.experiment
  # Name -> kind and options, and what is scored on it (launch.official.Evaluated): evaluator, truth, wordings.
  c.eval.sources = config_dict.ConfigDict()
  c.eval.canvases = landscape_and_portrait((800, 1344))
  c.eval.batch = 16
  c.eval.workers = 4
  c.eval.limit = config_dict.placeholder(int)
  c.eval.per_prompt = config_dict.placeholder(int)
  c.eval.region_threshold = 0.5

  c.infer = config_dict.ConfigDict()  # glipv2_jax.infer.InferConfig
  c.infer.threshold = 0.05
  c.infer.pre_nms_top_n = 1000
  c.infer.nms_iou = 0.6
  c.infer.max_detections = 100
  c.infer.aggregate = "mean"
  c.infer.scales = ()
  c.infer.mirror = False
  c.infer.merge = "nms"
  return c


def landscape_and_portrait(*canvases: tuple[int, int]) -> tuple[tuple[int, int], ...]:
  """Every canvas both ways. Evaluation has the authors' short side 800 with long sides up to 1333 (6.8). In training
  the short sides are theirs too, and the shape is the one that pictures of 4:3 and 3:2 fill best: with theirs a fifth
  of the pixels would be padding."""
  return tuple(size for height, width in canvases for size in ((height, width), (width, height)))


def shapes(split: str, task: str, weight: float, names: str = "pair") -> config_dict.ConfigDict:
  """An entry of `sources`: the embedded data set."""
  fields = dict(kind="shapes", weight=weight, split=split, task=task, names=names, size=(128, 128))
  return config_dict.ConfigDict(fields)


def coco_json(annotations: str, images: str, name: str, weight: float = 1.0) -> config_dict.ConfigDict:
  """An entry of `sources`: a COCO-format json file and its image folder."""
  return config_dict.ConfigDict(
    dict(kind="coco_json", weight=weight, annotations=annotations, images=images, name=name)
  )


def scored(entry: config_dict.ConfigDict, evaluator: str, truth: str = "", wordings: tuple = ()):
  """An entry of `eval.sources` that names its task (without one: COCO's AP of classes, recall of phrases)."""
  entry.update(evaluator=evaluator, truth=truth, wordings=wordings)
  return entry


def mdetr_json(annotations: str, images: str, name: str, weight: float = 1.0) -> config_dict.ConfigDict:
  """An entry of `sources`: texts with grounded phrases in MDETR's json form, and their image folder."""
  fields = dict(kind="mdetr_json", weight=weight, annotations=annotations, images=images, name=name)
  return config_dict.ConfigDict(fields)


def glip_tsv(data: str, name: str, weight: float = 1.0) -> config_dict.ConfigDict:
  """An entry of `sources`: a set in GLIP's TSV container (its yaml file; with * all that match)."""
  return config_dict.ConfigDict(dict(kind="glip_tsv", weight=weight, data=data, name=name))


# Misspelt names of Objects365 v2. Equal names agree across data sets: its Dinning Table and COCO's dining table.
OBJECTS365_NAMES = (
  ("Moniter/TV", "Monitor/TV"),
  ("Bakset", "Basket"),
  ("Dinning Table", "Dining Table"),
  ("Tea pot", "Teapot"),
  ("Extention Cord", "Extension Cord"),
  ("Hotair ballon", "Hot air balloon"),
  ("Hamimelon", "Hami melon"),
  ("Mushroon", "Mushroom"),
  ("Tape Measur/ Ruler", "Tape Measure/ Ruler"),
  ("Campel", "Camel"),
  ("Meat ball", "Meatball"),
  ("Buttefly", "Butterfly"),
  ("Table Teniis paddle", "Table Tennis paddle"),
)


def five_ods() -> config_dict.ConfigDict:
  """The `sources` of the paper's FiveODs, in the folders of their own archives; weights: thousands of pictures."""
  objects365 = coco_json(
    "{root}/objects365/annotations/zhiyuan_objv2_train.json", "{root}/objects365/train", "objects365", 1742.0
  )
  objects365.rename = OBJECTS365_NAMES
  coco = coco_json("{root}/coco/annotations/instances_train2017.json", "{root}/coco/train2017", "coco", 118.0)
  openimages = dict(
    kind="openimages",
    weight=1743.0,
    name="openimages",
    annotations="{root}/openimages/oidv6-train-annotations-bbox.csv",
    class_descriptions="{root}/openimages/class-descriptions-boxable.csv",
    image_labels="{root}/openimages/train-annotations-human-imagelabels-boxable.csv",
    hierarchy="{root}/openimages/bbox_labels_600_hierarchy.json",
    images="{root}/openimages/train",
  )
  visual_genome = dict(
    kind="visual_genome",
    weight=108.0,
    name="visual_genome",
    annotations="{root}/visual_genome/objects.json",
    image_data="{root}/visual_genome/image_data.json",
    images="{root}/visual_genome",
    without=("{root}/coco/annotations/instances_val2017.json",),
  )
  imagenet_boxes = dict(
    kind="imagenet_boxes",
    weight=545.0,
    name="imagenet_boxes",
    annotations="{root}/imagenet/Annotations/CLS-LOC/train",
    images="{root}/imagenet/Data/CLS-LOC/train",
    synsets="{root}/imagenet/LOC_synset_mapping.txt",
  )
  return config_dict.ConfigDict(
    dict(
      objects365=objects365,
      coco=coco,
      openimages=openimages,
      visual_genome=visual_genome,
      imagenet_boxes=imagenet_boxes,
    )
  )


def small(c: config_dict.ConfigDict) -> None:
  """Sizes of the demo network for a laptop CPU; the learning recipe is for training from scratch."""
  c.model.variant = "demo"
  c.model.compute_dtype = "float32"
  c.model.remat = ()
  c.data.tokenizer = "shapes"
  c.data.max_tokens = 64
  c.data.max_boxes = 32
  c.data.workers = 0
  c.prompt.random_negatives = 16
  c.eval.workers = 0
  c.loss.background_token = False  # a prompt that fills all tokens must not make its [SEP] stand for background
  c.optim.schedule = "cosine"
  c.optim.lr = 1e-3
  c.optim.weight_decay = 0.01
  c.optim.beta2 = 0.98  # 0.999 was no better in short runs; a controlled comparison is missing
  c.optim.clip_norm = 20.0
  # From scratch: prediction layers start near zero and have far to go, offsets should move late.
  c.optim.rules = (
    (r".*/offset/.*", 0.1, 0.0),
    (r"head/log_scale", 1.0, 0.0),
    (r"head/projection_text/.*", 2.0, 0.0),
    (r"head/.*bias.*", 5.0, 0.0),
    (r"head/.*", 5.0, 1.0),
    (r"text/.*", 0.5, 1.0),
    (r".*bias.*", 1.0, 0.0),
    (r".*", 1.0, 1.0),
  )
  c.loss.weights = config_dict.ConfigDict(dict(intra=3.0, inter=0.0, box=1.0, centerness=0.5, mlm=0.0))


def train_only(c: config_dict.ConfigDict, row: str) -> None:
  """A row of Table 4: the terms that it does not have get the weight 0.0, which removes their computation.

  Row 1, no pre-training, is a run of no steps: its checkpoint holds what the others start from.
  """
  for name in c.loss.weights:
    if name not in TABLE_4[row]:
      c.loss.weights[name] = 0.0
  if not TABLE_4[row]:
    c.train.total_steps = 0

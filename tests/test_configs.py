"""Every configuration file becomes an Experiment, with every argument, also after a trip through JSON."""

import inspect
import json

import jax
import pytest

from configs import demo, evaluation, finetune_coco, pretrain
from glipv2_jax.models import glipv2
from launch import experiment, train
from pipelines.sources import SOURCES

CASES = [
  (demo, None),
  (demo, "debug"),
  (finetune_coco, "demo"),
  (finetune_coco, "t"),
  (pretrain, "t"),
  (pretrain, "b"),
  (pretrain, "h"),
  (pretrain, "h,debug"),
  *((evaluation, member) for member in evaluation.MEMBERS),
]


@pytest.mark.parametrize("module,arg", CASES, ids=lambda x: getattr(x, "__name__", str(x)))
def test_configuration_is_complete(module, arg):
  tree = module.get_config(arg).to_dict()
  run = experiment.from_tree(tree)
  again = experiment.from_tree(json.loads(json.dumps(tree)))
  for field in ("variant", "model", "data", "loss", "optim", "train", "evaluation", "scoring", "infer"):
    assert getattr(run, field) == getattr(again, field), field
  shapes = glipv2.abstract_params(run.model)
  assert len(jax.tree.leaves(shapes)) > 100


def test_unknown_argument_and_unknown_fields_are_named():
  with pytest.raises(ValueError, match="'tiny' is not known.*t, b, h"):
    pretrain.get_config("tiny")
  tree = demo.get_config().to_dict()
  tree["optim"]["lerning_rate"] = 1.0
  with pytest.raises(ValueError, match="config.optim has unknown fields .'lerning_rate'.*known: .*lr"):
    experiment.from_tree(tree)
  tree = demo.get_config().to_dict()
  del tree["infer"]
  with pytest.raises(ValueError, match="lacks the sections .'infer'"):
    experiment.from_tree(tree)


def test_the_sets_of_odinw(shared):
  """The same files as in the authors' lists, of which the larger one leaves out a second plantdoc."""
  known = json.loads((shared / "data/class_names/odinw_tasks.json").read_text())
  for member, benchmark in (("odinw13", "odinw_13"), ("odinw35", "odinw_35")):
    sources = experiment.from_tree(evaluation.get_config(member).to_dict()).scoring.sources
    paths = {dict(one.entry[2])["annotations"].removeprefix("./") for one in sources}
    expected = {task["register"]["test"][0] for task in known if task["benchmark"] == benchmark}
    assert expected - paths <= {"odinw/plantdoc/100x100/test/annotations_without_background.json"}
    assert paths <= expected and len(paths) == len(sources) == int(member[5:])
    assert {one.evaluator for one in sources} == {"odinw"}
    assert sum(bool(one.wordings) for one in sources) == (4 if member == "odinw35" else 0)


def test_root_is_put_into_the_options_of_sources():
  config = finetune_coco.get_config()
  config.data.root = "/data/cells/"
  ((kind, _, options),) = experiment.from_tree(config.to_dict()).data.sources
  assert kind == "coco_json" and dict(options)["annotations"] == "/data/cells/annotations/train.json"


@pytest.mark.parametrize("member", ["t", "b"])
def test_sources_of_pretraining_take_their_options(member):
  for kind, _, options in experiment.from_tree(pretrain.get_config(member).to_dict()).data.sources:
    inspect.signature(SOURCES[kind]).bind(**dict(options))
    assert not [value for value in dict(options).values() if "{root}" in str(value)]


def test_unknown_override_stops_with_its_name(tmp_path, capsys):
  arguments = [f"--config={demo.__file__}", f"--workdir={tmp_path / 'run'}", "--config.optim.lerning_rate=1.0"]
  assert train.main(arguments) == 1
  assert "lerning_rate" in capsys.readouterr().err
  assert not (tmp_path / "run").exists()

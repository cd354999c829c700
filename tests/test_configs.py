"""Every configuration file becomes an Experiment, with every argument, also after a trip through JSON."""

import inspect
import json

import jax
import pytest

from configs import ablation, common, demo, evaluation, finetune_coco, mixtures, pretrain, student
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
  (ablation, None),
  (ablation, "row=5,debug"),
  (student, "pseudo"),
  (student, "truth,debug"),
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


@pytest.mark.parametrize("row", common.TABLE_4)
@pytest.mark.parametrize("module, member", [(pretrain, "t"), (ablation, "demo")])
def test_rows_of_table_4(module, member, row):
  """A row is the whole configuration with some weights 0; words are hidden only where L_mlm asks for them."""
  whole = module.get_config(member).to_dict()
  tree = module.get_config(f"{member},row={row}").to_dict()
  run = experiment.from_tree(tree)
  trained = {name for name, weight in run.loss.weights if weight}
  paper = {"1": "", "2": "M", "3": "LA", "4": "LAM", "5": "LAE", "6": "LAEM"}[row]
  letters = {"box": "L", "centerness": "L", "intra": "A", "inter": "E", "mlm": "M"}
  assert {letters[name] for name in trained} == set(paper)
  assert (run.data.masking is not None) == ("M" in paper)
  assert all(tree["loss"]["weights"][name] == whole["loss"]["weights"][name] for name in trained)
  assert run.train.total_steps == (0 if row == "1" else whole["train"]["total_steps"])
  del tree["loss"]["weights"], whole["loss"]["weights"], tree["train"]["total_steps"], whole["train"]["total_steps"]
  assert tree == whole


def test_mixtures_of_table_5():
  for name in mixtures.MIXTURES:
    tree = pretrain.get_config(f"b,data={name},row=4").to_dict()
    sources = tree["data"]["sources"]
    assert set(sources) == set(mixtures.MIXTURES[name])
    assert tree["loss"]["weights"]["inter"] == 0
    for source in sources.values():
      options = {key: value for key, value in source.items() if key not in ("kind", "weight")}
      inspect.signature(SOURCES[source["kind"]]).bind(**options)
  small, large = (pretrain.get_config(f"b,data=o365_goldg_{cap}").data.sources for cap in ("cap4m", "cap12m"))
  assert set(small) ^ set(large) == {"cap4m", "cap12m"}
  assert small.goldg_mixed.weight == large.goldg_mixed.weight and large.cap12m.weight == 3 * small.cap4m.weight


def test_the_second_stage_goes_on_without_mlm_from_the_same_network():
  first, second = (experiment.from_tree(pretrain.get_config(arg).to_dict()) for arg in ("t", "t,stage=2"))
  assert second.model == first.model and second.data.masking is None
  assert second.optim.lr == first.optim.lr / 10 and second.train.total_steps == first.train.total_steps // 5


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

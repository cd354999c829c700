"""Configurations on the command line: a file, as `glipv2 train` and `compile-tpu` take it, and that of a run folder,
changed, which `glipv2 evaluate` and `predict` work with."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, flags
from ml_collections import config_dict, config_flags

from configs import common
from launch.experiment import as_tuples

REPLACED = ("eval", "infer")  # sections that another configuration file replaces
RECORDS = "records"  # what training notes beside the configuration: the length of every source


def opened(command: str, text: str, argv: Sequence[str] | None) -> tuple[flags.FlagValues, list[str]] | None:
  """The flags of a command, --config=FILE so far, and the arguments they are to read (`argv`, or the program's own).
  None after --help, for which it prints `text`."""
  arguments = [command, *(sys.argv[1:] if argv is None else argv)]
  if any(word in ("-h", "--help", "-help") for word in arguments):
    print(text)
    return None
  values = flags.FlagValues()
  options = dict(lock_config=True, flag_values=values, sys_argv=arguments)
  config_flags.DEFINE_config_file("config", None, "configuration file", **options)
  return values, arguments


def read(values: flags.FlagValues, arguments: Sequence[str], *needed: str) -> None:
  """Reads the arguments. Raises `app.UsageError` naming the first of the flags `needed` that was not given."""
  values(arguments)
  for name in needed:
    if values[name].value is None:
      raise app.UsageError(f"--{name} is needed; see `{arguments[0]} --help`")


def changed(record: Mapping[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
  """`record`: the configuration that a checkpoint was trained with; `arguments`: what argparse did not know.

  --config=FILE replaces what is evaluated and how (the sections eval and infer, and data.root), --config.x.y=value a
  single field. Raises ValueError for anything else, and for a field that does not exist.
  """
  strangers = [argument for argument in arguments if not argument.startswith("--config")]
  if strangers:
    raise ValueError(f"{strangers[0]!r} is not an option; options of the configuration are written --config.x.y=value")
  values, argv = flags.FlagValues(), ["glipv2", *arguments]
  options = dict(flag_values=values, sys_argv=argv)
  from_file = any(argument == "--config" or argument.startswith("--config=") for argument in arguments)
  if from_file:
    config_flags.DEFINE_config_file("config", None, "configuration file", **options)
  else:
    config_flags.DEFINE_config_dict("config", completed(record), **options)
  try:
    values(argv)
    config = values["config"].value.to_dict()
  except (flags.Error, AttributeError, KeyError, TypeError) as error:
    raise ValueError(f"the options of the configuration do not fit: {error}") from error
  if not from_file:
    return config
  data = {**record["data"], "root": config["data"]["root"]}
  return {**record, "data": data, **{section: config[section] for section in REPLACED}}


def completed(record: Mapping[str, Any]) -> config_dict.ConfigDict:
  """The configuration with the fields that it lacks, at their defaults: it may be of an earlier version."""
  written = {section: as_tuples(fields) for section, fields in record.items() if section != RECORDS}
  return config_dict.ConfigDict(_filled(common.base().to_dict(), written))


def _filled(default: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
  both = {
    key: _filled(default[key], value) if isinstance(value, Mapping) and key in default else value
    for key, value in record.items()
  }
  return {**default, **both}

"""`python -m jepa.main --config=configs/lejepa.py`: flags, then `train.run`."""

from __future__ import annotations

import inspect
import runpy
import sys
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from jepa import backend, dry_run, early_stopping, registry, train

CONFIG = config_flags.DEFINE_config_file("config", None, "The run: a file of configs/, with variants after a colon.")
WORKDIR = flags.DEFINE_string("workdir", None, "The run folder; runs/<config file>[-<variants>] if not given.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print parameters, shapes, memory and time per step; train nothing.")
PROFILE = flags.DEFINE_string("profile", None, "first:last, the steps to trace into the run folder.")
flags.mark_flag_as_required("config")


def load_config(spec: str) -> ConfigDict:
    """The config of `path[:variants]`, before any override. Raises ValueError where there is no such file."""
    path, _, variant = spec.partition(":")
    if not Path(path).is_file():
        raise ValueError(f"there is no config file {path!r}, as in --config=configs/lejepa.py")
    module = run_file(path)
    if "get_config" not in module or not inspect.signature(module["get_config"]).parameters:
        raise ValueError(f"{path} is not the config of a run: it has no get_config(variant)")
    return module["get_config"](variant)


def run_file(path: str) -> dict[str, Any]:
    """What a Python file defines. It may import its neighbours, as in `from configs import base`, whatever folder the
    command is run in."""
    root = str(Path(path).resolve().parent.parent)
    if root not in sys.path:
        sys.path.append(root)
    return runpy.run_path(path)


def default_workdir(spec: str) -> str:
    """`configs/lejepa.py:teacher,tiny` -> `runs/lejepa-teacher-tiny`."""
    path, _, variant = spec.partition(":")
    return str(Path("runs") / "-".join([Path(path).stem, *(word for word in variant.split(",") if word)]))


def config_keys(config: ConfigDict, prefix: str = "") -> list[str]:
    """Every key by its dotted path, parents included."""
    keys = []
    for name, value in config.items():
        keys.append(prefix + name)
        if isinstance(value, ConfigDict):
            keys += config_keys(value, f"{prefix}{name}.")
    return keys


def with_equals(argv: list[str]) -> list[str]:
    """`--config x` as `--config=x`, and so for every `--config.key`."""
    joined: list[str] = []
    for arg in argv:
        if joined and joined[-1].startswith("--config") and "=" not in joined[-1] and not arg.startswith("--"):
            joined[-1] += f"={arg}"
        else:
            joined.append(arg)
    return joined


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parsing; returns the program and the keys given as `--config.key=none`, which ml_collections cannot parse.

    Raises ValueError for a config file that is not there, for an unknown key, with the nearest known one, and for
    `none` where a value is needed.
    """
    argv = with_equals(argv)
    specs = [arg.removeprefix("--config=") for arg in argv if arg.startswith("--config=")]
    config = load_config(specs[-1]) if specs else ConfigDict()
    kept: dict[str, str] = {}  # by key: of a key that is given twice, the last counts
    for arg in argv[1:]:
        key = arg.removeprefix("--config.").partition("=")[0]
        if specs and arg.startswith("--config."):
            check_override(config, key, turns_off(config, arg))
        kept.pop(key, None)
        kept[key] = arg
    turned_off = [key for key, arg in kept.items() if turns_off(config, arg)]
    sys.argv = [argv[0], *(arg for key, arg in kept.items() if key not in turned_off)]  # where config_flags looks
    program, *rest = app.parse_flags_with_usage(sys.argv)
    if rest:
        raise ValueError(f"unexpected arguments {rest}; options are --name=value")
    return [program, *turned_off]


def turns_off(config: ConfigDict, arg: str) -> bool:
    """Whether the argument gives a key the value None; where the config has a string, `none` is one of its values."""
    if not arg.startswith("--config.") or not arg.lower().endswith("=none"):
        return False
    key = arg.removeprefix("--config.").partition("=")[0]
    if key not in config_keys(config):
        return True
    section, name = section_of(config, key)
    return not isinstance(section[name], str)


def section_of(config: ConfigDict, key: str) -> tuple[ConfigDict, str]:
    """Where a dotted key lives: `optimizer.b1` -> (config.optimizer, "b1")."""
    section, _, name = key.rpartition(".")
    return (config[section] if section else config), name


def check_override(config: ConfigDict, key: str, none: bool) -> None:
    """Raises ValueError for a key that the config lacks, and for `none` where that is not among its values."""
    known = config_keys(config)
    if key not in known:
        raise ValueError(f"unknown config key {key!r}: {registry.nearest(key, known)}")
    section, name = section_of(config, key)
    if none and not key.startswith("weights.") and section[name] is not None:
        raise ValueError(f"config.{key} cannot be none; only a loss weight, or a key that is none by default, can")


def chosen_config(turned_off: list[str]) -> ConfigDict:
    """The config of the command line, with None for the keys of which `parse_flags` says so."""
    config = CONFIG.value
    for key in turned_off:
        section, name = section_of(config, key)
        with section.ignore_type():
            section[name] = None
    return config


def main(argv: list[str]) -> None:
    config = chosen_config(argv[1:])
    backend.select_platform(config.platform)
    backend.use_compile_cache(config.cache_dir)
    if DRY_RUN.value:
        dry_run.run(config)
        return
    workdir = WORKDIR.value or default_workdir(config_flags.get_config_filename(flags.FLAGS["config"]))
    train.run(config, Path(workdir).expanduser(), profile=PROFILE.value)


def run() -> None:
    """The entry point: a mistake of the user is one sentence and exit code 2, never a traceback."""
    try:
        # Warnings only, unless --verbosity is given: Orbax reports every step of every save otherwise.
        app.run(main, argv=[sys.argv[0], "--verbosity=-1", *sys.argv[1:]], flags_parser=parse_flags)
    except train.Interrupted as stop:
        print(f"jepa: {stop}")
        sys.exit(128 + stop.signal)
    except (ValueError, FloatingPointError, OSError, early_stopping.Aborted) as error:
        logging.info("", exc_info=True)  # the traceback, for whoever asks with --verbosity=0
        print(f"jepa: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run()

"""The probes of a run: `python -m jepa.probes runs/x --probes=arc,programs`, of any run, whatever it was trained on.

A run answers those of `config.probes` when its last step is done; this asks a checkpoint of it, prints the tables and
writes nothing, but for the results as JSON to `--output`. `--held_out` names the families that are reported apart,
where the run itself was trained on no program, or to compare it with one that held out others. `planning` is for world
models of two rooms, with the options of `config.planning` but for those after `--planning`, such as `num_tasks=200`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from jepa import (
    backend,
    checkpoint,
    config_checks,
    metrics,
    planning_probe,
    probe,
    probe_rows,
    program_probe,
    run_folder,
    state,
)
from jepa.data._primitives import FAMILIES
from jepa.evaluation import Embedders
from jepa.parts import Parts, build
from jepa.registry import nearest

NAMES = ("arc", "programs")
PLANNING = "planning"


def ask(
    names: Iterable[str],
    trained: Embedders,
    untrained: Embedders,
    *,
    seen_ids: Iterable[str],
    cache_dir: str,
    held_out: Sequence[str] | None = None,
) -> dict[str, dict]:
    """The results of the probes named, printed as they come: by embedding, and `programs, <embedding>`."""
    results = {}
    for space, (embed, predict) in trained.items():
        given = dict(untrained=untrained[space], cache_dir=cache_dir)
        if "arc" in names:
            results[space] = probe.evaluate(embed, predict, trained_ids=seen_ids, **given)
            print(f"probes of the {space} embedding", *probe_rows.lines(results[space]), sep="\n")
        if "programs" in names:
            found = program_probe.evaluate(embed, predict, seen_ids=seen_ids, held_out=held_out, **given)
            results[f"programs, {space}"] = found
            print(f"probes of the {space} embedding about programs", *probe_rows.lines(found), sep="\n")
    return results


def plan(config: ConfigDict, parts: Parts, run: state.TrainState) -> dict[str, dict]:
    """The results of `planning`, printed as they come."""
    options = planning_probe.options_of(config.planning.to_dict())
    found = planning_probe.evaluate(parts.objective.world, run.params, run.objective_state, options)
    title = f"{options.num_tasks} tasks from one room to the other, {options.num_steps} steps each"
    metrics.print_table(planning_probe.rows(found), title=title)
    return {PLANNING: found}


def of_run(
    workdir: Path,
    names: Sequence[str],
    step: checkpoint.Step,
    held_out: Sequence[str] | None,
    planning: Sequence[str] = (),
) -> dict:
    """The results of a checkpoint, with its step. Raises ValueError where there is no such run or checkpoint."""
    config = ConfigDict(run_folder.read_config(workdir))
    if PLANNING in names:
        config_checks.check_planning(config, is_asked=True)
        set_options(config, planning)
    backend.select_platform(config.platform)
    backend.use_compile_cache(config.cache_dir)
    parts = build(config)
    try:
        saved = checkpoint.restore(checkpoint.open_reader(workdir / "checkpoints"), jax.eval_shape(parts.init), step)
        if saved is None:
            raise ValueError(f"there is no checkpoint in {workdir / 'checkpoints'}")
        config_checks.check_latent_norm(config, saved.host, str(workdir))
        asked = set(names) - {PLANNING}
        embedders = (parts.embedders(saved.state), parts.embedders(parts.init())) if asked else ()
    finally:
        parts.source.close()
    found = plan(config, parts, saved.state) if PLANNING in names else {}
    if asked:
        given = dict(seen_ids=saved.host["seen_ids"], cache_dir=config.cache_dir, held_out=held_out)
        found |= ask(names, *embedders, **given)
    return {"step": saved.step, "probes": found}


def set_options(config: ConfigDict, given: Sequence[str]) -> None:
    """Puts `key=value` into `config.planning`, where there is such a key. Raises ValueError for what is none."""
    known = config.planning.to_dict()
    for text in given:
        key, _, value = text.partition("=")
        if key not in known:
            raise ValueError(f"--planning names {key!r}: {nearest(key, known)}")
        try:
            config.planning[key] = _like(known[key], value)
        except (KeyError, ValueError) as error:
            raise ValueError(f"--planning {text}: {value!r} is not of the kind of {known[key]!r}") from error


def _like(value: Any, text: str) -> Any:
    """The text as a value of the same kind; of several comma-separated. Raises KeyError or ValueError for another."""
    if isinstance(value, bool):
        return {"True": True, "False": False}[text]
    return tuple(text.split(",")) if isinstance(value, tuple | list) else type(value)(text)


def _chosen(text: str, known: Sequence[str], flag: str) -> list[str]:
    """The comma-separated words of a flag. Raises ValueError for one that is not known."""
    words = [word for word in text.split(",") if word]
    for word in words:
        if word not in known:
            raise ValueError(f"{flag} names {word!r}: {nearest(word, known)}")
    return words


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables. A mistake of the user is one sentence and exit code 2, never a traceback."""
    parser = argparse.ArgumentParser(prog="python -m jepa.probes", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("--probes", default=",".join(NAMES), help="which, comma-separated (default: %(default)s)")
    parser.add_argument("--checkpoint", default="latest", help="latest, best, or a step (default: %(default)s)")
    parser.add_argument("--held_out", help="families of programs to report apart, comma-separated")
    parser.add_argument("--planning", nargs="+", default=(), metavar="KEY=VALUE", help="options of config.planning")
    parser.add_argument("--output", type=Path, help="a JSON file to write the results to")
    options = parser.parse_args(argv)
    try:
        names = _chosen(options.probes, (*NAMES, PLANNING), "--probes")
        held_out = None if options.held_out is None else _chosen(options.held_out, FAMILIES, "--held_out")
        step = checkpoint.step_of(options.checkpoint)
        result = of_run(options.run.expanduser(), names, step, held_out, options.planning)
        if options.output is not None:
            run_folder.atomic_write_json(options.output.expanduser(), result)
    except (ValueError, OSError) as error:
        print(f"jepa: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

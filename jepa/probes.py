"""The probes of a run: `python -m jepa.probes runs/x --probes=arc,programs`, of any run, whatever it was trained on.

A run answers those of `config.probes` when its last step is done; this asks a checkpoint of it, prints the tables and
writes nothing, but for the results as JSON to `--output`. `--held_out` names the families that are reported apart,
where the run itself was trained on no program, or to compare it with one that held out others.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from jepa import backend, checkpoint, probe, probe_rows, program_probe, run_folder
from jepa.data._primitives import FAMILIES
from jepa.evaluation import Embedders
from jepa.parts import build
from jepa.registry import nearest

NAMES = ("arc", "programs")


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


def of_run(workdir: Path, names: Sequence[str], step: checkpoint.Step, held_out: Sequence[str] | None) -> dict:
    """The results of a checkpoint, with its step. Raises ValueError where there is no such run or checkpoint."""
    config = ConfigDict(run_folder.read_config(workdir))
    backend.select_platform(config.platform)
    backend.use_compile_cache(config.cache_dir)
    parts = build(config)
    try:
        saved = checkpoint.restore(checkpoint.open_reader(workdir / "checkpoints"), jax.eval_shape(parts.init), step)
        if saved is None:
            raise ValueError(f"there is no checkpoint in {workdir / 'checkpoints'}")
        trained, untrained = parts.embedders(saved.state), parts.embedders(parts.init())
    finally:
        parts.source.close()
    given = dict(seen_ids=saved.host["seen_ids"], cache_dir=config.cache_dir, held_out=held_out)
    return {"step": saved.step, "probes": ask(names, trained, untrained, **given)}


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
    parser.add_argument("--output", type=Path, help="a JSON file to write the results to")
    options = parser.parse_args(argv)
    try:
        names = _chosen(options.probes, NAMES, "--probes")
        held_out = None if options.held_out is None else _chosen(options.held_out, FAMILIES, "--held_out")
        step = checkpoint.step_of(options.checkpoint)
        result = of_run(options.run.expanduser(), names, step, held_out)
        if options.output is not None:
            run_folder.atomic_write_json(options.output.expanduser(), result)
    except (ValueError, OSError) as error:
        print(f"jepa: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

"""Sequences of grids from files of any size, line by line: JSON Lines, plain or gzipped, and files of ARC JSON.

A line is an object of one of three shapes, and may name its task, or the rule that made it:

    {"input": grid, "output": grid, "rule_trace": ...}     a pair; those of one task or rule belong together
    {"context": [grid, ...], "target": grid}               what is shown and what is asked
    {"frames": [grid, ...]}                                a sequence in time

A .json file is an ARC task, {"train": [pairs], "test": [pairs]}, or a list of pairs of one task.
"""

from __future__ import annotations

import collections
import glob
import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jepa.data import _collections, _objects, _progress

LINES = (".jsonl", ".jsonl.gz")
_NAMES = ("task", "rule_trace")
_SHAPES = "a line has input and output, context and target, or frames"


class Record(NamedTuple):
    """Some grids in order, what kind they are, and where they come from.

    kind is "pair" (input, output), "context" (the context, then the target) or "frames". `task` is the name that the
    file gives, or a hash of the content: what has the same is kept on one side of the split.
    """

    kind: str
    grids: list[np.ndarray]
    task: str
    where: str


class Reading(NamedTuple):
    """What reading has come to so far: the digest of all bytes, and the sentences that say what was skipped."""

    digest: Any  # a hashlib object
    skipped: list[str]


def files_of(paths: str | Iterable[str]) -> list[Path]:
    """The files of paths, each a file, a folder that is searched with its subfolders, or a pattern such as a/*.jsonl.

    In order, each once. Raises ValueError for a path without a file.
    """
    found: dict[Path, None] = {}
    for path in [paths] if isinstance(paths, str) else paths:
        place = Path(path).expanduser()
        places = [place] if place.exists() else [Path(name) for name in sorted(glob.glob(str(place), recursive=True))]
        files = [file for each in places for file in (sorted(each.rglob("*")) if each.is_dir() else [each])]
        files = [file for file in files if file.is_file() and file.name.endswith((*LINES, ".json"))]
        if not files:
            raise ValueError(f"{str(path)!r} names no .jsonl, .jsonl.gz or .json file, which is what manifests are")
        found |= dict.fromkeys(files)
    if not found:
        raise ValueError("a manifest needs files: set config.data.paths, such as sequences.jsonl or tasks/")
    return list(found)


def read(files: list[Path], *, skip_malformed: bool, reading: Reading) -> Iterator[Record]:
    """The records of all files in order; adds to `reading` while it goes.

    Raises ValueError naming file, line, field and what is wrong there; with `skip_malformed` what is wrong in a line,
    or in a .json file, is noted instead, and the line or the file left out. A damaged archive is always an error.
    """
    named = collections.Counter(file.stem for file in files if file.suffix == ".json")
    with _progress.bar("reading") as bar:
        progress, before = bar.add_task("", total=sum(file.stat().st_size for file in files)), 0
        for file in files:
            # Files of one name in several folders are different tasks.
            task = file.stem if named[file.stem] == 1 else file.with_suffix("").as_posix()
            for position, parse in _lines(file, reading) if file.suffix != ".json" else _whole(file, task, reading):
                try:
                    records = parse()
                except ValueError as error:
                    if not skip_malformed:
                        raise ValueError(f"{error}; config.data.skip_malformed=True leaves it out") from error
                    reading.skipped.append(str(error))
                    records = []
                yield from records
                bar.update(progress, completed=before + position)
            before += file.stat().st_size


Parts = Iterator[tuple[int, Callable[[], list[Record]]]]  # how far a file is read, and what parses this part of it


def _lines(file: Path, reading: Reading) -> Parts:
    reading.digest.update(b"lines")
    number = 0
    try:
        with open(file, "rb") as raw, gzip.open(raw) if file.suffix == ".gz" else raw as lines:
            for number, line in enumerate(lines, 1):
                reading.digest.update(line)
                if not line.isspace():
                    yield raw.tell(), partial(_of_line, line, f"{file}, line {number}")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{file} is damaged after line {number}: {error}") from error


def _whole(file: Path, task: str, reading: Reading) -> Parts:
    yield file.stat().st_size, partial(_of_file, file, task, reading)


def _of_line(line: bytes, where: str) -> list[Record]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{where} is no object: {_SHAPES}")
    if "input" in content and "output" in content:
        kind, grids = "pair", [_objects.check_grid(content[name], f"{where}, {name}") for name in ("input", "output")]
    elif "context" in content and "target" in content:
        target = _objects.check_grid(content["target"], f"{where}, target")
        kind, grids = "context", [*_grids(content["context"], f"{where}, context"), target]
    elif "frames" in content:
        kind, grids = "frames", _grids(content["frames"], f"{where}, frames")
        if len(grids) < 2:
            raise ValueError(f"{where}, frames: there is one frame; a sequence has at least two")
    else:
        raise ValueError(f"{where} has the fields {sorted(content)}; {_SHAPES}")
    return [Record(kind, grids, _task_of(content, grids), where)]


def _task_of(content: dict[str, Any], grids: list[np.ndarray]) -> str:
    """The task or the trace that a line names, whatever the order of its keys, or else a hash of its grids."""
    named = [content[name] for name in _NAMES if name in content and content[name] is not None]
    if named:
        return named[0] if isinstance(named[0], str) else json.dumps(named[0], sort_keys=True)
    return hashlib.sha256(repr([(grid.shape, grid.tobytes()) for grid in grids]).encode()).hexdigest()[:16]


def _of_file(file: Path, task: str, reading: Reading) -> list[Record]:
    content = _collections.read_json(file)
    reading.digest.update(file.stem.encode() + json.dumps(content).encode())
    if isinstance(content, list):
        content = {"train": content}
    elif not isinstance(content, dict) or "train" not in content:
        raise ValueError(f'{file} is neither an ARC task, {{"train": [pairs], "test": [pairs]}}, nor a list of pairs')
    demos, tests = _collections.pairs_of(content, file)
    pairs = [*demos, *((x, y) for x, y in tests if y is not None)]
    if not pairs:
        raise ValueError(f"{file} has no pair of an input and an output")
    return [Record("pair", [x, y], task, str(file)) for x, y in pairs]


def _grids(raw: Any, where: str) -> list[np.ndarray]:
    if not isinstance(raw, list) or not raw:
        raise ValueError(f"{where} is not a list of grids, at least one")
    return [_objects.check_grid(grid, f"{where}[{place}]") for place, grid in enumerate(raw)]

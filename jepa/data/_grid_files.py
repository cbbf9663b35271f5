"""Grids from files of any kind, one file at a time: ARC tasks, lists of grids, arrays, collections."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jepa.data import _collections, _objects
from jepa.registry import nearest

SUFFIXES = (".json", ".npy")


class Grid(NamedTuple):
    """One grid of a stream and where it comes from, in the words of `jepa.encode`. Without a background, its own."""

    cells: Any  # [height, width] of colours 0..9
    background: int | None = None
    file: str = ""
    role: str = ""
    pair: int = 0
    side: str = ""


class Input(NamedTuple):
    """`names` of files, or ids of tasks, in order, and `load`, which reads the grids of one of them."""

    names: list[str]
    load: Callable[[str], list[Grid]]

    def grids(self) -> Iterator[Grid]:
        """All grids, one file at a time. Raises ValueError naming the file, the place in it and what is wrong."""
        return (grid for name in self.names for grid in self.load(name))


def open_input(where: Path | str) -> Input:
    """The files of a folder, a single file, or the tasks of a collection. Raises ValueError where there is none."""
    path = Path(where).expanduser()
    if path.is_dir():
        names = sorted(name for name in os.listdir(path) if name.endswith(SUFFIXES))
        if not names:
            raise ValueError(f"folder {path} has no *.json or *.npy file, which is where grids are read from")
        return Input(names, lambda name: _load_file(path / name))
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise ValueError(f"{path} is neither a .json nor a .npy file, which is where grids are read from")
        return Input([path.name], lambda _: _load_file(path))
    if str(where) not in _collections.COLLECTIONS:
        clause = nearest(str(where), _collections.COLLECTIONS)
        raise ValueError(f"there is no file or folder {str(where)!r}, and no collection of that name: {clause}")
    tasks = {task.id: task for task in _collections.load(str(where))}
    return Input(list(tasks), lambda name: _task_grids(name, tasks[name].demos, tasks[name].tests))


def _load_file(file: Path) -> list[Grid]:
    """The grids of one file, at least one. Raises ValueError naming the place and what is wrong there."""
    if file.suffix == ".npy":
        return [Grid(_objects.check_grid(_read_array(file), str(file)), file=file.name)]
    content = _collections.read_json(file)
    if isinstance(content, dict):
        grids = _task_grids(file.name, *_collections.pairs_of(content, file))
    elif isinstance(content, list):
        grids = _bare_grids(file, content)
    else:
        raise ValueError(f"{file} is neither an ARC task nor a grid, a list of rows of colours, nor a list of grids")
    if not grids:
        raise ValueError(f"{file} holds no grid")
    return grids


def _read_array(file: Path) -> np.ndarray:
    try:
        return np.lib.format.open_memmap(file, mode="r")  # mapped: whatever its header claims, nothing is allocated
    except ValueError as error:
        raise ValueError(f"{file} is not an array of numbers as numpy.save writes it: {error}") from error


def _bare_grids(file: Path, content: list) -> list[Grid]:
    """One grid is a list of rows, and a list of grids is nested once more."""
    if any(isinstance(cell, list) for row in content if isinstance(row, list) for cell in row):
        return [
            Grid(_objects.check_grid(grid, f"{file}[{number}]"), file=file.name, pair=number)
            for number, grid in enumerate(content)
        ]
    return [Grid(_objects.check_grid(content, str(file)), file=file.name)] if content else []


def _task_grids(name: str, demos: Sequence[tuple], tests: Sequence[tuple]) -> list[Grid]:
    """All grids of a task under the background of those that are known when its tests are asked; no output, no grid."""
    known = [grid for pair in demos for grid in pair] + [x for x, _ in tests]
    background = _objects.background(known) if known else None
    return [
        Grid(cells, background, name, role, number, side)
        for role, pairs in (("train", demos), ("test", tests))
        for number, pair in enumerate(pairs)
        for side, cells in zip(("input", "output"), pair, strict=True)
        if cells is not None
    ]

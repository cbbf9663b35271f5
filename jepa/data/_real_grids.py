"""Primitives on real grids: the inputs of ARC tasks, whose background is not always colour 0.

Primitives know colour 0 as the background. So colour 0 and the background of a task change places before a primitive is
applied and back after it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from jepa.data import _grids, _objects, _programs
from jepa.data._collections import Task
from jepa.data._grids import Grids

# Each family here changes a fifth of real grids at least; all others are hardly ever possible on one.
APPLICABLE = (
    *("rotate", "reflect", "translate", "wrap", "scale", "tile", "mirror", "half", "frame", "symmetrise"),
    *("recolour", "palette", "keep_colour", "outline", "grow", "erode", "hollow", "fill_holes", "denoise"),
    *("gravity", "fall", "extend", "connect", "crop", "keep_largest", "recolour_largest"),
    *("sort", "move", "count", "conditional", "filter"),
)
CLASSIFIED = APPLICABLE[:26]  # what a linear probe tells apart


class Inputs(NamedTuple):
    """Distinct inputs of tasks, with their background as colour 0."""

    grids: Grids
    groups: np.ndarray  # int64 [n]: the task
    backgrounds: np.ndarray  # int64 [n]: the colour that 0 stands for


def inputs(tasks: Iterable[Task]) -> Inputs:
    """Every distinct input of each task; those of a task share the background, and a task without one is left out."""
    grids, groups, backgrounds = [], [], []
    for group, task in enumerate(tasks):
        background = _objects.background([grid for pair in task.demos for grid in pair] + [task.tests[0][0]])
        if background >= 0:
            own = {key(x): x for x, _ in [*task.demos, *task.tests]}
            grids += [exchanged(x, background) for x in own.values()]
            groups += [group] * len(own)
            backgrounds += [background] * len(own)
    return Inputs(_grids.stack(grids), np.array(groups), np.array(backgrounds))


def exchanged(grid: np.ndarray, background: int) -> np.ndarray:
    """The grid with colour 0 and the background in each other's place; its own inverse."""
    palette = np.arange(10, dtype=np.uint8)
    palette[[0, background]] = background, 0
    return palette[grid]


def key(grid: np.ndarray) -> tuple:
    """Equal for equal grids."""
    return grid.shape, grid.tobytes()


def applied(grids: Grids, programs: np.ndarray, parameters: np.ndarray) -> tuple[list[Grids], np.ndarray]:
    """The grids after every step, and whether each step is defined, changes its grid and leaves something.

    programs int64 [n, L], parameters int64 [n, L, 10].
    """
    steps, good = [grids], np.ones(len(programs), bool)
    for family, values in zip(programs.swapaxes(0, 1), parameters.swapaxes(0, 1), strict=True):
        after, defined = _programs.apply(steps[-1], family, values)
        good &= defined & ~_grids.equal(after, steps[-1]) & (_grids.counts(after.cells) > 0)
        steps.append(after)
    return steps[1:], good


def drawn(rng: np.random.Generator, grids: Grids, programs: np.ndarray) -> tuple[Grids, np.ndarray]:
    """What programs with parameters drawn here make of the grids, and whether they are `applied`."""
    steps, good = applied(grids, programs, _programs.draw_parameters(rng, programs, False))
    return steps[-1], good


def occurrence(values: np.ndarray) -> np.ndarray:
    """How often each value came before, int64 [n]."""
    order = np.argsort(values, kind="stable")
    _, start, count = np.unique(values[order], return_index=True, return_counts=True)
    times = np.empty(len(values), np.int64)
    times[order] = np.arange(len(values)) - np.repeat(start, count)
    return times

"""What is shown of programs: the rows of a step, as object tables or cell by cell, with the steps as actions."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jepa.data import _program_blocks, _programs
from jepa.data._primitives import FAMILIES, MAX_PARAMETERS
from jepa.data._program_blocks import Recipe
from jepa.tables import OUTSIDE
from jepa.types import Array, Batch, PyTree

MAX_INT = 2**31 - 1
LARGEST_PARAMETER = 9  # in magnitude, of all primitives: a colour
NUM_ACTIONS = len(FAMILIES) + MAX_PARAMETERS

Rows = dict[str, np.ndarray | dict[str, np.ndarray]]


class Shown(NamedTuple):
    """What of a program is shown: its stream, T context grids, and the target so many grids after the last of them; as
    object tables, or as cells in a canvas of this side."""

    stream: str
    window: int
    offset: int
    canvas: int | None = None


def draw(recipes: tuple[Recipe, ...], shown: Shown, seeds: list[int], size: int) -> tuple[Rows, _programs.Tally]:
    """Rows of `size` programs, equal shares of all recipes in random order, and the count of what was rejected.

    Those of object tables are what `jepa.data._sequences` says; of cells, `cells` uint8 [size, T + 1, S, S] in place of
    `grids` and `extent`.
    """
    rng = np.random.default_rng(seeds)
    shares = np.bincount(np.arange(size) % len(recipes), minlength=len(recipes))
    drawn = [
        _program_blocks.draw(recipe, rng, number) for recipe, number in zip(recipes, shares, strict=True) if number
    ]
    windows = [window(trace, shown) for trace, _ in drawn]
    order = rng.permutation(size)
    cells, extents, steps, groups = (np.concatenate(parts)[order] for parts in zip(*windows, strict=True))
    rows: Rows = {"ids": _content_ids(cells[:, -1], extents[:, -1]), "groups": groups}
    if shown.canvas is None:
        tables = _program_blocks.tables(cells, extents)
        rows |= {"grids": tables, "extent": extents.max(axis=1).astype(np.int32)}
    else:
        rows["cells"] = framed(cells, extents, shown.canvas)
    if shown.stream == "transition":
        rows["actions"] = actions(steps)
    return rows, _programs.Tally(*np.sum([tally for _, tally in drawn], axis=0))


def window(trace: _programs.Trace, shown: Shown) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Grids uint8 [n, T + 1, 30, 30] with their sizes, the target last; the steps, a family and its parameters, int32
    [n, L, 11]; groups int32 [n]."""
    n, _, grids = trace.size.shape[:3]
    if shown.stream == "analogy":
        pairs = [0, grids - 1]
        cells, size = (field[:, :, pairs].reshape(n, -1, *field.shape[3:]) for field in (trace.cells, trace.size))
        cells, size = (field[:, -shown.window - 1 :] for field in (cells, size))
    else:
        steps = list(range(grids))
        if shown.stream == "orbit":
            steps = [*range(shown.window), shown.window - 1 + shown.offset]
        cells, size = trace.cells[:, 0, steps], trace.size[:, 0, steps]
    steps = np.concatenate([trace.families[..., None], trace.parameters], axis=2).astype(np.int32)
    groups = [zlib.crc32(program.tobytes()) & MAX_INT for program in trace.families]
    return cells, size, steps[:, :1] if shown.stream == "analogy" else steps, np.array(groups, np.int32)


def framed(cells: np.ndarray, size: np.ndarray, canvas: int) -> np.ndarray:
    """Grids uint8 [..., 30, 30] of sizes [..., 2] in the corner of a canvas of that side, uint8 [..., S, S]; what lies
    beyond their borders is `OUTSIDE`."""
    index = np.arange(canvas)
    rows, columns = (index < size[..., axis, None] for axis in (0, 1))
    inside = rows[..., :, None] & columns[..., None, :]
    return np.where(inside, cells[..., :canvas, :canvas], np.uint8(OUTSIDE))


def actions(steps: np.ndarray) -> np.ndarray:
    """float32 [..., 47] of steps int32 [..., 11]: which family it is, one of 37, and its 10 parameters over 9, from -1
    to 1."""
    family = np.arange(len(FAMILIES)) == steps[..., :1]
    return np.concatenate([family, steps[..., 1:] / LARGEST_PARAMETER], axis=-1, dtype=np.float32)


def gather_cells(tables: PyTree, rows: PyTree, key: Array, train: bool) -> Batch:
    """`gather` of a source whose rows show cells: there is nothing to draw for the step."""
    cells = rows["cells"].astype(jnp.int32)
    return Batch(
        rows["ids"],
        rows["groups"],
        context={"cells": cells[:, :-1]},
        target={"cells": cells[:, -1]},
        actions=rows["actions"],
    )


def stats(rows: Rows, tally: _programs.Tally) -> dict[str, float]:
    """Facts about a sample that are worth logging once."""
    facts = {"families": float(np.count_nonzero(tally.applied))}
    if "grids" in rows:
        mask = rows["grids"]["mask"]
        facts["objects_mean"] = float(mask[..., 1:-1].sum(-1).mean())
        facts["truncated_share"] = float(mask[..., -1].mean())
    else:
        facts["cells_mean"] = float((rows["cells"] != OUTSIDE).sum((-2, -1)).mean())
    return facts | {"rejected_share": float((tally.undefined + tally.unchanged).sum() / tally.applied.sum())}


def _content_ids(cells: np.ndarray, size: np.ndarray) -> np.ndarray:
    """int32 [n]: equal for equal grids, and almost never for others."""
    contents = (grid.tobytes() + extent.tobytes() for grid, extent in zip(cells, size, strict=True))
    return np.array([zlib.crc32(content) & MAX_INT for content in contents], np.int32)

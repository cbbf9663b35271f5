"""The tokens of grids and their codes: what each token is, and how far the tokens of a code are alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jepa.data import _objects, _segmentation
from jepa.data._collections import Task
from jepa.quantizers import fsq
from jepa.tables import NUM_COLOURS, OVERFLOW
from jepa.types import Observation

ROLES = ("input", "output")
KINDS = ("grid", "object", "overflow")
GRID, OBJECT, OVERFLOWING = range(3)
COLOURS = ("black", "blue", "red", "green", "yellow", "grey", "magenta", "orange", "sky", "maroon", "several")
SEVERAL = NUM_COLOURS  # the colour of an object of more than one
ATTRIBUTES = ("colour", "shape", "size", "role", "kind")
SHUFFLES = 20  # what is expected by chance is the mean of as many

# The grids and their tokens.


class Collection(NamedTuple):
    """The grids of tasks, each pair by its input and its output: grids 2 p and 2 p + 1 are pair p."""

    title: str
    task_ids: list[str]
    grids: list[np.ndarray]
    task: np.ndarray  # int [G]: index into `task_ids`
    backgrounds: list[int]  # of the whole task, which a single grid says too little of


class Tokens(NamedTuple):
    """The real tokens of a collection, grid by grid; int [n] each. Only objects have a colour, a size and a shape."""

    code: np.ndarray
    grid: np.ndarray
    row: np.ndarray  # of the grid's object table
    task: np.ndarray
    role: np.ndarray  # index into ROLES
    kind: np.ndarray  # index into KINDS
    colour: np.ndarray  # index into COLOURS, -1 unless an object, as below
    size: np.ndarray  # index into `sizes` of the vocabulary
    shape: np.ndarray  # index into `shapes` of the vocabulary
    box: np.ndarray  # int [n, 4]: top, left, height, width; 0 for overflow


class Vocabulary(NamedTuple):
    """What sizes and shapes there are, in the order in which they first occur. A shape is the cells of a box."""

    sizes: list[tuple[int, int]]
    shapes: list[np.ndarray]  # bool [height, width]


def collect(title: str, tasks: Sequence[Task]) -> Collection:
    """The grids of tasks in order."""
    grids, owner, backgrounds = [], [], []
    for index, task in enumerate(tasks):
        of_task = [grid for pair in task.demos + task.tests for grid in pair]
        grids += of_task
        owner += [index] * len(of_task)
        backgrounds += [_objects.background(of_task)] * len(of_task)
    return Collection(title, [task.id for task in tasks], grids, np.array(owner), backgrounds)


def token_of_cells(grid: np.ndarray, background: int, table: Observation) -> np.ndarray:
    """The row of the object table that each cell belongs to, int [height, width]; 0, the grid's, for the background.

    Box and colours name an object: two connected objects of one box would have to cross, and so to touch.
    """
    rows = np.zeros(grid.shape, int)
    cells, _, length = _segmentation.lay_out([grid], np.array([grid.shape]))
    foreground = cells.colour != background
    cells = _segmentation.Cells(*(field[foreground] for field in cells))
    if not len(cells.row):
        return rows
    labels, count = _segmentation.segment(cells, length, 1)
    kept = np.flatnonzero(table["mask"][1:OVERFLOW]) + 1
    row_of = {(*table["box"][row].tolist(), *table["histogram"][row].tolist()): int(row) for row in kept}
    for label in range(count):
        own = labels == label
        row, column = cells.row[own], cells.column[own]
        box = (int(row.min()), int(column.min()), int(np.ptp(row)) + 1, int(np.ptp(column)) + 1)
        name = (*box, *np.bincount(cells.colour[own], minlength=NUM_COLOURS).tolist())
        rows[row, column] = row_of[name] if name in row_of else OVERFLOW
    return rows


def tokens_of(
    collection: Collection, owners: Sequence[np.ndarray], table: Observation, codes: np.ndarray
) -> tuple[Tokens, Vocabulary]:
    """The tokens of all grids [G], given the object of every cell, the object tables and the codes [G, N]."""
    grid, row = np.nonzero(codes >= 0)
    kind = np.where(row == 0, GRID, np.where(row == OVERFLOW, OVERFLOWING, OBJECT))
    box = table["box"][grid, row]
    colours = table["histogram"][grid, row] > 0
    sizes: dict[tuple[int, int], int] = {}
    shapes: dict[tuple[tuple[int, int], bytes], int] = {}
    size, shape = np.full((2, len(grid)), -1)
    for i in np.flatnonzero(kind == OBJECT):
        top, left, height, width = box[i].tolist()
        cells = owners[grid[i]][top : top + height, left : left + width] == row[i]
        size[i] = sizes.setdefault((height, width), len(sizes))
        shape[i] = shapes.setdefault((cells.shape, cells.tobytes()), len(shapes))
    colour = np.where(colours.sum(-1) > 1, SEVERAL, colours.argmax(-1))
    masks = [np.frombuffer(cells, bool).reshape(extent) for extent, cells in shapes]
    tokens = Tokens(
        code=codes[grid, row].astype(int),
        grid=grid,
        row=row,
        task=collection.task[grid],
        role=grid % 2,
        kind=kind,
        colour=np.where(kind == OBJECT, colour, -1),
        size=size,
        shape=shape,
        box=box,
    )
    return tokens, Vocabulary(list(sizes), masks)


# What a code says of its tokens.


class Purity(NamedTuple):
    """How far the tokens of a code agree in one attribute; arrays [U], one entry for each code."""

    total: np.ndarray  # int: tokens that have the attribute
    value: np.ndarray  # int: the commonest value among them, the smallest of equals; -1 without any
    share: np.ndarray  # of that value among them; nan without any, as below
    base: np.ndarray  # share of that value among the tokens of all codes
    chance: np.ndarray  # share of the commonest value of as many tokens drawn at random


class Told(NamedTuple):
    """Share of tokens whose attribute is guessed right, always by the commonest value."""

    share: float  # the commonest of the token's code
    base: float  # the commonest of all tokens
    chance: float  # the commonest of the token's code, after codes were dealt out at random

    @property
    def gain(self) -> float:
        """How much of the way from chance to certainty the codes go; 0 where chance is certain already."""
        return (self.share - self.chance) / (1 - self.chance) if self.chance < 1 else 0.0


def commonest(codes: np.ndarray, values: np.ndarray, num_codes: int) -> tuple[np.ndarray, np.ndarray]:
    """By code, [num_codes]: the commonest of its values (the smallest of equals), and its count; -1 and 0 if none."""
    width = values.max(initial=0) + 1
    both, count = np.unique(codes * width + values, return_counts=True)
    order = np.lexsort((both, -count, both // width))
    code, first = np.unique((both // width)[order], return_index=True)
    value, most = np.full(num_codes, -1), np.zeros(num_codes, int)
    value[code], most[code] = (both % width)[order][first], count[order][first]
    return value, most


def purity(codes: np.ndarray, values: np.ndarray, num_codes: int) -> Purity:
    """The purity of codes 0..num_codes-1 by the `values` [n] of their tokens; a token whose value is -1 has none."""
    has = values >= 0
    codes, values = codes[has], values[has]
    total = np.bincount(codes, minlength=num_codes)
    value, most = commonest(codes, values, num_codes)
    rng = np.random.default_rng(0)
    by_chance = np.mean([commonest(codes, rng.permutation(values), num_codes)[1] for _ in range(SHUFFLES)], axis=0)
    frequency = np.bincount(values, minlength=1) / max(len(values), 1)
    known = total > 0
    share, base, chance = (np.full(num_codes, np.nan) for _ in range(3))
    share[known], chance[known] = most[known] / total[known], by_chance[known] / total[known]
    base[known] = frequency[value[known]]
    return Purity(total, value, share, base, chance)


def told(found: Purity, values: np.ndarray) -> Told | None:
    """What the codes tell of an attribute over all tokens that have it; None where none has."""
    if not found.total.sum():
        return None
    known = found.total > 0
    weight = found.total[known] / found.total.sum()
    base = np.bincount(values[values >= 0]).max() / found.total.sum()
    return Told(float(weight @ found.share[known]), float(base), float(weight @ found.chance[known]))


def symbols_of(codes: np.ndarray, levels: Sequence[int]) -> np.ndarray:
    """The symbols of each code, int [n, S]."""
    return np.asarray(fsq.unpack(jnp.asarray(codes, jnp.int32), tuple(levels)))


def nearest_codes(values: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of the decoded codes [U, D] the `num` nearest others, int [U, num], and how far they are.

    Distances are Euclidean, over the mean distance of two codes; equals in the order of the codes.
    """
    values = values.astype(np.float64)
    num = min(num, len(values) - 1)
    index, distance, total = np.zeros((len(values), num), int), np.zeros((len(values), num)), 0.0
    for i, value in enumerate(values):
        to_others = np.linalg.norm(values - value[None], axis=-1)
        total += to_others.sum()
        to_others[i] = np.inf
        index[i] = np.argsort(to_others, kind="stable")[:num]
        distance[i] = to_others[index[i]]
    mean = total / max(len(values) * (len(values) - 1), 1)
    return index, distance / mean if mean > 0 else distance

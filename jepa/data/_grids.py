"""Many grids at once: uint8 [n, 30, 30] with a height and a width each, and what is asked of them cell by cell.

The background is colour 0, and so is everything outside a grid, so that a neighbour beyond the border is background.
An object is an 8-connected component of cells that are not background, whatever their colours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from jepa.tables import CANVAS

AREA = CANVAS * CANVAS
INDEX = np.arange(CANVAS)
FOUR = ((-1, 0), (1, 0), (0, -1), (0, 1))
EIGHT = (*FOUR, (-1, -1), (-1, 1), (1, -1), (1, 1))
DOWN, UP, RIGHT, LEFT = range(4)
_TURN = np.array([0, 2, 4, 6])  # the element of D4 that makes a direction point down
_ROW, _COLUMN = np.divmod(np.arange(AREA), CANVAS)
_SQUARE = np.ones((3, 3), bool)


class Grids(NamedTuple):
    """n grids; cells at or beyond a grid's height or width are 0."""

    cells: np.ndarray  # uint8 [n, 30, 30]
    height: np.ndarray  # int64 [n]
    width: np.ndarray  # int64 [n]


class Objects(NamedTuple):
    """All cells [m] that are not background, in reading order grid by grid, and the object [k] of each."""

    position: np.ndarray  # int64 [m], in the flat cells of the batch
    row: np.ndarray  # int64 [m]
    column: np.ndarray  # int64 [m]
    label: np.ndarray  # int64 [m], 0..k-1; all objects of a grid come before those of the next
    grid: np.ndarray  # int64 [k]


def stack(grids: Sequence[np.ndarray]) -> Grids:
    """Grids from arrays [height, width] of colours."""
    cells = np.zeros((len(grids), CANVAS, CANVAS), np.uint8)
    for canvas, grid in zip(cells, grids, strict=True):
        canvas[: grid.shape[0], : grid.shape[1]] = grid
    height, width = np.array([grid.shape for grid in grids], np.int64).reshape(-1, 2).T
    return Grids(cells, height, width)


def unstack(grids: Grids) -> list[np.ndarray]:
    """The grids as arrays uint8 [height, width]."""
    return [cells[:height, :width] for cells, height, width in zip(*grids, strict=True)]


def select(grids: Grids, rows: np.ndarray) -> Grids:
    """The grids at these indices, or where a mask is True."""
    return Grids(*(field[rows] for field in grids))


def concatenate(parts: Sequence[Grids]) -> Grids:
    """The grids of all parts, in order."""
    return Grids(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))


def equal(first: Grids, second: Grids) -> np.ndarray:
    """bool [n]: whether two grids have the same size and the same cells."""
    same = (first.cells == second.cells).reshape(-1, AREA).all(axis=1)
    return same & (first.height == second.height) & (first.width == second.width)


def inside(grids: Grids) -> np.ndarray:
    """bool [n, 30, 30]: the cells that belong to a grid."""
    return (grids.height[:, None] > INDEX)[:, :, None] & (grids.width[:, None] > INDEX)[:, None, :]


def counts(cells: np.ndarray) -> np.ndarray:
    """int64 [n]: how many cells of each grid are not 0."""
    return np.count_nonzero(cells.reshape(-1, AREA), axis=1)


def take_rows(cells: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """uint8 [n, 30, 30] whose row i is row `rows[:, i]` of the cells; 0 where that is negative. rows int [n, 30]."""
    valid = rows >= 0
    index = np.where(valid, rows, 0) + (np.arange(len(cells)) * CANVAS)[:, None]
    taken = cells.reshape(-1, CANVAS).take(index, axis=0)
    taken *= valid[:, :, None]
    return taken


def sample(grids: Grids, rows: np.ndarray, columns: np.ndarray, height: np.ndarray, width: np.ndarray) -> Grids:
    """Grids of the given size with cell (i, j) = (rows[i], columns[j]) of these; 0 where that lies outside of them.

    rows and columns int [n, 30] or [1, 30].
    """

    def within(index: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
        return np.where((new[:, None] > INDEX) & (index >= 0) & (index < old[:, None]), index, -1)

    cells = take_rows(grids.cells, within(rows, grids.height, height))
    across = take_rows(np.ascontiguousarray(cells.swapaxes(1, 2)), within(columns, grids.width, width))
    return Grids(np.ascontiguousarray(across.swapaxes(1, 2)), height, width)


def transpose(grids: Grids, chosen: np.ndarray) -> Grids:
    """The grids with rows and columns exchanged where `chosen`, bool [n]."""
    cells = np.where(chosen[:, None, None], grids.cells.swapaxes(1, 2), grids.cells)
    return Grids(cells, np.where(chosen, grids.width, grids.height), np.where(chosen, grids.height, grids.width))


def transform(grids: Grids, d4: np.ndarray) -> Grids:
    """Transposed if d4 & 4, then upside down if d4 & 2, then mirrored left-right if d4 & 1; d4 int [n]."""
    turned = transpose(grids, (d4 & 4) > 0)
    height, width = turned.height[:, None], turned.width[:, None]
    rows = np.where((d4 & 2)[:, None] > 0, height - 1 - INDEX, INDEX)
    columns = np.where((d4 & 1)[:, None] > 0, width - 1 - INDEX, INDEX)
    return sample(turned, rows, columns, turned.height, turned.width)


def inverse(d4: np.ndarray) -> np.ndarray:
    """The inverse in D4 of each element: transposing exchanges the two mirrors."""
    return np.where(d4 & 4, 4 | (d4 & 1) << 1 | (d4 & 2) >> 1, d4)


def facing(grids: Grids, direction: np.ndarray) -> Grids:
    """The grids turned so that a direction (DOWN, UP, RIGHT or LEFT) [n] points down."""
    return transform(grids, _TURN[direction])


def turned_back(grids: Grids, direction: np.ndarray) -> Grids:
    """The inverse of `facing`."""
    return transform(grids, inverse(_TURN[direction]))


def padded(cells: np.ndarray) -> np.ndarray:
    """[n, 32, 32]: the cells with a margin of 0."""
    canvas = np.zeros((len(cells), CANVAS + 2, CANVAS + 2), cells.dtype)
    canvas[:, 1:-1, 1:-1] = cells
    return canvas


def neighbours(canvas: np.ndarray, steps: Iterable[tuple[int, int]]) -> list[np.ndarray]:
    """Views [n, 30, 30] of a `padded` array: the neighbour of every cell at each (row, column) step."""
    return [canvas[:, 1 + r : 1 + r + CANVAS, 1 + c : 1 + c + CANVAS] for r, c in steps]


def filled_down(cells: np.ndarray) -> np.ndarray:
    """Every 0 replaced by the nearest value above it in its column, if there is one."""
    cells = cells.copy()
    for i in range(1, CANVAS):
        cells[:, i] += (cells[:, i] == 0) * cells[:, i - 1]
    return cells


def holes(cells: np.ndarray) -> np.ndarray:
    """bool [n, 30, 30]: background cells from which no path of 4-neighbours leads out over background."""
    background = padded(cells) == 0
    # The margins of all canvases are one component, and the first cell belongs to it.
    labels, _ = ndimage.label(background.reshape(-1, CANVAS + 2))
    enclosed = (labels != 0) & (labels != labels[0, 0])
    return enclosed.reshape(background.shape)[:, 1:-1, 1:-1]


def objects(cells: np.ndarray) -> Objects:
    """The objects of all grids, in the reading order of their first cells."""
    rows = np.zeros((len(cells), CANVAS + 1, CANVAS), bool)  # an empty row apart, so that no object leaves its grid
    rows[:, :-1] = cells > 0
    labels, count = ndimage.label(rows.reshape(-1, CANVAS), _SQUARE)
    position = np.flatnonzero(cells)
    grid, place = np.divmod(position, AREA)
    label = labels.reshape(-1)[position + grid * CANVAS].astype(np.int64) - 1
    owner = np.zeros(count, np.int64)
    owner[label] = grid
    return Objects(position, _ROW[place], _COLUMN[place], label, owner)


def areas(found: Objects) -> np.ndarray:
    """int64 [k]: the number of cells of each object."""
    return np.bincount(found.label, minlength=len(found.grid))


def boxes(found: Objects) -> np.ndarray:
    """int64 [4, k]: top, left, bottom and right, the last row and column included."""
    box = np.zeros((4, len(found.grid)), np.int64)
    box[:2] = CANVAS
    np.minimum.at(box[0], found.label, found.row)
    np.minimum.at(box[1], found.label, found.column)
    np.maximum.at(box[2], found.label, found.row)
    np.maximum.at(box[3], found.label, found.column)
    return box


def hole_counts(cells: np.ndarray, found: Objects) -> np.ndarray:
    """int64 [k]: the holes of each object, 1 minus its Euler characteristic, which is a sum over cells."""
    left, up_left, up, up_right = neighbours(padded(cells > 0), ((0, -1), (-1, -1), (-1, 0), (-1, 1)))
    number = len(found.grid)
    starts = found.label[~(up | up_left | left).reshape(-1)[found.position]]
    joins = found.label[(~up & up_right).reshape(-1)[found.position]]
    return 1 - np.bincount(starts, minlength=number) + np.bincount(joins, minlength=number)


def colours(cells: np.ndarray, found: Objects) -> np.ndarray:
    """uint8 [k]: the colour of each object, 0 for one of several colours."""
    colour = cells.reshape(-1)[found.position]
    last = np.zeros(len(found.grid), np.uint8)
    last[found.label] = colour
    mixed = found.label[last[found.label] != colour]
    last[mixed] = 0
    return last


def extreme(value: np.ndarray, found: Objects, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Which objects have the largest value [k] of their grid, and which of the `number` grids have exactly one such."""
    most = np.full(number, np.iinfo(np.int64).min)
    np.maximum.at(most, found.grid, value)
    chosen = value == most[found.grid]
    return chosen, np.bincount(found.grid[chosen], minlength=number) == 1

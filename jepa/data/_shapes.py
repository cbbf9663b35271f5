"""Shape families: sets of 8-connected cells for every extent up to 8 x 8, in all eight orientations, in one bank."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

MAX_EXTENT = 8


def _blob(row: np.ndarray, column: np.ndarray, height: int, width: int) -> np.ndarray:
    """Grown from a cell by random neighbours to some 60 % of the box; the same for equal extents."""
    rng = np.random.default_rng([height, width])
    cells = np.zeros((height, width), bool)
    cells[height // 2, width // 2] = True
    while cells.mean() < 0.6:
        canvas = np.pad(cells, 1)
        edge = canvas[:-2, 1:-1] | canvas[2:, 1:-1] | canvas[1:-1, :-2] | canvas[1:-1, 2:]
        cells |= edge & (rng.random(cells.shape) < 0.3)
    return cells


def _on_border(i: np.ndarray, j: np.ndarray, h: int, w: int) -> np.ndarray:
    return (i == 0) | (i == h - 1) | (j == 0) | (j == w - 1)


def _window(i: np.ndarray, j: np.ndarray, h: int, w: int) -> np.ndarray:
    """A ring with a bar across every side that leaves two holes beside it."""
    return _on_border(i, j, h, w) | ((i == h // 2) & (h >= 5)) | ((j == w // 2) & (w >= 5))


def _rhombus(i: np.ndarray, j: np.ndarray, h: int, w: int) -> np.ndarray:
    """Cells within half the smaller side of the centre by city block."""
    side = min(h, w) - (1 - min(h, w) % 2)
    return abs(2 * i - side + 1) + abs(2 * j - side + 1) <= side - 1


def _hollow_rhombus(i: np.ndarray, j: np.ndarray, h: int, w: int) -> np.ndarray:
    side = min(h, w) - (1 - min(h, w) % 2)
    return abs(2 * i - side + 1) + abs(2 * j - side + 1) == side - 1


# family: cells of a box h x w, from the row i and the column j of every cell.
_SHAPES: dict[str, Callable[..., np.ndarray]] = {
    "dot": lambda i, j, h, w: (i == 0) & (j == 0),
    "bar": lambda i, j, h, w: j == 0,
    "rectangle": lambda i, j, h, w: (i >= 0) & (j >= 0),
    "ring": _on_border,
    "window": _window,
    "diagonal": lambda i, j, h, w: i == j,
    "cross": lambda i, j, h, w: (i < min(h, w)) & (j < min(h, w)) & ((i == j) | (i + j == min(h, w) - 1)),
    "plus": lambda i, j, h, w: (i == h // 2) | (j == w // 2),
    "corner": lambda i, j, h, w: (i == h - 1) | (j == 0),
    "tee": lambda i, j, h, w: (i == 0) | (j == w // 2),
    "cup": lambda i, j, h, w: (i == h - 1) | (j == 0) | (j == w - 1),
    "stairs": lambda i, j, h, w: j * h <= i * w,
    "rhombus": _rhombus,
    "hollow_rhombus": _hollow_rhombus,
    "chequer": lambda i, j, h, w: ((i + j) % 2 == 0) | (min(h, w) == 1),
    "comb": lambda i, j, h, w: (i == 0) | (j % 2 == 0),
    "blob": _blob,
}
FAMILIES = tuple(_SHAPES)
SOLID = ("rectangle", "stairs", "rhombus", "blob")  # have an interior from an extent of 3 on
HOLLOW = ("ring", "window", "hollow_rhombus")  # have a hole from an extent of 3 on


class Bank(NamedTuple):
    """All shapes, their cells one after another in reading order."""

    index: np.ndarray  # int64 [families, 9, 9, 8]: the shape of a family, an extent (from 1) and an element of D4
    start: np.ndarray  # int64 [shapes]: its first cell
    size: np.ndarray  # int64 [shapes]: its number of cells
    extent: np.ndarray  # int64 [shapes, 2]: the box it fills, at most the extent asked for, in some order
    row: np.ndarray  # int64 [cells], from the top of the box
    column: np.ndarray  # int64 [cells]


def shape(family: str, height: int, width: int) -> np.ndarray:
    """bool [h, w]: the cells of a family for an extent, cropped to what they fill."""
    row, column = np.indices((height, width))
    cells = _SHAPES[family](row, column, height, width)
    i, j = np.nonzero(cells)
    return cells[i.min() : i.max() + 1, j.min() : j.max() + 1]


def _orientations(cells: np.ndarray) -> list[np.ndarray]:
    """The images under the eight elements of D4, coded as `_grids.transform` does."""
    turned = [cells.T if d4 & 4 else cells for d4 in range(8)]
    return [image[:: 1 - (d4 & 2), :: 1 - 2 * (d4 & 1)] for d4, image in enumerate(turned)]


@functools.cache
def bank() -> Bank:
    """The bank, built at the first call (a tenth of a second)."""
    index = np.zeros((len(FAMILIES), MAX_EXTENT + 1, MAX_EXTENT + 1, 8), np.int64)
    shapes: list[np.ndarray] = []
    for family, name in enumerate(FAMILIES):
        for height in range(1, MAX_EXTENT + 1):
            for width in range(1, MAX_EXTENT + 1):
                index[family, height, width] = len(shapes) + np.arange(8)
                shapes += _orientations(shape(name, height, width))
    cells = [np.nonzero(s) for s in shapes]
    size = np.array([len(row) for row, _ in cells])
    row, column = (np.concatenate([c[axis] for c in cells]) for axis in (0, 1))
    return Bank(index, np.cumsum(size) - size, size, np.array([s.shape for s in shapes]), row, column)


def numbers(families: Sequence[str]) -> np.ndarray:
    """Where these families stand in the bank."""
    return np.array([FAMILIES.index(name) for name in families])

"""From the cells of many grids to their objects: connected components, what is measured of each, and which stay.

All grids of a chunk are laid out in one vector, each with a margin on its right, above and below, so that a neighbour
of a cell is a constant step away within a grid and no step leads into another one. Nothing here depends on the value
of a colour or on a direction, ties included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

from jepa.tables import BITMAP, CANVAS, NUM_COLOURS, NUM_OBJECTS

_NOTHING = -1  # of a padded vector: the margin, or a cell of the background

# A set of cells is hashed as the sum of random words, one for each position in its box.
_WORDS = np.random.default_rng(0).integers(0, 2**64, (CANVAS, CANVAS), dtype=np.uint64)

# Where each of the eight samples falls along a box of side 1 to 30: its nearest cell. A sample between two cells,
# which happens for side 16 only, takes the one nearer the centre, so that flips commute with sampling.
_SAMPLES = np.array(
    [
        [((2 * j + 1) * side - (side % 16 == 0 and j >= BITMAP // 2)) // (2 * BITMAP) for j in range(BITMAP)]
        for side in range(CANVAS + 1)
    ]
)


class Cells(NamedTuple):
    """Cells of a chunk in reading order; each field int64 [n]."""

    grid: np.ndarray
    row: np.ndarray
    column: np.ndarray
    colour: np.ndarray
    position: np.ndarray  # in the padded vector
    stride: np.ndarray  # the step to the cell below


class _Neighbours(NamedTuple):
    """For each cell the value of a padded vector at the four neighbours that precede it in reading order."""

    left: np.ndarray
    up_left: np.ndarray
    up: np.ndarray
    up_right: np.ndarray


def lay_out(grids: Sequence[np.ndarray], size: np.ndarray) -> tuple[Cells, np.ndarray, int]:
    """All cells of a chunk; where the first cell of each grid lies in the padded vector; the length of that vector."""
    height, width = size.T
    area, stride = height * width, width + 1
    margin = np.cumsum((height + 2) * stride)  # a row above, a row below and a column on the right
    start = margin - (height + 1) * stride
    grid = np.repeat(np.arange(len(grids)), area)
    index = np.arange(len(grid)) - np.repeat(np.cumsum(area) - area, area)
    row, column = np.divmod(index, width[grid])
    colour = np.concatenate([g.ravel() for g in grids]).astype(np.int64)
    stride = stride[grid]
    return Cells(grid, row, column, colour, start[grid] + row * stride + column, stride), start, int(margin[-1])


def padded(values: np.ndarray, position: np.ndarray, length: int) -> np.ndarray:
    """The vector with `values` at the positions of cells and `_NOTHING` elsewhere."""
    vector = np.full(length, _NOTHING)
    vector[position] = values
    return vector


def _neighbours(vector: np.ndarray, cells: Cells) -> _Neighbours:
    above = cells.position - cells.stride
    return _Neighbours(vector[cells.position - 1], vector[above - 1], vector[above], vector[above + 1])


def segment(cells: Cells, length: int, num_grids: int) -> tuple[np.ndarray, int]:
    """The object of each cell, 0..n-1, and n. Multicolour objects where those of one colour are more than 32."""
    labels, count = _components(cells, cells.colour, length)
    grid = np.zeros(count, np.int64)
    grid[labels] = cells.grid
    crowded = (np.bincount(grid, minlength=num_grids) > NUM_OBJECTS)[cells.grid]
    if not crowded.any():
        return labels, count
    merged, _ = _components(Cells(*(field[crowded] for field in cells)), 0, length)
    labels[crowded] = count + merged
    used = np.bincount(labels) > 0
    return (np.cumsum(used) - 1)[labels], int(used.sum())


def _components(cells: Cells, key: np.ndarray | int, length: int) -> tuple[np.ndarray, int]:
    """8-connected components of equal keys: the label of each cell and their number.

    Of the four preceding neighbours, `up` touches the three others and `up_left` touches `left`, so at most two links
    a cell connect all that four would.
    """
    here = np.broadcast_to(key, cells.position.shape)
    left, up_left, up, up_right = (side == here for side in _neighbours(padded(here, cells.position, length), cells))
    index = _neighbours(padded(np.arange(len(here)), cells.position, length), cells)
    backward = np.flatnonzero(up | left | up_left)
    corner = np.flatnonzero(up_right & ~up)
    nearest = np.where(up, index.up, np.where(left, index.left, index.up_left))
    source = np.concatenate([backward, corner])
    target = np.concatenate([nearest[backward], index.up_right[corner]])
    links = sparse.coo_array((np.ones(len(source), np.int8), (source, target)), shape=(len(here), len(here)))
    count, labels = sparse.csgraph.connected_components(links, directed=False)
    return labels.astype(np.int64), count


def measure(
    cells: Cells, labels: np.ndarray, owner: np.ndarray, count: int, size: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Rows of the table for all objects of a chunk, their grids and hashes; touching pairs [2, P], both ways round."""

    def number(chosen: np.ndarray) -> np.ndarray:  # of an object's cells that are chosen
        return np.bincount(labels[chosen], minlength=count)

    def total(value: np.ndarray) -> np.ndarray:  # over an object's cells
        return np.bincount(labels, value, count).astype(np.int64)  # exact: sums stay far below 2**53

    grid = np.zeros(count, np.int64)
    grid[labels] = cells.grid
    near, far = np.full((2, count), CANVAS), np.zeros((2, count), np.int64)
    for axis, coordinate in enumerate((cells.row, cells.column)):
        np.minimum.at(near[axis], labels, coordinate)
        np.maximum.at(far[axis], labels, coordinate)
    area = np.bincount(labels, minlength=count)
    neighbours = _neighbours(owner, cells)
    left, up_left, up, up_right = (side == labels for side in neighbours)
    # Euler characteristic (vertices - edges + faces of the union of closed squares), cell by cell in reading order.
    euler = number(~(up | up_left | left)) - number(~up & up_right)
    perimeter = 4 * area - 2 * number(left) - 2 * number(up)
    pairs = _touching(neighbours, labels, count)
    local = [cells.row - near[0, labels], cells.column - near[1, labels]]
    hashes = np.zeros(count, np.uint64)
    np.add.at(hashes, labels, _WORDS[local[0], local[1]])
    extent = far - near + 1
    objects = {
        "grid": grid,
        "histogram": np.bincount(labels * NUM_COLOURS + cells.colour, minlength=count * NUM_COLOURS).reshape(count, -1),
        "box": np.concatenate([near, extent]).T,
        "moment": np.stack([total(cells.row), total(cells.column)], axis=1),
        "shape": np.stack([area, perimeter, 1 - euler, np.bincount(pairs[0], minlength=count)], axis=1),
        "border": ((near == 0) | (far == size[grid].T - 1)).any(axis=0),
        "symmetry": _symmetries(cells, labels, owner, local, extent),
        "hash": hashes,
    }
    return objects, pairs


def _touching(neighbours: _Neighbours, labels: np.ndarray, count: int) -> np.ndarray:
    """Pairs of different objects with 8-neighbouring cells, each once in both orders, int64 [2, P]."""
    codes = []
    for side in neighbours:
        touching = np.flatnonzero((side != labels) & (side != _NOTHING))
        codes += [labels[touching] * count + side[touching], side[touching] * count + labels[touching]]
    return np.stack(np.divmod(np.unique(np.concatenate(codes)), count))


def _symmetries(
    cells: Cells, labels: np.ndarray, owner: np.ndarray, local: list[np.ndarray], extent: np.ndarray
) -> np.ndarray:
    """bool [n, 5]: whether every cell of an object has its image, within the box, in the same object."""
    row, column = local
    height, width = extent[:, labels]
    corner = cells.position - row * cells.stride - column
    square = height == width
    images = (
        (row, width - 1 - column, None),
        (height - 1 - row, column, None),
        (height - 1 - row, width - 1 - column, None),
        (column, row, square),
        (width - 1 - column, height - 1 - row, square),
    )
    flags = np.ones((extent.shape[1], len(images)), bool)
    for i, (image_row, image_column, defined) in enumerate(images):
        image = corner + image_row * cells.stride + image_column
        same = owner[image if defined is None else np.where(defined, image, 0)] == labels
        flags[labels[~same], i] = False
    return flags


def bitmaps(
    labels: np.ndarray, owner: np.ndarray, start: np.ndarray, stride: np.ndarray, box: np.ndarray
) -> np.ndarray:
    """uint8 [n, 8] of objects with these labels; `start` is the position of the first cell of each one's grid."""
    top, left, height, width = box.T
    row = (start + top * stride)[:, None] + _SAMPLES[height] * stride[:, None]
    column = left[:, None] + _SAMPLES[width]
    inside = owner[row[:, :, None] + column[:, None, :]] == labels[:, None, None]
    return np.packbits(inside, axis=-1)[..., 0]


def fitting(objects: dict[str, np.ndarray], size: np.ndarray) -> np.ndarray:
    """bool [n]: the objects kept. Nothing that orders them depends on a direction or on the value of a colour."""
    area, perimeter, holes, contacts = objects["shape"].T
    centre = 2 * objects["moment"] - area[:, None] * (size[objects["grid"]] - 1)  # 2 area (centroid - grid centre)
    extent = np.sort(objects["box"][:, 2:], axis=1)
    distance = (centre**2).sum(axis=1)
    keys = np.stack([objects["grid"], -area, -perimeter, distance, -holes, -contacts, *extent.T])
    order = np.lexsort(keys[::-1])
    keys = keys[:, order]
    group = np.cumsum(np.append(True, (keys[:, 1:] != keys[:, :-1]).any(axis=0))) - 1  # objects that tie
    last = np.searchsorted(group, group, side="right") - 1
    fits = np.empty(len(order), bool)
    fits[order] = last - np.searchsorted(keys[0], keys[0]) < NUM_OBJECTS
    return fits

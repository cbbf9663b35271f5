"""From grids of colours to object tables (`jepa.tables`): a batched tokenizer, exactly equivariant.

tokenise(g G) = g tokenise(G) as sets of rows, for the eight symmetries of the square and every palette: nothing here
depends on the value of a colour or on a direction, ties included. All grids of a chunk are laid out in one vector,
each with a margin on its right, above and below, so that a neighbour of a cell is a constant step away within a grid
and no step leads into another one.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage, sparse

from jepa.tables import BITMAP, CANVAS, EDGE_NAMES, NUM_COLOURS, NUM_OBJECTS, NUM_TOKENS, OVERFLOW

SCHEMA_VERSION = 1  # part of the cache key: raise it whenever a table of the same grid would change

_NOTHING = -1  # of a padded vector: the margin, or a cell of the background
# What np.load raises for an archive that was cut short or has a bit flipped, wherever the bit is.
_DAMAGED = (EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile)
_EIGHT = np.ones((3, 3), bool)
_CHUNK = 256  # grids; keeps the vectors of a chunk within a core's cache

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


class _Cells(NamedTuple):
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


def check_grid(grid: Any, where: str) -> np.ndarray:
    """`grid` as uint8 [height, width]. `where` names its file and place. Raises ValueError if it is no ARC grid."""
    try:
        cells = np.asarray(grid)
    except ValueError:
        raise ValueError(f"{where}: rows differ in length; a grid is a rectangle") from None
    if cells.ndim != 2 or cells.size == 0:
        raise ValueError(f"{where}: shape {cells.shape}; a grid has rows and columns, at least one of each")
    if max(cells.shape) > CANVAS:
        raise ValueError(f"{where}: {cells.shape[0]} x {cells.shape[1]} cells; a grid has at most {CANVAS} x {CANVAS}")
    if cells.dtype.kind not in "iu":
        raise ValueError(f"{where}: cells of type {cells.dtype}; colours are the integers 0 to {NUM_COLOURS - 1}")
    wrong = np.argwhere((cells < 0) | (cells >= NUM_COLOURS))
    if len(wrong):
        row, column = wrong[0]
        raise ValueError(
            f"{where}: row {row}, column {column} holds {cells[row, column]}; colours are 0 to {NUM_COLOURS - 1}"
        )
    return cells.astype(np.uint8)


def transform_grid(grid: np.ndarray, d4: int, palette: Sequence[int]) -> np.ndarray:
    """The grid under the action of `jepa.tables.transform`.

    Transposed if d4 & 4, then upside down if d4 & 2, then mirrored left-right if d4 & 1; colour c becomes palette[c].
    """
    grid = np.asarray(palette, np.uint8)[grid]
    grid = grid.T if d4 & 4 else grid
    grid = grid[::-1] if d4 & 2 else grid
    return np.ascontiguousarray(grid[:, ::-1] if d4 & 1 else grid)


def background(grids: Sequence[np.ndarray]) -> int:
    """The background colour of a sequence of grids: the commonest over all cells, or -1 if that is undecidable.

    Ties go to the colour with more cells on borders, then fewer 8-connected components, then a larger sum of squared
    distances from the grid centres, then the larger canonical form under D4 of the sequence of its cells. Colours
    that tie even then are images of each other under a symmetry of the square, and -1 says that every cell belongs
    to an object: where that symmetry maps the whole sequence to itself, any other choice would break equivariance.
    """
    counts = sum(np.bincount(grid.ravel(), minlength=NUM_COLOURS) for grid in grids)
    tied = np.flatnonzero(counts == counts.max())
    for preference in (_border_cells, _fewest_components, _squared_distances, _canonical_form):
        if len(tied) == 1:
            break
        scores = [preference([grid == colour for grid in grids]) for colour in tied]
        tied = [colour for colour, score in zip(tied, scores, strict=True) if score == max(scores)]
    return int(tied[0]) if len(tied) == 1 else -1


def _border_cells(masks: list[np.ndarray]) -> int:
    return sum(int(mask.sum() - mask[1:-1, 1:-1].sum()) for mask in masks)


def _fewest_components(masks: list[np.ndarray]) -> int:
    return -sum(ndimage.label(mask, _EIGHT)[1] for mask in masks)


def _squared_distances(masks: list[np.ndarray]) -> int:
    """Sum of squared distances from the grid centres, in half cells."""
    total = 0
    for mask in masks:
        row, column = np.nonzero(mask)
        total += int(((2 * row - mask.shape[0] + 1) ** 2 + (2 * column - mask.shape[1] + 1) ** 2).sum())
    return total


def _canonical_form(masks: list[np.ndarray]) -> tuple:
    """One value for all eight images of a sequence of masks, and another for every other sequence."""
    unchanged = range(NUM_COLOURS)
    images = ([transform_grid(mask.astype(np.uint8), d4, unchanged) for mask in masks] for d4 in range(8))
    return max(tuple((image.shape, image.tobytes()) for image in images_d4) for images_d4 in images)


def tokenise(grids: Sequence[np.ndarray], backgrounds: Sequence[int]) -> dict[str, np.ndarray]:
    """Object tables [G, ...] of uint8 grids, each with the background colour of its sequence (-1 for none).

    Objects are the 8-connected components of one colour outside the background. Where there are more than 32, they
    are the 8-connected components of any colours; where there are still more, those of the largest area, then
    perimeter, then nearest the grid centre (and so on, see `_fitting`) stay, and the rest, together with all that
    tie with the first to go, become the overflow token.
    """
    if len(grids) != len(backgrounds):
        raise ValueError(f"{len(grids)} grids but {len(backgrounds)} backgrounds; there must be one for each grid")
    tables = _empty(len(grids))
    for start in range(0, len(grids), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        views = {key: table[chunk] for key, table in tables.items()}
        _tokenise_chunk(grids[chunk], np.asarray(backgrounds[chunk]), views)
    return tables


def tokenise_cached(
    grids: Sequence[np.ndarray], backgrounds: Sequence[int], cache_dir: str | os.PathLike
) -> dict[str, np.ndarray]:
    """`tokenise`, kept in `cache_dir` under the sha256 of all it depends on. A damaged file is written anew."""
    digest = hashlib.sha256(f"objects {SCHEMA_VERSION}".encode())
    digest.update(np.asarray(backgrounds, np.int32).tobytes())
    digest.update(np.array([grid.shape for grid in grids], np.int32).tobytes())
    for grid in grids:
        digest.update(np.ascontiguousarray(grid, np.uint8))
    path = Path(cache_dir) / f"objects-{digest.hexdigest()}.npz"
    try:
        with open(path, "rb") as file, np.load(file) as stored:
            return {key: stored[key] for key in _empty(0)}  # zip archives carry a checksum of each array
    except (OSError, *_DAMAGED):
        tables = tokenise(grids, backgrounds)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        with open(partial, "wb") as file:
            np.savez(file, **tables)
        os.replace(partial, path)
        return tables


def _empty(num_grids: int) -> dict[str, np.ndarray]:
    rows = (num_grids, NUM_TOKENS)
    return {
        "size": np.zeros((num_grids, 2), np.int32),
        "offset": np.zeros((num_grids, 2), np.int32),
        "mask": np.zeros(rows, bool),
        "histogram": np.zeros((*rows, NUM_COLOURS), np.int32),
        "box": np.zeros((*rows, 4), np.int32),
        "moment": np.zeros((*rows, 2), np.int32),
        "shape": np.zeros((*rows, 4), np.int32),
        "border": np.zeros(rows, bool),
        "symmetry": np.zeros((*rows, 5), bool),
        "bitmap": np.zeros((*rows, BITMAP), np.uint8),
        "edges": np.zeros((*rows, NUM_TOKENS), np.uint8),
    }


def _tokenise_chunk(grids: Sequence[np.ndarray], backgrounds: np.ndarray, tables: dict[str, np.ndarray]) -> None:
    """Fills the tables of a chunk of grids, which are zero."""
    size = np.array([grid.shape for grid in grids])
    cells, start, length = _lay_out(grids, size)
    _fill_grid_token(tables, cells, size)

    foreground = cells.colour != backgrounds[cells.grid]
    cells = _Cells(*(field[foreground] for field in cells))
    if not len(cells.grid):
        return
    labels, num_objects = _segment(cells, length, len(grids))
    owner = _padded(labels, cells.position, length)
    objects, pairs = _measure(cells, labels, owner, num_objects, size)

    tables["shape"][:, 0, 3] = np.bincount(objects["grid"], minlength=len(grids))
    fits = _fitting(objects, size)
    _fill_overflow_token(tables, {key: value[~fits] for key, value in objects.items()})
    kept = np.flatnonzero(fits)
    kept = kept[np.argsort(objects["grid"][kept], kind="stable")]
    grid = objects["grid"][kept]
    token = 1 + np.arange(len(kept)) - np.searchsorted(grid, grid)
    _fill_objects(tables, {key: value[kept] for key, value in objects.items()}, token)
    tables["bitmap"][grid, token] = _bitmaps(kept, owner, start[grid], size[grid, 1] + 1, objects["box"][kept])

    token_of = np.zeros(num_objects, np.int64)  # 0 for an object that was dropped
    token_of[kept] = token
    first, second = pairs[:, token_of[pairs].all(axis=0)]
    tables["edges"][objects["grid"][first], token_of[first], token_of[second]] = 1
    _fill_relations(tables, objects["hash"][kept], grid, token)


def _lay_out(grids: Sequence[np.ndarray], size: np.ndarray) -> tuple[_Cells, np.ndarray, int]:
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
    return _Cells(grid, row, column, colour, start[grid] + row * stride + column, stride), start, int(margin[-1])


def _padded(values: np.ndarray, position: np.ndarray, length: int) -> np.ndarray:
    """The vector with `values` at the positions of cells and `_NOTHING` elsewhere."""
    padded = np.full(length, _NOTHING)
    padded[position] = values
    return padded


def _neighbours(padded: np.ndarray, cells: _Cells) -> _Neighbours:
    above = cells.position - cells.stride
    return _Neighbours(padded[cells.position - 1], padded[above - 1], padded[above], padded[above + 1])


def _segment(cells: _Cells, length: int, num_grids: int) -> tuple[np.ndarray, int]:
    """The object of each cell, 0..n-1, and n. Multicolour objects where those of one colour are more than 32."""
    labels, count = _components(cells, cells.colour, length)
    grid = np.zeros(count, np.int64)
    grid[labels] = cells.grid
    crowded = (np.bincount(grid, minlength=num_grids) > NUM_OBJECTS)[cells.grid]
    if not crowded.any():
        return labels, count
    merged, _ = _components(_Cells(*(field[crowded] for field in cells)), 0, length)
    labels[crowded] = count + merged
    used = np.bincount(labels) > 0
    return (np.cumsum(used) - 1)[labels], int(used.sum())


def _components(cells: _Cells, key: np.ndarray | int, length: int) -> tuple[np.ndarray, int]:
    """8-connected components of equal keys: the label of each cell and their number.

    Of the four preceding neighbours, `up` touches the three others and `up_left` touches `left`, so at most two links
    a cell connect all that four would.
    """
    here = np.broadcast_to(key, cells.position.shape)
    left, up_left, up, up_right = (side == here for side in _neighbours(_padded(here, cells.position, length), cells))
    index = _neighbours(_padded(np.arange(len(here)), cells.position, length), cells)
    backward = np.flatnonzero(up | left | up_left)
    corner = np.flatnonzero(up_right & ~up)
    nearest = np.where(up, index.up, np.where(left, index.left, index.up_left))
    source = np.concatenate([backward, corner])
    target = np.concatenate([nearest[backward], index.up_right[corner]])
    links = sparse.coo_array((np.ones(len(source), np.int8), (source, target)), shape=(len(here), len(here)))
    count, labels = sparse.csgraph.connected_components(links, directed=False)
    return labels.astype(np.int64), count


def _measure(
    cells: _Cells, labels: np.ndarray, owner: np.ndarray, count: int, size: np.ndarray
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
    cells: _Cells, labels: np.ndarray, owner: np.ndarray, local: list[np.ndarray], extent: np.ndarray
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


def _fitting(objects: dict[str, np.ndarray], size: np.ndarray) -> np.ndarray:
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


def _fill_grid_token(tables: dict[str, np.ndarray], cells: _Cells, size: np.ndarray) -> None:
    height, width = size.T
    area = height * width
    colours = np.bincount(cells.grid * NUM_COLOURS + cells.colour, minlength=len(size) * NUM_COLOURS)
    tables["size"][:] = size
    tables["mask"][:, 0] = True
    tables["histogram"][:, 0] = colours.reshape(len(size), NUM_COLOURS)
    tables["box"][:, 0, 2:] = size
    tables["moment"][:, 0] = area[:, None] * (size - 1) // 2
    tables["shape"][:, 0, :2] = np.stack([area, 2 * (height + width)], axis=1)
    tables["border"][:, 0] = True


def _fill_overflow_token(tables: dict[str, np.ndarray], dropped: dict[str, np.ndarray]) -> None:
    """Sums over the dropped objects; their count takes the place of their contacts."""
    grid = dropped["grid"]
    tables["mask"][grid, OVERFLOW] = True
    shape = dropped["shape"].copy()
    shape[:, 3] = 1
    for key, value in (("histogram", dropped["histogram"]), ("moment", dropped["moment"]), ("shape", shape)):
        np.add.at(tables[key], (grid, OVERFLOW), value.astype(np.int32))
    tables["border"][grid[dropped["border"]], OVERFLOW] = True


def _fill_objects(tables: dict[str, np.ndarray], objects: dict[str, np.ndarray], token: np.ndarray) -> None:
    grid = objects["grid"]
    tables["mask"][grid, token] = True
    for key in ("histogram", "box", "moment", "shape", "border", "symmetry"):
        tables[key][grid, token] = objects[key]


def _bitmaps(
    labels: np.ndarray, owner: np.ndarray, start: np.ndarray, stride: np.ndarray, box: np.ndarray
) -> np.ndarray:
    """uint8 [n, 8] of objects with these labels; `start` is the position of the first cell of each one's grid."""
    top, left, height, width = box.T
    row = (start + top * stride)[:, None] + _SAMPLES[height] * stride[:, None]
    column = left[:, None] + _SAMPLES[width]
    inside = owner[row[:, :, None] + column[:, None, :]] == labels[:, None, None]
    return np.packbits(inside, axis=-1)[..., 0]


def _fill_relations(tables: dict[str, np.ndarray], hashes: np.ndarray, grid: np.ndarray, token: np.ndarray) -> None:
    """Adds to the contacts in `edges` the other relations between two objects, from boxes, colours and shapes."""
    rows = slice(1, OVERFLOW)
    shape = np.zeros((len(tables["mask"]), NUM_OBJECTS), np.uint64)
    shape[grid, token - 1] = hashes
    colours = np.packbits(tables["histogram"][:, rows] > 0, axis=-1).view(np.uint16)[..., 0]
    top, left, height, width = np.moveaxis(tables["box"][:, rows].astype(np.int8), -1, 0)
    bottom, right = top + height, left + width

    def equal(x: np.ndarray) -> np.ndarray:
        return x[:, :, None] == x[:, None, :]

    def below(x: np.ndarray) -> np.ndarray:
        return x[:, :, None] < x[:, None, :]

    contains = below(top) & below(left) & below(-bottom) & below(-right)
    relations = {
        "same_colours": equal(colours),
        "same_shape": equal(shape),
        "contains": contains,
        "contained": contains.swapaxes(1, 2),
        "row_aligned": equal(top) | equal(bottom) | equal(top + bottom),
        "column_aligned": equal(left) | equal(right) | equal(left + right),
    }
    real = tables["mask"][:, rows]
    different = real[:, :, None] & real[:, None, :] & ~np.eye(NUM_OBJECTS, dtype=bool)
    edges = tables["edges"][:, rows, rows]
    for name, holds in relations.items():
        edges |= (holds & different).astype(np.uint8) << EDGE_NAMES.index(name)

"""From grids of colours to object tables (`jepa.tables`): a batched tokenizer, exactly equivariant.

tokenise(g G) = g tokenise(G) as sets of rows, for the eight symmetries of the square and every palette: nothing here
depends on the value of a colour or on a direction, ties included. Grids are checked here, their background is chosen,
and tables are filled and cached; `jepa.data._segmentation` finds the objects that go into them.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from jepa.data import _segmentation
from jepa.tables import BITMAP, CANVAS, EDGE_NAMES, NUM_COLOURS, NUM_OBJECTS, NUM_TOKENS, OVERFLOW

SCHEMA_VERSION = 1  # part of the cache key: raise it whenever a table of the same grid would change

# What np.load raises for an archive that was cut short or has a bit flipped, wherever the bit is.
_DAMAGED = (EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile)
_EIGHT = np.ones((3, 3), bool)
_CHUNK = 256  # grids; keeps the vectors of a chunk within a core's cache


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
    perimeter, then nearest the grid centre (and so on, see `_segmentation.fitting`) stay, and the rest, together with
    all that tie with the first to go, become the overflow token.
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
    path = Path(cache_dir).expanduser() / f"objects-{digest.hexdigest()}.npz"
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
    cells, start, length = _segmentation.lay_out(grids, size)
    _fill_grid_token(tables, cells, size)

    foreground = cells.colour != backgrounds[cells.grid]
    cells = _segmentation.Cells(*(field[foreground] for field in cells))
    if not len(cells.grid):
        return
    labels, num_objects = _segmentation.segment(cells, length, len(grids))
    owner = _segmentation.padded(labels, cells.position, length)
    objects, pairs = _segmentation.measure(cells, labels, owner, num_objects, size)

    tables["shape"][:, 0, 3] = np.bincount(objects["grid"], minlength=len(grids))
    fits = _segmentation.fitting(objects, size)
    _fill_overflow_token(tables, {key: value[~fits] for key, value in objects.items()})
    kept = np.flatnonzero(fits)
    kept = kept[np.argsort(objects["grid"][kept], kind="stable")]
    grid = objects["grid"][kept]
    token = 1 + np.arange(len(kept)) - np.searchsorted(grid, grid)
    _fill_objects(tables, {key: value[kept] for key, value in objects.items()}, token)
    stride = size[grid, 1] + 1
    tables["bitmap"][grid, token] = _segmentation.bitmaps(kept, owner, start[grid], stride, objects["box"][kept])

    token_of = np.zeros(num_objects, np.int64)  # 0 for an object that was dropped
    token_of[kept] = token
    first, second = pairs[:, token_of[pairs].all(axis=0)]
    tables["edges"][objects["grid"][first], token_of[first], token_of[second]] = 1
    _fill_relations(tables, objects["hash"][kept], grid, token)


def _fill_grid_token(tables: dict[str, np.ndarray], cells: _segmentation.Cells, size: np.ndarray) -> None:
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

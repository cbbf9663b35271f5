"""Primitives that decide object by object; an object is an 8-connected component of coloured cells."""

from __future__ import annotations

import numpy as np

from jepa.data import _grids, _scenes, _shapes
from jepa.data._grids import AREA, CANVAS, INDEX, Grids, Objects, counts, facing, sample, take_rows, turned_back
from jepa.data._primitive import Parameters, Primitive, choices
from jepa.data._primitives_cells import COLOURS
from jepa.data._primitives_geometry import DIRECTIONS
from jepa.data._scenes import Limits

LARGEST, SMALLEST = 0, 1
BORDER, HOLE, WIDE, TALL, FULL = range(5)  # attributes of objects


def _painted(grids: Grids, found: Objects, chosen: np.ndarray, colour: np.ndarray) -> Grids:
    """The grids with the chosen objects, bool [k], in the colour of their grid [n]."""
    cells = grids.cells.copy()
    painted = chosen[found.label]
    cells.reshape(-1)[found.position[painted]] = colour[found.grid[found.label[painted]]]
    return grids._replace(cells=cells)


def _number(found: Objects, grids: Grids) -> np.ndarray:
    return np.bincount(found.grid, minlength=len(grids.height))


def _crop(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """The box of the largest (0) or the smallest (1) object. Precondition: there is exactly one such."""
    found = _grids.objects(grids.cells)
    sign = np.where(parameters[:, 0] == LARGEST, 1, -1)
    chosen, single = _grids.extreme(sign[found.grid] * _grids.areas(found), found, len(sign))
    box = np.zeros((4, len(sign)), np.int64)
    box[:, found.grid[chosen]] = _grids.boxes(found)[:, chosen]
    top, left, bottom, right = box
    rows, columns = INDEX + top[:, None], INDEX + left[:, None]
    return sample(grids, rows, columns, bottom - top + 1, right - left + 1), single


def _keep_largest(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """All objects but the largest become background. Precondition: there is exactly one such."""
    found = _grids.objects(grids.cells)
    largest, single = _grids.extreme(_grids.areas(found), found, len(parameters))
    return _painted(grids, found, ~largest, np.zeros(len(parameters), np.uint8)), single


def _recolour_largest(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """The largest object takes the colour. Precondition: there is exactly one such."""
    found = _grids.objects(grids.cells)
    largest, single = _grids.extreme(_grids.areas(found), found, len(parameters))
    return _painted(grids, found, largest, parameters[:, 0]), single


def _some_objects(rng: np.random.Generator, parameters: Parameters, limits: Limits) -> Grids:
    return _scenes.draw(rng, limits, *_scenes.sides(rng, len(parameters), limits), number=(2, 7), extent=(1, 7))


def _other_colours(rng: np.random.Generator, parameters: Parameters, limits: Limits) -> Grids:
    palette = _scenes.colours(rng, len(parameters), without=parameters[:, 0])
    return _scenes.draw(
        rng, limits, *_scenes.sides(rng, len(parameters), limits), number=(2, 7), extent=(1, 7), palette=palette
    )


def _move(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """All cells of a colour move together in a direction until one meets another colour or the border.

    Precondition: the grid has the colour.
    """
    colour, direction = parameters.T
    turned = facing(grids, direction)
    moving = turned.cells == colour.astype(np.uint8)[:, None, None]
    blocked = (~moving & (turned.cells > 0)) | (turned.height[:, None] <= INDEX)[:, :, None]
    row = INDEX.astype(np.uint8)[:, None]
    stop = np.where(blocked, row, np.uint8(CANVAS))
    for i in range(CANVAS - 2, -1, -1):
        np.minimum(stop[:, i], stop[:, i + 1], out=stop[:, i])
    room = np.where(moving, stop - row - np.uint8(1), np.uint8(255)).reshape(-1, AREA).min(axis=1)
    valid = room < 255
    shift = np.where(valid, room, 0)[:, None]
    moved = take_rows(turned.cells * moving, np.where(shift <= INDEX, INDEX - shift, -1))
    return turned_back(turned._replace(cells=turned.cells * ~moving + moved), direction), valid


def _scene_to_move(rng: np.random.Generator, parameters: Parameters, limits: Limits) -> Grids:
    colour = parameters[:, 0]
    palette = _scenes.colours(rng, len(colour), first=colour, without=colour)
    return _scenes.draw(
        rng, limits, *_scenes.sides(rng, len(colour), limits), number=(2, 5), extent=(1, 6), palette=palette
    )


def _copy(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """The largest object is the key: every single cell gets a copy of it round itself, in its own colour.

    The middle of the key's box, rounded up and left, falls on the cell. Precondition: one object is the largest and
    more than a cell, and copies stay inside and meet no other coloured cell.
    """
    n = len(grids.height)
    found = _grids.objects(grids.cells)
    area = _grids.areas(found)
    largest, single = _grids.extreme(area, found, n)
    key = np.flatnonzero(largest[found.label] & single[found.grid[found.label]])  # cells of keys, grid by grid
    owner = found.grid[found.label[key]]
    size = np.bincount(owner, minlength=n)
    start = np.cumsum(size) - size
    top, left, bottom, right = _grids.boxes(found)[:, found.label[key]]
    down, across = found.row[key] - (top + bottom) // 2, found.column[key] - (left + right) // 2

    marker = np.flatnonzero((area == 1)[found.label])
    grid = found.grid[found.label[marker]]
    times = size[grid]
    copy = np.repeat(np.arange(len(marker)), times)
    cell = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times) + start[grid[copy]]
    row, column = found.row[marker[copy]] + down[cell], found.column[marker[copy]] + across[cell]
    grid = grid[copy]
    fits = (row >= 0) & (column >= 0) & (row < grids.height[grid]) & (column < grids.width[grid])
    target = grid * AREA + np.where(fits, row * CANVAS + column, 0)
    cells = grids.cells.copy().reshape(-1)
    own = found.position[marker[copy]]
    cells[target[fits]] = cells[own[fits]]
    # A cell that two copies share is gained only once, and one that is coloured already is not.
    gained = counts(cells) - counts(grids.cells)
    expected = np.bincount(grid[fits & (target != own)], minlength=n)
    bad = np.bincount(grid[~fits], minlength=n) > 0
    return grids._replace(cells=cells.reshape(grids.cells.shape)), single & (size > 1) & ~bad & (gained == expected)


def _scene_to_copy(rng: np.random.Generator, parameters: Parameters, limits: Limits) -> Grids:
    height, width = _scenes.sides(rng, len(parameters), limits, low=10)
    border = np.full_like(height, 1)
    region = _scenes.Region(border, border, height - 2, width - 2)
    return _scenes.draw(
        rng,
        limits,
        height,
        width,
        region=region,
        number=(1, 1),
        dots=(1, 4),
        extent=(2, 4),
        gap=4,
    )


def _rank(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """A row of the colours of the objects, from the largest (0) or the smallest (1) on.

    Precondition: every object has one colour, no two have the same area, and there are two to thirty.
    """
    n = len(parameters)
    found = _grids.objects(grids.cells)
    area, colour, number = _grids.areas(found), _grids.colours(grids.cells, found), _number(found, grids)
    key = np.where(parameters[:, 0] == LARGEST, -1, 1)[found.grid] * area
    order = np.lexsort((key, found.grid))
    owner = found.grid[order]
    place = np.arange(len(order)) - (np.cumsum(number) - number)[owner]
    tied = (key[order][1:] == key[order][:-1]) & (owner[1:] == owner[:-1])
    bad = np.bincount(owner[1:][tied], minlength=n) + np.bincount(found.grid[colour == 0], minlength=n)
    return _row(owner, place, colour[order], number), (bad == 0) & (number >= 2) & (number <= CANVAS)


def _row(grid: np.ndarray, place: np.ndarray, colour: np.ndarray, length: np.ndarray) -> Grids:
    """Grids of one row with these colours at these places of the grids named; what does not fit is left out."""
    cells = np.zeros((len(length), CANVAS, CANVAS), np.uint8)
    fits = place < CANVAS
    cells[grid[fits], 0, place[fits]] = colour[fits]
    return Grids(cells, np.ones(len(length), np.int64), np.clip(length, 1, CANVAS))


def _count(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """A row of as many cells of the colour as there are objects of it. Precondition: there are one to thirty."""
    colour = parameters[:, 0]
    found = _grids.objects(grids.cells)
    chosen = _grids.colours(grids.cells, found) == colour[found.grid]
    number = np.bincount(found.grid[chosen], minlength=len(colour))
    shown = number[:, None] > INDEX
    grid, place = np.nonzero(shown)
    return _row(grid, place, colour[grid].astype(np.uint8), number), (number >= 1) & (number <= CANVAS)


def _scene_to_count(rng: np.random.Generator, parameters: Parameters, limits: Limits) -> Grids:
    colour = parameters[:, 0]
    palette = _scenes.colours(rng, len(colour), first=colour)
    palette = np.where(rng.random(palette.shape) < 0.5, colour[:, None], palette).astype(np.uint8)
    return _scenes.draw(rng, limits, *_scenes.sides(rng, len(colour), limits), extent=(1, 5), palette=palette)


def _holding(grids: Grids, found: Objects, attribute: np.ndarray) -> np.ndarray:
    """bool [k]: whether the attribute of its grid [n] holds of an object."""
    top, left, bottom, right = _grids.boxes(found)
    height, width, grid = bottom - top + 1, right - left + 1, found.grid
    edge = (top == 0) | (left == 0) | (bottom == grids.height[grid] - 1) | (right == grids.width[grid] - 1)
    facts = [None] * 5
    facts[BORDER] = edge
    facts[HOLE] = _grids.hole_counts(grids.cells, found) > 0
    facts[WIDE], facts[TALL] = width > height, height > width
    facts[FULL] = _grids.areas(found) == height * width
    return np.stack(facts)[attribute[grid], np.arange(len(grid))]


def _conditional(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """Objects of which the attribute holds take the colour. Precondition: it holds of some and not of all.

    Attributes: touches the border (0), has a hole (1), is wider than tall (2), taller than wide (3), fills its box (4).
    """
    attribute, colour = parameters.T
    found = _grids.objects(grids.cells)
    holds = _holding(grids, found, attribute)
    return _painted(grids, found, holds, colour), _some_not_all(found, holds, grids)


def _filter(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """Objects of which the attribute does not hold become background. Precondition: it holds of some, not of all."""
    found = _grids.objects(grids.cells)
    holds = _holding(grids, found, parameters[:, 0])
    return _painted(grids, found, ~holds, np.zeros(len(parameters), np.uint8)), _some_not_all(found, holds, grids)


def _some_not_all(found: Objects, holds: np.ndarray, grids: Grids) -> np.ndarray:
    number = np.bincount(found.grid[holds], minlength=len(grids.height))
    return (number > 0) & (number < _number(found, grids))


def _mixed_objects(rng: np.random.Generator, parameters: Parameters, limits: Limits) -> Grids:
    """Objects of which attributes hold about as often as not."""
    families = (*_shapes.FAMILIES, *_shapes.HOLLOW * 4, "rectangle", "rectangle")
    height, width = _scenes.sides(rng, len(parameters), limits)
    return _scenes.draw(rng, limits, height, width, number=(3, 8), families=families, extent=(2, 6))


_ATTRIBUTES = (BORDER, HOLE, WIDE, TALL, FULL)
PRIMITIVES = {
    "crop": Primitive(("which",), choices((LARGEST, SMALLEST)), _crop, _some_objects),
    "keep_largest": Primitive((), choices(), _keep_largest, _some_objects),
    "recolour_largest": Primitive(("colour",), choices(COLOURS), _recolour_largest, _other_colours),
    "move": Primitive(("colour", "direction"), choices(COLOURS, DIRECTIONS), _move, _scene_to_move),
    "copy": Primitive((), choices(), _copy, _scene_to_copy),
    "rank": Primitive(("which",), choices((LARGEST, SMALLEST)), _rank, _some_objects),
    "count": Primitive(("colour",), choices(COLOURS), _count, _scene_to_count),
    "conditional": Primitive(("attribute", "colour"), choices(_ATTRIBUTES, COLOURS), _conditional, _mixed_objects),
    "filter": Primitive(("attribute",), choices(_ATTRIBUTES), _filter, _mixed_objects),
}

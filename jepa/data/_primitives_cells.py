"""Primitives that decide cell by cell, from the colour of a cell or from its neighbours, and those of two panels."""

from __future__ import annotations

from functools import reduce

import numpy as np

from jepa.data import _grids, _scenes, _shapes
from jepa.data._grids import (
    AREA,
    CANVAS,
    EIGHT,
    FOUR,
    INDEX,
    Grids,
    counts,
    inside,
    neighbours,
    padded,
    sample,
    transpose,
)
from jepa.data._primitive import Parameters, Primitive, choices, everywhere
from jepa.data._primitives_geometry import plain_scene
from jepa.data._scenes import Limits

COLOURS = tuple(range(1, 10))
AND, OR, XOR, MINUS, NEITHER = range(5)
_OPERATIONS = np.array(  # by operation, and by whether the first and the second panel are coloured
    [[[0, 0], [0, 1]], [[0, 1], [1, 1]], [[0, 1], [1, 0]], [[0, 0], [1, 0]], [[1, 0], [0, 0]]], np.uint8
)


def _column(colour: np.ndarray) -> np.ndarray:
    """A colour for each grid, uint8 [n, 1, 1]."""
    return colour.astype(np.uint8)[:, None, None]


def has(cells: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """bool [n]: whether a grid has a cell of its colour [n]."""
    return (cells == _column(colour)).reshape(-1, AREA).any(axis=1)


def two_colours(rng: np.random.Generator, number: int) -> Parameters:
    """Two different colours that are not background."""
    first = rng.integers(1, 10, number)
    return np.stack([first, (first - 1 + rng.integers(1, 9, number)) % 9 + 1], axis=1)


def _recolour(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """One colour becomes another. Precondition: the grid has the first and lacks the second."""
    old, new = parameters.T
    cells = np.where(grids.cells == _column(old), _column(new), grids.cells)
    return grids._replace(cells=cells), has(grids.cells, old) & ~has(grids.cells, new)


def _scene_to_recolour(rng: np.random.Generator, parameters: Parameters, limits: Limits) -> Grids:
    old, new = parameters.T
    palette = _scenes.colours(rng, len(old), first=old, without=new)
    return _scenes.draw(rng, limits, *_scenes.sides(rng, len(old), limits), palette=palette)


def _palette(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """Every colour becomes that of a permutation, which keeps the background."""
    index = grids.cells + (np.arange(len(parameters), dtype=np.int32) * 10)[:, None, None]
    return grids._replace(cells=parameters.astype(np.uint8).reshape(-1).take(index)), everywhere(grids)


def _permutations(rng: np.random.Generator, number: int) -> Parameters:
    order = np.argsort(rng.random((number, 9)), axis=1) + 1
    return np.concatenate([np.zeros((number, 1), np.int64), order], axis=1)


def _keep_colour(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """What has another colour becomes background. Precondition: the grid has the colour."""
    kept = grids.cells * (grids.cells == _column(parameters[:, 0]))
    return grids._replace(cells=kept), counts(kept) > 0


def _scene_to_keep(rng: np.random.Generator, parameters: Parameters, limits: Limits) -> Grids:
    palette = _scenes.colours(rng, len(parameters), first=parameters[:, 0])
    return _scenes.draw(rng, limits, *_scenes.sides(rng, len(parameters), limits), number=(3, 8), palette=palette)


def _outline(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """Background with a coloured cell among its eight neighbours takes the colour."""
    near = reduce(np.maximum, neighbours(padded(grids.cells), EIGHT)) > 0
    edge = near & (grids.cells == 0) & inside(grids)
    return grids._replace(cells=grids.cells + edge * _column(parameters[:, 0])), everywhere(grids)


def _scene_to_outline(rng: np.random.Generator, parameters: Parameters, limits: Limits) -> Grids:
    size = _scenes.sides(rng, len(parameters), limits)
    palette = _scenes.colours(rng, len(parameters), without=parameters[:, 0])
    return _scenes.draw(rng, limits, *size, number=(1, 5), extent=(1, 5), gap=2, palette=palette)


def _grow(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """Background takes the colour of its four neighbours, where those that are coloured agree."""
    canvas = padded(grids.cells)
    largest = reduce(np.maximum, neighbours(canvas, FOUR))
    least = reduce(np.minimum, neighbours(canvas - np.uint8(1), FOUR))  # background wraps round to 255
    agreed = (largest > 0) & (largest == least + np.uint8(1)) & (grids.cells == 0) & inside(grids)
    return grids._replace(cells=grids.cells + agreed * largest), everywhere(grids)


def _scene_to_grow(rng: np.random.Generator, parameters: Parameters, limits: Limits) -> Grids:
    return _scenes.draw(rng, limits, *_scenes.sides(rng, len(parameters), limits), number=(1, 5), extent=(1, 5))


def _interior(cells: np.ndarray) -> np.ndarray:
    """bool [n, 30, 30]: coloured cells whose four neighbours are coloured."""
    return reduce(np.minimum, neighbours(padded(cells), FOUR), cells) > 0


def _erode(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """Cells with background or the border beside them become background. Precondition: something stays."""
    cells = grids.cells * _interior(grids.cells)
    return grids._replace(cells=cells), counts(cells) > 0


def _hollow(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """Cells with four coloured neighbours become background."""
    return grids._replace(cells=grids.cells * ~_interior(grids.cells)), everywhere(grids)


def _scene_of_solids(rng: np.random.Generator, parameters: Parameters, limits: Limits) -> Grids:
    size = _scenes.sides(rng, len(parameters), limits)
    return _scenes.draw(rng, limits, *size, number=(1, 6), families=_shapes.SOLID, extent=(4, 8))


def _fill_holes(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """Background that is enclosed takes the colour."""
    return grids._replace(cells=grids.cells + _grids.holes(grids.cells) * _column(parameters[:, 0])), everywhere(grids)


def _scene_with_holes(rng: np.random.Generator, parameters: Parameters, limits: Limits) -> Grids:
    families = (*_shapes.HOLLOW * 4, *_shapes.FAMILIES)
    palette = _scenes.colours(rng, len(parameters), without=parameters[:, 0])
    size = _scenes.sides(rng, len(parameters), limits)
    return _scenes.draw(rng, limits, *size, number=(2, 6), families=families, extent=(3, 8), palette=palette)


def _denoise(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """Coloured cells without a coloured neighbour become background. Precondition: something stays."""
    near = reduce(np.maximum, neighbours(padded(grids.cells), EIGHT)) > 0
    cells = grids.cells * near
    return grids._replace(cells=cells), counts(cells) > 0


def _scene_with_noise(rng: np.random.Generator, parameters: Parameters, limits: Limits) -> Grids:
    return _scenes.draw(rng, limits, *_scenes.sides(rng, len(parameters), limits), number=(1, 4), dots=(1, 4))


def _combine(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """Two panels become one, of a colour where the operation holds of their cells (and, or, xor, minus, neither).

    They lie side by side (axis 0) or one above the other (axis 1). Precondition: a line of one colour parts the grid
    into two panels of one size.
    """
    operation, colour, axis = parameters.T
    turned = transpose(grids, axis == 1)
    half = turned.width // 2
    line = turned.cells[np.arange(len(half)), :, half]  # [n, 30]
    whole = ((line == line[:, :1]) | (turned.height[:, None] <= INDEX)).all(axis=1) & (line[:, 0] > 0)
    size = turned.height, np.maximum(half, 1)
    first, second = (sample(turned, INDEX[None], INDEX + start[:, None], *size) for start in (0 * half, half + 1))
    both = np.uint8(2) * (first.cells > 0) + (second.cells > 0)
    holds = _OPERATIONS.reshape(-1).take(both + _column(4 * operation)) * inside(first)
    result = transpose(first._replace(cells=holds * _column(colour)), axis == 1)
    return result, whole & (turned.width % 2 == 1) & (half > 0)


def _scene_of_panels(rng: np.random.Generator, parameters: Parameters, limits: Limits) -> Grids:
    """Two panels with random cells of one colour each, and a line of a third colour between them."""
    n = len(parameters)
    height, half = _scenes.sides(rng, n, limits)[0], rng.integers(3, (limits.side - 1) // 2 + 1, n)
    width = 2 * half + 1
    colour = np.argsort(rng.random((n, 9)), axis=1)[:, :3].astype(np.uint8) + np.uint8(1)
    side = (half[:, None] < INDEX).astype(np.int64)
    along = np.where(half[:, None] == INDEX, colour[:, 2:], np.take_along_axis(colour, side, axis=1))
    density = rng.uniform(0.2, 0.6, (n, 1, 1)).astype(np.float32)
    shown = (rng.random((n, CANVAS, CANVAS), np.float32) < density) | (half[:, None] == INDEX)[:, None, :]
    grids = Grids(shown * along[:, None, :], height, width)
    grids.cells[~inside(grids)] = 0
    return transpose(grids, parameters[:, 2] == 1)


PRIMITIVES = {
    "recolour": Primitive(
        ("old", "new"), two_colours, _recolour, _scene_to_recolour, lambda p: ("recolour", p[:, ::-1])
    ),
    "palette": Primitive(
        tuple(f"colour_{c}" for c in range(10)),
        _permutations,
        _palette,
        plain_scene,
        lambda p: ("palette", np.argsort(p, axis=1)),
        repeats=8,
    ),
    "keep_colour": Primitive(("colour",), choices(COLOURS), _keep_colour, _scene_to_keep),
    "outline": Primitive(("colour",), choices(COLOURS), _outline, _scene_to_outline, repeats=3),
    "grow": Primitive((), choices(), _grow, _scene_to_grow, repeats=3),
    "erode": Primitive((), choices(), _erode, _scene_of_solids, repeats=2),
    "hollow": Primitive((), choices(), _hollow, _scene_of_solids),
    "fill_holes": Primitive(("colour",), choices(COLOURS), _fill_holes, _scene_with_holes),
    "denoise": Primitive((), choices(), _denoise, _scene_with_noise),
    "combine": Primitive(
        ("operation", "colour", "axis"),
        choices((AND, OR, XOR, MINUS, NEITHER), COLOURS, (0, 1)),
        _combine,
        _scene_of_panels,
    ),
}

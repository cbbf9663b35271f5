"""Primitives that work line by line: along the columns once a grid is turned so that its direction points down."""

from __future__ import annotations

import numpy as np

from jepa.data import _grids, _scenes
from jepa.data._grids import AREA, CANVAS, INDEX, Grids, facing, inside, take_rows, transpose, turned_back
from jepa.data._primitive import Parameters, Primitive, choices, everywhere
from jepa.data._primitives_geometry import DIRECTIONS, plain_scene
from jepa.data._scenes import Limits


def _drop(grids: Grids, direction: np.ndarray, whole_way: bool) -> Grids:
    """Every coloured cell falls, as far as there is room below it or by one."""
    turned = facing(grids, direction)
    coloured = turned.cells > 0
    above = np.cumsum(coloured, axis=1, dtype=np.uint8)
    position = np.flatnonzero(coloured)
    grid, place = np.divmod(position, AREA)
    row, column = np.divmod(place, CANVAS)
    below = above[grid, CANVAS - 1, column] - above.reshape(-1)[position]  # coloured cells under this one
    floor = turned.height[grid] - 1 - below
    cells = np.zeros_like(turned.cells)
    target = floor if whole_way else row + (row < floor)
    cells.reshape(-1)[grid * AREA + target * CANVAS + column] = turned.cells.reshape(-1)[position]
    return turned_back(turned._replace(cells=cells), direction)


def _gravity(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """Every cell falls in the direction until it lies on another one or on the border."""
    return _drop(grids, parameters[:, 0], True), everywhere(grids)


def _fall(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """One step of `gravity`: every cell under which there is still room moves by one."""
    return _drop(grids, parameters[:, 0], False), everywhere(grids)


def _extend(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """Every coloured cell draws a line in the direction, up to the next coloured cell or the border."""
    direction = parameters[:, 0]
    turned = facing(grids, direction)
    cells = _grids.filled_down(turned.cells) * inside(turned)
    return turned_back(turned._replace(cells=cells), direction), everywhere(grids)


def _scene_to_extend(rng: np.random.Generator, parameters: Parameters, limits: Limits) -> Grids:
    families = ("dot", "bar", "rectangle", "corner", "diagonal")
    return _scenes.draw(
        rng, limits, *_scenes.sides(rng, len(parameters), limits), number=(1, 5), families=families, extent=(1, 4)
    )


def _connect(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """Background between two cells of one colour takes it: in columns (axis 0) or in rows (axis 1).

    Nothing but background may lie between the two.
    """
    turned = transpose(grids, parameters[:, 0] == 1)
    above = _grids.filled_down(turned.cells)
    below = _grids.filled_down(turned.cells[:, ::-1])[:, ::-1]
    return transpose(turned._replace(cells=above * (above == below)), parameters[:, 0] == 1), everywhere(grids)


def _scene_of_pairs(rng: np.random.Generator, parameters: Parameters, limits: Limits) -> Grids:
    """Pairs of cells of one colour in line with each other, and cells that have no partner."""
    n, lines = len(parameters), 5
    height, width = _scenes.sides(rng, n, limits)
    line = np.argsort(rng.random((n, CANVAS)) + (width[:, None] <= INDEX), axis=1)[:, :lines]
    colour = rng.integers(1, 10, (n, lines)).astype(np.uint8)
    near = (rng.random((n, lines)) * (height // 2 - 1)[:, None]).astype(np.int64)
    far = height[:, None] - 1 - (rng.random((n, lines)) * (height // 2 - 1)[:, None]).astype(np.int64)
    paired = rng.random((n, lines)) < 0.6
    paired[:, 0] = True
    used = rng.integers(1, min(lines, limits.objects // 2) + 1, n)[:, None] > np.arange(lines)
    cells = np.zeros((n, CANVAS, CANVAS), np.uint8)
    grid = np.arange(n)[:, None]
    cells[grid, near, line] = colour * used
    cells[grid, far, line] = colour * (used & paired)
    return transpose(Grids(cells, height, width), parameters[:, 0] == 1)


def _sort(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """The lines across a direction in the order of their coloured cells, fewest first; ties keep their order.

    Precondition: two lines at least differ in number.
    """
    direction = parameters[:, 0]
    turned = facing(grids, direction)
    number = np.where(turned.height[:, None] > INDEX, (turned.cells > 0).sum(axis=2), CANVAS + 1)
    ordered = take_rows(turned.cells, np.argsort(number, axis=1, kind="stable"))
    inner = turned.height[:, None] > INDEX[1:]
    unlike = ((number[:, 1:] != number[:, :-1]) & inner).any(axis=1)
    return turned_back(turned._replace(cells=ordered), direction), unlike


def _scene_of_bars(rng: np.random.Generator, parameters: Parameters, limits: Limits) -> Grids:
    """Bars of random lengths that stand on one border, each of a colour."""
    n = len(parameters)
    height, width = _scenes.sides(rng, n, limits)
    length = (rng.random((n, CANVAS)) * (width + 1)[:, None]).astype(np.int64)
    colour = rng.integers(1, 10, (n, CANVAS)).astype(np.uint8)
    grids = Grids((length[:, :, None] > INDEX) * colour[:, :, None], height, width)
    grids.cells[~inside(grids)] = 0
    return turned_back(_grids.transform(grids, rng.integers(0, 2, n)), parameters[:, 0])


def _continue(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """A pattern of `period` lines goes on in `direction` to the end of the grid.

    Precondition: what there is of it repeats its first `period` lines, of which one is not empty, and there are more.
    """
    direction, period = parameters.T
    turned = facing(grids, direction)
    predicted = take_rows(turned.cells, np.where(turned.height[:, None] > INDEX, INDEX % period[:, None], -1))
    agrees = ((turned.cells == predicted) | (turned.cells == 0)).all(axis=(1, 2))
    start = (turned.cells > 0).any(axis=2) & (period[:, None] > INDEX)
    known = agrees & start.any(axis=1) & (turned.height > period)
    return turned_back(turned._replace(cells=predicted), direction), known


def _scene_to_continue(rng: np.random.Generator, parameters: Parameters, limits: Limits) -> Grids:
    """Two periods or more of a random motif, and then nothing."""
    direction, period = parameters.T
    _, width = _scenes.sides(rng, len(period), limits)
    height = rng.integers(np.maximum(_scenes.MIN_SIDE, 2 * period + 1), np.maximum(limits.side, 2 * period + 1) + 1)
    full = (period, np.minimum(width, 8))
    zero = np.zeros_like(period)
    region = _scenes.Region(zero, zero, *full)
    motif = _scenes.draw(rng, limits, height, width, region=region, number=(1, 3), extent=(1, 4)).cells
    noise = rng.integers(1, 10, motif.shape, np.uint8) * (rng.random(motif.shape, np.float32) < 0.4)
    noisy = rng.random(len(period)) < 0.5
    motif = np.where(noisy[:, None, None], noise * (width[:, None] > INDEX)[:, None, :], motif)
    shown = rng.integers(2 * period, height)
    rows = np.where(shown[:, None] > INDEX, INDEX % period[:, None], -1)
    return turned_back(Grids(take_rows(motif, rows), height, width), direction)


PRIMITIVES = {
    "gravity": Primitive(("direction",), choices(DIRECTIONS), _gravity, plain_scene),
    "fall": Primitive(("direction",), choices(DIRECTIONS), _fall, plain_scene, repeats=3),
    "extend": Primitive(("direction",), choices(DIRECTIONS), _extend, _scene_to_extend),
    "connect": Primitive(("axis",), choices((0, 1)), _connect, _scene_of_pairs),
    "sort": Primitive(("direction",), choices(DIRECTIONS), _sort, _scene_of_bars),
    "continue": Primitive(("direction", "period"), choices(DIRECTIONS, (1, 2, 3, 4, 5)), _continue, _scene_to_continue),
}

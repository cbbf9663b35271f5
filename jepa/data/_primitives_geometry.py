"""Primitives that move, repeat or cut whole grids."""

from __future__ import annotations

import numpy as np

from jepa.data import _scenes
from jepa.data._grids import (
    CANVAS,
    DOWN,
    INDEX,
    LEFT,
    RIGHT,
    UP,
    Grids,
    counts,
    equal,
    facing,
    inside,
    sample,
    transform,
    turned_back,
)
from jepa.data._grids import inverse as inverse_d4
from jepa.data._primitive import Parameters, Primitive, choices, everywhere
from jepa.data._scenes import Limits

_IDENTITY = INDEX[None]
DIRECTIONS = (DOWN, UP, RIGHT, LEFT)
_COLOURS = tuple(range(1, 10))
_MIRROR = np.array([1, 2, 3])  # elements of D4, by the axis of `symmetrise`


def plain_scene(rng: np.random.Generator, parameters: Parameters, limits: Limits) -> Grids:
    """Objects of every family, anywhere."""
    return _scenes.draw(rng, limits, *_scenes.sides(rng, len(parameters), limits))


def _turn(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """The image under an element of D4, coded as `transform` does."""
    return transform(grids, parameters[:, 0]), everywhere(grids)


def _inverse_rotation(parameters: Parameters) -> tuple[str, Parameters]:
    return "rotate", inverse_d4(parameters)


def _translate(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """Everything moves by (down, right). Precondition: nothing leaves the grid."""
    rows, columns = (INDEX - step[:, None] for step in parameters.T)
    moved = sample(grids, rows, columns, grids.height, grids.width)
    return moved, counts(moved.cells) == counts(grids.cells)


def _scene_to_translate(rng: np.random.Generator, parameters: Parameters, limits: Limits) -> Grids:
    """Objects keep to a corner that leaves room for one to three steps."""
    height, width = _scenes.sides(rng, len(parameters), limits)
    steps = rng.integers(1, 4, len(parameters))
    room = []
    for side, step in zip((height, width), parameters.T, strict=True):
        margin = np.minimum(steps * abs(step), side - 3)
        room.append((np.where(step < 0, margin, 0), side - margin))
    (top, tall), (left, wide) = room
    return _scenes.draw(rng, limits, height, width, region=_scenes.Region(top, left, tall, wide))


def _wrap(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """Everything moves by (down, right), and what leaves the grid comes in at the opposite side."""
    height, width = grids.height[:, None], grids.width[:, None]
    down, right = parameters[:, :1], parameters[:, 1:]
    return sample(grids, (INDEX - down) % height, (INDEX - right) % width, *grids[1:]), everywhere(grids)


def _some_step(most: int):
    def draw(rng: np.random.Generator, number: int) -> Parameters:
        step = rng.integers(-most, most + 1, (number, 2))
        step[:, 0] += (step == 0).all(axis=1)
        return step

    return draw


def _scale(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """Every cell becomes a square of `factor` cells a side. Precondition: the result has at most 30 x 30."""
    factor = parameters[:, 0]
    fits = np.maximum(grids.height, grids.width) * factor <= CANVAS
    index = INDEX // factor[:, None]
    size = (np.where(fits, side * factor, side) for side in grids[1:])
    return sample(grids, index, index, *size), fits


def _shrink(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """Every square of `factor` cells a side becomes a cell. Precondition: the grid is made of squares of one colour."""
    factor = parameters[:, 0]
    index = np.minimum(INDEX * factor[:, None], CANVAS - 1)
    small = sample(grids, index, index, -(-grids.height // factor), -(-grids.width // factor))
    return small, equal(_scale(small, parameters)[0], grids)


def _scene_to_scale(rng: np.random.Generator, parameters: Parameters, limits: Limits) -> Grids:
    """Sides from 3 on, so that a second time finds room."""
    size = _scenes.sides(rng, len(parameters), limits, 3, limits.canvas // parameters[:, 0])
    return _scenes.draw(rng, limits, *size, number=(1, 5), extent=(1, 5))


def _scene_to_shrink(rng: np.random.Generator, parameters: Parameters, limits: Limits) -> Grids:
    size = _scenes.sides(rng, len(parameters), limits, 3, limits.side // parameters[:, 0])
    return _scale(_scenes.draw(rng, limits, *size, number=(1, 5), extent=(1, 5)), parameters)[0]


def _tile(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """The grid repeated `down` times below and `right` times beside. Precondition: at most 30 x 30 come out."""
    tall, wide = grids.height * parameters[:, 0], grids.width * parameters[:, 1]
    fits = np.maximum(tall, wide) <= CANVAS
    rows, columns = (INDEX % side[:, None] for side in grids[1:])
    return sample(grids, rows, columns, np.where(fits, tall, grids.height), np.where(fits, wide, grids.width)), fits


def _scene_to_tile(rng: np.random.Generator, parameters: Parameters, limits: Limits) -> Grids:
    height, width = (
        _scenes.sides(rng, len(parameters), limits, high=limits.canvas // times)[0] for times in parameters.T
    )
    return _scenes.draw(rng, limits, height, width, number=(1, 5), extent=(1, 5))


def _tilings(rng: np.random.Generator, number: int) -> Parameters:
    return np.array([(a, b) for a in (1, 2, 3) for b in (1, 2, 3) if a * b > 1])[rng.integers(8, size=number)]


def _mirror(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """The grid and, on the given side of it, its mirror image. Precondition: at most 30 cells across."""
    side = parameters[:, 0]
    turned = facing(grids, side)
    fits = 2 * turned.height <= CANVAS
    height = turned.height[:, None]
    rows = np.where(height > INDEX, INDEX, 2 * height - 1 - INDEX)
    doubled = sample(turned, rows, _IDENTITY, np.where(fits, 2 * turned.height, turned.height), turned.width)
    return turned_back(doubled, side), fits


def _scene_to_mirror(rng: np.random.Generator, parameters: Parameters, limits: Limits) -> Grids:
    size = _scenes.sides(rng, len(parameters), limits, high=limits.canvas // 2)
    return _scenes.draw(rng, limits, *size, number=(1, 5), extent=(1, 5))


def _half(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """The half on the given side, without the middle of an odd number. Precondition: two cells across at least."""
    side = parameters[:, 0]
    turned = facing(grids, side)
    half = turned.height // 2
    lower = sample(turned, INDEX + (turned.height - half)[:, None], _IDENTITY, np.maximum(half, 1), turned.width)
    return turned_back(lower, side), half > 0


def _inverse_mirror(parameters: Parameters) -> tuple[str, Parameters]:
    return "half", parameters ^ 1  # the original lies on the other side


def _frame(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """A border of one colour around the grid. Precondition: at most 28 x 28 cells."""
    fits = np.maximum(grids.height, grids.width) <= CANVAS - 2
    size = [np.where(fits, side + 2, side) for side in grids[1:]]
    framed = sample(grids, _IDENTITY - 1, _IDENTITY - 1, *size)
    ring = _ring(framed)
    framed.cells[:] = np.where(ring, parameters[:, :1, None].astype(np.uint8), framed.cells)
    return framed, fits


def _ring(grids: Grids) -> np.ndarray:
    """bool [n, 30, 30]: the outermost cells of each grid."""
    rows = (INDEX == 0) | (grids.height[:, None] - 1 == INDEX)
    columns = (INDEX == 0) | (grids.width[:, None] - 1 == INDEX)
    return (rows[:, :, None] | columns[:, None, :]) & inside(grids)


def _scene_to_frame(rng: np.random.Generator, parameters: Parameters, limits: Limits) -> Grids:
    return _scenes.draw(rng, limits, *_scenes.sides(rng, len(parameters), limits, high=min(22, limits.canvas - 2)))


def _inverse_frame(parameters: Parameters) -> tuple[str, Parameters]:
    return "trim", parameters[:, :0]


def _trim(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """The grid without its outermost cells. Precondition: they are a frame of one colour around something."""
    height, width = grids.height - 2, grids.width - 2
    colour = grids.cells[:, :1, :1]
    framed = ~(_ring(grids) & (grids.cells != colour)).any(axis=(1, 2)) & (colour[:, 0, 0] > 0)
    inner = sample(grids, _IDENTITY + 1, _IDENTITY + 1, np.maximum(height, 1), np.maximum(width, 1))
    return inner, framed & (height > 0) & (width > 0)


def _scene_to_trim(rng: np.random.Generator, parameters: Parameters, limits: Limits) -> Grids:
    """Three frames, so that there is an orbit."""
    grids = _scenes.draw(rng, limits, *_scenes.sides(rng, len(parameters), limits, 4, limits.side - 6))
    for _ in range(3):
        grids, _ = _frame(grids, rng.integers(1, 10, (len(parameters), 1)))
    return grids


def _symmetrise(grids: Grids, parameters: Parameters) -> tuple[Grids, np.ndarray]:
    """Background takes the colour of its mirror image, left-right (0), up-down (1) or by a half turn (2).

    Precondition: no cell has another colour than its image where neither is background.
    """
    image = transform(grids, _MIRROR[parameters[:, 0]]).cells
    clash = ((grids.cells != image) & (grids.cells > 0) & (image > 0)).any(axis=(1, 2))
    return grids._replace(cells=np.where(grids.cells > 0, grids.cells, image)), ~clash


def _scene_to_symmetrise(rng: np.random.Generator, parameters: Parameters, limits: Limits) -> Grids:
    """Objects in one half; in every second scene their images too, but for a band at the top."""
    axis = parameters[:, 0]
    height, width = _scenes.sides(rng, len(parameters), limits)
    across = axis != 1
    zero = np.zeros_like(height)
    tall, wide = np.where(across, height, height // 2), np.where(across, width // 2, width)
    grids = _scenes.draw(rng, limits, height, width, region=_scenes.Region(zero, zero, tall, wide), number=(1, 5))
    whole, _ = _symmetrise(grids, parameters)
    keep = rng.integers(1, height // 2 + 1)
    damaged = whole.cells * (keep[:, None] <= INDEX)[:, :, None]
    chosen = (rng.random(len(height)) < 0.5) & across
    return grids._replace(cells=np.where(chosen[:, None, None], np.maximum(damaged, grids.cells), grids.cells))


PRIMITIVES = {
    "rotate": Primitive(("d4",), choices((3, 5, 6)), _turn, plain_scene, _inverse_rotation, repeats=8),
    "reflect": Primitive(("d4",), choices((1, 2, 4, 7)), _turn, plain_scene, lambda p: ("reflect", p), repeats=8),
    "translate": Primitive(
        ("down", "right"),
        _some_step(3),
        _translate,
        _scene_to_translate,
        lambda p: ("translate", -p),
        repeats=3,
    ),
    "wrap": Primitive(("down", "right"), _some_step(5), _wrap, plain_scene, lambda p: ("wrap", -p), repeats=8),
    "scale": Primitive(("factor",), choices((2, 3, 4, 5)), _scale, _scene_to_scale, lambda p: ("shrink", p), repeats=2),
    "shrink": Primitive(("factor",), choices((2, 3, 4, 5)), _shrink, _scene_to_shrink, lambda p: ("scale", p)),
    "tile": Primitive(("down", "right"), _tilings, _tile, _scene_to_tile),
    "mirror": Primitive(("side",), choices(DIRECTIONS), _mirror, _scene_to_mirror, _inverse_mirror),
    "half": Primitive(("side",), choices(DIRECTIONS), _half, plain_scene, repeats=2),
    "frame": Primitive(("colour",), choices(_COLOURS), _frame, _scene_to_frame, _inverse_frame, repeats=3),
    "trim": Primitive((), choices(), _trim, _scene_to_trim, repeats=3),
    "symmetrise": Primitive(("axis",), choices((0, 1, 2)), _symmetrise, _scene_to_symmetrise),
}

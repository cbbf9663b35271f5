"""Scenes: grids with objects that do not touch, drawn for many grids at once.

A scene is drawn to meet the precondition of a primitive: the caller chooses sides, families, extents, colours and the
region that objects keep to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jepa.data import _shapes
from jepa.data._grids import AREA, CANVAS, Grids

MIN_SIDE, MAX_OBJECTS = 6, 8
_PROPOSALS = 4  # places tried for each object; one that fits nowhere is left out


class Region(NamedTuple):
    """A rectangle of each grid, int64 [n] each."""

    top: np.ndarray
    left: np.ndarray
    height: np.ndarray
    width: np.ndarray


class Limits(NamedTuple):
    """How large scenes may be: the largest side, 11 to 30, and the most objects, 2 to 8; and the largest side of any
    grid that is made of them, `canvas`, from that of scenes to 30.

    Scenes of lines, bars or panels know no number of objects, and keep to the side alone.
    """

    side: int
    objects: int
    canvas: int = CANVAS


UNLIMITED = Limits(CANVAS, MAX_OBJECTS)


def check(limits: Limits) -> None:
    """Raises ValueError for limits that leave some primitives without scenes."""
    bounds = ((11, CANVAS), (2, MAX_OBJECTS), (limits.side, CANVAS))
    for name, value, (low, high) in zip(limits._fields, limits, bounds, strict=True):
        if not low <= value <= high:
            raise ValueError(f"limits.{name} is {value}; it must be from {low} to {high}")


def sides(
    rng: np.random.Generator, number: int, limits: Limits, low: int = MIN_SIDE, high: int | np.ndarray = CANVAS
) -> tuple[np.ndarray, np.ndarray]:
    """Heights and widths [number], uniform from low to high, both included, within the limits.

    high may be one for each grid; where it is below low, it is the side.
    """
    limit = np.minimum(np.broadcast_to(high, number), limits.side) + 1
    low = np.minimum(low, limit - 1)
    return rng.integers(low, limit), rng.integers(low, limit)


def colours(
    rng: np.random.Generator, number: int, *, first: np.ndarray | None = None, without: np.ndarray | None = None
) -> np.ndarray:
    """Colours 1..9 of objects, uint8 [number, 8]: that of the first one, if given, and others unlike `without` [n].

    `without` does not apply to the first colour.
    """
    drawn = rng.integers(1, 10, (number, MAX_OBJECTS))
    if without is not None:
        clash = drawn == without[:, None]
        drawn = np.where(clash, (without[:, None] - 1 + rng.integers(1, 9, drawn.shape)) % 9 + 1, drawn)
    if first is not None:
        drawn[:, 0] = first
    return drawn.astype(np.uint8)


def draw(
    rng: np.random.Generator,
    limits: Limits,
    height: np.ndarray,
    width: np.ndarray,
    *,
    region: Region | None = None,
    number: tuple[int, int] = (1, MAX_OBJECTS),
    dots: tuple[int, int] = (0, 0),
    families: Sequence[str] = _shapes.FAMILIES,
    extent: tuple[int, int] = (2, 7),
    palette: np.ndarray | None = None,
    gap: int = 1,
) -> Grids:
    """Scenes of the given sizes with `number` objects of these families and extents, and `dots` single cells.

    number, dots, extent: least and most, both included; together no more objects than the limits allow. Boxes keep
    `gap` cells apart, and an object that finds no place after a few tries is left out, though never the first. palette
    uint8 [n, 8]: the colours of the objects, dots last; random without. region: where objects may lie, the whole grid
    without.
    """
    n, slots = len(height), number[1] + dots[1]
    if slots > MAX_OBJECTS:
        raise ValueError(f"{slots} objects in a scene; at most {MAX_OBJECTS} find room")
    region = Region(np.zeros_like(height), np.zeros_like(width), height, width) if region is None else region
    palette = colours(rng, n) if palette is None else palette
    room = np.stack([region.height, region.width], axis=1)
    shape = _draw_shapes(rng, room, number[1], dots[1], families, extent)  # [n, slots]
    # The least number of dots has its room, whatever the limits.
    number_drawn = _between(rng, n, number, limits.objects - dots[0])
    dots_drawn = np.minimum(_between(rng, n, dots, limits.objects), limits.objects - number_drawn)
    wanted = np.empty((n, slots), bool)
    wanted[:, : number[1]] = np.arange(number[1]) < number_drawn[:, None]
    wanted[:, number[1] :] = np.arange(dots[1]) < dots_drawn[:, None]
    corner, placed = _place(rng, _shapes.bank().extent[shape], wanted, room, gap)
    corner += np.stack([region.top, region.left], axis=1)[:, None]
    return Grids(_paint(shape, corner, placed, palette), height, width)


def _between(rng: np.random.Generator, count: int, bounds: tuple[int, int], most: int) -> np.ndarray:
    """Numbers [count], uniform within the bounds, both included, and none above `most`."""
    low, high = (min(bound, most) for bound in bounds)
    return rng.integers(low, high + 1, count)


def _draw_shapes(
    rng: np.random.Generator,
    room: np.ndarray,
    objects: int,
    dots: int,
    families: Sequence[str],
    extent: tuple[int, int],
) -> np.ndarray:
    """Shapes of the bank, int64 [n, objects + dots], each of which fits into the room int64 [n, 2]."""
    low, high = extent
    most = np.minimum(room, high)[:, None]
    least = np.minimum(low, most)
    size = least + (rng.random((len(room), objects, 2)) * (most - least + 1)).astype(np.int64)
    family = _shapes.numbers(families)[rng.integers(len(families), size=(len(room), objects))]
    bank = _shapes.bank()
    d4 = rng.integers(8, size=family.shape)
    shape = np.empty((len(room), objects + dots), np.int64)
    # Transposed shapes take the transposed extent, so that the extent as drawn fits.
    size = np.where((d4 & 4)[..., None] > 0, size[..., ::-1], size)
    shape[:, :objects] = bank.index[family, size[..., 0], size[..., 1], d4]
    shape[:, objects:] = bank.index[_shapes.FAMILIES.index("dot"), 1, 1, 0]
    return shape


def _place(
    rng: np.random.Generator, extent: np.ndarray, wanted: np.ndarray, room: np.ndarray, gap: int
) -> tuple[np.ndarray, np.ndarray]:
    """Top-left corners int64 [n, slots, 2] in the room, and which of the objects wanted found a place [n, slots]."""
    n, slots = wanted.shape
    # A place is drawn as one number, so that all boxes are a few operations on small arrays.
    draws = rng.random((n, slots, _PROPOSALS, 2), dtype=np.float32)
    proposals = (draws * (room[:, None] - extent + 1)[:, :, None]).astype(np.int16)
    low, high = np.empty((2, n, slots, 2), np.int16)
    low[:], high[:] = 4 * CANVAS, -4 * CANVAS  # a box that nothing meets
    placed = wanted.copy()
    everyone = np.arange(n)
    for slot in range(slots):
        start = proposals[:, slot]  # [n, proposals, 2]
        end = start + extent[:, slot, None].astype(np.int16)
        before = (slice(None), None, slice(0, slot))
        meets = (start[:, :, None] < high[before] + gap) & (low[before] < end[:, :, None] + gap)
        free = ~(meets[..., 0] & meets[..., 1]).any(axis=2)  # [n, proposals]
        choice = free.argmax(axis=1)
        placed[:, slot] &= free[everyone, choice]
        chosen = placed[:, slot]
        low[chosen, slot] = start[everyone, choice][chosen]
        high[chosen, slot] = end[everyone, choice][chosen]
    return low.astype(np.int64), placed


def _paint(shape: np.ndarray, corner: np.ndarray, placed: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """uint8 [n, 30, 30]: the cells of all shapes that are placed."""
    bank = _shapes.bank()
    grid, slot = np.nonzero(placed)
    chosen = shape[grid, slot]
    size = bank.size[chosen]
    cell = np.arange(size.sum()) + np.repeat(bank.start[chosen] - (np.cumsum(size) - size), size)
    top, left = corner[grid, slot].T
    first = grid * AREA + top * CANVAS + left
    cells = np.zeros(len(shape) * AREA, np.uint8)
    cells[np.repeat(first, size) + bank.row[cell] * CANVAS + bank.column[cell]] = np.repeat(palette[grid, slot], size)
    return cells.reshape(-1, CANVAS, CANVAS)

"""Scenes: shapes that hold together, objects that do not touch, and what the caller asked for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from jepa.data import _grids, _scenes, _shapes
from jepa.data._objects import transform_grid

EIGHT = np.ones((3, 3), bool)


def drawn(seed: int = 0, count: int = 300, limits: _scenes.Limits = _scenes.UNLIMITED, **options) -> _grids.Grids:
    rng = np.random.default_rng(seed)
    return _scenes.draw(rng, limits, *_scenes.sides(rng, count, limits), **options)


def components(grid: np.ndarray) -> list[tuple[np.ndarray, tuple[slice, slice]]]:
    """The cells of each object, cropped to its box, and the box."""
    labels, _ = ndimage.label(grid > 0, EIGHT)
    return [(labels[box] == i, box) for i, box in enumerate(ndimage.find_objects(labels), 1)]


@pytest.mark.parametrize("family", _shapes.FAMILIES)
def test_every_shape_of_a_family_holds_together_and_fits_its_extent(family):
    bank = _shapes.bank()
    number = _shapes.FAMILIES.index(family)
    for height in range(1, 9):
        for width in range(1, 9):
            cells = _shapes.shape(family, height, width)
            assert ndimage.label(cells, EIGHT)[1] == 1
            assert cells.shape[0] <= height and cells.shape[1] <= width
            for d4, index in enumerate(bank.index[number, height, width]):
                image = np.zeros(bank.extent[index], np.uint8)
                part = slice(bank.start[index], bank.start[index] + bank.size[index])
                image[bank.row[part], bank.column[part]] = 1
                np.testing.assert_array_equal(image, transform_grid(cells.astype(np.uint8), d4, range(10)))


def test_families_are_at_least_eight_and_differ():
    shapes = {_shapes.shape(family, 5, 6).tobytes() for family in _shapes.FAMILIES}
    assert len(shapes) == len(_shapes.FAMILIES) >= 8


@pytest.mark.parametrize("family", _shapes.HOLLOW)
def test_hollow_families_have_a_hole_from_an_extent_of_three_on(family):
    grids = _grids.stack([_shapes.shape(family, h, w).astype(np.uint8) for h in range(3, 9) for w in range(3, 9)])
    assert _grids.holes(grids.cells).any(axis=(1, 2)).all()


@pytest.mark.parametrize("family", _shapes.SOLID)
def test_solid_families_have_an_interior_from_an_extent_of_four_on(family):
    for height in range(4, 9):
        for width in range(4, 9):
            assert ndimage.binary_erosion(_shapes.shape(family, height, width)).any()


def test_objects_do_not_touch_and_are_shapes_of_the_bank():
    bank = _shapes.bank()
    known = set()
    for index in range(len(bank.size)):
        image = np.zeros(bank.extent[index], bool)
        part = slice(bank.start[index], bank.start[index] + bank.size[index])
        image[bank.row[part], bank.column[part]] = True
        known.add((image.shape, image.tobytes()))
    grids = drawn()
    numbers = []
    for cells, height, width in zip(*grids, strict=True):
        assert not cells[height:].any() and not cells[:, width:].any()
        found = components(cells)
        numbers.append(len(found))
        for shape, box in found:
            assert (shape.shape, np.ascontiguousarray(shape).tobytes()) in known
            assert len(np.unique(cells[box][shape])) == 1
    assert set(numbers) == set(range(1, 9))
    assert set(grids.height) | set(grids.width) == set(range(6, 31))
    assert set(np.unique(grids.cells)) == set(range(10))


def test_one_seed_gives_the_same_scenes_and_another_does_not():
    first, again, other = drawn(1), drawn(1), drawn(2)
    assert _grids.equal(first, again).all()
    assert not _grids.equal(first, other).any()


def test_number_and_dots_are_kept_where_there_is_room():
    rng = np.random.default_rng(0)
    side = np.full(100, 30)
    grids = _scenes.draw(
        rng, _scenes.UNLIMITED, side, side, number=(2, 2), dots=(1, 1), extent=(3, 4), families=("rectangle", "ring")
    )
    sizes = [sorted(int(shape.sum()) for shape, _ in components(cells)) for cells in grids.cells]
    assert all(size[0] == 1 for size in sizes)
    assert np.mean([len(size) == 3 for size in sizes]) > 0.98
    assert all(size[1] >= 8 for size in sizes)


def test_a_region_and_a_gap_are_kept():
    rng = np.random.default_rng(0)
    height, width = _scenes.sides(rng, 200, _scenes.UNLIMITED)
    region = _scenes.Region(height // 3, width // 2, height // 2, width // 3)
    grids = _scenes.draw(rng, _scenes.UNLIMITED, height, width, region=region, gap=3, extent=(1, 3))
    assert (_grids.counts(grids.cells) > 0).all()
    for cells, top, left, tall, wide in zip(grids.cells, *region, strict=True):
        outside = cells.copy()
        outside[top : top + tall, left : left + wide] = 0
        assert not outside.any()
        boxes = [box for _, box in components(cells)]
        for i, (rows, columns) in enumerate(boxes):
            for other_rows, other_columns in boxes[:i]:
                apart = max(rows.start - other_rows.stop, other_rows.start - rows.stop)
                aside = max(columns.start - other_columns.stop, other_columns.start - columns.stop)
                assert max(apart, aside) >= 3


def test_colours_are_those_asked_for():
    rng = np.random.default_rng(0)
    first, without = rng.integers(1, 10, (2, 500))
    palette = _scenes.colours(rng, 500, first=first, without=without)
    np.testing.assert_array_equal(palette[:, 0], first)
    assert (palette[:, 1:] != without[:, None]).all() and palette.min() >= 1 and palette.max() <= 9
    shares = [np.bincount(palette[without == colour, 1:].ravel(), minlength=10)[1:] for colour in range(1, 10)]
    shares = np.array(shares) / np.sum(shares, axis=1, keepdims=True)
    np.testing.assert_allclose(shares[~np.eye(9, dtype=bool)], 1 / 8, atol=0.07)
    grids = drawn(3, 500, palette=palette)
    for cells, colours in zip(grids.cells, palette, strict=True):
        assert set(np.unique(cells)) - {0} <= set(colours)
        assert colours[0] in cells


def test_too_many_objects_are_refused():
    with pytest.raises(ValueError, match="9 objects in a scene"):
        drawn(number=(1, 6), dots=(0, 3))


def test_limits_are_kept_and_the_least_number_of_dots_has_its_room():
    grids = drawn(limits=_scenes.Limits(side=12, objects=3), number=(1, 4), dots=(1, 4), extent=(2, 3))
    assert max(grids.height.max(), grids.width.max()) == 12
    found = [[int(shape.sum()) for shape, _ in components(cells)] for cells in grids.cells]
    assert {len(sizes) for sizes in found} == {2, 3}
    assert np.mean([1 in sizes for sizes in found]) > 0.95
    for limits in (_scenes.Limits(10, 8), _scenes.Limits(31, 8), _scenes.Limits(30, 1), _scenes.Limits(30, 9)):
        with pytest.raises(
            ValueError, match=r"limits\.(side|objects) is (10|31|1|9); it must be from (11|2) to (30|8)"
        ):
            _scenes.check(limits)

"""Primitives against a slow reference, cell by cell, and the laws of each; then whole programs."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from _slow_primitives import SLOW

from jepa.data import _grids, _primitives, _programs
from jepa.data._objects import transform_grid
from jepa.data._primitives import FAMILIES, PRIMITIVES
from jepa.data._scenes import UNLIMITED, Limits

IDEMPOTENT = (
    *("gravity", "keep_colour", "hollow", "fill_holes", "denoise", "extend", "connect", "symmetrise", "continue"),
    *("keep_largest", "recolour_largest", "move", "sort"),
)


def noise(rng: np.random.Generator, number: int) -> _grids.Grids:
    """Grids of one colour, then small ones of random cells: sparse and dense, of few and of many colours."""
    uniform = [(1, 1, 5), (1, 2, 5), (2, 2, 5), (3, 2, 5), (3, 3, 5), (30, 30, 5), (1, 1, 0), (30, 29, 0), (1, 30, 2)]
    grids = [np.full((height, width), colour, np.uint8) for height, width, colour in uniform]
    while len(grids) < number:
        colour = rng.integers(1, rng.integers(2, 10) + 1, rng.integers(1, 13, 2))
        grids.append((colour * (rng.random(colour.shape) < rng.choice([0.1, 0.3, 0.6, 0.95]))).astype(np.uint8))
    return _grids.stack(grids)


def scenes(name: str, number: int, seed: int = 0, limits: Limits = UNLIMITED) -> tuple[_grids.Grids, np.ndarray]:
    rng = np.random.default_rng([seed, FAMILIES.index(name)])
    parameters = PRIMITIVES[name].draw(rng, number)
    return PRIMITIVES[name].scene(rng, parameters, limits), parameters


def accepted(name: str, number: int, seed: int = 0) -> tuple[_grids.Grids, np.ndarray, _grids.Grids]:
    """Scenes that meet the precondition, parameters and results."""
    grids, parameters = scenes(name, number, seed)
    after, defined = PRIMITIVES[name].apply(grids, parameters)
    assert defined.mean() > 0.3
    return _grids.select(grids, defined), parameters[defined], _grids.select(after, defined)


def assert_equal(first: _grids.Grids, second: _grids.Grids) -> None:
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


# --- every family ---------------------------------------------------------------------------------------------------


def test_there_are_at_least_thirty_families_and_a_slow_form_of_each():
    assert len(FAMILIES) >= 30 and set(SLOW) == set(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_says_when_it_is_defined_and_what_its_parameters_are(name):
    primitive = PRIMITIVES[name]
    assert primitive.apply.__doc__
    parameters = primitive.draw(np.random.default_rng(0), 50)
    assert parameters.shape == (50, len(primitive.parameters)) and parameters.dtype == np.int64
    assert len(np.unique(parameters, axis=0)) > 1 or not primitive.parameters
    names = list(inspect.signature(SLOW[name]).parameters.values())[1:]
    assert len(names) == len(primitive.parameters) or names[0].kind is names[0].VAR_POSITIONAL


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_agrees_with_its_slow_form(name):
    rng = np.random.default_rng(FAMILIES.index(name))
    drawn, parameters = scenes(name, 40)
    grids = _grids.concatenate([drawn, noise(rng, 120)])
    parameters = np.concatenate([parameters, PRIMITIVES[name].draw(rng, 120)])
    before = [field.copy() for field in grids]
    after, defined = PRIMITIVES[name].apply(grids, parameters)
    for field, kept in zip(grids, before, strict=True):
        np.testing.assert_array_equal(field, kept, "the grids given were changed")
    assert after.cells.dtype == np.uint8 and (after.cells[~_grids.inside(after)] == 0).all()
    for grid, row, result, valid in zip(
        _grids.unstack(grids), parameters.tolist(), _grids.unstack(after), defined, strict=True
    ):
        expected = SLOW[name](grid.tolist(), *row)
        assert valid == (expected is not None), (grid, row)
        if valid:
            np.testing.assert_array_equal(result, np.array(expected), str((grid, row)))


@pytest.mark.parametrize("name", [name for name in FAMILIES if PRIMITIVES[name].inverse])
def test_the_inverse_of_a_family_undoes_it(name):
    grids, parameters, after = accepted(name, 60)
    other, undoing = PRIMITIVES[name].inverse(parameters)
    back, defined = PRIMITIVES[other].apply(after, undoing)
    assert defined.all()
    assert_equal(back, grids)


@pytest.mark.parametrize("name", IDEMPOTENT)
def test_a_second_time_changes_nothing(name):
    _, parameters, once = accepted(name, 60)
    twice, defined = PRIMITIVES[name].apply(once, parameters)
    assert_equal(_grids.select(twice, defined), _grids.select(once, defined))
    assert PRIMITIVES[name].repeats == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_scenes_mostly_meet_the_precondition_and_are_changed(name):
    grids, parameters = scenes(name, 300)
    after, defined = PRIMITIVES[name].apply(grids, parameters)
    assert (defined & ~_grids.equal(after, grids)).mean() > 0.4
    assert ((grids.height >= 3) & (grids.height <= 30) & (grids.width >= 3) & (grids.width <= 30)).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_scenes_keep_to_the_narrowest_limits_and_still_are_changed(name):
    grids, parameters = scenes(name, 300, limits=Limits(side=11, objects=2))
    after, defined = PRIMITIVES[name].apply(grids, parameters)
    assert (defined & ~_grids.equal(after, grids)).mean() > 0.15
    assert grids.height.max() <= 11 and grids.width.max() <= 11
    if name not in ("sort", "combine", "continue", "trim", "symmetrise"):
        assert np.bincount(_grids.objects(grids.cells).grid).max() <= 2


# --- laws of single families ----------------------------------------------------------------------------------------


def test_d4_is_a_group_and_acts_as_it_does_on_single_grids():
    grids = noise(np.random.default_rng(0), 64)
    first, second = (g.ravel() for g in np.divmod(np.arange(64), 8))
    for grid, image, d4 in zip(
        _grids.unstack(grids), _grids.unstack(_grids.transform(grids, first)), first, strict=True
    ):
        np.testing.assert_array_equal(image, transform_grid(grid, d4, range(10)))
    # The product of two elements, read off one grid without symmetry, holds for all of them.
    odd = _grids.stack([np.arange(6, dtype=np.uint8).reshape(2, 3)] * 64)
    images = _grids.transform(_grids.transform(odd, first), second)
    matches = np.stack([_grids.equal(_grids.transform(odd, np.full(64, d4)), images) for d4 in range(8)])
    assert (matches.sum(axis=0) == 1).all()
    product = matches.argmax(axis=0)
    assert all(len(set(product[first == d4])) == 8 for d4 in range(8))
    assert_equal(_grids.transform(_grids.transform(grids, first), second), _grids.transform(grids, product))
    assert_equal(_grids.transform(_grids.transform(grids, first), _grids.inverse(first)), grids)


def test_palettes_compose():
    rng = np.random.default_rng(0)
    grids = noise(rng, 50)
    apply, draw = PRIMITIVES["palette"].apply, PRIMITIVES["palette"].draw
    first, second = draw(rng, 50), draw(rng, 50)
    product = np.take_along_axis(second, first, axis=1)
    assert_equal(apply(apply(grids, first)[0], second)[0], apply(grids, product)[0])


def test_wrapping_by_the_side_is_the_identity_and_steps_add_up():
    rng = np.random.default_rng(0)
    grids, wrap = noise(rng, 50), PRIMITIVES["wrap"].apply
    assert_equal(wrap(grids, np.stack([-grids.height, 2 * grids.width], axis=1))[0], grids)
    first, second = rng.integers(-9, 10, (2, 50, 2))
    assert_equal(wrap(wrap(grids, first)[0], second)[0], wrap(grids, first + second)[0])


def test_falling_long_enough_is_gravity():
    grids, parameters = scenes("gravity", 50)
    fallen = grids
    for _ in range(29):
        fallen, _ = PRIMITIVES["fall"].apply(fallen, parameters)
    assert_equal(fallen, PRIMITIVES["gravity"].apply(grids, parameters)[0])


def test_filling_leaves_no_hole_and_hollowing_no_interior():
    _, _, filled = accepted("fill_holes", 60)
    assert not _grids.holes(filled.cells).any()
    _, _, hollowed = accepted("hollow", 60)
    assert not PRIMITIVES["erode"].apply(hollowed, np.zeros((60, 0), np.int64))[1].any()


def test_erosion_undoes_growth_at_least():
    grids, _, after = accepted("erode", 60)
    none = np.zeros((len(after.height), 0), np.int64)
    grown, _ = PRIMITIVES["grow"].apply(after, none)
    assert ((grids.cells == grown.cells) | (grown.cells == 0)).all()


def test_symmetrising_makes_symmetric():
    _, parameters, after = accepted("symmetrise", 60)
    assert_equal(_grids.transform(after, parameters[:, 0] + 1), after)


def test_moving_keeps_what_there_is():
    grids, _, after = accepted("move", 60)
    colours = np.arange(10)[:, None, None, None]
    np.testing.assert_array_equal((grids.cells == colours).sum((2, 3)), (after.cells == colours).sum((2, 3)))


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("2220000 0200000 0000000 0000030 0000000", "2220000 0200000 0000000 0000333 0000030"),
        ("2220000 0200000 0000000 0000003 0000000", None),  # leaves the grid
        ("2220000 0200000 0000000 0030500 0000000", None),  # two copies share a cell
        ("2222200 0000000 0000000 0030500 0000000", None),  # a copy covers another cell
        ("2220000 0200000 0000000 0300500 0000000", "2220000 0200000 0000000 3335550 0300500"),
    ],
)
def test_copies_that_would_collide_are_refused(text, result):
    grid, expected = (part and [[int(cell) for cell in row] for row in part.split()] for part in (text, result))
    assert SLOW["copy"](grid) == expected
    after, defined = PRIMITIVES["copy"].apply(_grids.stack([np.array(grid, np.uint8)]), np.zeros((1, 0), np.int64))
    assert defined[0] == (expected is not None)
    if expected:
        np.testing.assert_array_equal(_grids.unstack(after)[0], expected)


def test_xor_is_either_without_both():
    grids, parameters = scenes("combine", 60)
    both, either, xor = (
        PRIMITIVES["combine"].apply(grids, np.concatenate([np.full((60, 1), op), parameters[:, 1:]], axis=1))[0].cells
        for op in (0, 1, 2)
    )
    np.testing.assert_array_equal(xor, either - both)
    assert (both.any(axis=(1, 2))).mean() > 0.5


def test_objects_are_counted_as_one_by_one():
    grids = noise(np.random.default_rng(5), 200)
    found = _grids.objects(grids.cells)
    numbers = np.bincount(found.grid, minlength=200)
    assert (np.diff(found.grid) >= 0).all()
    for grid, number in zip(_grids.unstack(grids), numbers, strict=True):
        after, defined = PRIMITIVES["rank"].apply(_grids.stack([(grid > 0) * np.uint8(3)]), np.zeros((1, 1), np.int64))
        if defined[0]:
            assert after.width[0] == number


# --- programs -------------------------------------------------------------------------------------------------------


def replay(trace: _programs.Trace) -> None:
    """Every step of a trace is what its family makes of the grid before it, and changes it."""
    n, num_scenes, length = trace.cells.shape[:3]
    for step in range(length - 1):
        before, after = (
            _grids.Grids(trace.cells[:, :, at].reshape(-1, 30, 30), *trace.size[:, :, at].reshape(n * num_scenes, 2).T)
            for at in (step, step + 1)
        )
        families, parameters = (x[:, step].repeat(num_scenes, axis=0) for x in (trace.families, trace.parameters))
        result, defined = _programs.apply(before, families, parameters)
        assert defined.all()
        assert_equal(result, after)
        assert not _grids.equal(before, after).any()


def test_every_family_is_drawn_in_one_batch_and_what_is_rejected_is_counted():
    families = np.random.default_rng(1).permutation(np.resize(np.arange(len(FAMILIES)), 400))[:, None]
    trace, tally = _programs.draw(np.random.default_rng(0), families)
    replay(trace)
    np.testing.assert_array_equal(trace.families, families)
    wanted = np.bincount(families[:, 0], minlength=len(FAMILIES))
    # A program that is tried several times at once may be met more than once.
    assert (tally.applied - tally.undefined - tally.unchanged >= wanted).all()
    assert tally.undefined.sum() > 0 and tally.unchanged.sum() > 0


def test_one_seed_gives_the_same_programs_and_another_does_not():
    families = np.arange(len(FAMILIES))[:, None]
    first, again, other = (_programs.draw(np.random.default_rng(seed), families)[0] for seed in (0, 0, 1))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (first.cells != other.cells).any(axis=(1, 2, 3, 4)).mean() > 0.9


@pytest.mark.parametrize("length", [2, 3, 8])
def test_orbits_repeat_one_primitive(length):
    names = _primitives.repeating(length)
    families = _primitives.numbers(names * 4)[:, None].repeat(length, axis=1)
    trace, _ = _programs.draw(np.random.default_rng(0), families, orbit=True)
    replay(trace)
    assert (trace.parameters == trace.parameters[:, :1]).all()
    assert len(names) >= (4 if length == 8 else 8)


def test_several_scenes_share_one_program():
    families = np.arange(len(FAMILIES))[:, None]
    trace, _ = _programs.draw(np.random.default_rng(0), families, num_scenes=3)
    replay(trace)
    assert trace.cells.shape == (len(FAMILIES), 3, 2, 30, 30)
    assert (trace.cells[:, 0, 0] != trace.cells[:, 1, 0]).any(axis=(1, 2)).all()


def test_new_parameters_hold_for_all_scenes_of_a_program(monkeypatch):
    monkeypatch.setattr(_programs, "_PATIENCE", 1)
    families = _primitives.numbers(["conditional"] * 40)[:, None]
    trace, _ = _programs.draw(np.random.default_rng(0), families, num_scenes=3)
    replay(trace)


def test_a_composition_never_comes_back():
    names = [("recolour", "gravity", "frame"), ("rotate", "rotate", "reflect"), ("crop", "scale", "wrap")] * 10
    trace, _ = _programs.draw(np.random.default_rng(0), _primitives.numbers(names))
    replay(trace)
    for i in range(4):
        for j in range(i):
            same = (trace.cells[:, 0, i] == trace.cells[:, 0, j]).all(axis=(1, 2))
            assert not (same & (trace.size[:, 0, i] == trace.size[:, 0, j]).all(axis=1)).any()


def test_a_program_without_scenes_is_named():
    with pytest.raises(ValueError, match="no scenes for the program count then denoise"):
        _programs.draw(np.random.default_rng(0), _primitives.numbers([("count", "denoise")]))
    with pytest.raises(ValueError, match="an orbit applies one family"):
        _programs.draw(np.random.default_rng(0), _primitives.numbers([("gravity", "frame")]), orbit=True)

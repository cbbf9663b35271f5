"""Programs by the step: what is held out never shows, and a batch depends on its step and the seed alone."""

from __future__ import annotations

import functools
import os

import jax
import numpy as np
import pytest

from jepa.data import (
    _compositions,
    _grids,
    _objects,
    _primitives,
    _program_blocks,
    _program_rows,
    _programs,
    _scenes,
    programs,
)
from jepa.data._ahead import ahead
from jepa.data._primitives import FAMILIES

HELD_OUT = ("sort", "copy", "wrap", "erode")


@pytest.fixture(scope="module")
def split() -> _compositions.Split:
    return _compositions.split(HELD_OUT, 0.1)


def pairs_of(families: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return families[:, :-1].ravel(), families[:, 1:].ravel()


def square(number: int) -> int:
    if number == 4:
        os._exit(1)
    if number == 3:
        raise ValueError("three is no number")
    return number * number


# --- compositions ---------------------------------------------------------------------------------------------------


def test_a_split_parts_what_is_possible(split):
    held_out = np.isin(FAMILIES, HELD_OUT)
    np.testing.assert_array_equal(split.families, ~held_out)
    assert not (split.pairs & split.held_out_pairs).any()
    assert not (split.pairs | split.held_out_pairs)[held_out].any()
    assert not (split.pairs | split.held_out_pairs)[:, held_out].any()
    assert not split.novel_pairs[np.ix_(~held_out, ~held_out)].any()
    share = split.held_out_pairs.sum() / (split.pairs | split.held_out_pairs).sum()
    assert 0.05 < share < 0.15
    # A pair stays on its side, whatever else is held out.
    other = _compositions.split((), 0.1)
    np.testing.assert_array_equal(other.held_out_pairs & ~held_out & ~held_out[:, None], split.held_out_pairs)


def test_what_may_follow_is_what_is_often_possible():
    acceptance = _compositions.acceptance()
    often, never = _primitives.numbers([("mirror", "frame"), ("count", "denoise")])
    assert acceptance[tuple(often)] > 0.5 and acceptance[tuple(never)] == 0


def test_chains_go_on_with_allowed_pairs_only_and_reach_their_length():
    rng = np.random.default_rng(0)
    count = len(FAMILIES)
    pairs = np.zeros((count, count), bool)
    pairs[[0, 0, 1, 2, 3], [1, 2, 3, 0, 4]] = True  # 4 leads nowhere
    families = _compositions.chains(rng, 500, np.ones(count, bool), [pairs, pairs])
    assert pairs[pairs_of(families)].all()
    assert {tuple(chain) for chain in families} == {(0, 1, 3), (0, 2, 0), (1, 3, 4), (2, 0, 1), (2, 0, 2)}
    longer = _compositions.chains(rng, 500, np.ones(count, bool), [pairs] * 4)
    assert longer.shape == (500, 5) and pairs[pairs_of(longer)].all()
    with pytest.raises(ValueError, match="no program of 3 steps is left"):
        _compositions.chains(rng, 5, np.arange(count) == 3, [pairs, pairs])


def test_an_unknown_family_cannot_be_held_out():
    with pytest.raises(ValueError, match="did you mean 'gravity'"):
        _compositions.split(("gravitty",), 0.1)


# --- recipes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 3])
def test_training_never_shows_what_is_held_out_and_held_out_programs_always_do(split, length):
    found = _program_blocks.recipes(split, length=length, num_scenes=1, orbit=False)
    assert set(found) == {"train", "families"} | ({"compositions"} if length > 1 else set())
    rng = np.random.default_rng(0)
    families = {name: _program_blocks.sample(recipe, rng, 2000) for name, recipe in found.items()}
    novel = {name: ~split.families[drawn] for name, drawn in families.items()}
    held_out = {name: split.held_out_pairs[pairs_of(drawn)].reshape(len(drawn), -1) for name, drawn in families.items()}
    assert not novel["train"].any() and not held_out["train"].any()
    assert novel["families"].any(axis=1).all()
    assert set(np.unique(families["train"])) == set(np.flatnonzero(split.families))
    if length > 1:
        assert held_out["compositions"][:, 0].all() and not novel["compositions"].any()


def test_orbits_have_room_for_their_length(split):
    found = _program_blocks.recipes(split, length=4, num_scenes=1, orbit=True)
    drawn = {name: _program_blocks.sample(recipe, np.random.default_rng(0), 200) for name, recipe in found.items()}
    assert {FAMILIES[number] for number in drawn["families"].ravel()} == {"wrap"}
    assert (drawn["train"] == drawn["train"][:, :1]).all()
    assert {FAMILIES[number] for number in drawn["train"].ravel()} <= set(_primitives.repeating(4)) - {"wrap"}


def test_nothing_left_to_train_on_is_an_error():
    everything = _compositions.split(FAMILIES, 0.0)
    with pytest.raises(ValueError, match="no program of 2 steps is left to train on"):
        _program_blocks.recipes(everything, length=2, num_scenes=1, orbit=False)
    with pytest.raises(ValueError, match="programs of 0 steps"):
        _program_blocks.recipes(everything, length=0, num_scenes=1, orbit=False)


# --- streams --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2])
def test_scenes_keep_to_the_limits_of_the_recipe(split, length):
    limits = _scenes.Limits(side=11, objects=3)
    recipe = _program_blocks.recipes(split, length=length, num_scenes=1, orbit=False, limits=limits)["train"]
    trace, _ = _program_blocks.block(recipe, 0, 200, 0)
    assert trace.size[:, :, 0].max() == 11
    with pytest.raises(ValueError, match=r"limits.side is 40"):
        _program_blocks.recipes(split, length=1, num_scenes=1, orbit=False, limits=limits._replace(side=40))


def test_a_block_is_counted(split):
    recipe = _program_blocks.recipes(split, length=1, num_scenes=1, orbit=False)["train"]
    trace, tally = _program_blocks.block(recipe, 0, 100, 0)
    assert len(trace.families) == 100
    assert (tally.applied - tally.undefined - tally.unchanged).sum() >= 100


def test_tables_are_those_of_every_grid_by_itself(split):
    recipe = _program_blocks.recipes(split, length=2, num_scenes=2, orbit=False)["train"]
    trace, _ = _program_blocks.block(recipe, 0, 6, 0)
    tables = _program_blocks.tables(trace.cells, trace.size)
    for place in np.ndindex(6, 2, 3):
        height, width = trace.size[place]
        alone = _objects.tokenise([trace.cells[place][:height, :width]], [0])
        for key, leaf in tables.items():
            np.testing.assert_array_equal(leaf[place], alone[key][0])
            assert leaf.dtype.itemsize <= 2


def test_programs_that_find_no_scenes_make_room_for_others():
    possible, impossible = _primitives.numbers([("mirror", "frame"), ("count", "denoise")])

    def sample(rng: np.random.Generator, number: int) -> np.ndarray:
        return np.where(rng.random((number, 1)) < 0.5, possible, impossible)

    trace, _ = _programs.fill(np.random.default_rng(0), 50, sample)
    assert (trace.families == possible).all() and len(trace.families) == 50
    with pytest.raises(ValueError, match="5 of 5 programs find no scenes"):
        _programs.fill(np.random.default_rng(0), 5, lambda rng, number: np.stack([impossible] * number))


def test_workers_make_what_is_made_here_and_say_what_went_wrong():
    workers = ahead(square, num_workers=1)
    try:
        asked = [(0, (1, 2)), (1, (2,)), (2, ()), (7, (1,)), (1, ())]
        assert [workers.get(number, upcoming) for number, upcoming in asked] == [0, 1, 4, 49, 1]
        with pytest.raises(ValueError, match="three is no number"):
            workers.get(3)
        with pytest.raises(OSError, match=r"config\.data\.num_workers=0"):
            workers.get(4)
    finally:
        workers.close()
    here = ahead(square, num_workers=0)
    assert [here.get(number) for number in (0, 7, 7)] == [0, 49, 49]
    with pytest.raises(ValueError, match="at least 0"):
        ahead(square, num_workers=-1)


# --- the source -----------------------------------------------------------------------------------------------------

STREAMS = {
    "analogy": {"length": 2},
    "orbit": {"stream": "orbit", "context_window": 2, "target_offset": 2},
    "transition": {"stream": "transition", "length": 2, "d4": False, "palette": False},
    "cells": dict(
        stream="transition", length=4, side=12, canvas=12, d4=False, palette=False, translation=False, objects=4
    ),
}
LEVELS = {"length": (1, 1, 2), "families": ("geometry", "geometry+cells", "all"), "objects": (3, 5, 8), "side": 20}


def build(**options):
    fixed = {"seed": 5, "batch_size": 6, "cache_dir": "", "num_workers": 0, "batches_per_block": 3}
    return programs.build(**fixed | options)


def equal(first, second) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (first, second)), strict=True))


@pytest.mark.parametrize("options", STREAMS.values(), ids=STREAMS)
def test_rows_depend_on_the_step_and_the_seed_alone(options):
    one, resumed, other = build(**options), build(**options), build(**options, seed=6)
    in_order = [one.indices(step) for step in range(4)]
    assert all(equal(in_order[step], resumed.indices(step)) for step in (3, 0, 2, 1))
    assert not equal(in_order[0], other.indices(0))
    assert not equal(in_order[0], one.validation["programs"].indices(0))
    assert one.digest == other.digest != build(**options, held_out_share=0.2).digest
    assert equal(one.validation["programs"].indices(1), other.validation["programs"].indices(1))


def test_rows_of_workers_are_those_of_none():
    with_worker, without = build(num_workers=1, batches_per_block=2), build(batches_per_block=2)
    try:
        for step in (0, 1, 2, 5):
            assert equal(with_worker.indices(step), without.indices(step))
    finally:
        with_worker.close()


def test_analogies_end_with_the_query_and_orbits_with_a_later_grid():
    """Against the programs themselves, applied once more to the grids that are shown."""
    recipe = _program_blocks.recipes(_compositions.split((), 0.1), length=2, num_scenes=2, orbit=False)["train"]
    trace, _ = _program_blocks.block(recipe, 0, 5, 0)
    cells, size, _, groups = _program_rows.window(trace, _program_rows.Shown("analogy", 3, 1))
    for shown, (scene, step) in enumerate(((0, 0), (0, 2), (1, 0), (1, 2))):
        np.testing.assert_array_equal(cells[:, shown], trace.cells[:, scene, step])
        np.testing.assert_array_equal(size[:, shown], trace.size[:, scene, step])
    alone, _, _, _ = _program_rows.window(trace, _program_rows.Shown("analogy", 2, 1))
    np.testing.assert_array_equal(alone, cells[:, 1:])
    assert len(set(groups.tolist())) == len({program.tobytes() for program in trace.families})

    recipe = _program_blocks.recipes(_compositions.split((), 0.1), length=4, num_scenes=1, orbit=True)["train"]
    trace, _ = _program_blocks.block(recipe, 0, 5, 0)
    cells, size, _, _ = _program_rows.window(trace, _program_rows.Shown("orbit", 3, 2))
    grids = [_grids.Grids(cells[:, t], *size[:, t].T) for t in range(4)]
    step = functools.partial(_programs.apply, families=trace.families[:, 0], parameters=trace.parameters[:, 0])
    after = grids[0]
    for count in range(1, 5):
        after, _ = step(after)
        if count != 3:
            assert _grids.equal(after, grids[min(count, 3)]).all()


def test_actions_say_what_was_done():
    source = build(**STREAMS["transition"])
    rows = source.indices(0)
    batch = jax.jit(source.gather, static_argnums=3)(source.tables, rows, jax.random.key(0), True)
    assert batch.actions.shape == (6, 2, 47) and batch.context["size"].shape == (6, 2, 2)
    recipe = _program_blocks.recipes(_compositions.split((), 0.1), length=2, num_scenes=1, orbit=False)["train"]
    trace, _ = _program_blocks.block(recipe, 0, 5, 0)
    cells, size, actions, _ = _program_rows.window(trace, _program_rows.Shown("transition", 3, 1))
    for t in range(2):
        before = _grids.Grids(cells[:, t], *size[:, t].T)
        after, _ = _programs.apply(before, actions[:, t, 0], actions[:, t, 1:])
        assert _grids.equal(after, _grids.Grids(cells[:, t + 1], *size[:, t + 1].T)).all()
    with pytest.raises(ValueError, match="d4 and palette would make wrong"):
        build(stream="transition")


def test_a_batch_is_the_rows_under_one_symmetry_each():
    source = build(d4=False, translation=False)
    rows = source.indices(0)
    gather = jax.jit(source.gather, static_argnums=3)
    plain = gather(source.tables, rows, jax.random.key(1), False)
    batch = gather(source.tables, rows, jax.random.key(1), True)
    np.testing.assert_array_equal(plain.target["histogram"], rows["grids"]["histogram"][:, -1])
    for before, after in ((plain.context, batch.context), (plain.target, batch.target)):
        np.testing.assert_array_equal(before["box"], after["box"])
    shown = np.concatenate([batch.context["histogram"], batch.target["histogram"][:, None]], axis=1)[..., 0, :]
    for row, grids in enumerate(rows["grids"]["histogram"][:, :, 0]):  # one permutation of colours explains all four
        assert sorted(map(tuple, grids.T)) == sorted(map(tuple, shown[row].T))


def test_a_foreign_demonstration_is_that_of_another_program_and_nothing_else_changes():
    source = build(length=2, batch_size=16)
    own, foreign = (source.validation[name].indices(1) for name in ("programs", "programs_foreign_demo"))
    for key in ("ids", "groups", "extent"):
        np.testing.assert_array_equal(own[key], foreign[key])
    for key, leaf in own["grids"].items():
        np.testing.assert_array_equal(leaf[:, 2:], foreign["grids"][key][:, 2:])
    lender = [
        next(
            j
            for j in range(16)
            if all(np.array_equal(own["grids"][k][j, :2], foreign["grids"][k][i, :2]) for k in own["grids"])
        )
        for i in range(16)
    ]
    assert (own["groups"][lender] != own["groups"]).all()
    assert (own["extent"] >= foreign["grids"]["size"].max(axis=1)).all()


def test_held_out_sources_name_what_is_trained_on_and_what_is_not():
    source = build(length=2, held_out_families=HELD_OUT)
    held_out = {f"programs:{name}" for name in HELD_OUT}
    assert not held_out & set(source.ids)
    assert set(source.validation) == {f"programs{name}" for name in ("", "_foreign_demo", "_families", "_compositions")}
    assert held_out <= set(source.validation["programs_families"].ids)
    assert set(source.validation["programs_compositions"].ids) <= set(source.ids)
    orbits = build(stream="orbit", held_out_families=HELD_OUT)
    assert orbits.validation["programs_families"].ids == ("programs:wrap",)


def test_levels_bound_what_is_drawn_and_meet_every_held_out_set():
    source = build(**LEVELS, batch_size=32)
    assert source.num_levels == 3 and "programs_level" in source.validation
    sides = [source.indices(0, level)["grids"]["size"][:, [0, 2]].max() for level in range(3)]
    assert max(sides) <= 20
    options = (programs._by_level(LEVELS[key]) for key in ("families", "length", "objects", "side"))
    levels = programs._levels(*options, None)
    assert [level.limits for level in levels] == [(20, 3, 30), (20, 5, 30), (20, 8, 30)]
    split = _compositions.split(HELD_OUT, 0.1)
    for level, known in zip(levels, (11, 20, 33), strict=True):  # wrap, and erode, are held out of these sets
        recipes = programs._recipes(_program_rows.Shown("analogy", 3, 1), level, split)
        assert {recipe.length for recipe in recipes["train"]} == set(range(1, level.length + 1))
        assert len(programs._met([recipes["train"]])) == known
        assert set(HELD_OUT) <= set(programs._met([recipes["families"]]))
    last = source.indices(0, 2)
    assert equal(last, source.indices(0, 5)) and not equal(last, source.indices(0, 1))
    held_out = source.validation["programs_level"]
    assert not equal(held_out.indices(0, 0), held_out.indices(0, 2))
    own = source.validation["programs"]
    assert equal(own.indices(0, 0), own.indices(0, 2))


def test_nothing_is_drawn_ahead_of_a_decision():
    asked = []

    def get(key, upcoming):
        asked.append((key, tuple(upcoming)))
        return {"ids": np.arange(4)}

    indices = programs._indices(programs.Ahead(get, lambda: None), 2, 2, 2, 3, 8)
    for step in (0, 3, 6, 7, 8):
        indices(step, 1)
    assert asked == [
        ((1, 0), ((1, 1), (1, 2), (1, 3))),
        ((1, 1), ((1, 2), (1, 3))),
        ((1, 3), ()),
        ((1, 3), ()),
        ((1, 4), ((1, 5), (1, 6), (1, 7))),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stream": "orbits"}, "did you mean 'orbit'"),
        ({"context_window": 9}, "context_window is 9; it must be from 1 to 7"),
        ({"target_offset": 2}, "only in stream 'orbit'"),
        ({"families": "geometri"}, "did you mean 'geometry'"),
        ({"length": (1, 2), "side": (12, 20, 30)}, "length has 2 levels and another option 3"),
        ({"side": 40}, "limits.side is 40"),
        ({"canvas": 12}, "canvas is 12, but only in stream 'transition'"),
        (STREAMS["cells"] | {"translation": True}, "turn translation off and leave drop_objects"),
        (STREAMS["cells"] | {"noise": 0.1}, "turn translation off and leave drop_objects"),
        (STREAMS["cells"] | {"canvas": 11}, "limits.canvas is 11; it must be from 12 to 30"),
        (STREAMS["cells"] | {"canvas": 31}, "limits.canvas is 31; it must be from 12 to 30"),
        ({"length": 0}, "length is 0; a program has at least 1 step"),
        ({"held_out_families": ("wrapp",)}, "did you mean 'wrap'"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_a_mistake_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)

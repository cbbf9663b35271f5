"""Programs by the step: what is held out never shows, and a batch depends on its step and the seed alone."""

from __future__ import annotations

import numpy as np
import pytest

from jepa.data import _compositions, _objects, _primitives, _program_stream, _programs, _scenes
from jepa.data._ahead import ahead
from jepa.data._primitives import FAMILIES

HELD_OUT = ("sort", "copy", "wrap", "erode")


@pytest.fixture(scope="module")
def split() -> _compositions.Split:
    return _compositions.split(HELD_OUT, 0.1)


def pairs_of(families: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return families[:, :-1].ravel(), families[:, 1:].ravel()


def square(number: int) -> int:
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
    found = _program_stream.recipes(split, length=length, num_scenes=1, orbit=False)
    assert set(found) == {"train", "families"} | ({"compositions"} if length > 1 else set())
    rng = np.random.default_rng(0)
    families = {name: _program_stream.sample(recipe, rng, 2000) for name, recipe in found.items()}
    novel = {name: ~split.families[drawn] for name, drawn in families.items()}
    held_out = {name: split.held_out_pairs[pairs_of(drawn)].reshape(len(drawn), -1) for name, drawn in families.items()}
    assert not novel["train"].any() and not held_out["train"].any()
    assert novel["families"].any(axis=1).all()
    assert set(np.unique(families["train"])) == set(np.flatnonzero(split.families))
    if length > 1:
        assert held_out["compositions"][:, 0].all() and not novel["compositions"].any()


def test_orbits_have_room_for_their_length(split):
    found = _program_stream.recipes(split, length=4, num_scenes=1, orbit=True)
    drawn = {name: _program_stream.sample(recipe, np.random.default_rng(0), 200) for name, recipe in found.items()}
    assert {FAMILIES[number] for number in drawn["families"].ravel()} == {"wrap"}
    assert (drawn["train"] == drawn["train"][:, :1]).all()
    assert {FAMILIES[number] for number in drawn["train"].ravel()} <= set(_primitives.repeating(4)) - {"wrap"}


def test_nothing_left_to_train_on_is_an_error():
    everything = _compositions.split(FAMILIES, 0.0)
    with pytest.raises(ValueError, match="no program of 2 steps is left to train on"):
        _program_stream.recipes(everything, length=2, num_scenes=1, orbit=False)
    with pytest.raises(ValueError, match="programs of 0 steps"):
        _program_stream.recipes(everything, length=0, num_scenes=1, orbit=False)


# --- streams --------------------------------------------------------------------------------------------------------


def test_a_batch_depends_on_its_step_and_the_seed_alone(split):
    recipe = _program_stream.recipes(split, length=2, num_scenes=2, orbit=False)["train"]
    options = dict(batch_size=8, batches_per_block=3, num_workers=0, depth=1)
    batch, _ = _program_stream.stream(recipe, seed=5, **options)
    resumed, _ = _program_stream.stream(recipe, seed=5, **options)
    other, _ = _program_stream.stream(recipe, seed=6, **options)
    in_order = [batch(step) for step in range(7)]
    for step in (6, 4, 5, 0):
        for a, b in zip(in_order[step], resumed(step), strict=True):
            np.testing.assert_array_equal(a, b)
    assert in_order[0].cells.shape == (8, 2, 3, 30, 30)
    assert (other(0).cells != in_order[0].cells).any()
    contents = {program.tobytes() for trace in in_order for program in trace.cells}
    assert len(contents) == 7 * 8


@pytest.mark.parametrize("length", [1, 2])
def test_scenes_keep_to_the_limits_of_the_recipe(split, length):
    limits = _scenes.Limits(side=11, objects=3)
    recipe = _program_stream.recipes(split, length=length, num_scenes=1, orbit=False, limits=limits)["train"]
    trace, _ = _program_stream.block(recipe, 0, 200, 0)
    assert trace.size[:, :, 0].max() == 11
    with pytest.raises(ValueError, match=r"limits.side is 40"):
        _program_stream.recipes(split, length=1, num_scenes=1, orbit=False, limits=limits._replace(side=40))


def test_a_block_is_counted(split):
    recipe = _program_stream.recipes(split, length=1, num_scenes=1, orbit=False)["train"]
    trace, tally = _program_stream.block(recipe, 0, 100, 0)
    assert len(trace.families) == 100
    assert (tally.applied - tally.undefined - tally.unchanged).sum() >= 100


def test_tables_are_those_of_every_grid_by_itself(split):
    recipe = _program_stream.recipes(split, length=2, num_scenes=2, orbit=False)["train"]
    trace, _ = _program_stream.block(recipe, 0, 6, 0)
    tables = _program_stream.tables(trace)
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
    workers = ahead(square, num_workers=1, depth=2)
    try:
        assert [workers.get(number) for number in (0, 1, 2, 7, 1)] == [0, 1, 4, 49, 1]
        with pytest.raises(ValueError, match="three is no number"):
            workers.get(3)
    finally:
        workers.close()
    here = ahead(square, num_workers=0, depth=1)
    assert [here.get(number) for number in (0, 7, 7)] == [0, 49, 49]
    with pytest.raises(ValueError, match="at least 0 and 1"):
        ahead(square, num_workers=-1, depth=1)


def test_a_stream_of_workers_is_the_stream_without(split):
    recipe = _program_stream.recipes(split, length=1, num_scenes=1, orbit=False)["train"]
    options = dict(seed=1, batch_size=8, batches_per_block=2, depth=1)
    batch, _ = _program_stream.stream(recipe, num_workers=0, **options)
    ahead_of_time, blocks = _program_stream.stream(recipe, num_workers=1, **options)
    try:
        for step in (0, 1, 2, 5):
            for a, b in zip(batch(step), ahead_of_time(step), strict=True):
                np.testing.assert_array_equal(a, b)
    finally:
        blocks.close()

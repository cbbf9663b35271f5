"""Programs cell by cell: every grid is what the step before it says, and what is held out is never trained on."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from jepa.data import _compositions, _grids, _program_blocks, _program_rows, _programs, programs
from jepa.data._primitives import FAMILIES, PRIMITIVES
from jepa.data._scenes import Limits
from jepa.tables import OUTSIDE

HELD_OUT = ("wrap", "outline", "hollow", "sort", "half", "copy")
SIDE, LENGTH, BATCH = 12, 6, 64
SOURCES = ("train", "programs", "programs_families", "programs_compositions")


@functools.cache
def source():
    return programs.build(
        seed=3,
        batch_size=BATCH,
        cache_dir="",
        stream="transition",
        length=LENGTH,
        side=SIDE,
        canvas=SIDE,
        held_out_families=HELD_OUT,
        held_out_share=0.1,
        d4=False,
        palette=False,
        translation=False,
        num_workers=0,
        batches_per_block=2,
    )


def rows_of(name: str):
    return (source() if name == "train" else source().validation[name]).indices(0)


def as_grids(cells: np.ndarray) -> _grids.Grids:
    """Grids of frames [n, S, S]: the rectangle that is not outside, on the generator's canvas."""
    inside = cells != OUTSIDE
    height, width = inside.any(2).sum(1), inside.any(1).sum(1)
    whole = np.zeros((len(cells), _grids.CANVAS, _grids.CANVAS), np.uint8)
    whole[:, :SIDE, :SIDE] = np.where(inside, cells, 0)
    return _grids.Grids(whole, height, width)


def as_steps(actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Families [...] and parameters [..., 10], read off actions."""
    family, parameters = np.split(actions, [len(FAMILIES)], axis=-1)
    assert (np.sort(family, axis=-1)[..., :-1] == 0).all() and (family.max(-1) == 1).all()
    return family.argmax(-1), np.rint(9 * parameters).astype(np.int64)


def pairs_of(rows) -> np.ndarray:
    families = as_steps(rows["actions"])[0]
    return np.stack([families[:, :-1], families[:, 1:]])


@pytest.mark.parametrize("name", SOURCES)
def test_every_grid_is_what_its_action_makes_of_the_one_before(name):
    rows = rows_of(name)
    assert rows["cells"].shape == (BATCH, LENGTH + 1, SIDE, SIDE) and rows["actions"].shape == (BATCH, LENGTH, 47)
    families, parameters = as_steps(rows["actions"])
    for t in range(LENGTH):
        after, defined = _programs.apply(as_grids(rows["cells"][:, t]), families[:, t], parameters[:, t])
        assert defined.all()
        assert _grids.equal(after, as_grids(rows["cells"][:, t + 1])).all()


@pytest.mark.parametrize("name", SOURCES)
def test_no_episode_comes_back_to_a_grid(name):
    for episode in rows_of(name)["cells"]:
        assert len({grid.tobytes() for grid in episode}) == LENGTH + 1


def test_cells_are_those_of_the_trace_and_nothing_else():
    split = _compositions.split(HELD_OUT, 0.1)
    options = dict(length=LENGTH, num_scenes=1, orbit=False, limits=Limits(SIDE, 8, SIDE))
    trace, _ = _program_blocks.block(_program_blocks.recipes(split, stepwise=True, **options)["train"], 0, 50, 0)
    shown = _program_rows.Shown("transition", 1, 1, SIDE)
    cells, size, steps, _ = _program_rows.window(trace, shown)
    framed = _program_rows.framed(cells, size, SIDE)
    for place in np.ndindex(50, LENGTH + 1):
        grid, found = trace.cells[place[0], 0, place[1]], as_grids(framed[place][None])
        assert (found.height[0], found.width[0]) == tuple(trace.size[place[0], 0, place[1]])
        np.testing.assert_array_equal(found.cells[0], grid)
    families, parameters = as_steps(_program_rows.actions(steps))
    np.testing.assert_array_equal(families, trace.families)
    np.testing.assert_array_equal(parameters, trace.parameters)


def test_parameters_of_every_family_are_within_one():
    rng = np.random.default_rng(0)
    families = np.repeat(np.arange(len(FAMILIES)), 200)[:, None]
    steps = np.concatenate([families, _programs.draw_parameters(rng, families, False)[:, 0]], axis=1)
    scaled = _program_rows.actions(steps)[:, len(FAMILIES) :]
    assert np.abs(scaled).max() == 1
    assert len(np.unique(_program_rows.actions(steps), axis=0)) == len(np.unique(steps, axis=0))


def test_what_is_held_out_is_never_trained_on():
    split = _compositions.split(HELD_OUT, 0.1)
    trained, families, compositions = (pairs_of(rows_of(name)) for name in SOURCES if name != "programs")
    assert split.families[trained].all() and split.pairs[tuple(trained)].all()
    assert (~split.families[families[:, :, 0]]).any(axis=0).all()
    assert split.held_out_pairs[tuple(compositions[:, :, 0])].all() and split.families[compositions].all()
    assert {f"programs:{name}" for name in HELD_OUT}.isdisjoint(source().ids)


def test_every_family_that_is_trained_on_occurs_within_the_canvas():
    options = dict(length=LENGTH, num_scenes=1, orbit=False, limits=Limits(SIDE, 8, SIDE), stepwise=True)
    recipe = _program_blocks.recipes(_compositions.split(HELD_OUT, 0.1), **options)["train"]
    trace, tally = _program_blocks.block(recipe, 0, 1500, 0)
    assert trace.families.shape == (1500, LENGTH) and trace.size.max() == SIDE
    assert {FAMILIES[number] for number in np.unique(trace.families)} == set(PRIMITIVES) - set(HELD_OUT)
    assert (tally.applied - tally.undefined - tally.unchanged).sum() >= trace.families.size


def test_programs_that_cannot_go_on_make_room_for_others():
    """After `frame` nothing may follow: every program but those that end with it is given up."""
    count = len(FAMILIES)
    rotate, frame, mirror = (FAMILIES.index(name) for name in ("rotate", "frame", "mirror"))
    follows = np.zeros((count, count), bool)
    follows[mirror, rotate] = True
    rng = np.random.default_rng(0)

    def sample(rng: np.random.Generator, number: int) -> np.ndarray:
        return np.where(rng.random((number, 1)) < 0.5, frame, mirror)

    trace, _ = _programs.fill(rng, 40, sample, later=(follows,))
    assert (trace.families == [mirror, rotate]).all() and len(trace.families) == 40
    with pytest.raises(ValueError, match="programs find no scenes"):
        _programs.fill(rng, 4, sample, later=(follows, follows))


def test_a_batch_is_the_rows_as_they_are_with_and_without_jit():
    rows = rows_of("train")
    for gather in (source().gather, jax.jit(source().gather, static_argnums=3)):
        batch = gather(source().tables, rows, jax.random.key(0), True)
        np.testing.assert_array_equal(batch.context["cells"], rows["cells"][:, :-1])
        np.testing.assert_array_equal(batch.target["cells"], rows["cells"][:, -1])
        np.testing.assert_array_equal(batch.actions, rows["actions"])
        assert batch.context["cells"].dtype == np.int32 and batch.actions.dtype == np.float32

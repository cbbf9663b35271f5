"""Embedding consistency: moved tables are tables of moved grids, and the loss sees just what an encoder reads."""

from __future__ import annotations

import itertools
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa import symmetries, tables
from jepa.data import _objects
from jepa.losses.invariance import invariance, moved

PARTS = ("d4", "palette", "translation")
CHOICES = [dict(zip(PARTS, on, strict=True)) for on in itertools.product([False, True], repeat=3)]
ROW_KEYS = ("mask", "histogram", "box", "moment", "shape", "border", "symmetry", "bitmap")
NUM = 24


def random_grids():
    """Sparse random grids of many extents from 1 to 30, none of them square."""
    rng = np.random.default_rng(2)
    shapes = [(30, 2), (1, 30), (29, 30), (2, 1), *rng.permuted(np.arange(3, 31)[:, None] * [1, 1], axis=0)]
    shapes = [(h, w) for h, w in shapes if h != w][:NUM]
    return [(rng.integers(1, 10, shape) * (rng.random(shape) < 0.25)).astype(np.uint8) for shape in shapes]


GRIDS = random_grids()
TABLE = {key: jnp.asarray(leaf) for key, leaf in _objects.tokenise(GRIDS, [0] * NUM).items()}
SIZE = np.array([grid.shape for grid in GRIDS], np.int32)

move = jax.jit(moved, static_argnames=PARTS)


def at(offset):
    """The same tables elsewhere in the canvas."""
    return {**TABLE, "offset": jnp.asarray(offset, jnp.int32)}


def offsets(seed):
    """Places for all grids, anywhere that they fit."""
    return np.random.default_rng(seed).integers(0, 31 - SIZE)


def rows(table, index):
    """The tokens of one grid as a multiset, objects in no order, the degree of each in `edges` with it."""
    degree = np.sort(np.asarray(table["edges"][index]), axis=-1)
    fields = [np.asarray(table[key][index]).reshape(tables.NUM_TOKENS, -1) for key in ROW_KEYS]
    return Counter(map(tuple, np.concatenate([*fields, degree], axis=-1).astype(int).tolist()))


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for key, leaf in expected.items():
        assert actual[key].dtype == leaf.dtype, key
        np.testing.assert_array_equal(actual[key], leaf, err_msg=key)


# The action.


@pytest.mark.parametrize("on", CHOICES[1:], ids=str)
def test_moved_tables_are_the_tables_of_moved_grids(on):
    elements, palettes = set(), set()
    for seed in range(2):
        start = offsets(seed)
        table = {key: np.asarray(leaf) for key, leaf in move(at(start), jax.random.key(seed), **on).items()}
        draw = symmetries.draw(jax.random.key(seed), SIZE, **on)
        for index, (grid, palette) in enumerate(zip(GRIDS, np.asarray(draw.palette), strict=True)):
            images = [_objects.transform_grid(grid, d4, palette) for d4 in range(8)]
            candidates = _objects.tokenise(images, [palette[0]] * 8)
            seen = rows(table, index)
            found = [d4 for d4 in range(8) if rows(candidates, d4) == seen]
            assert found, "no element of D4 explains the table"
            assert table["size"][index].tolist() in [list(images[d4].shape) for d4 in found]
            if on["translation"] or (start[index] + SIZE[index][::-1] <= 30).all():
                assert int(draw.d4[index]) in found
            if not on["translation"]:
                np.testing.assert_array_equal(table["offset"][index], start[index])
            elements.add(found[0] if len(found) == 1 else 0)
            palettes.add(tuple(palette))
    assert len(elements) >= 6 if on["d4"] else elements == {0}
    assert len(palettes) == 2 * NUM if on["palette"] else palettes == {tuple(range(10))}


def test_with_all_parts_off_nothing_moves():
    table = at(offsets(0))
    assert_equal(moved(table, jax.random.key(0), d4=False, palette=False, translation=False), table)


@given(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1), st.sampled_from(CHOICES))
@settings(max_examples=150)
def test_the_grid_stays_inside_the_canvas(key, place, on):
    start = offsets(place)
    table = move(at(start), jax.random.key(key), **on)
    size, offset = np.asarray(table["size"]), np.asarray(table["offset"])
    assert (offset >= 0).all() and (offset + size <= 30).all()
    if not on["translation"]:
        np.testing.assert_array_equal(offset, start)
    np.testing.assert_array_equal(np.sort(size), np.sort(SIZE))


def test_every_element_and_every_place_is_drawn_evenly():
    """A 28 x 30 grid has three places on either side, and so do its eight images, wherever it was."""
    one = _objects.tokenise([np.pad(np.uint8([[1, 2, 0], [3, 0, 0]]), ((5, 21), (9, 18)))], [0])
    table = {key: jnp.repeat(jnp.asarray(leaf), 2400, axis=0) for key, leaf in one.items()}
    table["offset"] = table["offset"] + jnp.array([[2, 0]])
    seen = move(table, jax.random.key(5), palette=False)
    places = Counter(map(tuple, np.asarray(jnp.concatenate([seen["size"], seen["offset"]], -1)).tolist()))
    assert set(places) == {(28, 30, n, 0) for n in range(3)} | {(30, 28, 0, n) for n in range(3)}
    assert all(320 < count < 480 for count in places.values())  # 400 +- 18
    moments = Counter(map(tuple, np.asarray(seen["moment"][:, :3]).reshape(-1, 6).tolist()))
    assert len(moments) == 8 and all(220 < count < 380 for count in moments.values())  # 300 +- 16

    # Without translation, at row 2, a transposed grid would reach row 32: the other four elements, evenly.
    still = move(table, jax.random.key(5), palette=False, translation=False)
    assert (np.asarray(still["size"]) == [28, 30]).all() and (np.asarray(still["offset"]) == [2, 0]).all()
    moments = Counter(map(tuple, np.asarray(still["moment"][:, :3]).reshape(-1, 6).tolist()))
    assert len(moments) == 4 and all(500 < count < 700 for count in moments.values())  # 600 +- 21

    # At row 0 it just fits.
    still = move({**table, "offset": table["offset"] * 0}, jax.random.key(5), palette=False, translation=False)
    assert len({tuple(moment) for moment in np.asarray(still["moment"][:, :3]).reshape(-1, 6).tolist()}) == 8


def test_moving_is_augmenting_sequences_of_one_grid():
    sequence = {key: leaf[:, None] for key, leaf in TABLE.items()}
    on = dict(d4=True, palette=True, translation=True)
    expected = symmetries.augment(sequence, TABLE["size"], jax.random.key(4), **on)
    assert_equal(moved(at(offsets(3)), jax.random.key(4)), {key: leaf[:, 0] for key, leaf in expected.items()})


@pytest.mark.parametrize("leading", [(), (2, 3)])
def test_any_leading_axes_compiled_or_not_each_table_on_its_own(leading):
    number = int(np.prod(leading, dtype=int))
    table = {key: leaf[:number].reshape(*leading, *leaf.shape[1:]) for key, leaf in TABLE.items()}
    plain, compiled = (function(table, jax.random.key(1)) for function in (moved, move))
    assert_equal(plain, compiled)
    assert {key: leaf.shape for key, leaf in plain.items()} == {key: leaf.shape for key, leaf in table.items()}
    narrow = {key: leaf.astype(jnp.int16) if leaf.dtype == jnp.int32 else leaf for key, leaf in table.items()}
    assert_equal(move(narrow, jax.random.key(1)), compiled)


def test_equal_tables_move_apart():
    table = {key: jnp.repeat(leaf[:1], 64, axis=0) for key, leaf in TABLE.items()}
    seen = move(table, jax.random.key(0))
    grids = {np.asarray(seen["histogram"][n, 0]).tobytes() for n in range(64)}
    assert len(grids) > 50
    assert len({tuple(size) for size in np.asarray(seen["size"]).tolist()}) == 2


# The loss.


def invariants(table):
    """What no symmetry changes, in integers."""
    areas, holes = jnp.sort(table["shape"][..., 0]), jnp.sort(table["shape"][..., 2])
    shares = jnp.sort(table["histogram"][..., 0, :])
    diagonals = jnp.sum(table["symmetry"][..., 2], axis=-1, keepdims=True)
    return jnp.concatenate([areas, holes, shares, jnp.sum(table["mask"], -1, keepdims=True), diagonals], axis=-1)


READERS = {
    "d4": lambda table: jnp.sum(table["moment"], axis=-2),  # local, and so the same wherever the grid is
    "palette": lambda table: table["histogram"][..., 0, :],
    "translation": lambda table: table["offset"],
}


def loss(encoder, seed, compiled=True, **on):
    table = at(offsets(seed))
    function = move if compiled else moved
    return np.asarray(invariance(encoder(table), encoder(function(table, jax.random.key(seed), **on))))


@given(st.integers(0, 2**31 - 1), st.sampled_from(CHOICES))
@settings(max_examples=40)
def test_an_encoder_of_invariants_has_no_loss_under_any_draw(seed, on):
    assert not loss(invariants, seed, **on).any()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("part", PARTS)
def test_an_encoder_pays_for_what_it_reads_and_only_while_that_moves(part, compiled):
    everything = dict.fromkeys(PARTS, True)
    assert (loss(READERS[part], 3, compiled, **everything) > 0).mean() > 0.5
    alone = dict.fromkeys(PARTS, False) | {part: True}
    assert (loss(READERS[part], 3, compiled, **alone) > 0).mean() > 0.5
    assert not loss(READERS[part], 3, compiled, **everything | {part: False}).any()


def test_loss_is_the_mean_square_over_dimensions():
    rng = np.random.default_rng(0)
    z, z_moved = (rng.gamma(2.0, 1.0, (3, 5, 7)).astype(np.float32) for _ in range(2))
    expected = ((z.astype(np.float64) - z_moved) ** 2).mean(-1)
    for stop in ("none", "original", "moved"):
        value = jax.jit(invariance, static_argnames="stop_gradient")(z, z_moved, stop_gradient=stop)
        assert value.shape == (3, 5) and value.dtype == jnp.float32
        np.testing.assert_allclose(value, expected, rtol=2e-6)
        np.testing.assert_allclose(invariance(z, z_moved, stop_gradient=stop), expected, rtol=2e-6)
    half = invariance(jnp.asarray(z, jnp.bfloat16), jnp.asarray(z_moved, jnp.bfloat16))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, expected, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("stop", "flows"), [("none", (1, 1)), ("original", (0, 1)), ("moved", (1, 0))])
def test_gradient_flows_where_it_says(stop, flows, compiled):
    rng = np.random.default_rng(1)
    z, z_moved = (rng.normal(size=(4, 6)).astype(np.float32) for _ in range(2))
    gradient = jax.grad(lambda *z: jnp.sum(partial(invariance, stop_gradient=stop)(*z)), argnums=(0, 1))
    found = (jax.jit(gradient) if compiled else gradient)(z, z_moved)
    for actual, on, sign in zip(found, flows, (1, -1), strict=True):
        np.testing.assert_allclose(actual, on * sign * 2 / 6 * (z - z_moved), rtol=1e-5)


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="stop_gradient must be one of none, original, moved, got 'both'"):
        invariance(jnp.zeros((2, 3)), jnp.zeros((2, 3)), stop_gradient="both")
    with pytest.raises(ValueError, match="z and z_moved must have one shape"):
        invariance(jnp.zeros((2, 3)), jnp.zeros(3))

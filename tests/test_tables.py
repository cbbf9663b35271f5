"""The schema of object tables: exact group actions, and features that mean what their names say."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa import tables
from jepa.data import _objects

GRID = np.array([[0, 0, 0, 0, 0, 0], [0, 3, 3, 3, 0, 0], [0, 3, 0, 0, 0, 7], [0, 0, 0, 0, 0, 7]], np.uint8)
HOOK, BAR = 1, 2  # the objects of GRID in reading order
ROW, COLUMN = 32, 64


def random_grids(number: int) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    small = [rng.integers(0, 4, rng.integers(1, 9, 2)) for _ in range(number - 2)]
    crowded = [(rng.integers(0, 10, shape) * (rng.random(shape) < 0.2)) for shape in ((30, 29), (27, 30))]
    return [grid.astype(np.uint8) for grid in (*small, *crowded)]


def random_table(*leading: int) -> dict[str, jax.Array]:
    """Tables of random grids, the last two with an overflow token."""
    grids = random_grids(int(np.prod(leading, dtype=int)))
    table = _objects.tokenise(grids, [0] * len(grids))
    return {key: jnp.asarray(value).reshape(*leading, *value.shape[1:]) for key, value in table.items()}


def random_action(*leading: int, seed: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    palettes = rng.permuted(np.broadcast_to(np.arange(10), (*leading, 10)), axis=-1)
    return tuple(jnp.asarray(x) for x in (rng.integers(0, 8, leading), palettes, rng.integers(0, 5, (*leading, 2))))


def identity(*leading: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    palettes = jnp.broadcast_to(jnp.arange(10), (*leading, 10))
    return jnp.zeros(leading, jnp.int32), palettes, jnp.zeros((*leading, 2), jnp.int32)


def assert_equal(actual: dict, expected: dict) -> None:
    assert actual.keys() == expected.keys()
    for key in expected:
        assert actual[key].dtype == expected[key].dtype, key
        np.testing.assert_array_equal(actual[key], expected[key], err_msg=key)


def column(table: dict, name: str) -> np.ndarray:
    """One feature of all tokens, [..., N]."""
    return np.asarray(tables.features(table)[..., tables.FEATURE_NAMES.index(name)])


def hand_table() -> dict[str, np.ndarray]:
    return {key: value[0] for key, value in _objects.tokenise([GRID], [0]).items()}


# transform


def test_the_identity_changes_nothing():
    table = random_table(3, 4)
    assert_equal(tables.transform(table, *identity(3, 4)), table)


@pytest.mark.parametrize("leading", [(12,), (3, 4)])
def test_any_leading_axes_and_traced_arguments(leading):
    table, action = random_table(*leading), random_action(*leading)
    eager = tables.transform(table, *action)
    assert_equal(jax.jit(tables.transform)(table, *action), eager)
    flat = {key: value.reshape(12, *value.shape[len(leading) :]) for key, value in table.items()}
    action = [x.reshape(12, *x.shape[len(leading) :]) for x in action]
    for index in (0, 5, 11):
        one = tables.transform({key: value[index] for key, value in flat.items()}, *(x[index] for x in action))
        assert_equal(one, {key: v.reshape(12, *v.shape[len(leading) :])[index] for key, v in eager.items()})


def test_actions_compose_as_they_do_on_grids():
    """Acting twice is acting once with the product, found by looking at what grids do."""
    probe = np.arange(6, dtype=np.uint8).reshape(2, 3)
    unchanged = np.arange(10)
    table = random_table(12)
    for first in range(8):
        for second in range(8):
            image = _objects.transform_grid(_objects.transform_grid(probe, first, unchanged), second, unchanged)
            (product,) = (d4 for d4 in range(8) if np.array_equal(_objects.transform_grid(probe, d4, unchanged), image))
            _, palette, offset = identity(12)
            twice = tables.transform(table, jnp.full(12, first), palette, offset)
            twice = tables.transform(twice, jnp.full(12, second), palette, offset)
            assert_equal(twice, tables.transform(table, jnp.full(12, product), palette, offset))


def test_palettes_compose():
    table = random_table(12)
    d4, first, offset = random_action(12, seed=1)
    _, second, _ = random_action(12, seed=2)
    twice = tables.transform(tables.transform(table, d4 * 0, first, offset), d4 * 0, second, offset)
    both = jnp.take_along_axis(second, first, axis=-1)
    assert_equal(twice, tables.transform(table, d4 * 0, both, 2 * offset))


def test_symmetry_flags_and_alignment_by_hand():
    """Flags that no real object has together, so that each of the five is told from the others."""
    table = {key: jnp.asarray(value) for key, value in hand_table().items()}
    flags = jnp.zeros((tables.NUM_TOKENS, 5), bool).at[HOOK].set(jnp.array([True, False, False, True, False]))
    edges = jnp.zeros((tables.NUM_TOKENS, tables.NUM_TOKENS), jnp.uint8).at[HOOK, BAR].set(1 | ROW)
    table |= {"symmetry": flags, "edges": edges}
    expected = {  # d4: left-right, up-down, 180, main, anti of the image; alignment of the image
        0: ([1, 0, 0, 1, 0], 1 | ROW),
        1: ([1, 0, 0, 0, 1], 1 | ROW),
        2: ([1, 0, 0, 0, 1], 1 | ROW),
        3: ([1, 0, 0, 1, 0], 1 | ROW),
        4: ([0, 1, 0, 1, 0], 1 | COLUMN),
        5: ([0, 1, 0, 0, 1], 1 | COLUMN),
        6: ([0, 1, 0, 0, 1], 1 | COLUMN),
        7: ([0, 1, 0, 1, 0], 1 | COLUMN),
    }
    for d4, (symmetry, bits) in expected.items():
        moved = tables.transform(table, jnp.int32(d4), jnp.arange(10), jnp.zeros(2, jnp.int32))
        assert moved["symmetry"][HOOK].tolist() == [bool(flag) for flag in symmetry], d4
        assert moved["edges"][HOOK, BAR] == bits, d4


def test_absent_tokens_stay_zero():
    moved = tables.transform(random_table(12), *random_action(12))
    absent = ~np.asarray(moved["mask"])
    assert moved["mask"][-2:, tables.OVERFLOW].all()
    for key in ("histogram", "box", "moment", "shape", "border", "symmetry", "bitmap"):
        assert not np.asarray(moved[key])[absent].any(), key
    assert not np.asarray(moved["box"])[:, tables.OVERFLOW].any()


def test_narrow_integers_are_accepted():
    table, action = random_table(12), random_action(12)
    narrow = {key: value.astype(jnp.int16) if value.dtype == jnp.int32 else value for key, value in table.items()}
    assert_equal(tables.transform(narrow, *action), tables.transform(table, *action))
    for function in (tables.features, tables.edge_features, tables.grid_features):
        np.testing.assert_array_equal(function(narrow), function(table))


def test_translation_changes_only_absolute_features():
    table = random_table(12)
    d4, palette, _ = identity(12)
    moved = tables.transform(table, d4, palette, jnp.tile(jnp.array([2, 5]), (12, 1)))
    before, after = tables.features(table), tables.features(moved)
    changed = {tables.FEATURE_NAMES[i] for i in np.flatnonzero((before != after).any((0, 1)))}
    assert changed == {"row", "column", "top", "left", "bottom", "right"}
    objects = np.asarray(table["mask"])[:, 1 : tables.OVERFLOW]
    for name, cells in (("row", 2), ("top", 2), ("bottom", 2), ("column", 5), ("left", 5), ("right", 5)):
        shift = (column(moved, name) - column(table, name))[:, 1 : tables.OVERFLOW][objects]
        np.testing.assert_allclose(shift, cells / 30, atol=1e-6)
    for function in (tables.edge_features, tables.grid_features):
        np.testing.assert_array_equal(function(moved), function(table))


# features


def test_schema_constants():
    assert (tables.NUM_TOKENS, tables.NUM_OBJECTS, tables.NUM_COLOURS, tables.CANVAS) == (34, 32, 10, 30)
    assert len(set(tables.FEATURE_NAMES)) == tables.NUM_FEATURES == 99
    assert tables.NUM_EDGE_FEATURES == len(tables.EDGE_NAMES) == 7


def test_features_of_a_grid_by_hand():
    table = hand_table() | {"offset": np.array([10, 20], np.int32)}
    expected = {  # of the hook, the bar and the grid
        "log_area": (np.log(4), np.log(2), np.log(24)),
        "log_perimeter": (np.log(10), np.log(6), np.log(20)),
        "height": (2 / 30, 2 / 30, 4 / 30),
        "width": (3 / 30, 1 / 30, 6 / 30),
        "row": (11.75 / 30, 13 / 30, 12 / 30),  # centres of cells are at halves
        "column": (22.25 / 30, 25.5 / 30, 23 / 30),
        "relative_row": (-0.125, 0.5, 0),
        "relative_column": (-0.25, 5 / 6, 0),
        "top": (11 / 30, 12 / 30, 10 / 30),
        "left": (21 / 30, 25 / 30, 20 / 30),
        "bottom": (13 / 30, 14 / 30, 14 / 30),
        "right": (24 / 30, 26 / 30, 26 / 30),
        "relative_top": (-0.5, 0, -1),
        "relative_left": (-2 / 3, 2 / 3, -1),
        "relative_bottom": (0.5, 1, 1),
        "relative_right": (1 / 3, 1, 1),
        "fill": (4 / 6, 1, 1),
        "log_holes": (0, 0, 0),
        "symmetric_left_right": (0, 1, 0),
        "symmetric_main": (0, 0, 0),
        "border": (0, 1, 1),
        "log_count": (0, 0, np.log(3)),
        "colour_3": (1, 0, 4 / 24),
        "colour_7": (0, 1, 2 / 24),
        "colour_0": (0, 0, 18 / 24),
        "bitmap_0_7": (1, 1, 0),
        "bitmap_7_0": (1, 1, 0),
        "bitmap_7_7": (0, 1, 0),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(column(table, name)[[HOOK, BAR, 0]], values, atol=1e-6, err_msg=name)


def test_features_are_finite_and_zero_where_masked():
    table = random_table(3, 4)
    eager, compiled = tables.features(table), jax.jit(tables.features)(table)
    assert eager.shape == (3, 4, 34, 99) and eager.dtype == jnp.float32
    assert jnp.isfinite(eager).all() and not eager[~table["mask"]].any()
    assert eager[table["mask"]].any(-1).all()
    np.testing.assert_allclose(eager, compiled, atol=1e-6)


def test_relative_features_change_sign_under_a_half_turn():
    table = random_table(12)
    _, palette, offset = identity(12)
    turned = tables.transform(table, jnp.full(12, 3), palette, offset)
    opposite = {"row": "row", "column": "column", "top": "bottom", "bottom": "top", "left": "right", "right": "left"}
    for name, other in opposite.items():
        np.testing.assert_allclose(
            column(turned, f"relative_{name}"), -column(table, f"relative_{other}"), atol=1e-6, err_msg=name
        )
    np.testing.assert_array_equal(column(turned, "log_area"), column(table, "log_area"))


def test_edge_features_are_the_bits():
    table = random_table(3, 4)
    features = np.asarray(jax.jit(tables.edge_features)(table))
    assert features.shape == (3, 4, 34, 34, 7) and features.dtype == np.float32
    np.testing.assert_array_equal(features @ 2.0 ** np.arange(7), table["edges"])


def test_grid_features_by_hand():
    features = np.asarray(jax.jit(tables.grid_features)(hand_table()))
    np.testing.assert_allclose(features, [18 / 24, 0, 0, 4 / 24, 0, 0, 0, 2 / 24, 0, 0, 4 / 30, 6 / 30], atol=1e-6)

"""Masking of contexts: what it hides is gone without a trace, the rest is as it was, and all stays in the schema."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa import context_masking, symmetries, tables
from jepa.data import _objects

OFF = {"drop_objects": 0.0, "drop_frames": 0.0, "noise": 0.0}
mask_context = jax.jit(context_masking.mask_context, static_argnames=tuple(OFF))
features = jax.jit(lambda table: (tables.features(table), tables.edge_features(table), tables.grid_features(table)))


@pytest.fixture(scope="module")
def context():
    """64 contexts of three grids with five blocks or so, under random symmetries; the first frame of some is absent."""
    rng = np.random.default_rng(0)
    grids = []
    for _ in range(64 * 3):
        grid = np.zeros(rng.integers(6, 13, size=2), np.uint8)
        for _ in range(5):
            top, left = (rng.integers(side) for side in grid.shape)
            grid[top : top + rng.integers(1, 4), left : left + rng.integers(1, 4)] = rng.integers(1, 10)
        grids.append(grid)
    table = {k: jnp.asarray(v).reshape(64, 3, *v.shape[1:]) for k, v in _objects.tokenise(grids, [0] * 192).items()}
    table = {key: leaf.at[:8, 0].set(jnp.zeros((), leaf.dtype)) for key, leaf in table.items()}
    extent = jnp.max(table["size"], axis=1)
    return jax.jit(symmetries.augment, static_argnames=("d4", "palette", "translation"))(
        table, extent, jax.random.key(3), d4=True, palette=True, translation=True
    )


def masked(context, **probabilities):
    return mask_context(context, jax.random.key(7), **(OFF | probabilities))


def same_where(one, other, where):
    """Whether all leaves of two tables [B, T, ...] agree in the frames [B, T] or tokens [B, T, N] of `where`."""
    names = [name for name in one if where.ndim == 2 or name not in ("size", "offset", "edges")]
    return all(np.array_equal(one[name][where], other[name][where]) for name in names)


def empty(table, where):
    return all(not np.asarray(leaf)[where].any() for leaf in table.values())


def test_an_absent_frame_stays_one_under_symmetries_and_has_features_of_zero(context):
    assert empty(context, np.s_[:8, 0])
    for of_table in features(context):
        assert np.isfinite(of_table).all()
        assert not np.asarray(of_table)[:8, 0].any()
    absent = {key: np.asarray(leaf[0, 0]) for key, leaf in context.items()}
    with jax.debug_nans(True):  # not compiled: the replay of a step stops at the first operation that makes a NaN
        tables.features(absent)
        tables.grid_features(absent)


def test_probabilities_of_zero_are_no_operation(context):
    assert context_masking.mask_context(context, jax.random.key(0), **OFF) is context


def test_hidden_objects_leave_nothing_behind_and_the_others_as_they_were(context):
    out = masked(context, drop_objects=0.3)
    hidden = np.asarray(context["mask"] & ~out["mask"])
    objects = np.asarray(context["mask"]).copy()
    objects[..., 0] = False
    assert 0.25 < hidden.sum() / objects.sum() < 0.35
    assert not hidden[..., 0].any() and not (np.asarray(out["mask"]) & ~np.asarray(context["mask"])).any()
    by_token = {name: leaf for name, leaf in out.items() if name not in ("size", "offset")}
    assert empty(by_token, hidden)
    assert not np.asarray(out["edges"]).swapaxes(-1, -2)[hidden].any()
    kept = np.asarray(out["mask"])
    assert same_where(out, context, kept)
    both = kept[..., :, None] & kept[..., None, :]
    np.testing.assert_array_equal(np.asarray(out["edges"])[both], np.asarray(context["edges"])[both])
    for name in ("size", "offset"):
        np.testing.assert_array_equal(out[name], context[name])


def test_hidden_frames_are_absent_and_the_last_one_never_is(context):
    out = masked(context, drop_frames=0.4)
    before, after = (np.asarray(table["mask"]).any(-1) for table in (context, out))
    assert after[:, 2].all() and not (after & ~before).any()
    hidden = before & ~after
    assert 0.25 < hidden[:, :2].sum() / before[:, :2].sum() < 0.55
    assert empty(out, ~after) and same_where(out, context, after)
    alone = masked(context, drop_frames=1.0)
    assert np.array_equal(np.asarray(alone["mask"]).any(-1), np.arange(3)[None] == np.full((64, 1), 2))


def test_noise_moves_objects_by_a_cell_or_exchanges_their_colours_and_nothing_else(context):
    out = masked(context, noise=0.5)
    moved = (out["box"] != context["box"]).any(-1)
    recoloured = (out["histogram"] != context["histogram"]).any(-1)
    objects = np.asarray(context["mask"]).copy()
    objects[..., (0, tables.OVERFLOW)] = False
    assert not (moved & recoloured).any() and not (np.asarray(moved | recoloured) & ~objects).any()
    assert 0.2 < recoloured.sum() / objects.sum() < 0.3
    assert 0.15 < moved.sum() / objects.sum() < 0.26  # a quarter, less those that the border stops
    assert same_where(out, context, ~np.asarray(moved | recoloured))
    for name in ("size", "offset", "mask", "shape", "symmetry", "bitmap", "edges"):
        np.testing.assert_array_equal(out[name], context[name])

    moved = np.asarray(moved)
    step = np.asarray(out["box"] - context["box"])[moved]
    assert not step[:, 2:].any() and (np.abs(step).sum(1) == 1).all()
    assert {tuple(row) for row in step[:, :2]} == set(context_masking.STEPS)
    area = np.asarray(context["shape"])[moved][:, :1]
    np.testing.assert_array_equal(np.asarray(out["moment"] - context["moment"])[moved], area * step[:, :2])
    box, size = np.asarray(out["box"])[moved], np.repeat(np.asarray(out["size"])[:, :, None], 34, axis=2)[moved]
    assert (box[:, :2] >= 0).all() and (box[:, :2] + box[:, 2:] <= size).all()
    at_border = ((box[:, :2] == 0) | (box[:, :2] + box[:, 2:] == size)).any(1)
    np.testing.assert_array_equal(np.asarray(out["border"])[moved], at_border)
    np.testing.assert_array_equal(out["histogram"].sum(-1), context["histogram"].sum(-1))
    pair = [np.asarray(t["histogram"])[np.asarray(recoloured)].argmax(-1) for t in (context, out)]
    assert set((pair[1] - pair[0]) % 10) == set(range(1, 10))


def test_dtypes_are_those_of_the_schema_and_another_key_hides_others(context):
    probabilities = {"drop_objects": 0.3, "drop_frames": 0.3, "noise": 0.3}
    out = masked(context, **probabilities)
    assert {name: leaf.dtype for name, leaf in out.items()} == {name: leaf.dtype for name, leaf in context.items()}
    other = mask_context(context, jax.random.key(8), **probabilities)
    assert (out["mask"] != other["mask"]).any()


@pytest.mark.parametrize("name", OFF)
def test_what_is_no_probability_is_named(name):
    with pytest.raises(ValueError, match=rf"data\.{name} is 1.5; it is a probability"):
        context_masking.check(**(OFF | {name: 1.5}))

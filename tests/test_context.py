"""Aggregation over time: what each kind knows of order, and that absent frames change nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa import predictors
from jepa.context import KINDS, ContextAggregator, fill_absent
from jepa.types import Encoded

ORDER_SENSITIVE = [kind for kind in KINDS if kind != "mean"]


def there(z, *frames):
    """All frames of z [B, T, D] are present, or only those of the numbers given."""
    present = np.ones(z.shape[:-1], bool)
    if frames:
        present[:] = np.isin(np.arange(z.shape[1]), frames)
    return present


@functools.cache
def jitted(kind):
    return jax.jit(ContextAggregator(kind).apply)


@functools.cache
def initialised(kind, shape):
    """Parameters of the kind, made for z of the shape."""
    ones = np.ones(shape, np.float32)
    return jax.jit(ContextAggregator(kind).init)(jax.random.key(1), ones, there(ones))


def aggregate(kind, z):
    params = initialised(kind, z.shape)
    out = jitted(kind)(params, z, there(z))
    return out, lambda other, present=None: jitted(kind)(params, other, there(other) if present is None else present)


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture
def z():
    return gaussian(5, 3, 16)


@pytest.mark.parametrize("kind", KINDS)
def test_one_vector_per_example_that_ignores_the_other_examples(kind, z):
    out, apply = aggregate(kind, z)
    assert out.shape == (5, 16)
    np.testing.assert_allclose(apply(z[2:3]), out[2:3], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ORDER_SENSITIVE)
@pytest.mark.parametrize("swap", [(0, 2), (1, 2)])
def test_swapping_frames_changes_an_order_sensitive_aggregation(kind, z, swap):
    out, apply = aggregate(kind, z)
    order = list(range(3))
    order[swap[0]], order[swap[1]] = order[swap[1]], order[swap[0]]
    assert np.abs(apply(z[:, np.array(order)]) - out).max() > 1e-2


@pytest.mark.parametrize("kind", [kind for kind in ORDER_SENSITIVE if kind != "last"])
def test_swapping_the_first_two_frames_matters_unless_only_the_last_is_read(kind, z):
    out, apply = aggregate(kind, z)
    assert np.abs(apply(z[:, np.array([1, 0, 2])]) - out).max() > 1e-2


def test_mean_ignores_order_and_last_ignores_all_but_the_last(z):
    mean, apply_mean = aggregate("mean", z)
    np.testing.assert_allclose(apply_mean(z[:, ::-1]), mean, rtol=1e-5, atol=1e-6)
    last, _ = aggregate("last", z)
    np.testing.assert_array_equal(last, z[:, -1])


def test_an_unknown_aggregation_is_named(z):
    with pytest.raises(ValueError, match="'median'"):
        ContextAggregator("median").init(jax.random.key(1), z, there(z))


# Absent frames.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_absent", [1, 2])
def test_absent_frames_before_a_context_change_nothing(kind, num_absent):
    z = gaussian(5, 5, 16)
    _, apply = aggregate(kind, z)  # made for five frames
    alone = apply(z[:, num_absent:])
    present = there(z, *range(num_absent, 5))
    np.testing.assert_allclose(apply(z, present), alone, rtol=1e-5, atol=1e-6)
    if kind != "last":
        assert np.abs(alone - apply(z)).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_absent_frame_holds_reaches_neither_the_result_nor_the_gradient(kind):
    z = gaussian(5, 5, 16)
    _, apply = aggregate(kind, z)
    present = there(z)
    present[1, 1] = present[3, :2] = False
    other = np.where(present[..., None], z, 3.0 - z)
    np.testing.assert_allclose(apply(z, present), apply(other, present), rtol=1e-5, atol=1e-6)
    gradient = np.asarray(jax.jit(jax.grad(lambda z: jnp.sum(jnp.sin(apply(z, present)))))(z))
    assert np.isfinite(gradient).all() and not gradient[~present].any() and gradient[:, -1].all()


def test_the_mean_and_the_recurrence_of_some_frames_are_those_of_these_frames_alone(z):
    for kind in ("mean", "recurrent"):
        _, apply = aggregate(kind, z)
        np.testing.assert_allclose(apply(z, there(z, 0, 2)), apply(z[:, np.array([0, 2])]), rtol=1e-5, atol=1e-6)


def test_a_context_longer_than_the_positions_is_refused(z):
    _, apply = aggregate("attention", z)
    with pytest.raises(ValueError, match="a context of 4 frames is longer than the 3"):
        apply(np.concatenate([z, z[:, :1]], axis=1))


def encoded_context(num_frames):
    mask = np.random.default_rng(1).random((4, num_frames, 6)) < 0.7
    mask[..., 0] = True
    return Encoded(gaussian(*mask.shape, 8), mask, gaussian(4, num_frames, 16, seed=1))


def test_the_token_predictor_does_not_see_absent_frames_and_counts_roles_from_the_last():
    options = dict(dim=8, depth=1, num_heads=2, num_readouts=2, aggregation="mean", compute_dtype="float32")
    module = predictors.build("tokens", **options)
    context = encoded_context(5)
    params = jax.jit(module.init)(jax.random.key(0), context)
    assert params["params"]["roles"].shape == (5, 1, 8)
    apply = jax.jit(module.apply)
    shorter = jax.tree.map(lambda leaf: leaf[:, 2:], context)
    absent = context._replace(mask=context.mask & there(context.pooled, 2, 3, 4)[..., None])
    assert np.array_equal(predictors.frames(absent), there(context.pooled, 2, 3, 4))
    np.testing.assert_allclose(apply(params, absent), apply(params, shorter), rtol=1e-5, atol=1e-6)
    assert np.abs(apply(params, context) - apply(params, shorter)).max() > 1e-3


# Rows for those of absent frames.


fill = jax.jit(fill_absent)


def test_a_step_without_absent_frames_is_left_to_the_bit_gradients_included(z):
    np.testing.assert_array_equal(fill(z, there(z)), z)
    cotangent = gaussian(*z.shape, seed=5)
    pulled = jax.jit(jax.grad(lambda z: jnp.sum(cotangent * fill_absent(z, there(z)))))(z)
    np.testing.assert_array_equal(pulled, cotangent)


def test_absent_rows_are_other_rows_of_the_step_each_as_often_as_the_next():
    z = np.arange(7 * 3, dtype=np.float32).reshape(7, 3, 1)
    present = there(z)
    present[[0, 2, 3, 5, 6], 0] = present[2, 1] = False
    filled = np.asarray(fill(z, present))
    np.testing.assert_array_equal(filled[present], z[present])
    values, times = np.unique(filled[:, 0], return_counts=True)
    np.testing.assert_array_equal(values, z[[1, 4], 0, 0])
    assert sorted(times) == [3, 4]  # seven rows out of two
    assert filled[2, 1] == z[0, 1]
    np.testing.assert_array_equal(filled[:, 2], z[:, 2])


def test_a_step_that_no_row_has_repeats_the_last(z):
    filled = fill(z, there(z, 1, 2))
    np.testing.assert_array_equal(filled, np.stack([z[:, 2], z[:, 1], z[:, 2]], axis=1))

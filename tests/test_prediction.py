"""Laws of the prediction errors: their shape, scale, gradients, and accuracy in float32."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jepa.losses.prediction import ERRORS, cosine, huber, normalized_error, squared_error

ANGULAR = ("cosine", "normalized")


def pair(*shape, seed=0, scale=1.0):
    """Asymmetric vectors, each coordinate with a mean and a scale of its own."""
    rng = np.random.default_rng(seed)
    spread, mean = np.linspace(0.3, 2.0, shape[-1]), np.linspace(-1.0, 1.5, shape[-1])
    return tuple((scale * (rng.gamma(2.0, 1.0, shape) * spread - mean)).astype(np.float32) for _ in range(2))


def reference(name, p, t, delta=1.0):
    """The definitions in float64."""
    p, t = np.asarray(p, np.float64), np.asarray(t, np.float64)
    if name in ANGULAR:
        p, t = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (p, t))
        return ((p - t) ** 2).sum(-1) / (2.0 if name == "cosine" else 1.0)
    error = np.abs(p - t)
    inside = {"squared": error**2, "huber": error**2 / 2}[name]
    outside = {"squared": error**2, "huber": delta * (error - delta / 2)}[name]
    return np.where(error <= delta, inside, outside).mean(-1)


def finite_differences(function, x, step=1e-6):
    x = np.asarray(x, np.float64)
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        bump = np.zeros_like(x)
        bump[index] = step
        gradient[index] = (function(x + bump) - function(x - bump)).sum() / (2 * step)
    return gradient


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ERRORS)
def test_value_and_both_gradients_are_those_of_the_definition(name, compiled):
    p, t = pair(4, 3, 7)

    def both(p, t):
        value, pullback = jax.vjp(ERRORS[name], p, t)
        return value, *pullback(jnp.ones_like(value))

    value, dp, dt = (jax.jit(both) if compiled else both)(p, t)
    assert value.shape == (4, 3) and value.dtype == jnp.float32
    np.testing.assert_allclose(value, reference(name, p, t), rtol=2e-6, atol=2e-7)
    for actual, expected in (
        (dp, finite_differences(lambda x: reference(name, x, t), p)),
        (dt, finite_differences(lambda x: reference(name, p, x), t)),
    ):
        assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_symmetric_zero_at_the_target_and_grows_away_from_it(name):
    p, t = pair(6, 5)
    np.testing.assert_allclose(ERRORS[name](p, t), ERRORS[name](t, p), rtol=1e-6)
    np.testing.assert_allclose(ERRORS[name](t, t), 0.0, atol=2e-7)
    away = [ERRORS[name](t + step * (p - t), t) for step in (0.1, 0.5, 1.0)]
    assert (away[0] > 1e-4).all() and (away[1] > away[0]).all() and (away[2] > away[1]).all()


@pytest.mark.parametrize("name", ["squared", "huber"])
def test_the_mean_over_dimensions_does_not_grow_with_the_width(name):
    p, t = pair(6, 5)
    wide = [np.tile(x, (1, 9)) for x in (p, t)]
    np.testing.assert_allclose(ERRORS[name](*wide), ERRORS[name](p, t), rtol=1e-6)


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_taken_at_face_value(name, dtype):
    p, t = (jnp.asarray(x, dtype) for x in pair(8, 6))
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(ERRORS[name](x, t)))(p)
    assert ERRORS[name](p, t).dtype == jnp.float32 and gradient.dtype == dtype
    expected = reference(name, np.asarray(p, np.float64), np.asarray(t, np.float64))
    np.testing.assert_allclose(ERRORS[name](p, t), expected, rtol=2e-6, atol=2e-7)
    np.testing.assert_allclose(value, expected.sum(), rtol=2e-6)


@pytest.mark.parametrize("name", ERRORS)
def test_float64_passes_through(name):
    with jax.enable_x64(True):
        p, t = (jnp.asarray(x, jnp.float64) for x in pair(8, 6))
        value = ERRORS[name](p, t)
        assert value.dtype == jnp.float64
        np.testing.assert_allclose(value, reference(name, p, t), rtol=1e-12)


@pytest.mark.parametrize("name", ERRORS)
def test_different_shapes_are_refused(name):
    for p, t in ((jnp.zeros((4, 3)), jnp.zeros((1, 3))), (jnp.zeros((4, 3)), jnp.zeros(3))):
        with pytest.raises(ValueError, match="must have one shape"):
            ERRORS[name](p, t)


# Huber.


def test_huber_with_a_large_delta_is_half_the_squared_error():
    p, t = pair(9, 5)
    for delta in (1e3, 1e30, np.inf):
        np.testing.assert_allclose(huber(p, t, delta=delta), squared_error(p, t) / 2, rtol=1e-6)


@pytest.mark.parametrize("delta", [0.05, 1.0, 7.0])
def test_huber_slope_is_the_error_clipped_at_delta(delta):
    error = np.linspace(-40.0, 40.0, 161, dtype=np.float32)[:, None]
    error = np.concatenate([error, 0.01 * error, [[delta], [-delta]]]).astype(np.float32)
    slope = jax.grad(lambda e: jnp.sum(huber(e, jnp.zeros_like(e), delta=delta)))(error)
    np.testing.assert_allclose(slope, np.clip(error, -delta, delta), rtol=2e-6)


def test_huber_far_away_is_a_line_of_slope_delta():
    far = np.float32([[50.0], [80.0]])
    value = huber(far, np.zeros_like(far), delta=0.25)
    np.testing.assert_allclose(value, 0.25 * (far[:, 0] - 0.125), rtol=1e-6)
    # The convention of smooth_l1_loss(beta) is this over beta.
    small = huber(np.float32([[0.1]]), np.zeros((1, 1), np.float32), delta=0.25)
    np.testing.assert_allclose(small / 0.25, 0.5 * 0.1**2 / 0.25, rtol=1e-6)


@pytest.mark.parametrize("delta", [0.0, -1.0, float("nan")])
def test_huber_refuses_a_delta_that_is_not_positive(delta):
    with pytest.raises(ValueError, match="delta must be positive"):
        huber(jnp.zeros((2, 3)), jnp.zeros((2, 3)), delta=delta)


# Angles.


@given(st.floats(-3.0, 3.0), st.floats(-3.0, 3.0), st.sampled_from(ANGULAR))
def test_length_does_not_matter(log_c, log_d, name):
    p, t = pair(5, 6)
    scaled = ERRORS[name](np.float32(10**log_c) * p, np.float32(10**log_d) * t)
    np.testing.assert_allclose(scaled, ERRORS[name](p, t), rtol=2e-6, atol=2e-7)


def test_normalized_error_is_twice_the_cosine_error_and_spans_0_to_4():
    p, t = pair(200, 7)
    np.testing.assert_allclose(normalized_error(p, t), 2 * cosine(p, t), rtol=2e-6, atol=5e-7)
    np.testing.assert_allclose(normalized_error(p, 3 * p), 0.0, atol=1e-12)
    np.testing.assert_allclose(normalized_error(p, -3 * p), 4.0, rtol=1e-6)
    np.testing.assert_allclose(cosine(p, -3 * p), 2.0, rtol=1e-6)


@pytest.mark.parametrize("angle", [1e-1, 1e-2, 1e-3, 1e-4])
def test_normalized_error_is_accurate_near_zero(angle):
    t, direction = pair(50, 16)
    tangent = direction - (direction * t).sum(-1, keepdims=True) / (t * t).sum(-1, keepdims=True) * t
    p = t + angle * np.linalg.norm(t, axis=-1, keepdims=True) * tangent / np.linalg.norm(tangent, axis=-1)[:, None]
    p = p.astype(np.float32)
    expected = reference("normalized", p, t)
    # The rounding of unit vectors moves their difference by 1e-7 at most, so its square by 2e-7 times the angle;
    # 2 - 2 cos in float32 would be wrong by 1e-7, which is 10 times the whole at an angle of 1e-4.
    assert np.abs(jax.jit(normalized_error)(p, t) - expected).max() < 3e-7 * angle
    assert np.abs(np.asarray(cosine(p, t)) - expected / 2).max() < 3e-7


@pytest.mark.parametrize("name", ANGULAR)
def test_gradient_has_no_radial_part_so_that_steps_lengthen(name):
    p, t = pair(12, 8)
    gradient = np.asarray(jax.grad(lambda x: jnp.sum(ERRORS[name](x, t)))(p), np.float64)
    length = np.linalg.norm(gradient, axis=-1)
    assert (length > 0.01).all()
    assert (np.abs((gradient * p).sum(-1)) < 1e-6 * length * np.linalg.norm(p, axis=-1)).all()
    assert (np.linalg.norm(p - gradient, axis=-1) > np.linalg.norm(p, axis=-1)).all()
    far = np.asarray(jax.grad(lambda x: jnp.sum(ERRORS[name](x, t)))(100 * p))
    np.testing.assert_allclose(100 * far, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ERRORS)
def test_zero_vectors_have_finite_gradients(name, compiled):
    p, t = (x.copy() for x in pair(3, 4))
    p[0] = t[1] = p[2] = t[2] = 0.0
    both = jax.value_and_grad(lambda p, t: jnp.sum(ERRORS[name](p, t)), argnums=(0, 1))
    value, gradients = (jax.jit(both) if compiled else both)(p, t)
    assert np.isfinite(value) and all(np.isfinite(gradient).all() for gradient in gradients)
    if name in ANGULAR:
        np.testing.assert_allclose(ERRORS[name](p, t)[:2], 1.0, rtol=1e-6)


def test_vmap_agrees_with_leading_axes():
    p, t = pair(4, 3, 5)
    for name, error in ERRORS.items():
        np.testing.assert_allclose(jax.vmap(error)(p, t), error(p, t), rtol=1e-6, err_msg=name)
    delta = partial(huber, delta=0.3)
    np.testing.assert_allclose(jax.vmap(jax.vmap(delta))(p, t), delta(p, t), rtol=1e-6)

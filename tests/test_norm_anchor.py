"""Laws of the norm anchor: zero at the target, radial, alive wherever SIGReg is not, blind to rank."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jepa.losses.norm_anchor import norm_anchor
from jepa.losses.sigreg import sigreg

FORMS = [dict(relative=relative, target=target) for relative in (False, True) for target in (None, 0.3, 20.0)]


def directions(*shape, seed=0):
    """Unit vectors, asymmetric."""
    x = np.random.default_rng(seed).gamma(2.0, 1.0, shape) * np.linspace(0.3, 2.0, shape[-1]) - 0.7
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def reference(z, target=None, relative=False):
    target = math.sqrt(z.shape[-1]) if target is None else target
    norm = np.linalg.norm(np.asarray(z, np.float64), axis=-1)
    return (norm / target - 1) ** 2 if relative else (norm - target) ** 2


def gradient_of(z, compiled=False, **form):
    gradient = jax.grad(lambda z: jnp.sum(norm_anchor(z, **form)))
    return np.asarray((jax.jit(gradient) if compiled else gradient)(z), np.float64)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_value_is_that_of_the_definition(form, compiled):
    z = (directions(4, 3, 9) * np.geomspace(1e-2, 1e2, 12).reshape(4, 3, 1)).astype(np.float32)
    function = partial(norm_anchor, **form)
    value = (jax.jit(function) if compiled else function)(z)
    assert value.shape == (4, 3) and value.dtype == jnp.float32
    np.testing.assert_allclose(value, reference(z, **form), rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_zero_exactly_at_the_target_norm(form):
    target = form["target"] or math.sqrt(7)
    z = (target * directions(10, 7)).astype(np.float32)
    scale = 1.0 if form["relative"] else target**2
    assert (norm_anchor(z, **form) < 1e-12 * scale).all()
    for factor in (0.9, 1.1):
        np.testing.assert_allclose(norm_anchor(np.float32(factor) * z, **form), 0.01 * scale, rtol=1e-4)


@given(st.floats(-3.0, 3.0), st.sampled_from(FORMS), st.booleans())
def test_gradient_is_radial_and_its_size_is_twice_the_distance_from_the_target(log_scale, form, compiled):
    u, norm = directions(6, 8), 10**log_scale
    target = form["target"] or math.sqrt(8)
    gradient = gradient_of((norm * u).astype(np.float32), compiled, **form)
    radial = (gradient * u).sum(-1)
    expected = 2 * (norm - target) / (target**2 if form["relative"] else 1.0)
    # float32 resolves the norm to 1e-7 of itself, and the distance from the target no better.
    tolerance = 1e-6 * (abs(expected) + 2 * norm / (target**2 if form["relative"] else 1.0))
    np.testing.assert_allclose(radial, expected, rtol=0, atol=tolerance)
    assert np.abs(gradient - radial[:, None] * u).max() <= tolerance


@pytest.mark.parametrize("scale", [1e-3, 1e-2, 1e2, 1e3])
@pytest.mark.parametrize("relative", [False, True])
def test_pull_does_not_vanish_in_the_tails(scale, relative):
    u = directions(6, 16)
    gradient = gradient_of((scale * 4 * u).astype(np.float32), relative=relative)
    inward = (gradient * u).sum(-1)  # a step against the gradient shortens z where this is positive
    least = 2 * 4 * 0.98 / (16 if relative else 1)
    assert (inward > least).all() if scale > 1 else (inward < -least).all()


def test_it_covers_the_scales_where_the_pull_of_sigreg_vanishes():
    z = jax.random.normal(jax.random.key(0), (256, 32))

    @jax.jit
    @partial(jax.vmap, in_axes=0)
    def pulls(scale):
        test = jax.grad(lambda s: sigreg(s * z, jax.random.key(1), num_slices=64) / 256)(scale)
        return test, jax.grad(lambda s: jnp.mean(norm_anchor(s * z, relative=True)))(scale)

    scales = np.float32([0.01, 0.03, 0.3, 2.0, 20.0, 100.0])
    test, anchor = map(np.asarray, pulls(scales))
    assert test[2] < -0.5 and test[3] > 0.25
    assert (np.abs(test[[0, 1, 4, 5]]) < 0.12).all()
    assert (anchor[:2] < -1.8).all() and (anchor[4:] > 30).all()


def test_it_is_blind_to_rank():
    collapsed = np.tile(math.sqrt(12) * directions(12), (30, 1)).astype(np.float32)
    assert (norm_anchor(collapsed) < 1e-10).all()
    assert np.abs(gradient_of(collapsed)).max() < 1e-5


@pytest.mark.parametrize("dim", [4, 64])
def test_under_the_null_it_is_the_variance_of_the_norm(dim):
    # E(|z| - sqrt D)^2 = 2 D - 2 sqrt(D) E|z|, and E|z| = sqrt 2 Gamma((D + 1) / 2) / Gamma(D / 2).
    mean_norm = math.sqrt(2) * math.exp(math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2))
    expected = 2 * dim - 2 * math.sqrt(dim) * mean_norm
    assert expected == pytest.approx(0.5, abs=0.02)
    z = jax.random.normal(jax.random.key(dim), (40000, dim))
    assert float(jnp.mean(norm_anchor(z))) == pytest.approx(expected, abs=0.02)
    assert float(jnp.mean(norm_anchor(z, relative=True))) == pytest.approx(expected / dim, abs=0.02 / dim)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_at_zero_the_value_is_finite_and_the_gradient_zero(form, compiled):
    z = np.zeros((2, 5), np.float32)
    z[1] = 1.0
    target = form["target"] or math.sqrt(5)
    np.testing.assert_allclose(norm_anchor(z, **form)[0], 1.0 if form["relative"] else target**2, rtol=1e-6)
    gradient = gradient_of(z, compiled, **form)
    assert not gradient[0].any() and np.isfinite(gradient).all()
    tiny = gradient_of(np.float32(1e-12) * z, compiled, **form)  # here there is a direction again
    np.testing.assert_allclose(np.linalg.norm(tiny[1]), 2 / target if form["relative"] else 2 * target, rtol=1e-5)


def test_relative_is_the_plain_form_over_the_squared_target_whatever_the_width():
    z = (3.0 * directions(10, 6)).astype(np.float32)
    np.testing.assert_allclose(norm_anchor(z, relative=True), norm_anchor(z) / 6, rtol=1e-5)
    np.testing.assert_allclose(norm_anchor(np.tile(z, (1, 4)), relative=True), norm_anchor(z, relative=True), rtol=1e-5)


def test_half_precision_is_taken_at_face_value_and_float64_passes_through():
    z = jnp.asarray(directions(6, 8) * 7, jnp.bfloat16)
    assert norm_anchor(z).dtype == jnp.float32
    np.testing.assert_allclose(norm_anchor(z), reference(np.asarray(z, np.float64)), rtol=1e-5)
    with jax.enable_x64(True):
        z = jnp.asarray(directions(6, 8) * 7, jnp.float64)
        assert norm_anchor(z).dtype == jnp.float64
        np.testing.assert_allclose(norm_anchor(z), reference(z), rtol=1e-12)


@pytest.mark.parametrize("target", [0, -1.0, float("nan")])
def test_a_target_that_is_not_positive_is_refused(target):
    with pytest.raises(ValueError, match="target must be positive"):
        norm_anchor(jnp.ones((2, 3)), target=target)

"""Laws of the alternatives to SIGReg, against NumPy and eb_jepa (golden/variance.npz)."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jepa.losses.sigreg import random_directions
from jepa.losses.variance import (
    gaussian_sketch,
    vicreg_covariance,
    vicreg_variance,
    visreg,
    visreg_along,
    weak_sigreg,
    weak_sigreg_along,
)

# eb_jepa's HingeStdLoss and CovarianceLoss, float64 PyTorch on CPU.
GOLDEN = dict(np.load(Path(__file__).parent / "golden" / "variance.npz"))
CASES = ("rank5", "const", "wide")
KEY = jax.random.key(0)
REGULARISERS = {
    "vicreg_variance": vicreg_variance,
    "vicreg_covariance": vicreg_covariance,
    "weak_sigreg": weak_sigreg,
    "weak_sigreg sketched": partial(weak_sigreg, sketch_dim=4),
    "visreg": partial(visreg, num_slices=16),
}
with_gradient = {name: jax.jit(jax.value_and_grad(function)) for name, function in REGULARISERS.items()}


def in_float64(function, *arguments):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jax.jit(function)(*(jnp.asarray(a, jnp.float64) for a in arguments)))


def assert_gradient(actual, expected, tolerance=1e-5):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


def rng(seed=3):
    return np.random.default_rng(seed)


def skewed(num, dim, seed=3):
    """Asymmetric correlated samples with a different mean and scale in every dimension, some of them below 1."""
    z = rng(seed).gamma(2.0, 1.0, (num, dim)) * np.linspace(0.2, 1.2, dim) - np.linspace(0.0, 2.0, dim)
    return (z + 0.3 * z[:, :1]).astype(np.float32)


def reference_weak_sigreg(z, sketch):
    z = z if sketch is None else z @ sketch
    return np.linalg.norm(np.cov(z, rowvar=False) - np.eye(z.shape[1]), "fro")


def reference_visreg(z, directions, eps=1e-6):
    num = len(z)
    mean, std = z.mean(0), np.sqrt(z.var(0, ddof=1) + eps)
    quantile = scipy.stats.norm.ppf(np.arange(1, num + 1) / (num + 1))
    s = np.sort((z - mean) / std @ directions, axis=0)
    return np.mean(mean**2) + np.mean((1 - std) ** 2) + np.mean((s - quantile[:, None]) ** 2)


def reference_visreg_gradient(z, directions, eps=1e-6):
    """By hand: through the mean, through the scale, and through the shape with its std held fixed."""
    num, dim = z.shape
    mean, centred = z.mean(0), z - z.mean(0)
    std = np.sqrt(z.var(0, ddof=1) + eps)
    gradient = 2 * mean[None] / (num * dim) - 2 * (1 - std)[None] * centred / ((num - 1) * std[None] * dim)
    u = centred / std @ directions
    quantile = scipy.stats.norm.ppf(np.arange(1, num + 1) / (num + 1))
    ranks = np.argsort(np.argsort(u, axis=0), axis=0)
    error = 2 * (u - quantile[ranks]) / u.size
    shape = error @ directions.T / std
    return gradient + shape - shape.mean(0)


@jax.jit
def vicreg(z):
    return vicreg_variance(z, KEY), vicreg_covariance(z, KEY)


@pytest.mark.parametrize("case", CASES)
def test_vicreg_equals_eb_jepa(case):
    z = GOLDEN[f"rep_{case}_Z"]
    exact = in_float64(vicreg, z)
    for value, golden in zip(exact, ("vic_std", "vic_cov"), strict=True):
        assert value.dtype == np.float64
        np.testing.assert_allclose(value, GOLDEN[f"rep_{case}_{golden}_ebjepa"], rtol=1e-9)
    # Embeddings are rounded first: the deviations of `const` are 1e-4 of its values, its covariances 1e-10.
    rounded = z.astype(np.float32)
    (variance, covariance), exact = vicreg(rounded), in_float64(vicreg, rounded)
    np.testing.assert_allclose(variance, exact[0], rtol=2e-6, atol=1e-7)  # a difference from the target, 1
    np.testing.assert_allclose(covariance, exact[1], rtol=2e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_those_of_finite_differences(masked):
    z, sketch = skewed(60, 6).reshape(2, 30, 6).astype(np.float64), np.asarray(gaussian_sketch(KEY, 6, 4), np.float64)
    mask = rng().random((2, 30)) < np.array([0.5, 0.8])[:, None] if masked else None
    functions = {
        "variance": lambda z: vicreg_variance(z, KEY, mask=mask),
        "covariance": lambda z: vicreg_covariance(z, KEY, mask=mask),
        "weak_sigreg": lambda z: jnp.mean(weak_sigreg_along(z, None, mask=mask)),
        "weak_sigreg sketched": lambda z: jnp.mean(weak_sigreg_along(z, jnp.asarray(sketch), mask=mask)),
    }
    step = 1e-6 * rng(12).normal(size=z.shape)

    def all_of(z):
        return {name: jax.value_and_grad(function)(z) for name, function in functions.items()}

    at, ahead, behind = (in_float64(all_of, x) for x in (z, z + step, z - step))
    for name, (_, gradient) in at.items():
        slope = (ahead[name][0] - behind[name][0]) / 2
        assert abs(np.sum(gradient * step) - slope) < 1e-7 * np.sum(np.abs(gradient * step)), name


def test_vicreg_equals_numpy():
    z = skewed(30, 5).astype(np.float64)
    cov = np.cov(z, rowvar=False)
    hinge = np.maximum(0, 1.5 - np.sqrt(np.diag(cov) + 1e-3)).mean()
    np.testing.assert_allclose(in_float64(lambda z: vicreg_variance(z, KEY, target_std=1.5, eps=1e-3), z), hinge)
    off_diagonal = (np.sum(cov**2) - np.sum(np.diag(cov) ** 2)) / 20
    np.testing.assert_allclose(in_float64(lambda z: vicreg_covariance(z, KEY), z), off_diagonal)
    assert jax.jit(vicreg_covariance)(z[:, :1].astype(np.float32), KEY) == 0


@pytest.mark.parametrize("shape", [(30, 5, None), (9, 12, None), (40, 12, 4)])
def test_weak_sigreg_equals_numpy(shape):
    num, dim, num_sketch = shape
    z = skewed(num, dim)
    sketch = None if num_sketch is None else np.asarray(gaussian_sketch(KEY, dim, num_sketch))
    expected = reference_weak_sigreg(z.astype(np.float64), sketch)
    np.testing.assert_allclose(in_float64(lambda z: weak_sigreg_along(z, sketch), z), expected, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(weak_sigreg_along)(z, sketch), expected, rtol=2e-6)
    drawn = jax.jit(partial(weak_sigreg, sketch_dim=num_sketch or 64))
    np.testing.assert_allclose(drawn(z, KEY), expected, rtol=2e-6)


@pytest.mark.parametrize("shape", [(2, 3), (33, 5), (64, 24)])
def test_visreg_equals_numpy(shape):
    z, directions = skewed(*shape), np.asarray(random_directions(KEY, shape[1], 16))
    exact = [
        f(z.astype(np.float64), directions.astype(np.float64)) for f in (reference_visreg, reference_visreg_gradient)
    ]
    value, gradient = in_float64(jax.value_and_grad(visreg_along), z, directions)
    np.testing.assert_allclose(value, exact[0], rtol=1e-9)
    assert_gradient(gradient, exact[1], 1e-9)
    value, gradient = with_gradient["visreg"](jnp.asarray(z), KEY)
    np.testing.assert_allclose(value, exact[0], rtol=2e-6)
    assert_gradient(gradient, exact[1])


def test_the_value_of_shape_is_free_of_scale():
    # Rescaling one dimension of mean 0 and std 1 by c changes nothing but the scale term, by (1 - c)^2 / D.
    z = skewed(50, 4).astype(np.float64)
    z = (z - z.mean(0)) / z.std(0, ddof=1)
    directions = np.asarray(random_directions(KEY, 4, 16), np.float64)
    function = partial(in_float64, partial(visreg_along, eps=0.0))
    np.testing.assert_allclose(
        function(z * np.array([1, 1, 1.7, 1]), directions) - function(z, directions), 0.7**2 / 4, rtol=1e-9
    )


def test_sketch_keeps_unit_covariance_in_expectation():
    sketch = np.asarray(jax.vmap(lambda key: gaussian_sketch(key, 40, 6))(jax.random.split(KEY, 400)))  # [draws, D, K]
    gram = np.einsum("sdk,sde->ske", sketch, sketch)
    np.testing.assert_allclose(gram.mean(0), np.eye(6), atol=0.04)
    square = np.square(gram - np.eye(6)).sum((1, 2)).mean()
    np.testing.assert_allclose(square, 6 * 7 / 40, rtol=0.06)  # (K / sqrt(D))^2, all but
    variance = np.linspace(0.5, 1.2, 71)
    curve = [np.square(v * gram - np.eye(6)).sum((1, 2)).mean() for v in variance]
    assert variance[np.argmin(curve)] == pytest.approx(40 / (40 + 6 + 1), abs=0.02)


def test_weak_sigreg_has_a_gradient_at_its_zero():
    # Hadamard columns scaled to unit variance: their covariance is I, exactly.
    hadamard = np.array([[1, 1, 1], [-1, 1, -1], [1, -1, -1], [-1, -1, 1]], np.float64) * np.sqrt(0.75)
    z = jnp.asarray(np.round(hadamard * 2**20) / 2**20, jnp.float32)
    value, gradient = with_gradient["weak_sigreg"](z, KEY)
    assert float(value) < 1e-5 and np.all(np.isfinite(gradient))
    corners = jnp.float32([[1, 1], [-1, 1], [1, -1], [-1, -1], [0, 0]])  # sums of squares 4 = N - 1: no rounding
    value, gradient = with_gradient["weak_sigreg"](corners, KEY)
    assert value == 0 and not np.any(gradient)


@pytest.mark.parametrize("name", REGULARISERS)
def test_order_sets_and_dtype(name):
    function = partial(with_gradient[name], key=KEY)
    z = jnp.asarray(skewed(72, 6)).reshape(3, 24, 6)
    value, gradient = function(z)
    order = rng().permutation(24)
    permuted, permuted_gradient = function(z[:, order])
    np.testing.assert_allclose(permuted, value, rtol=3e-6)
    assert_gradient(permuted_gradient, gradient[:, order])
    each = [
        function(jnp.broadcast_to(z[i], z.shape)) for i in range(3)
    ]  # the mean over three equal sets is that of one
    np.testing.assert_allclose(value, np.mean([v for v, _ in each]), rtol=3e-6)
    assert_gradient(gradient, np.stack([g[0] for _, g in each]))
    half, half_gradient = jax.eval_shape(function, z.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32 and half.shape == () and half_gradient.dtype == jnp.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("name", REGULARISERS)
def test_the_plain_call_agrees_with_the_compiled_one(name):
    z = jnp.asarray(skewed(72, 6)).reshape(3, 24, 6)
    np.testing.assert_allclose(REGULARISERS[name](z, KEY), with_gradient[name](z, KEY)[0], rtol=3e-6)


@pytest.mark.parametrize("name", REGULARISERS)
def test_masking_equals_subsetting(name):
    z = jnp.asarray(skewed(72, 6)).reshape(3, 24, 6)
    mask = np.ones((3, 24), bool)
    for i in range(2):
        mask[i, rng(i).permutation(24)[:13]] = False
    function = jax.jit(jax.value_and_grad(lambda z, mask: REGULARISERS[name](z, KEY, mask=mask)))
    value, gradient = function(jnp.where(mask[..., None], z, jnp.nan), mask)
    huge, huge_gradient = function(jnp.where(mask[..., None], z, 1e30), mask)
    assert value == huge and np.array_equal(gradient, huge_gradient)
    each = [with_gradient[name](z[i][mask[i]], KEY) for i in range(2)]
    whole, whole_gradient = with_gradient[name](jnp.broadcast_to(z[2], z.shape), KEY)  # three times the third set
    each.append((whole, 3 * whole_gradient[0]))
    np.testing.assert_allclose(value, np.mean([v for v, _ in each]), rtol=3e-6)
    assert not np.any(np.asarray(gradient)[~mask])
    for i, (_, expected) in enumerate(each):
        assert_gradient(np.asarray(gradient)[i][mask[i]], expected / 3)
    # Sets without a real row score nothing; with one they are at a point.
    alone = np.zeros((3, 24), bool)
    value, gradient = function(z, alone)
    assert value == 0 and not np.any(gradient)
    alone[:, 5] = True
    value, gradient = function(z, alone)
    assert np.isfinite(value) and np.all(np.isfinite(gradient)) and not np.any(np.asarray(gradient)[~alone])


@pytest.mark.parametrize("name", REGULARISERS)
def test_small_at_the_null_large_away_from_it(name):
    function = jax.jit(REGULARISERS[name])
    z = jax.random.normal(jax.random.key(8), (2048, 6))
    null = float(function(z, KEY))
    if name == "weak_sigreg sketched":  # one sketch of 4 out of 6 dimensions is far from keeping the covariance
        assert float(function(10 * z, KEY)) > float(function(3 * z, KEY)) > null
        assert float(function(0 * z, KEY)) == pytest.approx(2.0)
        return
    if name == "vicreg_covariance":
        assert null < 2e-3
        correlated = jnp.concatenate([z[:, :3], z[:, :3] + 0.1 * z[:, 3:]], axis=1)
        assert float(function(correlated, KEY)) > 0.15 and float(function(3 * z, KEY)) > 50 * null
        np.testing.assert_allclose(function(3 * z, KEY), 81 * null, rtol=1e-4)
        return
    down = [float(function(scale * z, KEY)) for scale in (0.8, 0.5, 0.1, 0.0)]
    assert all(a < b for a, b in itertools.pairwise(down)) and down[1] > null
    up = [float(function(scale * z, KEY)) for scale in (1.5, 3.0, 10.0)]
    if name == "vicreg_variance":
        assert up == [0.0, 0.0, 0.0] and down[-1] == pytest.approx(0.99, abs=1e-6)
    else:
        assert null < up[0] < up[1] < up[2]
    if name == "visreg":
        assert null < 5 / 2048 and down[-1] == pytest.approx(2.0, abs=0.02)
        np.testing.assert_allclose(function(z + 2.0, KEY) - null, 4.0, rtol=0.05)
        heavy = jax.random.t(jax.random.key(2), 3.0, (2048, 6)) / jnp.sqrt(3.0)
        assert float(function(heavy / jnp.std(heavy, axis=0, keepdims=True), KEY)) > 5 * null
    else:
        np.testing.assert_allclose(function(z + 2.0, KEY), null, rtol=1e-3, atol=1e-6)
    if name == "weak_sigreg":
        assert null == pytest.approx(6 / np.sqrt(2048), rel=0.3) and down[-1] == pytest.approx(np.sqrt(6))


@pytest.mark.parametrize("name", REGULARISERS)
def test_gradient_at_a_point(name):
    for point in (0.0, 0.75, -3.0):
        value, gradient = with_gradient[name](jnp.full((3, 24, 6), point), KEY)
        assert np.isfinite(value) and np.all(np.isfinite(gradient))
        spread = np.abs(np.asarray(gradient) - np.asarray(gradient)[:, :1]).max()
        assert spread > 0.1 if name == "visreg" else not np.any(gradient)


def test_weak_sigreg_without_a_sketch_does_not_change_with_rotation():
    z = skewed(40, 6).astype(np.float64)
    rotation = np.linalg.qr(rng(9).normal(size=(6, 6)))[0]
    function = partial(in_float64, lambda z: weak_sigreg_along(z, None))
    np.testing.assert_allclose(function(z @ rotation), function(z), rtol=1e-12)
    # VICReg's terms are about coordinates: rotating moves variance between them and the off-diagonal.
    function = partial(in_float64, lambda z: vicreg_covariance(z, KEY))
    assert abs(function(z @ rotation) / function(z) - 1) > 0.05


def test_only_random_ones_depend_on_the_key():
    z = jnp.asarray(skewed(72, 6)).reshape(3, 24, 6)
    for name, function in with_gradient.items():
        changed = function(z, jax.random.key(1))[0] != function(z, KEY)[0]
        assert changed == (name in ("weak_sigreg sketched", "visreg"))


def test_a_mask_of_another_shape_is_an_error():
    for function in REGULARISERS.values():
        with pytest.raises(ValueError, match="mask must have the shape"):
            function(jnp.zeros((4, 3)), KEY, mask=jnp.ones(3, bool))

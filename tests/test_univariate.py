"""Laws of the univariate and multivariate tests of normality, and agreement with LeJEPA's (golden/univariate.npz)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from jepa.losses import univariate
from jepa.losses.multivariate import bhep, henze_zirkler
from jepa.losses.sigreg import random_directions, sigreg, sigreg_along
from jepa.losses.univariate import EXTENSIVE, STATISTICS, moments, sliced, sliced_along

# LeJEPA's univariate and multivariate tests, float64 PyTorch on CPU; Anderson-Darling with SciPy's exact log Phi.
GOLDEN = dict(np.load(Path(__file__).parent / "golden" / "univariate.npz"))
CASES = sorted(key.removesuffix("_x") for key in GOLDEN if key.endswith("_x"))
KEYS = {
    "anderson_darling": "ad_exactlogcdf",
    "cramer_von_mises": "cvm",
    "watson": "watson",
    "jarque_bera": "ejb",
    "moments": "moments4",
}
KEY = jax.random.key(0)
MULTIVARIATE = {
    "bhep_b0.1": partial(bhep, key=KEY, beta=0.1),
    "bhep_b1": partial(bhep, key=KEY, beta=1.0),
    "hz": partial(henze_zirkler, key=KEY),
}
REGULARISERS = {
    **{name: partial(sliced, key=KEY, statistic=name, num_slices=16) for name in STATISTICS},
    **MULTIVARIATE,
}
SORTING = ("anderson_darling", "cramer_von_mises", "watson")

along = {name: jax.jit(partial(sliced_along, statistic=name)) for name in STATISTICS}
with_gradient = {name: jax.jit(jax.value_and_grad(function)) for name, function in REGULARISERS.items()}


@jax.jit
def statistics_and_gradients(u):
    """name -> (T [M], d sum(T) / du [N, M]) of every statistic computed here."""
    result = {}
    for name in KEYS:
        value, pullback = jax.vjp(STATISTICS[name], u)
        result[name] = value, pullback(jnp.ones_like(value))[0]
    return result


@jax.jit
def multivariate_and_gradients(x):
    return {name: jax.value_and_grad(function)(x) for name, function in MULTIVARIATE.items()}


def in_float64(function, *arguments):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jax.jit(function)(*(jnp.asarray(a, jnp.float64) for a in arguments)))


def projections(case):
    return GOLDEN[f"{case}_x"].astype(np.float64) @ GOLDEN[f"{case.split('_')[0]}_A"]


def assert_gradient(actual, expected, tolerance=1e-5):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


def rng(seed=3):
    return np.random.default_rng(seed)


def skewed(num, dim, seed=3):
    """Asymmetric samples with a different mean and scale in every dimension."""
    z = rng(seed).gamma(2.0, 1.0, (num, dim)) * np.linspace(0.3, 1.5, dim) - np.linspace(0.0, 2.0, dim)
    return z.astype(np.float32)


@pytest.mark.parametrize("case", CASES)
def test_float64_equals_lejepa(case):
    found = in_float64(statistics_and_gradients, projections(case))
    for name, golden in KEYS.items():
        value, gradient = found[name]
        assert value.dtype == np.float64
        np.testing.assert_allclose(value, GOLDEN[f"{case}_{golden}"], rtol=1e-9, err_msg=name)
        if f"{case}_{golden}_grad" in GOLDEN:
            assert_gradient(gradient, GOLDEN[f"{case}_{golden}_grad"], 1e-9)
    for name, (value, gradient) in in_float64(multivariate_and_gradients, GOLDEN[f"{case}_x"]).items():
        np.testing.assert_allclose(value, GOLDEN[f"{case}_{name}"], rtol=1e-9, err_msg=name)
        if f"{case}_{name}_grad" in GOLDEN:
            assert_gradient(gradient, GOLDEN[f"{case}_{name}_grad"], 1e-9)


@pytest.mark.parametrize("case", CASES)
def test_moments_up_to_the_sixth(case):
    value = in_float64(partial(moments, k_max=6), projections(case))
    np.testing.assert_allclose(value, GOLDEN[f"{case}_moments6"], rtol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_float32_equals_float64(case):
    # u is rounded first, so that only the rounding of the statistic itself is measured. What is trained on is the
    # distance: a T that is N times it carries N times its rounding.
    u = projections(case).astype(np.float32)
    exact, found = in_float64(statistics_and_gradients, u), statistics_and_gradients(u)
    for name in KEYS:
        (value, gradient), (expected, expected_gradient) = found[name], exact[name]
        assert value.dtype == jnp.float32
        scale = len(u) if name in EXTENSIVE else 1
        np.testing.assert_array_less(np.abs(value - expected) / scale, 2e-6 * np.maximum(1, expected / scale), name)
        np.testing.assert_array_less(np.abs(value - expected), 1e-5 * np.maximum(1, expected), name)
        assert_gradient(gradient, expected_gradient)
    x = GOLDEN[f"{case}_x"]
    exact, found = in_float64(multivariate_and_gradients, x), multivariate_and_gradients(x)
    for name in MULTIVARIATE:
        np.testing.assert_allclose(found[name][0], exact[name][0], rtol=0, atol=2e-6, err_msg=name)
        assert_gradient(found[name][1], exact[name][1])


def test_float32_from_embeddings_on():
    for case in ("n64d8_gauss", "n64d8_heavy", "n256d32_shifted"):
        x, directions = GOLDEN[f"{case}_x"], GOLDEN[f"{case.split('_')[0]}_A"].astype(np.float32)
        for name, golden in KEYS.items():
            expected = GOLDEN[f"{case}_{golden}"] / (len(x) if name in EXTENSIVE else 1)
            error = np.abs(along[name](x, directions) - expected)
            np.testing.assert_array_less(error, 2e-6 * np.maximum(1, expected), name)


def test_anderson_darling_gradient_by_finite_differences():
    u, step = projections("n64d8_heavy")[:, :3], 1e-5
    gradient = in_float64(statistics_and_gradients, u)["anderson_darling"][1]

    def exact(u):
        s, odd = np.sort(u, axis=0), 2 * np.arange(1, len(u) + 1)[:, None] - 1
        return -len(u) - np.mean(odd * (scipy.special.log_ndtr(s) + scipy.special.log_ndtr(-s[::-1])), axis=0)

    for n in (0, 7, int(np.abs(u[:, 0]).argmax())):
        moved = np.zeros_like(u)
        moved[n] = step
        np.testing.assert_allclose(
            gradient[n], (exact(u + moved) - exact(u - moved)) / (2 * step), rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 3e-6), (np.float64, 1e-13)])
def test_gradient_of_log_phi(dtype, tolerance):
    x = np.linspace(-60, 4, 4001).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        found = np.asarray(jax.vmap(jax.grad(univariate._log_cdf))(jnp.asarray(x)))
    exact = np.sqrt(2 / np.pi) / scipy.special.erfcx(-x.astype(np.float64) / np.sqrt(2))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, exact, rtol=tolerance)


def test_classical_statistics_of_scipy():
    u = skewed(50, 3).astype(np.float64)
    found = in_float64(statistics_and_gradients, u)
    for m in range(3):
        classical = scipy.stats.cramervonmises(u[:, m], "norm").statistic
        np.testing.assert_allclose(50 * found["cramer_von_mises"][0][m] + 1 / 600, classical, rtol=1e-12)
        t = (u[:, m] - u[:, m].mean()) / u[:, m].std(ddof=1)
        shape = 50 * (np.mean(t**3) ** 2 / 6 + (np.mean(t**4) - 3) ** 2 / 24)
        v = u[:, m].var(ddof=1)
        location = 50 * u[:, m].mean() ** 2 / v + 49 * (v - 1) ** 2 / 2
        np.testing.assert_allclose(found["jarque_bera"][0][m], location + shape, rtol=1e-12)


def test_means_under_the_null():
    num, z = 64, jax.random.normal(jax.random.key(4), (64, 64, 64))
    directions = random_directions(jax.random.key(5), 64, 64)
    mean = {name: float(jnp.mean(along[name](z, directions))) * num for name in STATISTICS}
    assert mean["epps_pulley"] == pytest.approx(1.0525, abs=0.05)
    assert mean["anderson_darling"] == pytest.approx(1.0, abs=0.05)
    assert mean["cramer_von_mises"] == pytest.approx(1 / 6 - 1 / (12 * num), abs=0.01)
    assert mean["watson"] == pytest.approx(1 / 12 - 1 / (12 * num), abs=0.004)
    assert mean["jarque_bera"] == pytest.approx(4.0, abs=0.4)


@pytest.mark.parametrize("name", STATISTICS)
def test_the_trained_statistic_is_per_sample(name):
    # The same misfit, repeated: a distance between distributions stays, N times a distance doubles.
    u = skewed(200, 4)
    directions = np.eye(4, dtype=np.float32)
    once, twice = along[name](u, directions), along[name](np.concatenate([u, u]), directions)
    np.testing.assert_allclose(twice, once, rtol=0.03)
    statistic = jax.jit(STATISTICS[name])
    raw = statistic(u)
    np.testing.assert_allclose(raw, once * (200 if name in EXTENSIVE else 1), rtol=1e-5)
    ratio = np.asarray(statistic(np.concatenate([u, u]))) / raw
    np.testing.assert_allclose(ratio, 2.0 if name in EXTENSIVE else 1.0, rtol=0.03)


def test_epps_pulley_is_sigreg_over_n():
    z = jnp.asarray(skewed(60, 5)).reshape(2, 30, 5)
    per_sample = jax.jit(partial(sliced, num_slices=16))
    np.testing.assert_allclose(per_sample(z, KEY), jax.jit(partial(sigreg, num_slices=16))(z, KEY) / 30, rtol=1e-6)
    mask = jnp.asarray(rng().random((2, 30)) < np.array([0.3, 0.8])[:, None])
    garbage = jnp.where(mask[..., None], z, jnp.nan)
    value, gradient = jax.jit(jax.value_and_grad(partial(sliced, mask=mask, num_slices=16)))(garbage, KEY)
    each = [per_sample(z[i][mask[i]], KEY) for i in range(2)]
    np.testing.assert_allclose(value, np.mean(each), rtol=1e-5)
    assert np.all(np.isfinite(gradient)) and not np.any(np.asarray(gradient)[~np.asarray(mask)])
    assert jax.jit(partial(sliced, num_slices=16))(z, KEY, mask=jnp.zeros((2, 30), bool)) == 0
    u = z @ random_directions(KEY, 5, 7)
    expected = jax.jit(sigreg_along)(z, random_directions(KEY, 5, 7))
    np.testing.assert_allclose(jax.jit(STATISTICS["epps_pulley"])(u), expected, rtol=1e-5)


@pytest.mark.parametrize("name", REGULARISERS)
def test_order_sets_and_dtype(name):
    function = with_gradient[name]
    z = jnp.asarray(skewed(96, 6)).reshape(3, 32, 6)
    value, gradient = function(z)
    order = rng().permutation(32)
    permuted, permuted_gradient = function(z[:, order])
    np.testing.assert_allclose(permuted, value, rtol=5e-6)
    assert_gradient(permuted_gradient, gradient[:, order])
    each = [
        function(jnp.broadcast_to(z[i], z.shape)) for i in range(3)
    ]  # the mean over three equal sets is that of one
    np.testing.assert_allclose(value, np.mean([v for v, _ in each]), rtol=5e-6)
    assert_gradient(gradient, np.stack([g[0] for _, g in each]))
    np.testing.assert_allclose(REGULARISERS[name](z), value, rtol=5e-6)  # without jit
    half, half_gradient = jax.eval_shape(function, z.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32 and half.shape == () and half_gradient.dtype == jnp.bfloat16


@pytest.mark.parametrize("name", REGULARISERS)
def test_small_at_the_null_large_away_from_it(name):
    function = jax.jit(REGULARISERS[name])
    z = jax.random.normal(jax.random.key(8), (256, 6))
    null = float(function(z))
    for factor in (3, 0.2):
        assert float(function(factor * z)) > 2 * null
        nearer = 1 + (factor - 1) / 2
        assert float(function(factor * z)) > float(function(nearer * z)) > null
    assert float(function(z + 1.0)) > 2 * null
    assert float(function(jnp.zeros((256, 6)))) > 2 * null


@pytest.mark.parametrize("name", REGULARISERS)
def test_gradient_at_a_point(name):
    for point in (0.0, 0.7, -3.1):
        value, gradient = with_gradient[name](jnp.full((3, 32, 6), point))
        assert np.isfinite(value) and np.all(np.isfinite(gradient))
        spread = np.abs(np.asarray(gradient) - np.asarray(gradient)[:, :1]).max()
        if name in SORTING:
            assert spread > 1e-4
        else:
            assert spread <= 1e-4 * np.abs(gradient).max()
    assert np.all(np.isfinite(with_gradient[name](jnp.full((1, 6), 0.7))[1]))
    value, gradient = with_gradient[name](jnp.zeros((3, 32, 6)))
    if name not in (*SORTING, "moments"):
        assert not np.any(gradient)


def test_bhep_is_a_maximum_mean_discrepancy():
    # Its definition, E k(x, x') - 2 E k(x, y) + E k(y, y') with y, y' ~ N(0, 1), by quadrature in one dimension.
    x, beta = skewed(9, 1)[:, 0].astype(np.float64), 0.8
    y, w = np.polynomial.hermite_e.hermegauss(60)
    w = w / w.sum()

    def kernel(a, b):
        return np.exp(-0.5 * beta**2 * (a[:, None] - b[None]) ** 2)

    expected = kernel(x, x).mean() - 2 * (kernel(x, y) @ w).mean() + w @ kernel(y, y) @ w
    np.testing.assert_allclose(in_float64(lambda x: bhep(x, KEY, beta=beta), x[:, None]), expected, rtol=1e-10)


@pytest.mark.parametrize("name", MULTIVARIATE)
def test_multivariate_tests_do_not_change_with_rotation(name):
    z = skewed(40, 6).astype(np.float64)
    rotation = np.linalg.qr(rng(9).normal(size=(6, 6)))[0]
    function = MULTIVARIATE[name]
    np.testing.assert_allclose(in_float64(function, z @ rotation), in_float64(function, z), rtol=1e-10)
    assert abs(in_float64(function, z + 0.5) / in_float64(function, z) - 1) > 0.01


@pytest.mark.parametrize("name", MULTIVARIATE)
def test_multivariate_masking_equals_subsetting(name):
    function = MULTIVARIATE[name]
    z = jnp.asarray(skewed(60, 4)).reshape(3, 20, 4)
    mask = rng().random((3, 20)) < np.array([0.3, 0.7, 1.0])[:, None]
    mask[2] = False
    filled = jnp.where(mask[..., None], z, jnp.nan)
    value, gradient = jax.jit(jax.value_and_grad(partial(function, mask=jnp.asarray(mask))))(filled)
    one = with_gradient[name]
    each = [one(z[i][mask[i]]) for i in range(2)]
    np.testing.assert_allclose(value, sum(v for v, _ in each) / 3, rtol=5e-6)
    assert not np.any(np.asarray(gradient)[~mask])
    for i, (_, expected) in enumerate(each):
        assert_gradient(np.asarray(gradient)[i][mask[i]], expected / 3)


def test_errors_name_what_is_wrong():
    z = jnp.zeros((4, 3))
    with pytest.raises(ValueError, match=r"anderson_darling, cramer_von_mises, epps_pulley.*'shapiro'"):
        sliced(z, KEY, statistic="shapiro")
    with pytest.raises(ValueError, match="mask needs the statistic 'epps_pulley'"):
        sliced(z, KEY, statistic="watson", mask=jnp.ones(4, bool))
    with pytest.raises(ValueError, match="mask must have the shape"):
        bhep(z, KEY, beta=1.0, mask=jnp.ones(3, bool))
    with pytest.raises(ValueError, match="beta must be positive"):
        bhep(z, KEY, beta=0.0)

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
from jepa.losses.sigreg import random_directions, sigreg_along
from jepa.losses.univariate import EXTENSIVE, PROJECTED, STATISTICS, moments, sliced, sliced_along

# LeJEPA's univariate and multivariate tests, float64 PyTorch on CPU; Anderson-Darling with SciPy's exact log Phi.
GOLDEN = dict(np.load(Path(__file__).parent / "golden" / "univariate.npz"))
CASES = [key.removesuffix("_x") for key in GOLDEN if key.endswith("_x")]


def cases(*fast):
    """All cases, those of other shapes than these marked slow: a shape costs ten seconds to compile."""
    return [case if case.split("_")[0] in fast else pytest.param(case, marks=pytest.mark.slow) for case in CASES]


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
SLICES = np.random.default_rng(6).normal(size=(6, 16))
SLICES = (SLICES / np.linalg.norm(SLICES, axis=0)).astype(np.float32)
REGULARISERS = {
    **{name: lambda z, name=name: jnp.mean(sliced_along(z, SLICES, statistic=name)) for name in STATISTICS},
    **{name: MULTIVARIATE[name] for name in ("bhep_b1", "hz")},
}
SORTING = ("anderson_darling", "cramer_von_mises", "watson")

# Most of the time of this file is compiling, so few programs serve all tests: each of these at few shapes.


@jax.jit
def statistics_and_gradients(u):
    """name -> (T [M], d sum(T) / du [N, M]) of every statistic of projections; `moments6` the value alone."""
    result = {"moments6": (moments(u, k_max=6), None)}
    for name in KEYS:
        value, pullback = jax.vjp(PROJECTED[name], u)
        result[name] = value, pullback(jnp.ones_like(value))[0]
    return result


@jax.jit
def multivariate_and_gradients(x):
    gradients = {name: jax.value_and_grad(MULTIVARIATE[name])(x) for name in ("bhep_b1", "hz")}
    return gradients | {"bhep_b0.1": (MULTIVARIATE["bhep_b0.1"](x), None)}


@jax.jit
def along(z, directions):
    """name -> per-sample statistic along each direction."""
    return {name: sliced_along(z, directions, statistic=name) for name in STATISTICS}


@jax.jit
def regularise(z):
    """name -> (value, gradient) of every regulariser of embeddings [3, 32, 6]."""
    return {name: jax.value_and_grad(function)(z) for name, function in REGULARISERS.items()}


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


@pytest.mark.parametrize("case", cases("n64d8", "n7d5"))
def test_float64_equals_lejepa(case):
    found = in_float64(statistics_and_gradients, projections(case))
    for name, golden in KEYS.items():
        value, gradient = found[name]
        assert value.dtype == np.float64
        np.testing.assert_allclose(value, GOLDEN[f"{case}_{golden}"], rtol=1e-9, err_msg=name)
        if f"{case}_{golden}_grad" in GOLDEN:
            assert_gradient(gradient, GOLDEN[f"{case}_{golden}_grad"], 1e-9)
    np.testing.assert_allclose(found["moments6"][0], GOLDEN[f"{case}_moments6"], rtol=1e-9)
    for name, (value, gradient) in in_float64(multivariate_and_gradients, GOLDEN[f"{case}_x"]).items():
        np.testing.assert_allclose(value, GOLDEN[f"{case}_{name}"], rtol=1e-9, err_msg=name)
        if f"{case}_{name}_grad" in GOLDEN:
            assert_gradient(gradient, GOLDEN[f"{case}_{name}_grad"], 1e-9)


@pytest.mark.parametrize("case", cases("n64d8"))
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
    for name, (value, gradient) in found.items():
        # At beta = 0.1 all kernels are near 1: three terms of that size, and their rounding, are left of the value.
        atol = 2e-7 if name == "bhep_b0.1" else 0.0
        np.testing.assert_allclose(value, exact[name][0], rtol=2e-6, atol=atol, err_msg=name)
        if gradient is not None:
            assert_gradient(gradient, exact[name][1])


def test_float32_from_embeddings_on():
    for case in ("n64d8_gauss", "n64d8_heavy", "n64d8_shifted"):
        found = along(GOLDEN[f"{case}_x"], GOLDEN["n64d8_A"].astype(np.float32))
        for name, golden in KEYS.items():
            expected = GOLDEN[f"{case}_{golden}"] / (64 if name in EXTENSIVE else 1)
            np.testing.assert_array_less(np.abs(found[name] - expected), 2e-6 * np.maximum(1, expected), name)


def test_anderson_darling_gradient_by_finite_differences():
    u, step = projections("n64d8_heavy"), 1e-5
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
        found = np.asarray(jax.jit(jax.vmap(jax.grad(univariate._log_cdf)))(jnp.asarray(x)))
    exact = np.sqrt(2 / np.pi) / scipy.special.erfcx(-x.astype(np.float64) / np.sqrt(2))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, exact, rtol=tolerance)


def test_classical_statistics_of_scipy():
    num, u = 64, skewed(64, 16).astype(np.float64)
    found = in_float64(statistics_and_gradients, u)
    for m in range(16):
        classical = scipy.stats.cramervonmises(u[:, m], "norm").statistic
        np.testing.assert_allclose(num * found["cramer_von_mises"][0][m] + 1 / (12 * num), classical, rtol=1e-12)
        t = (u[:, m] - u[:, m].mean()) / u[:, m].std(ddof=1)
        shape = num * (np.mean(t**3) ** 2 / 6 + (np.mean(t**4) - 3) ** 2 / 24)
        v = u[:, m].var(ddof=1)
        location = num * u[:, m].mean() ** 2 / v + (num - 1) * (v - 1) ** 2 / 2
        np.testing.assert_allclose(found["jarque_bera"][0][m], location + shape, rtol=1e-12)


def test_means_under_the_null():
    num, draws = 64, rng(4).normal(size=(256, 64, 16)).astype(np.float32)
    found = [statistics_and_gradients(u) for u in draws]
    mean = {name: np.mean([values[name][0] for values in found]) for name in KEYS}
    assert mean["anderson_darling"] == pytest.approx(1.0, abs=0.05)
    assert num * mean["cramer_von_mises"] == pytest.approx(1 / 6 - 1 / (12 * num), abs=0.01)
    assert num * mean["watson"] == pytest.approx(1 / 12 - 1 / (12 * num), abs=0.004)
    assert mean["jarque_bera"] == pytest.approx(4.0, abs=0.4)


def test_the_trained_statistic_is_per_sample():
    # The same misfit, repeated: a distance between distributions stays, N times a distance doubles.
    z, directions = skewed(64, 8), GOLDEN["n64d8_A"].astype(np.float32)
    once, twice = along(z, directions), along(np.concatenate([z, z]), directions)
    raw = statistics_and_gradients(z @ directions)
    for name in STATISTICS:
        np.testing.assert_allclose(np.mean(twice[name]), np.mean(once[name]), rtol=0.03, err_msg=name)
        if name in raw:
            np.testing.assert_allclose(raw[name][0], once[name] * (64 if name in EXTENSIVE else 1), rtol=1e-5)


def test_epps_pulley_is_sigreg_over_n_masked_too():
    @jax.jit
    def both(z, mask):
        found, pullback = jax.vjp(partial(sliced_along, directions=SLICES, mask=mask), z)
        return found, pullback(jnp.ones_like(found))[0], sigreg_along(z, SLICES, mask=mask)

    z, mask = skewed(60, 6).reshape(2, 30, 6), rng().random((2, 30)) < np.array([0.3, 0.8])[:, None]
    found, gradient, statistic = both(np.where(mask[..., None], z, np.nan), mask)
    np.testing.assert_allclose(found, statistic / mask.sum(1)[:, None, None][..., 0], rtol=1e-6)
    assert np.all(np.isfinite(gradient)) and not np.any(np.asarray(gradient)[~mask])
    found, gradient, statistic = both(z, np.ones_like(mask))
    np.testing.assert_allclose(found, along(z, SLICES)["epps_pulley"], rtol=1e-5)
    np.testing.assert_allclose(found, statistic / 30, rtol=1e-6)
    assert not np.any(both(z, np.zeros_like(mask))[0])


def test_sliced_draws_its_directions_from_the_key():
    z, mask = skewed(60, 6).reshape(2, 30, 6), rng().random((2, 30)) < 0.6
    expected = along(z, random_directions(KEY, 6, 16))
    for name in ("epps_pulley", "watson"):
        found = jax.jit(partial(sliced, statistic=name, num_slices=16))
        np.testing.assert_allclose(found(z, KEY), np.mean(expected[name]), rtol=5e-6)
    directions = random_directions(KEY, 6, 16)
    masked = jax.jit(lambda z, m: (sliced(z, KEY, mask=m, num_slices=16), sliced_along(z, directions, mask=m)))
    found, each = masked(z, mask)
    np.testing.assert_allclose(found, np.mean(each), rtol=5e-6)


def test_order_sets_and_dtype():
    z, order = jnp.asarray(skewed(96, 6)).reshape(3, 32, 6), rng().permutation(32)
    found, permuted = regularise(z), regularise(z[:, order])
    each = [regularise(jnp.broadcast_to(z[i], z.shape)) for i in range(3)]
    half = jax.eval_shape(regularise, jax.ShapeDtypeStruct(z.shape, jnp.bfloat16))
    for name, (value, gradient) in found.items():
        np.testing.assert_allclose(permuted[name][0], value, rtol=5e-6, err_msg=name)
        assert_gradient(permuted[name][1], gradient[:, order])
        # The mean over three equal sets is that of one.
        np.testing.assert_allclose(value, np.mean([one[name][0] for one in each]), rtol=5e-6, err_msg=name)
        assert_gradient(gradient, np.stack([one[name][1][0] for one in each]))
        assert half[name][0].dtype == jnp.float32 and half[name][0].shape == ()
        assert half[name][1].dtype == jnp.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("name", REGULARISERS)
def test_the_plain_call_agrees_with_the_compiled_one(name):
    z = jnp.asarray(skewed(96, 6)).reshape(3, 32, 6)
    np.testing.assert_allclose(REGULARISERS[name](z), regularise(z)[name][0], rtol=5e-6)


def test_small_at_the_null_large_away_from_it():
    values = jax.jit(lambda z: {name: function(z) for name, function in REGULARISERS.items()})
    z = rng(8).normal(size=(256, 6)).astype(np.float32)
    null, shifted, collapsed = (values(x) for x in (z, z + 1.0, np.zeros_like(z)))
    scaled = {factor: values(np.float32(factor) * z) for factor in (0.2, 0.6, 2.0, 3.0)}
    for name, value in null.items():
        for far, near in ((3.0, 2.0), (0.2, 0.6)):
            assert scaled[far][name] > 2 * value, name
            assert scaled[far][name] > scaled[near][name] > value, name
        assert shifted[name] > 2 * value and collapsed[name] > 2 * value, name


def test_gradient_at_a_point():
    for point in (0.0, 0.7, -3.1):
        for name, (value, gradient) in regularise(np.full((3, 32, 6), point, np.float32)).items():
            assert np.isfinite(value) and np.all(np.isfinite(gradient)), name
            spread = np.abs(np.asarray(gradient) - np.asarray(gradient)[:, :1]).max()
            if name in SORTING:
                assert spread > 1e-4, name
            else:
                assert spread <= 1e-4 * np.abs(gradient).max(), name
            if point == 0 and name not in (*SORTING, "moments"):
                assert not np.any(gradient), name


def test_one_sample_has_a_finite_gradient():
    gradient = jax.jit(lambda z: {name: jax.grad(REGULARISERS[name])(z) for name in ("jarque_bera", "watson", "hz")})
    assert all(np.all(np.isfinite(g)) for g in gradient(np.full((1, 6), 0.7, np.float32)).values())


def test_bhep_is_a_maximum_mean_discrepancy():
    # Its definition, E k(x, x') - 2 E k(x, y) + E k(y, y') with y, y' ~ N(0, 1), by quadrature in one dimension.
    x, beta = skewed(9, 1)[:, 0].astype(np.float64), 0.8
    y, w = np.polynomial.hermite_e.hermegauss(60)
    w = w / w.sum()

    def kernel(a, b):
        return np.exp(-0.5 * beta**2 * (a[:, None] - b[None]) ** 2)

    expected = kernel(x, x).mean() - 2 * (kernel(x, y) @ w).mean() + w @ kernel(y, y) @ w
    np.testing.assert_allclose(in_float64(lambda x: bhep(x, KEY, beta=beta), x[:, None]), expected, rtol=1e-10)


def test_multivariate_tests_do_not_change_with_rotation():
    z = skewed(64, 8).astype(np.float64)
    rotation = np.linalg.qr(rng(9).normal(size=(8, 8)))[0]
    found, rotated, moved = (in_float64(multivariate_and_gradients, x) for x in (z, z @ rotation, z + 0.5))
    for name in MULTIVARIATE:
        np.testing.assert_allclose(rotated[name][0], found[name][0], rtol=1e-10)
        assert abs(moved[name][0] / found[name][0] - 1) > 0.01


def test_multivariate_masking_equals_subsetting():
    def reference(z, beta):
        """The definition, one set of rows [N, D]."""
        dim, square = z.shape[1], np.square(beta)
        pairs = np.exp(-0.5 * square * np.square(z[:, None] - z[None]).sum(-1)).mean()
        cross = np.exp(-0.5 * square / (1 + square) * np.square(z).sum(-1)).mean() * (1 + square) ** (-dim / 2)
        return pairs - 2 * cross + (1 + 2 * square) ** (-dim / 2)

    def widths(num, dim):
        return {"bhep_b1": 1.0, "hz": ((2 * dim + 1) * num / 4) ** (1 / (dim + 4)) / np.sqrt(2)}

    z = skewed(60, 4).reshape(3, 20, 4).astype(np.float64)
    mask = rng().random((3, 20)) < np.array([0.3, 0.7, 1.0])[:, None]
    mask[2] = False
    bump = 1e-5 * rng(11).normal(size=z.shape)
    found = in_float64(
        lambda z: {name: jax.value_and_grad(partial(MULTIVARIATE[name], mask=mask))(z) for name in widths(1, 4)},
        np.where(mask[..., None], z, np.nan),
    )
    for name, (value, gradient) in found.items():
        at, ahead, behind = (
            sum(reference(x[i][mask[i]], widths(mask[i].sum(), 4)[name]) for i in range(2)) / 3
            for x in (z, z + bump, z - bump)
        )
        np.testing.assert_allclose(value, at, rtol=1e-10)
        assert not np.any(gradient[~mask])
        np.testing.assert_allclose(np.sum(gradient * bump), (ahead - behind) / 2, rtol=1e-6)


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

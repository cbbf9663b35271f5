"""Diagnostics of embeddings: goldens in float64, and what each figure does and does not see."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa.diagnostics import describe, expected_effective_rank, gaussianity, scale, spectrum
from jepa.losses.sigreg import sigreg_along

GOLDEN = dict(np.load(Path(__file__).parent / "golden" / "diagnostics.npz"))
CASES = ("iso", "rank5", "power", "const", "offset", "heavy", "wide")
KEY = jax.random.key(0)


def normal(num, dim, seed=0):
    return np.random.default_rng(seed).normal(size=(num, dim)).astype(np.float32)


def rotation(dim):
    return np.linalg.qr(normal(dim, dim, seed=9).astype(np.float64))[0].astype(np.float32)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("compiled", [False, True])
def test_spectrum_and_scale_match_float64(case, compiled):
    z = GOLDEN[f"rep_{case}_Z"]
    s, size = (jax.jit(f)(z) if compiled else f(z) for f in (spectrum, scale))
    np.testing.assert_allclose(s["effective_rank"], GOLDEN[f"rep_{case}_erank_eig_cov"], rtol=2e-5)
    np.testing.assert_allclose(s["participation_ratio"], GOLDEN[f"rep_{case}_participation_ratio"], rtol=2e-5)
    eigenvalues = GOLDEN[f"rep_{case}_eig_cov"]  # descending
    alive = eigenvalues > eigenvalues[0] * len(eigenvalues) * 2.0**-23
    assert s["dead_dims"] == np.sum(~alive) == {"rank5": 27, "wide": 17}.get(case, 0)
    np.testing.assert_allclose(s["condition"], eigenvalues[0] / eigenvalues[alive][-1], rtol=2e-4)
    if alive.all():
        np.testing.assert_allclose(1 / s["condition"], GOLDEN[f"rep_{case}_iso_min_max"], rtol=2e-4)
    # The deviations of `const` are 1e-4 of its values: float32 embeddings resolve them to 1e-3.
    rtol = 1e-3 if case == "const" else 1e-5
    np.testing.assert_allclose(size["std"], GOLDEN[f"rep_{case}_std_mean"], rtol=rtol)
    np.testing.assert_allclose(size["std_min"], GOLDEN[f"rep_{case}_std_min"], rtol=rtol)
    mean, std = GOLDEN[f"rep_{case}_norm_mean_std"]
    np.testing.assert_allclose(size["norm"], mean, rtol=1e-5)
    np.testing.assert_allclose(size["norm_spread"], std / mean, rtol=5e-3)  # population or sample deviation


@pytest.mark.parametrize("case", [c for c in CASES if f"rep_{c}_skew_abs_mean" in GOLDEN])
def test_gaussianity_matches_float64(case):
    z = GOLDEN[f"rep_{case}_Z"]
    moments = gaussianity(z, KEY)
    rtol = 2e-3 if case == "const" else 1e-4
    np.testing.assert_allclose(moments["skew"], GOLDEN[f"rep_{case}_skew_abs_mean"], rtol=rtol)
    np.testing.assert_allclose(moments["excess_kurtosis"], GOLDEN[f"rep_{case}_exkurt_abs_mean"], rtol=rtol)
    statistic = sigreg_along(z, jnp.asarray(GOLDEN[f"rep_{case}_proj_A"], jnp.float32))
    np.testing.assert_allclose(statistic, GOLDEN[f"rep_{case}_epps_pulley_slices"], rtol=1e-4)
    assert moments["sigreg_T_over_N"] == moments["sigreg_T"] / len(z)


@pytest.mark.parametrize(
    ("num", "dim", "repeats"),
    [
        (8, 8, 1000),
        (16, 4, 1000),
        (4, 16, 1000),
        (64, 8, 500),
        (48, 64, 60),
        (65, 64, 60),
        (256, 32, 40),
        (128, 192, 12),
    ],
)
def test_expected_rank_against_monte_carlo(num, dim, repeats):
    generator = np.random.default_rng(1)
    ranks = []
    for _ in range(repeats):
        z = generator.normal(size=(num, dim))
        z -= z.mean(0)
        share = np.linalg.eigvalsh(z @ z.T if num < dim else z.T @ z)[::-1]
        share = share[share > 1e-10 * share[0]] / share.sum()
        ranks.append(np.exp(-np.sum(share * np.log(share))))
    error = np.std(ranks) / np.sqrt(repeats)
    assert expected_effective_rank(num, dim) == pytest.approx(
        np.mean(ranks), rel=0.01 if dim < 32 else 0.002, abs=2 * error
    )


def test_expected_rank_is_symmetric_bounded_and_tends_to_full():
    # The zero eigenvalues do not enter the entropy: D and N - 1 may change places.
    assert expected_effective_rank(41, 100) == pytest.approx(expected_effective_rank(101, 40), rel=1e-12)
    assert expected_effective_rank(10**6, 64) == pytest.approx(64.0, rel=1e-3)
    assert expected_effective_rank(1, 5) == expected_effective_rank(2, 5) == expected_effective_rank(50, 1) == 1.0
    ranks = [expected_effective_rank(num, 192) for num in (64, 128, 256, 512, 2048)]
    np.testing.assert_allclose(ranks, [54, 91, 132, 159, 183], atol=0.7)


@pytest.mark.parametrize(("num", "dim"), [(64, 96), (256, 32), (1000, 24)])
def test_a_gaussian_is_healthy_whatever_its_shape(num, dim):
    found = jax.jit(describe)(normal(num, dim, seed=4), KEY)
    assert found["rank_ratio"] == pytest.approx(1.0, abs=0.02)
    assert found["participation_ratio"] == pytest.approx(dim / (1 + dim / num), rel=0.03)
    assert found["std"] == pytest.approx(1.0, abs=0.02)
    assert found["norm"] == pytest.approx(np.sqrt(dim), rel=0.03)
    assert 0.5 < found["sigreg_T"] < 2.0


def test_rank_is_invariant_to_rotation_translation_and_scale():
    z = normal(200, 12) * np.linspace(0.2, 2.0, 12, dtype=np.float32)
    expected = spectrum(z)
    for moved in (z @ rotation(12), z + np.arange(12, dtype=np.float32), 1e-3 * z, 1e3 * z):
        for name, value in spectrum(moved).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-3 if name == "condition" else 1e-4, err_msg=name)


def test_rank_is_blind_to_collapse_and_scale_is_not():
    z = 0.7 + 1e-4 * normal(256, 32)
    assert spectrum(z)["rank_ratio"] > 0.98
    size = scale(z)
    assert size["std"] == pytest.approx(1e-4, rel=0.05)
    assert size["mean_norm"] == pytest.approx(0.7 * np.sqrt(32), rel=1e-3)
    assert size["norm_spread"] < 1e-4
    assert gaussianity(z, KEY)["sigreg_T_over_N"] > 0.3


def test_scale_is_blind_to_lost_dimensions_and_rank_is_not():
    z = normal(300, 4) @ rotation(16)[:4] * 2.0
    found = spectrum(z)
    assert found["dead_dims"] == 12
    assert found["effective_rank"] < 4.01 and found["rank_ratio"] < 0.3
    assert np.isfinite(found["condition"]) and found["condition"] < 3
    assert 0.8 < scale(z)["std"] < 1.2


def test_scale_follows_its_units():
    z = normal(100, 6) + 0.5
    before, after = scale(z), scale(3.0 * z)
    for name in before:
        np.testing.assert_allclose(after[name], before[name] * (1.0 if name == "norm_spread" else 3.0), rtol=1e-5)
    # Points on a sphere: no spread of the norm at all.
    assert scale(z / np.linalg.norm(z, axis=1, keepdims=True))["norm_spread"] < 1e-6


def test_moments_see_shape_and_not_position():
    z = normal(4000, 8)
    lopsided = np.exp(0.5 * z)
    assert gaussianity(z, KEY)["skew"] < 0.06 and gaussianity(lopsided, KEY)["skew"] > 1.0
    before, after = gaussianity(0.3 * z, KEY), gaussianity(5.0 * (0.3 * z) - 2.0, KEY)
    for name in ("skew", "excess_kurtosis"):
        np.testing.assert_allclose(after[name], before[name], rtol=1e-3)
    assert after["sigreg_T"] > 2 * before["sigreg_T"]


@pytest.mark.parametrize("value", [0.0, 0.1, -37.3])
@pytest.mark.parametrize("num", [1, 2, 50])
def test_a_point_gives_finite_figures(value, num):
    found = jax.jit(describe)(jnp.full((num, 5), value), KEY)
    assert all(np.isfinite(x) and x.shape == () and x.dtype == jnp.float32 for x in found.values())
    assert found["dead_dims"] == 5 and found["effective_rank"] == found["rank_ratio"] == 0
    assert found["std_max"] < 1e-5 and found["skew"] == found["excess_kurtosis"] == 0


def test_one_constant_dimension_counts_as_dead():
    z = normal(200, 6)
    z[:, 2] = 0.3
    found = describe(z, KEY)
    assert found["dead_dims"] == 1 and found["std_min"] < 1e-6
    np.testing.assert_allclose(found["skew"], gaussianity(np.delete(z, 2, 1), KEY)["skew"], rtol=1e-5)

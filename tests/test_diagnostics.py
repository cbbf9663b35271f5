"""Diagnostics of embeddings: goldens in float64, and what each figure does and does not see."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa import moments
from jepa.diagnostics import (
    code_usage,
    describe,
    expected_effective_rank,
    finish,
    participation,
    power_law,
    uniformity,
)
from jepa.losses.sigreg import sigreg, sigreg_along

GOLDEN = dict(np.load(Path(__file__).parent / "golden" / "diagnostics.npz"))
CASES = ("iso", "rank5", "power", "const", "offset", "heavy", "wide")
DOCUMENTED = sorted(name.removeprefix("doc_in_") for name in GOLDEN if name.startswith("doc_in_"))
KEY = jax.random.key(0)


add, merge, finished = map(jax.jit, (moments.add, moments.merge, finish))


def sums(z, size):
    """Moments of z in batches of `size` rows one after another."""
    seen = moments.start(KEY, z.shape[1])
    for first in range(0, len(z), size):
        seen = add(seen, z[first : first + size])
    return seen


def figures(z):
    """What `describe` says of z, compiled anew for every width only."""
    return finished(sums(jnp.asarray(z, jnp.float32), len(z)))


def normal(num, dim, seed=0):
    return np.random.default_rng(seed).normal(size=(num, dim)).astype(np.float32)


def rotation(dim):
    return np.linalg.qr(normal(dim, dim, seed=9).astype(np.float64))[0].astype(np.float32)


@pytest.mark.parametrize("case", CASES)
def test_spectrum_scale_and_pairs_match_float64(case):
    found = figures(GOLDEN[f"rep_{case}_Z"])
    np.testing.assert_allclose(found["effective_rank"], GOLDEN[f"rep_{case}_erank_eig_cov"], rtol=2e-5)
    np.testing.assert_allclose(found["participation_ratio"], GOLDEN[f"rep_{case}_participation_ratio"], rtol=2e-5)
    eigenvalues = GOLDEN[f"rep_{case}_eig_cov"]  # descending
    alive = eigenvalues > eigenvalues[0] * len(eigenvalues) * 2.0**-23
    assert found["dead_dims"] == np.sum(~alive) == {"rank5": 27, "wide": 17}.get(case, 0)
    np.testing.assert_allclose(found["condition"], eigenvalues[0] / eigenvalues[alive][-1], rtol=2e-4)
    if alive.all():
        np.testing.assert_allclose(1 / found["condition"], GOLDEN[f"rep_{case}_iso_min_max"], rtol=2e-4)
    if alive[:16].all() and f"rep_{case}_alpha_reptrix" in GOLDEN:
        np.testing.assert_allclose(found["alpha"], GOLDEN[f"rep_{case}_alpha_reptrix"], rtol=2e-5)
    np.testing.assert_allclose(found["uniformity"], GOLDEN[f"rep_{case}_uniformity_t2"], rtol=2e-6, atol=1e-6)
    # The deviations of `const` are 1e-4 of its values: float32 embeddings resolve them to 1e-3.
    rtol = 1e-3 if case == "const" else 1e-5
    np.testing.assert_allclose(found["std"], GOLDEN[f"rep_{case}_std_mean"], rtol=rtol)
    np.testing.assert_allclose(found["std_min"], GOLDEN[f"rep_{case}_std_min"], rtol=rtol)
    mean, std = GOLDEN[f"rep_{case}_norm_mean_std"]
    np.testing.assert_allclose(found["norm"], mean, rtol=1e-5)
    np.testing.assert_allclose(found["norm_spread"], std / mean, rtol=5e-3)  # population or sample deviation


@pytest.mark.parametrize("case", CASES)
def test_rankme_is_the_published_figure_as_far_as_a_float32_gram_matrix_resolves(case):
    found, published = float(figures(GOLDEN[f"rep_{case}_Z"])["rankme"]), GOLDEN[f"rep_{case}_rankme_paper"]
    if case in ("rank5", "const"):  # most singular values lie below sqrt(D 2^-23) = 2e-3 of the largest
        assert 0.99 * published < found < published
    else:
        assert found == pytest.approx(published, rel=5e-5)


@pytest.mark.parametrize("case", [c for c in CASES if f"rep_{c}_skew_abs_mean" in GOLDEN])
def test_gaussianity_matches_float64(case):
    z = GOLDEN[f"rep_{case}_Z"]
    found = figures(z)
    rtol = 2e-3 if case == "const" else 1e-4
    np.testing.assert_allclose(found["skew"], GOLDEN[f"rep_{case}_skew_abs_mean"], rtol=rtol)
    np.testing.assert_allclose(found["excess_kurtosis"], GOLDEN[f"rep_{case}_exkurt_abs_mean"], rtol=rtol)
    statistic = sigreg_along(z, jnp.asarray(GOLDEN[f"rep_{case}_proj_A"], jnp.float32))
    np.testing.assert_allclose(statistic, GOLDEN[f"rep_{case}_epps_pulley_slices"], rtol=1e-4)
    np.testing.assert_allclose(found["sigreg_T"], sigreg(z, KEY, num_slices=256), rtol=1e-5)
    np.testing.assert_allclose(found["sigreg_T_over_N"], found["sigreg_T"] / len(z), rtol=1e-6)


@pytest.mark.parametrize("case", DOCUMENTED)
def test_the_tracker_of_the_documented_system_is_found_again(case):
    z = GOLDEN[f"doc_in_{case}"]
    flat = np.std(z, axis=0) < 1e-6  # has an excess kurtosis of -3 there; here, once it is constant, it does not count
    padded = np.pad(np.where(flat[None], 0.0, z), ((0, 0), (0, 16 - z.shape[1])))
    variance, isotropy, effective_rank, gaussian_score = GOLDEN[f"doc_out_{case}"]
    found, scatter = figures(padded), moments.scatter_of(z)
    np.testing.assert_allclose(jnp.trace(scatter.matrix) / z.size, variance, rtol=1e-5)
    beyond = np.mean(~flat) * (found["skew"] + found["excess_kurtosis"]) + 3 * np.mean(flat)
    np.testing.assert_allclose(1 / (1 + beyond), gaussian_score, rtol=1e-5)
    if not flat.all():  # a point has rank D there, that of the 1e-6 I which is added to its covariance
        np.testing.assert_allclose(found["effective_rank"], effective_rank, rtol=2e-4)
    if found["dead_dims"] == 16 - z.shape[1]:
        np.testing.assert_allclose(1 / found["condition"], isotropy, rtol=2e-3)


def test_usage_and_perplexity_of_codes_match_float64():
    codes, num = GOLDEN["code_ids"].astype(np.int32), int(GOLDEN["code_K"])
    for window, usage, perplexity in [
        (codes.ravel(), GOLDEN["code_usage_all"], GOLDEN["code_perplexity_all"]),
        *zip(codes, GOLDEN["code_usage_per_batch"], GOLDEN["code_perplexity_per_batch"], strict=True),
    ]:
        found = code_usage(jnp.asarray(window), num)
        np.testing.assert_allclose([found["usage"], found["perplexity"]], [usage, perplexity], rtol=1e-5)


def cloud(kind):
    z = normal(230, 8, seed=5)
    return {
        "near": z,
        "far": z @ rotation(8) + 3e3,
        "tiny": 1e-12 * z,  # fourth powers below what float32 holds
        "huge": 1e12 * z**3,  # and beyond it
        "drifting": z + np.linspace(-40, 90, 230, dtype=np.float32)[:, None],  # batches far apart
    }[kind]


@pytest.mark.parametrize("kind", ["near", "far", "tiny", "huge", "drifting"])
def test_any_split_in_any_order_gives_the_whole(kind):
    z = cloud(kind)
    whole = figures(z)
    shuffled = z[np.random.default_rng(2).permutation(len(z))]
    # Merged as a tree, and with one that is empty, as well as added one after the other.
    tree = merge(sums(z[:0], 1), merge(sums(shuffled[46:], 23), sums(shuffled[:46], 1)))
    for seen in (sums(z, 23), tree):
        assert seen.scatter.num == len(z)
        for name, value in finished(seen).items():
            # Values at 3000 are rounded to 1e-4 of the deviations, and so are their means. The drift holds all but
            # 1e-4 of the variance, and eigenvalues are known to float32 rounding of the largest.
            loose = kind == "far" or (kind == "drifting" and name in ("alpha", "condition", "rankme"))
            tolerance = dict(rtol=5e-3, atol=1e-3) if loose else dict(rtol=2e-5, atol=2e-6)
            np.testing.assert_allclose(value, whole[name], **tolerance, err_msg=name)


@pytest.mark.parametrize("kind", ["near", "far", "tiny", "huge", "drifting"])
def test_moments_match_float64_far_from_the_origin_and_at_any_scale(kind):
    z = cloud(kind)
    seen, exact = sums(z, 23), z.astype(np.float64)
    standard = (exact - exact.mean(0)) / exact.std(0)
    rtol = 1e-3 if kind == "far" else 2e-5  # there float32 means are known to 2e-4 of the deviations
    np.testing.assert_allclose(seen.scatter.mean, exact.mean(0), rtol=1e-6, atol=1e-6 * exact.std())
    covariance = np.cov(exact.T, ddof=0)
    np.testing.assert_allclose(seen.scatter.matrix / len(z), covariance, rtol=rtol, atol=rtol * covariance.max())
    np.testing.assert_allclose(seen.skew, (standard**3).mean(0), rtol=rtol, atol=rtol)
    np.testing.assert_allclose(seen.kurtosis, (standard**4).mean(0), rtol=rtol)


def test_the_sample_is_the_first_rows():
    z = normal(40, 3)
    seen = moments.start(KEY, 3, num_sample=25)
    for batch in (z[:10], z[10:40]):
        seen = moments.add(seen, batch)
    np.testing.assert_array_equal(seen.sample, z[:25])
    few = moments.add(moments.start(KEY, 3, num_sample=25), z[:7])
    np.testing.assert_array_equal(few.sample, np.pad(z[:7], ((0, 18), (0, 0))))


def test_uniformity_is_that_of_the_pairs_there_are():
    z = normal(9, 3)
    u = z / np.linalg.norm(z, axis=1, keepdims=True)
    pairs = [np.exp(-2 * np.sum((u[i] - u[j]) ** 2)) for i in range(6) for j in range(i)]
    assert uniformity(z, 6) == pytest.approx(np.log(np.mean(pairs)), rel=1e-6)
    assert uniformity(5 * z, 9) == pytest.approx(float(uniformity(z, 20)), rel=1e-6)
    assert uniformity(np.ones((4, 3), np.float32), 4) == pytest.approx(0.0, abs=1e-6)
    assert uniformity(z, 1) == 0.0
    assert uniformity(normal(400, 200), 400) == pytest.approx(-4 + 8 / 200, abs=0.01)


def test_alpha_is_the_exponent_of_a_power_law_in_its_range_and_sees_no_dead_direction():
    rank = np.arange(1, 41, dtype=np.float32)
    law = 7 * rank**-1.3
    assert power_law(law, 2, 20) == pytest.approx(1.3, rel=1e-5)
    assert power_law(np.where(rank == 1, 1e6, law), 2, 20) == pytest.approx(1.3, rel=1e-5)
    assert power_law(np.where(rank > 20, 0, law), 2, 40) == pytest.approx(1.3, rel=1e-5)
    assert power_law(np.where(rank > 2, 0, law), 2, 40) == 0.0
    assert power_law(law, 2, 40) > power_law(np.where(rank > 20, law[19], law), 2, 40)


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
    assert expected_effective_rank(41, 100) == expected_effective_rank(101, 40)
    assert expected_effective_rank(10**6, 64) == pytest.approx(64.0, rel=1e-3)
    assert expected_effective_rank(1, 5) == expected_effective_rank(2, 5) == expected_effective_rank(50, 1) == 1.0
    ranks = [expected_effective_rank(num, 192) for num in (64, 128, 256, 512, 2048)]
    np.testing.assert_allclose(ranks, [54, 91, 132, 159, 183], atol=0.7)


@pytest.mark.parametrize(("num", "dim"), [(48, 64), (256, 32), (1000, 16)])
def test_a_gaussian_is_healthy_whatever_its_shape(num, dim):
    found = figures(normal(num, dim, seed=4))
    assert found["rank_ratio"] == pytest.approx(1.0, abs=0.02)
    assert found["participation_ratio"] == pytest.approx(dim / (1 + dim / num), rel=0.03)
    assert found["std"] == pytest.approx(1.0, abs=0.02)
    assert found["norm"] == pytest.approx(np.sqrt(dim), rel=0.03)
    assert 0.5 < found["sigreg_T"] < 2.0


def test_participation_needs_no_eigenvalues():
    for scales in (np.ones(6), np.geomspace(1, 1e-2, 6)):
        z = np.random.default_rng(0).normal(size=(50, 6)) @ np.random.default_rng(1).normal(size=(6, 6)) * scales + 3
        eigenvalues = np.linalg.eigvalsh(np.cov(z.T))
        expected = eigenvalues.sum() ** 2 / np.square(eigenvalues).sum()
        np.testing.assert_allclose(jax.jit(participation)(jnp.float32(z)), expected, rtol=1e-4)
    assert float(participation(jnp.ones((4, 3)))) == 0.0


def test_rank_is_invariant_to_rotation_translation_and_scale():
    z = normal(200, 16) * np.linspace(0.2, 2.0, 16, dtype=np.float32)
    names = ("effective_rank", "rank_ratio", "participation_ratio", "condition", "dead_dims", "alpha")
    expected = figures(z)
    for moved in (z @ rotation(16), z + np.arange(16, dtype=np.float32), 1e-3 * z, 1e3 * z):
        found = figures(moved)
        for name in names:
            rtol = 1e-3 if name == "condition" else 1e-4
            np.testing.assert_allclose(found[name], expected[name], rtol=rtol, err_msg=name)


def test_rank_is_blind_to_collapse_and_scale_is_not():
    z = 0.7 + 1e-4 * normal(256, 32)
    size = figures(z)
    assert size["rank_ratio"] > 0.98 and size["rankme"] < 1.1
    assert size["std"] == pytest.approx(1e-4, rel=0.05)
    assert size["mean_norm"] == pytest.approx(0.7 * np.sqrt(32), rel=1e-3)
    assert size["norm_spread"] < 1e-4
    assert size["sigreg_T_over_N"] > 0.3


def test_scale_is_blind_to_lost_dimensions_and_rank_is_not():
    z = normal(300, 4) @ rotation(16)[:4] * 2.0
    found = figures(z)
    assert found["dead_dims"] == 12
    assert found["effective_rank"] < 4.01 and found["rank_ratio"] < 0.3
    assert np.isfinite(found["condition"]) and found["condition"] < 3
    assert 0.8 < found["std"] < 1.2


def test_scale_follows_its_units():
    z = normal(200, 16) + 0.5
    before, after = figures(z), figures(3.0 * z)
    for name in ("std", "std_min", "std_max", "mean_norm", "norm", "norm_spread"):
        np.testing.assert_allclose(after[name], before[name] * (1.0 if name == "norm_spread" else 3.0), rtol=1e-5)
    # Points on a sphere: no spread of the norm at all.
    assert figures(z / np.linalg.norm(z, axis=1, keepdims=True))["norm_spread"] < 1e-6


def test_moments_see_shape_and_not_position():
    z = normal(4000, 8)
    lopsided = np.exp(0.5 * z)
    assert figures(z)["skew"] < 0.06 and figures(lopsided)["skew"] > 1.0
    before, after = figures(0.3 * z), figures(5.0 * (0.3 * z) - 2.0)
    for name in ("skew", "excess_kurtosis"):
        np.testing.assert_allclose(after[name], before[name], rtol=1e-3)
    assert after["sigreg_T"] > 2 * before["sigreg_T"]


@pytest.mark.parametrize("value", [0.0, 0.1, -37.3])
@pytest.mark.parametrize("num", [1, 2, 50])
def test_a_point_gives_finite_figures(value, num):
    found = figures(jnp.full((num, 8), value))
    assert all(np.isfinite(x) and x.shape == () and x.dtype == jnp.float32 for x in found.values())
    assert found["dead_dims"] == 8 and found["effective_rank"] == found["rank_ratio"] == 0
    assert found["std_max"] < 1e-5 and found["skew"] == found["excess_kurtosis"] == 0


def test_one_constant_dimension_counts_as_dead():
    z = normal(200, 8)
    z[:, 2] = 0.3
    found = jax.jit(describe)(z, KEY)
    assert found["dead_dims"] == 1 and found["std_min"] < 1e-6
    others = np.delete(z, 2, 1).astype(np.float64)
    skew = np.mean(((others - others.mean(0)) / others.std(0)) ** 3, axis=0)
    np.testing.assert_allclose(found["skew"], np.mean(np.abs(skew)), rtol=1e-4)
    for name, value in figures(z).items():
        np.testing.assert_allclose(value, found[name], rtol=1e-5, atol=1e-7, err_msg=name)

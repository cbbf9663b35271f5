"""Diagnostics of embeddings that belong together: goldens in float64, and what each figure does and does not see."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa import pair_diagnostics
from jepa.diagnostics import uniformity
from jepa.pair_diagnostics import alignment, lidar, target_drift

GOLDEN = dict(np.load(Path(__file__).parent / "golden" / "diagnostics.npz"))


def test_alignment_and_uniformity_of_two_views_match_float64():
    x, y = GOLDEN["pair_X"], GOLDEN["pair_Y"]
    np.testing.assert_allclose(jnp.mean(alignment(np.stack([x, y], axis=1))), GOLDEN["pair_align_a2"], rtol=1e-6)
    both = (uniformity(x, len(x)) + uniformity(y, len(y))) / 2
    np.testing.assert_allclose(both, GOLDEN["pair_uniform_t2"], rtol=1e-6)


def test_alignment_is_the_mean_over_the_pairs_of_an_example():
    z = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
    u = z / np.linalg.norm(z, axis=-1, keepdims=True)
    pairs = [np.sum((u[:, v] - u[:, w]) ** 2, axis=-1) for v in range(4) for w in range(v)]
    np.testing.assert_allclose(jax.jit(alignment)(z), np.mean(pairs, axis=0), rtol=1e-5)
    np.testing.assert_allclose(alignment(z * np.arange(1, 5, dtype=np.float32)[None, :, None]), alignment(z), rtol=1e-5)


@pytest.mark.parametrize("sizes", [(30,), (7, 1, 22)])
def test_lidar_matches_the_published_code_in_any_batches(sizes):
    groups = pair_diagnostics.start_groups(16)
    for batch in np.split(GOLDEN["lab_E"], np.cumsum(sizes)[:-1]):
        groups = pair_diagnostics.add_groups(groups, batch)
    np.testing.assert_allclose(jax.jit(pair_diagnostics.finish_lidar)(groups), GOLDEN["lab_lidar_spt"], rtol=1e-5)


def test_lidar_counts_the_directions_that_tell_examples_apart():
    rng = np.random.default_rng(1)
    objects = rng.normal(size=(400, 1, 8)) * np.array([1, 1, 1, 0, 0, 0, 0, 0])
    z = (10 * objects + rng.normal(size=(400, 4, 8))).astype(np.float32)
    found = float(lidar(z))
    assert 3.0 < found < 3.3  # three, and what the noise of means over four views leaves in the other five
    rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    moved = z @ (rotation * np.arange(1, 9)).astype(np.float32) + 50.0  # any linear map, and any place
    assert lidar(moved) == pytest.approx(found, rel=1e-3)
    noise = rng.normal(size=(400, 4, 8)).astype(np.float32)
    assert lidar(noise) > 7.5  # no direction stands out: LiDAR does not see that there is nothing to tell


def test_lidar_of_a_point_is_finite():
    assert lidar(jnp.full((6, 2, 5), 0.7)) == pytest.approx(1.0, abs=1e-3)


def test_drift_is_the_relative_distance_of_the_parameters():
    params = {"a": jnp.array([3.0, 0.0]), "b": {"c": jnp.full((2, 2), 2.0)}}  # norm 5
    assert target_drift(params, params) == 0.0
    teacher = {"a": jnp.array([3.0, 1.0]), "b": {"c": jnp.array([[2.0, 2.0], [2.0, 4.0]])}}
    assert target_drift(params, teacher) == pytest.approx(np.sqrt(5) / 5, rel=1e-6)
    assert jax.jit(target_drift)(jax.tree.map(lambda x: 10 * x, params), params) == pytest.approx(0.9, rel=1e-6)

import jax
import numpy as np
import pytest

from jepa.context import KINDS, ContextAggregator

ORDER_SENSITIVE = [kind for kind in KINDS if kind != "mean"]


def aggregate(kind, z):
    module = ContextAggregator(kind)
    params = module.init(jax.random.key(1), z)
    return module.apply(params, z), jax.jit(module.apply)(params, z), lambda other: module.apply(params, other)


@pytest.fixture
def z():
    return jax.random.normal(jax.random.key(0), (5, 3, 16))


@pytest.mark.parametrize("kind", KINDS)
def test_one_vector_per_example_that_ignores_the_other_examples(kind, z):
    out, jitted, apply = aggregate(kind, z)
    assert out.shape == (5, 16)
    np.testing.assert_allclose(out, jitted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(apply(z[2:3]), out[2:3], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ORDER_SENSITIVE)
@pytest.mark.parametrize("swap", [(0, 2), (1, 2)])
def test_swapping_frames_changes_an_order_sensitive_aggregation(kind, z, swap):
    out, _, apply = aggregate(kind, z)
    order = list(range(3))
    order[swap[0]], order[swap[1]] = order[swap[1]], order[swap[0]]
    assert np.abs(apply(z[:, np.array(order)]) - out).max() > 1e-2


@pytest.mark.parametrize("kind", [kind for kind in ORDER_SENSITIVE if kind != "last"])
def test_swapping_the_first_two_frames_matters_unless_only_the_last_is_read(kind, z):
    out, _, apply = aggregate(kind, z)
    assert np.abs(apply(z[:, np.array([1, 0, 2])]) - out).max() > 1e-2


def test_mean_ignores_order_and_last_ignores_all_but_the_last(z):
    mean, _, apply_mean = aggregate("mean", z)
    np.testing.assert_allclose(apply_mean(z[:, ::-1]), mean, rtol=1e-5, atol=1e-6)
    last, _, _ = aggregate("last", z)
    np.testing.assert_array_equal(last, z[:, -1])


def test_an_unknown_aggregation_is_named(z):
    with pytest.raises(ValueError, match="'median'"):
        aggregate("median", z)

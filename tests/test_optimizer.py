import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa import optimizer

OPTIONS = dict(num_steps=10, learning_rate=0.1, warmup_steps=2, final_rate=0.1, weight_decay=0.5, b1=0.9, b2=0.95)
PARAMS = {"a": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "b": {"kernel": jnp.ones((3, 3))}}


def updates(gradients, steps, **overrides):
    tx, _ = optimizer.build(**OPTIONS | overrides)
    state, each = tx.init(PARAMS), []
    for _ in range(steps):
        update, state = tx.update(gradients, state, PARAMS)
        each.append(update)
    return each


def test_only_matrices_decay():
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    last = updates(zero, 3)[-1]
    np.testing.assert_allclose(last["a"]["kernel"], -0.1 * 0.5, rtol=1e-5)  # the rate is at its peak
    assert jnp.all(last["a"]["bias"] == 0)


def test_the_rate_warms_up_from_zero_and_falls_to_its_final_share():
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    sizes = [float(-update["a"]["bias"][0]) for update in updates(ones, 11, weight_decay=0.0)]
    np.testing.assert_allclose(sizes[:3], [0.0, 0.05, 0.1], atol=1e-6)
    assert all(a > b for a, b in itertools.pairwise(sizes[2:]))
    np.testing.assert_allclose(sizes[10], 0.01, atol=1e-6)
    rate = optimizer.build(**OPTIONS)[1]
    np.testing.assert_allclose([rate(step) for step in range(11)], sizes, atol=1e-6)


def test_a_frozen_part_gets_no_update_and_no_gradient():
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    last = updates(ones, 3, freeze=("a",))[-1]
    assert all(jnp.all(x == 0) for x in jax.tree.leaves(last["a"])) and jnp.all(last["b"]["kernel"] != 0)
    total = lambda p, freeze: sum(jnp.sum(x) for x in jax.tree.leaves(optimizer.stop_frozen(p, freeze)))  # noqa: E731
    gradient = jax.grad(total)(PARAMS, ("a/kernel",))
    assert jnp.all(gradient["a"]["kernel"] == 0) and jnp.all(gradient["a"]["bias"] == 1)


def test_a_path_is_a_part_only_at_a_slash():
    assert optimizer.under("trunk/encoder/embed", "trunk/encoder") and optimizer.under("trunk", "trunk")
    assert not optimizer.under("trunk2/encoder", "trunk")


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match=r"optimizer\.warmup_steps is 10"):
        optimizer.build(**OPTIONS | {"warmup_steps": 10})


def test_the_decay_of_the_target_is_constant_or_rises_on_a_cosine():
    assert optimizer.target_decay(None, None, 100) is None
    assert optimizer.target_decay(0.99, None, 100) == 0.99
    decay = optimizer.target_decay(0.9, 1.0, 100)
    np.testing.assert_allclose([decay(0), decay(50), decay(100), decay(150)], [0.9, 0.95, 1.0, 1.0], atol=1e-6)
    values = np.array([decay(step) for step in range(101)])
    np.testing.assert_allclose(values, 1 - 0.1 * (1 + np.cos(np.pi * np.arange(101) / 100)) / 2, atol=1e-6)

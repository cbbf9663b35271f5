"""Transitions: one scan for all, what is predicted is what is fed back, and the policy holds in between."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa import dynamics, latent_norm

B, T, D, A = 3, 5, 8, 2
Z = jax.random.normal(jax.random.key(0), (B, T + 1, D))
ACTIONS = jax.random.normal(jax.random.key(1), (B, T, A))


@functools.cache
def built(kind, policy="global"):
    transition, norm = dynamics.build(kind, hidden=16, depth=2, num_heads=2, window=3), latent_norm.build(policy)
    params = transition.init(jax.random.key(2), Z[:, 0], ACTIONS[:, 0])
    noisy = jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(3), leaf.shape), params)
    return transition, norm, noisy


def at(latent, index):
    return jax.tree.map(lambda leaf: leaf[:, index], latent)


@pytest.mark.parametrize("kind", dynamics.KINDS)
def test_a_rollout_of_one_step_is_teacher_forcing_of_one(kind):
    parts = built(kind)
    z = parts[1].encoded(Z)
    forced = dynamics.teacher_forced(*parts, at(z, slice(0, 1)), ACTIONS[:, :1])
    rolled = dynamics.rollout(*parts, at(z, 0), ACTIONS[:, :1])
    np.testing.assert_allclose(forced.value, rolled.value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", dynamics.KINDS)
def test_a_rollout_is_teacher_forcing_on_what_it_says(kind):
    """Fed its own predictions as if they were true, teacher forcing repeats the rollout."""
    parts = built(kind)
    first = at(parts[1].encoded(Z), 0)
    rolled = jax.jit(functools.partial(dynamics.rollout, *parts))(first, ACTIONS)
    said = parts[1].encoded(jnp.concatenate([first.value[:, None], rolled.value[:, :-1]], axis=1))
    forced = jax.jit(functools.partial(dynamics.teacher_forced, *parts))(said, ACTIONS)
    np.testing.assert_allclose(forced.value, rolled.value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", dynamics.KINDS)
def test_the_future_is_not_seen(kind):
    parts = built(kind)
    z = parts[1].encoded(Z[:, :-1])
    forced = dynamics.teacher_forced(*parts, z, ACTIONS)
    later = parts[1].encoded(Z[:, :-1].at[:, 3:].add(1.0))
    changed = dynamics.teacher_forced(*parts, later, ACTIONS.at[:, 3:].add(1.0))
    np.testing.assert_allclose(forced.value[:, :3], changed.value[:, :3], rtol=1e-6)
    assert float(jnp.abs(forced.value[:, 3:] - changed.value[:, 3:]).min(axis=(0, 2)).max()) >= 0
    assert float(jnp.abs(forced.value[:, 3:] - changed.value[:, 3:]).max()) > 1e-2


@pytest.mark.parametrize("kind", ["gru", "transformer"])
def test_the_past_is_remembered_and_by_an_mlp_it_is_not(kind):
    for name, remembers in ((kind, True), ("mlp", False)):
        parts = built(name)
        z = parts[1].encoded(Z[:, :-1])
        earlier = parts[1].encoded(Z[:, :-1].at[:, 1].add(1.0))
        forced, changed = (dynamics.teacher_forced(*parts, given, ACTIONS) for given in (z, earlier))
        apart = float(jnp.abs(forced.value[:, 2] - changed.value[:, 2]).max())
        assert (apart > 1e-3) == remembers


def test_a_transformer_forgets_what_is_older_than_its_window():
    parts = built("transformer")
    z = parts[1].encoded(Z[:, :-1])
    earlier = parts[1].encoded(Z[:, :-1].at[:, 0].add(1.0))
    forced, changed = (dynamics.teacher_forced(*parts, given, ACTIONS).value for given in (z, earlier))
    assert float(jnp.abs(forced[:, 2] - changed[:, 2]).max()) > 1e-3
    np.testing.assert_array_equal(forced[:, 3:], changed[:, 3:])


@pytest.mark.parametrize("kind", dynamics.KINDS)
def test_the_policy_holds_at_every_step_of_a_rollout(kind):
    parts = built(kind)
    rolled = dynamics.rollout(*parts, at(parts[1].encoded(100.0 * Z), 0), ACTIONS)
    np.testing.assert_allclose(jnp.linalg.norm(rolled.value, axis=-1), D**0.5, rtol=1e-5)
    free = built(kind, "none")
    lengths = jnp.linalg.norm(dynamics.rollout(*free, at(free[1].encoded(Z), 0), ACTIONS).value, axis=-1)
    assert float(jnp.std(lengths)) > 0.05


@pytest.mark.parametrize("kind", dynamics.KINDS)
def test_an_array_is_refused(kind):
    parts = built(kind)
    with pytest.raises(AttributeError):
        dynamics.rollout(*parts, Z[:, 0], ACTIONS)


@pytest.mark.parametrize("kind", dynamics.KINDS)
def test_gradients_reach_the_first_action_through_time(kind):
    parts = built(kind)
    first = at(parts[1].encoded(Z), 0)
    g = jax.jit(jax.grad(lambda a: jnp.sum(dynamics.rollout(*parts, first, a).value[:, -1] * Z[:, -1])))(ACTIONS)
    assert bool(jnp.all(jnp.isfinite(g))) and float(jnp.abs(g[:, 0]).max()) > 1e-4


def test_dynamics_that_make_no_sense_are_one_sentence():
    with pytest.raises(ValueError, match=r"the dynamics are 'gur'.*gru"):
        dynamics.build("gur")
    with pytest.raises(ValueError, match="multiple of its 3 heads"):
        dynamics.build("transformer", hidden=16, num_heads=3)

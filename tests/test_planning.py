"""Planners find what they should, problem by problem, within the actions they may take."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa import dynamics, latent_norm, planning
from jepa.planning import METHODS, Planner

TARGETS = jnp.array([[1.0, 0.5], [-1.5, 1.0], [0.0, -2.0]])


def cost(actions):
    """Every action is to be the target's third: the sum of squares."""
    wanted = TARGETS[: actions.shape[0], None, None] / 3
    return jnp.sum(jnp.square(actions - wanted), axis=(-1, -2))


def planner(method, **options):
    given = dict(horizon=4, num_samples=200, num_elites=20, num_iterations=10, std=1.0, temperature=0.5) | options
    return Planner(method, **given)


def planned(method, num=3, key=0, **options):
    chosen = planner(method, **options)
    start = planning.begin(chosen, num, 2)
    return jax.jit(lambda key: planning.plan(chosen, cost, start, key))(jax.random.key(key))


@pytest.mark.parametrize("method", METHODS)
def test_a_planner_finds_the_cheapest_sequence_of_every_problem(method):
    actions, refined = planned(method)
    np.testing.assert_allclose(actions, jnp.broadcast_to(TARGETS[:, None] / 3, actions.shape), atol=0.1)
    np.testing.assert_allclose(refined.mean, jnp.broadcast_to(TARGETS[:, None] / 3, actions.shape), atol=0.1)
    assert float(refined.std.max()) < 0.3


@pytest.mark.parametrize("method", METHODS)
def test_planning_beats_as_many_draws(method):
    actions, _ = planned(method)
    draws = jax.random.normal(jax.random.key(5), (3, 2000, 4, 2))
    assert bool(jnp.all(cost(actions[:, None])[:, 0] < cost(draws).min(1)))


@pytest.mark.parametrize("method", METHODS)
def test_no_action_is_longer_than_it_may_be(method):
    actions, _ = planned(method, max_norm=0.3)
    assert float(jnp.linalg.norm(actions, axis=-1).max()) <= 0.3 + 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_a_plan_repeats_with_its_key_and_differs_with_another(method):
    one, again, other = (planned(method, key=key, num_iterations=2)[0] for key in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert float(jnp.abs(one - other).max()) > 1e-4


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_steps_are_drawn_as_correlated_as_asked(correlation):
    drawn = jax.jit(lambda key: planning.noise(key, (20_000, 6, 2), correlation))(jax.random.key(0))
    np.testing.assert_allclose(drawn.mean(0), 0, atol=0.05)
    apart = np.abs(np.arange(6)[:, None] - np.arange(6)[None])
    expected = np.where(apart == 0, 1.0, correlation**apart)
    for axis in (0, 1):
        np.testing.assert_allclose(np.cov(drawn[..., axis].T), expected, atol=0.05)
    np.testing.assert_allclose(np.mean(drawn[..., 0] * drawn[..., 1]), 0, atol=0.02)


def test_elites_are_the_cheapest_and_their_weights_are_those_of_the_method():
    actions, costs = jnp.arange(10.0).reshape(1, 5, 1, 2), jnp.array([[3.0, 1.0, 2.0, 0.0, 9.0]])
    elites, weights = planning.best(Planner("cem", num_samples=5, num_elites=2), actions, costs)
    np.testing.assert_array_equal(elites[0, :, 0], [[6, 7], [2, 3]])
    np.testing.assert_array_equal(weights.ravel(), [0.5, 0.5])
    _, weights = planning.best(Planner("mppi", num_samples=5, num_elites=2, temperature=0.5), actions, costs)
    np.testing.assert_allclose(weights.ravel(), np.exp([0, -2]) / np.exp([0, -2]).sum(), rtol=1e-6)


def test_the_next_proposal_is_what_is_left_of_the_plan():
    chosen = planner("cem")
    refined = planning.Proposal(jnp.arange(8.0).reshape(1, 4, 2), jnp.full((1, 4, 2), 0.1))
    after = planning.next_proposal(chosen, refined)
    np.testing.assert_array_equal(after.mean[0], [[2, 3], [4, 5], [6, 7], [0, 0]])
    assert float(after.std.min()) == 1.0


@pytest.mark.parametrize("every_step", [True, False])
def test_the_distance_to_a_goal_is_that_of_the_rollout(every_step):
    transition, norm = dynamics.build("gru", hidden=8, depth=1), latent_norm.build("global")
    z, goal = (norm.encoded(jax.random.normal(jax.random.key(i), (2, 4))) for i in (0, 1))
    actions = jax.random.normal(jax.random.key(2), (2, 3, 5, 2))
    params = transition.init(jax.random.key(3), z.value, actions[:, 0, 0])
    imagine = functools.partial(dynamics.rollout, transition, norm, params)
    costs = planning.distance_to_goal(imagine, z, goal, every_step=every_step)(actions)
    for sample in range(3):
        seen = dynamics.rollout(transition, norm, params, z, actions[:, sample]).value
        distance = jnp.linalg.norm(seen - goal.value[:, None], axis=-1)
        expected = distance.sum(1) if every_step else distance[:, -1]
        np.testing.assert_allclose(costs[:, sample], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(method="cme"), r"the planner is 'cme'.*cem"),
        (dict(num_elites=300), "300 elites of 200 samples"),
        (dict(horizon=0), "horizon is 0"),
        (dict(temperature=0.0), "temperature is 0.0"),
        (dict(correlation=1.0), r"correlation is 1.0; it lies in \[0, 1\)"),
    ],
)
def test_a_planner_that_makes_no_sense_is_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        planning.check(Planner(**options))

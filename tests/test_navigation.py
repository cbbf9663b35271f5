"""Tasks in two rooms: who knows the way gets there, who does not does not, and a planner that sees the truth plans."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa import navigation, two_rooms
from jepa.planning import Planner


@functools.cache
def tasks(num=200):
    return navigation.draw(jax.random.key(0), num)


def reached(policy, num=200, **options):
    run = jax.jit(lambda t, key: navigation.run(policy, t, key, **options))
    return run(tasks(num), jax.random.key(1))


def test_no_task_is_solved_and_start_and_goal_are_apart():
    drawn = tasks()
    side = [jnp.sign(place[:, 0] - drawn.layout[:, 0]) for place in (drawn.start, drawn.goal)]
    assert bool(jnp.all(side[0] == -side[1]))
    assert bool(jnp.all(jnp.linalg.norm(drawn.start - drawn.goal, axis=-1) > two_rooms.SUCCESS))
    assert 0.3 < float(jnp.mean(side[0] > 0)) < 0.7


def test_the_floors_are_where_they_should_be():
    assert bool(jnp.all(reached(navigation.oracle())[0]))
    assert not bool(jnp.any(reached(navigation.still())[0]))
    assert 0 < float(jnp.mean(reached(navigation.at_random())[0])) < 0.2


def test_nobody_walks_through_walls():
    for policy in (navigation.oracle(), navigation.at_random()):
        _, positions = reached(policy)
        assert bool(jnp.all(two_rooms.free(positions, tasks().layout[None])))


@pytest.mark.parametrize("method", ["cem", "mppi"])
@pytest.mark.parametrize("replan_every", [1, 3])
def test_a_planner_that_knows_the_world_gets_there_where_nothing_is_in_the_way(method, replan_every):
    """Its cost is the true distance: greedy, so that the door has to lie on the way."""
    drawn = tasks(20)
    near = drawn._replace(start=jnp.stack([drawn.goal[:, 0], jnp.full(20, 32.0)], axis=-1))
    planner = Planner(method, horizon=6, num_samples=64, num_elites=8, num_iterations=3, replan_every=replan_every)
    policy = navigation.planned(planner, functools.partial(navigation.true_cost, every_step=True))
    found, _ = jax.jit(lambda t, key: navigation.run(policy, t, key, num_steps=40))(near, jax.random.key(2))
    assert bool(jnp.all(found))


def test_a_plan_is_kept_until_it_is_due():
    planner = Planner("cem", horizon=6, num_samples=16, num_elites=4, num_iterations=1, replan_every=3)
    policy, drawn = navigation.planned(planner, functools.partial(navigation.true_cost, every_step=True)), tasks(4)
    act = jax.jit(policy.act)

    def walk(key, place):
        """Six actions: the first from the start of the tasks, the others with this key and from this place."""
        action, memory = act(policy.start(4), jax.random.key(0), drawn.start, drawn)
        actions = [action]
        for _ in range(5):
            action, memory = act(memory, key, place, drawn)
            actions.append(action)
        return np.stack(actions)

    one, other = walk(jax.random.key(1), drawn.start), walk(jax.random.key(2), drawn.goal)
    np.testing.assert_array_equal(one[:3], other[:3])
    assert np.all(np.any(one[3:] != other[3:], axis=(1, 2)))


def test_the_true_cost_is_the_distance_of_where_the_agent_would_walk():
    drawn = tasks(5)
    actions = 2.0 * jax.random.normal(jax.random.key(4), (5, 3, 7, 2))
    last = navigation.true_cost(drawn.start, drawn, every_step=False)(actions)
    total = navigation.true_cost(drawn.start, drawn, every_step=True)(actions)
    for n in range(5):
        for s in range(3):
            path = two_rooms.follow(drawn.start[n], actions[n, s], drawn.layout[n])[1:]
            apart = np.linalg.norm(path - drawn.goal[None, n], axis=-1)
            np.testing.assert_allclose(last[n, s], apart[-1], rtol=1e-5)
            np.testing.assert_allclose(total[n, s], apart.sum(), rtol=1e-5)


def test_an_interval_is_wilsons():
    found = navigation.success(np.array([True] * 9 + [False]))
    assert (found["score"], found["n"]) == (0.9, 10)
    assert (found["low"], found["high"]) == (pytest.approx(0.5958, abs=1e-3), pytest.approx(0.9821, abs=1e-3))

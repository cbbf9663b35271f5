"""Getting from one room to the other: tasks in two rooms, who acts in them, and how often that ends at the goal.

A policy sees where the agent is (a learned one renders it and looks at the picture alone) and chooses a step. All tasks
run at once, compiled. The floors come with every score: steps at random, no step, and an oracle that knows the door.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jepa import latent_norm, planning, two_rooms
from jepa.latent_norm import Latent
from jepa.planning import Cost, Planner, Proposal
from jepa.types import Array, PyTree

STEPS = 200  # allowed, as in the public benchmark
AS_IT_IS = latent_norm.build("none")


class Tasks(NamedTuple):
    """From a place in one room to a place in the other, [N, 2] each."""

    start: Array
    goal: Array
    layout: Array


class Policy(NamedTuple):
    """start(N) -> memory; act(memory, key, position, tasks) -> (action [N, 2], memory)."""

    start: Callable[[int], PyTree]
    act: Callable[[PyTree, Array, Array, Tasks], tuple[Array, PyTree]]


def draw(key: Array, num: int) -> Tasks:
    """`num` tasks, each in a layout of its own. Start and goal are in different rooms, so that none is solved."""

    def one(key: Array) -> Tasks:
        keys = jax.random.split(key, 4)
        layout = two_rooms.draw_layout(keys[0])
        side = jax.random.bernoulli(keys[1]).astype(jnp.int32)
        start, goal = (two_rooms.draw_position(k, layout, s) for k, s in ((keys[2], side), (keys[3], 1 - side)))
        return Tasks(start, goal, layout)

    return jax.vmap(one)(jax.random.split(key, num))


class Now(NamedTuple):
    """What a policy remembers, and where the agents are, [N, 2]."""

    memory: PyTree
    position: Array


def begin(policy: Policy, tasks: Tasks) -> Now:
    """Before the first step."""
    return Now(policy.start(len(tasks.start)), tasks.start)


def advance(policy: Policy, tasks: Tasks, now: Now, keys: Array) -> tuple[Now, Array]:
    """A step for every key [k]; where the agents were after each, [k, N, 2]."""

    def step(now: Now, key: Array) -> tuple[Now, Array]:
        action, memory = policy.act(now.memory, key, now.position, tasks)
        position = two_rooms.move(now.position, action, tasks.layout)
        return Now(memory, position), position

    return jax.lax.scan(step, now, keys)


def run(policy: Policy, tasks: Tasks, key: Array, *, num_steps: int = STEPS) -> tuple[Array, Array]:
    """Whether the goal was reached at any step, bool [N], and where the agent was, [num_steps + 1, N, 2]."""
    _, positions = advance(policy, tasks, begin(policy, tasks), jax.random.split(key, num_steps))
    positions = jnp.concatenate([tasks.start[None], positions])
    distance = jnp.linalg.norm(positions - tasks.goal[None], axis=-1)
    return jnp.any(distance < two_rooms.SUCCESS, axis=0), positions


def distances(positions: np.ndarray, tasks: Tasks) -> np.ndarray:
    """From the goal, in pixels: [k, N] of positions [k, N, 2]."""
    return np.linalg.norm(positions - np.asarray(tasks.goal)[None], axis=-1)


def arrival(positions: np.ndarray, tasks: Tasks) -> np.ndarray:
    """The first step at which the agent was at its goal, int [N]; -1 where it never was."""
    there = distances(positions, tasks) < two_rooms.SUCCESS
    return np.where(there.any(0), there.argmax(0), -1)


def still() -> Policy:
    """No step."""
    return Policy(lambda num: (), lambda memory, key, position, tasks: (jnp.zeros_like(position), memory))


def at_random() -> Policy:
    """Steps in random directions, as long as a plan's may be."""

    def act(memory: PyTree, key: Array, position: Array, tasks: Tasks) -> tuple[Array, PyTree]:
        angle = jax.random.uniform(key, position.shape[:1], maxval=2 * jnp.pi)
        return two_rooms.LONGEST * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1), memory

    return Policy(lambda num: (), act)


def oracle() -> Policy:
    """Who knows the layout: to the front of the door, through it, to the goal."""

    def act(memory: PyTree, key: Array, position: Array, tasks: Tasks) -> tuple[Array, PyTree]:
        wall, door = tasks.layout[:, 0], tasks.layout[:, 1]
        side = jnp.sign(tasks.goal[:, 0] - wall)  # of the goal, as seen from the wall
        beyond = side * (position[:, 0] - wall) > two_rooms.HALF_WALL
        lined_up = jnp.abs(position[:, 1] - door) < two_rooms.HALF_DOOR / 2
        front = jnp.stack([wall - 3 * side, door], axis=-1)
        through = jnp.stack([wall + 3 * side, door], axis=-1)
        near = jnp.where(lined_up[:, None], through, front)
        return planning.shortened(jnp.where(beyond[:, None], tasks.goal, near) - position, two_rooms.LONGEST), memory

    return Policy(lambda num: (), act)


class Plan(NamedTuple):
    """What a planner remembers: the proposal it starts from next, the actions of its last plan, [N, H, 2], and how many
    of them were taken."""

    proposal: Proposal
    actions: Array
    taken: Array


def planned(planner: Planner, cost_of: Callable[[Array, Tasks], Cost]) -> Policy:
    """Plans after every `replan_every` steps, from what is left of the last plan. cost_of(position, tasks): what a
    sequence of actions costs from here."""

    def start(num: int) -> Plan:
        proposal = planning.begin(planner, num, 2)
        return Plan(proposal, proposal.mean, jnp.int32(planner.replan_every))

    def act(memory: Plan, key: Array, position: Array, tasks: Tasks) -> tuple[Array, Plan]:
        def again(memory: Plan) -> Plan:
            actions, refined = planning.plan(planner, cost_of(position, tasks), memory.proposal, key)
            return Plan(planning.next_proposal(planner, refined), actions, jnp.int32(0))

        is_due = memory.taken == planner.replan_every
        now = jax.lax.cond(is_due, again, lambda memory: memory, memory)
        return jnp.take(now.actions, now.taken, axis=1), now._replace(taken=now.taken + 1)

    return Policy(start, act)


def true_cost(position: Array, tasks: Tasks, *, every_step: bool) -> Cost:
    """What a sequence of actions costs in the world itself: the distance from the goal in pixels, as the agent would
    walk. What a planner makes of it is the most that a model which knew the world could give it by that distance."""

    def imagine(here: Latent, actions: Array) -> Latent:
        paths = two_rooms.follow(here.value[:, :2], jnp.swapaxes(actions, 0, 1), here.value[:, 2:])
        return AS_IT_IS.predicted(jnp.swapaxes(_with(paths[1:], here.value[:, 2:]), 0, 1))

    here, goal = (AS_IT_IS.encoded(_with(place, tasks.layout)) for place in (position, tasks.goal))
    return planning.distance_to_goal(imagine, here, goal, every_step=every_step)


def _with(place: Array, layout: Array) -> Array:
    """The state of the world, [..., 4]: where the agent is, and the layout, in which start and goal do not differ."""
    return jnp.concatenate([place, jnp.broadcast_to(layout, place.shape)], axis=-1)


def success(reached: Array) -> dict[str, float]:
    """The share of tasks that were solved, with its 95 % Wilson interval."""
    solved, num = int(np.sum(reached)), len(reached)
    interval = stats.binomtest(solved, num).proportion_ci(0.95, method="wilson")
    return {"score": solved / num, "low": float(interval.low), "high": float(interval.high), "n": num}

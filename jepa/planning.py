"""Planning by sampling: sequences of actions whose predicted outcome is near a goal, in latent space.

Both methods refine a Gaussian over sequences of actions: draw, keep the cheapest few, take their mean and standard
deviation. The cross-entropy method (CEM; Rubinstein, 1999) weighs them alike and returns the mean; model predictive
path integral control (MPPI; Williams et al., arXiv:1509.01149) weighs them by exp(-cost / temperature) and returns one
of them. Everything is batched over problems [B] and can be compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jepa.latent_norm import Latent
from jepa.registry import nearest
from jepa.types import Array

METHODS = ("cem", "mppi")
Cost = Callable[[Array], Array]  # actions [B, S, H, A] -> costs [B, S]


class Proposal(NamedTuple):
    """A Gaussian over sequences of actions, [B, H, A] each."""

    mean: Array
    std: Array


class Planner(NamedTuple):
    """horizon: steps ahead. num_samples, num_elites, num_iterations: sequences drawn, kept, and how often. std: of an
    action, at first. max_norm: longest action, in the Euclidean norm. temperature: of MPPI, in units of the cost.
    correlation: of two actions in a row as they are drawn, 0 for independent ones, which wander about where they start;
    correlated ones go somewhere (Pinneri et al., arXiv:2008.06389). replan_every: actions taken of a plan
    before the next is made; 1 looks after each."""

    method: str = "mppi"
    horizon: int = 16
    num_samples: int = 200
    num_elites: int = 20
    num_iterations: int = 6
    std: float = 1.5
    max_norm: float = 2.45
    temperature: float = 1.0
    correlation: float = 0.0
    replan_every: int = 1


def check(planner: Planner) -> None:
    """Raises ValueError naming the option that is out of its range."""
    if planner.method not in METHODS:
        raise ValueError(f"the planner is {planner.method!r}: {nearest(planner.method, METHODS)}")
    if not 2 <= planner.num_elites <= planner.num_samples:
        raise ValueError(
            f"{planner.num_elites} elites of {planner.num_samples} samples; at least 2, and as many at most"
        )
    for name in ("horizon", "num_iterations", "std", "max_norm", "temperature"):
        if not getattr(planner, name) > 0:
            raise ValueError(f"the planner's {name} is {getattr(planner, name)}; it must be above 0")
    if not 1 <= planner.replan_every <= planner.horizon:
        raise ValueError(
            f"the planner's replan_every is {planner.replan_every}; it lies from 1 to the horizon, {planner.horizon}"
        )
    if not 0 <= planner.correlation < 1:
        raise ValueError(f"the planner's correlation is {planner.correlation}; it lies in [0, 1)")


def begin(planner: Planner, num_problems: int, action_dim: int) -> Proposal:
    """The proposal before anything is known."""
    shape = (num_problems, planner.horizon, action_dim)
    return Proposal(jnp.zeros(shape), jnp.full(shape, planner.std))


def plan(planner: Planner, cost: Cost, proposal: Proposal, key: Array) -> tuple[Array, Proposal]:
    """The sequence of actions to take, [B, H, A], and the refined proposal."""

    def refine(now: Proposal, key: Array) -> tuple[Proposal, tuple[Array, Array]]:
        shape = (now.mean.shape[0], planner.num_samples, *now.mean.shape[1:])
        drawn = now.mean[:, None] + now.std[:, None] * noise(key, shape, planner.correlation)
        actions = shortened(drawn, planner.max_norm)
        elites, weights = best(planner, actions, cost(actions))
        mean = jnp.sum(weights * elites, axis=1)
        std = jnp.sqrt(jnp.sum(weights * jnp.square(elites - mean[:, None]), axis=1))
        return Proposal(mean, std), (elites, weights)

    key_choice, *keys = jax.random.split(key, planner.num_iterations + 1)
    after, (elites, weights) = jax.lax.scan(refine, proposal, jnp.stack(keys))
    if planner.method == "cem":
        return after.mean, after
    chosen = jax.random.categorical(key_choice, jnp.log(weights[-1, :, :, 0, 0]))
    return jnp.take_along_axis(elites[-1], chosen[:, None, None, None], axis=1)[:, 0], after


def noise(key: Array, shape: tuple[int, ...], correlation: float) -> Array:
    """Standard normal [..., H, A], each step of H correlated by correlation^k with the k-th after it (first-order
    autoregression)."""
    white = jax.random.normal(key, shape)
    if correlation == 0:
        return white
    steps = jnp.arange(shape[-2])
    root = jnp.linalg.cholesky(correlation ** jnp.abs(steps[:, None] - steps[None]))
    return jnp.einsum("hk,...ka->...ha", root, white)


def best(planner: Planner, actions: Array, costs: Array) -> tuple[Array, Array]:
    """The cheapest sequences [B, K, H, A] and their weights [B, K, 1, 1], which sum to 1."""
    low, kept = jax.lax.top_k(-costs, planner.num_elites)
    elites = jnp.take_along_axis(actions, kept[:, :, None, None], axis=1)
    if planner.method == "cem":
        weights = jnp.full(low.shape, 1.0 / planner.num_elites)
    else:
        weights = jax.nn.softmax(low / planner.temperature, axis=-1)
    return elites, weights[:, :, None, None]


def shortened(actions: Array, max_norm: float) -> Array:
    """Actions no longer than `max_norm`, in their direction."""
    squares = jnp.sum(jnp.square(actions), axis=-1, keepdims=True)
    return actions * jnp.minimum(1.0, max_norm / jnp.sqrt(jnp.maximum(squares, 1e-12)))


def next_proposal(planner: Planner, refined: Proposal) -> Proposal:
    """Where planning starts after `replan_every` actions of the plan: what is left of its mean, and all its first
    width."""
    taken = planner.replan_every
    mean = jnp.roll(refined.mean, -taken, axis=1).at[:, -taken:].set(0.0)
    return Proposal(mean, jnp.full_like(refined.std, planner.std))


def distance_to_goal(
    imagine: Callable[[Latent, Array], Latent], z: Latent, goal: Latent, *, every_step: bool = True
) -> Cost:
    """The Euclidean distance of predicted latents from the goal's, summed over all steps, or of the last alone.
    imagine(z [N, D], actions [N, H, A]) -> [N, H, D]; z, goal [B, D]. Summed, it asks to be there soon, and an error
    far ahead weighs less."""

    def cost(actions: Array) -> Array:
        num, samples, horizon, width = actions.shape
        starts = jax.tree.map(lambda leaf: jnp.repeat(leaf, samples, axis=0), z)
        seen = imagine(starts, actions.reshape(num * samples, horizon, width))
        seen = jax.tree.map(lambda leaf: leaf.reshape(num, samples, horizon, -1), seen)
        apart = seen.value - goal.value[:, None, None]
        distance = jnp.sqrt(jnp.sum(jnp.square(apart), axis=-1) + 1e-12)
        return jnp.sum(distance, axis=-1) if every_step else distance[..., -1]

    return cost

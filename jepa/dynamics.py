"""Transitions of a latent world model: a state h carries time, an action moves it, and `h_to_z` says the next z.

Three kinds, all of one form, so that teacher forcing, rollouts and planning are the same scan over any of them. What is
predicted passes through the policy (`jepa.latent_norm`) before it is fed back or handed on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jepa.latent_norm import Latent, LatentNorm, at
from jepa.modules import Block, LayerNorm, Mlp
from jepa.registry import nearest
from jepa.types import Array, Observation, PyTree

KINDS = ("mlp", "gru", "transformer")


class Dynamics(NamedTuple):
    """A transition as pure functions, over leading axes [B].

    init(key, z [B, D], action [B, A]) -> params
    start(params, z) -> h, before anything has happened
    step(params, h, z, action [B, A]) -> h after the action was taken in z
    h_to_z(params, h) -> z as it comes, [B, D]: not yet a `Latent`
    """

    init: Callable[..., PyTree]
    start: Callable[[PyTree, Latent], PyTree]
    step: Callable[[PyTree, PyTree, Latent, Array], PyTree]
    h_to_z: Callable[[PyTree, PyTree], Array]


class WorldModel(NamedTuple):
    """What can be asked of a trained world model, as pure functions of the parameters and state of its objective. What
    is seen and imagined are `Latent`s, so that whoever asks has them as the policy of the run lets them be seen.

    see(params, state, frames) -> the latents of frames [..., *frame], [..., D]
    imagine(params, z [B, D], actions [B, T, A]) -> the latents after each action, [B, T, D]
    show(params, z [..., D], frame) -> what they are decoded to, as `jepa.decoders.Decoder.decode`; None where the run
        has no decoder
    """

    see: Callable[[PyTree, PyTree, Observation], Latent]
    imagine: Callable[[PyTree, Latent, Array], Latent]
    show: Callable[[PyTree, Latent, Observation], Array] | None


def build(kind: str, *, hidden: int = 128, depth: int = 2, num_heads: int = 4, window: int = 8) -> Dynamics:
    """ "mlp", whose h is the next z; "gru", `depth` cells of `hidden` units (Cho et al., arXiv:1406.1078); or
    "transformer", which attends to the last `window` pairs of z and action. All predict a change of z."""
    if kind not in KINDS:
        raise ValueError(f"the dynamics are {kind!r}: {nearest(kind, KINDS)}")
    if kind == "mlp":
        return _mlp(hidden, depth)
    return _gru(hidden, depth) if kind == "gru" else _transformer(hidden, depth, num_heads, window)


def _mlp(hidden: int, depth: int) -> Dynamics:
    def change(dim: int) -> Mlp:
        return Mlp((hidden,) * depth + (dim,))

    def init(key: Array, z: Array, action: Array) -> PyTree:
        return change(z.shape[-1]).init(key, _pair(z, action))["params"]

    def step(params: PyTree, h: PyTree, z: Latent, action: Array) -> PyTree:
        return z.value + change(z.value.shape[-1]).apply({"params": params}, _pair(z.value, action))

    return Dynamics(init, lambda params, z: z.value, step, lambda params, h: h)


class _Cells(nn.Module):
    """A stack of GRU cells."""

    hidden: int
    depth: int

    @nn.compact
    def __call__(self, h: tuple[Array, ...], x: Array) -> tuple[Array, ...]:
        after = []
        for state in h:
            state, x = nn.GRUCell(self.hidden)(state, x)
            after.append(state)
        return tuple(after)


def _gru(hidden: int, depth: int) -> Dynamics:
    """h is what the cells remember, and z."""
    cells = _Cells(hidden, depth)

    def nothing(z: Array) -> tuple[Array, ...]:
        return (jnp.zeros((*z.shape[:-1], hidden)),) * depth

    def init(key: Array, z: Array, action: Array) -> PyTree:
        key_cells, key_read = jax.random.split(key)
        remembered = cells.init(key_cells, nothing(z), _pair(z, action))["params"]
        return {"cells": remembered, "read": _Read(z.shape[-1]).init(key_read, nothing(z)[0])["params"]}

    def step(params: PyTree, h: PyTree, z: Latent, action: Array) -> PyTree:
        return cells.apply({"params": params["cells"]}, h[0], _pair(z.value, action)), z.value

    def h_to_z(params: PyTree, h: PyTree) -> Array:
        return h[1] + _Read(h[1].shape[-1]).apply({"params": params["read"]}, h[0][-1])

    return Dynamics(init, lambda params, z: (nothing(z.value), z.value), step, h_to_z)


class _Read(nn.Module):
    """A linear map of what is remembered, normalised; small at the start, so that nothing changes at first."""

    dim: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.Dense(self.dim, kernel_init=nn.initializers.normal(0.01))(LayerNorm()(x))


class _Attends(nn.Module):
    """What the last of `window` pairs [B, W, D + A] comes to after attending to those before it."""

    hidden: int
    depth: int
    num_heads: int

    @nn.compact
    def __call__(self, pairs: Array, mask: Array) -> Array:
        ages = self.param("ages", nn.initializers.normal(0.02), (pairs.shape[-2], self.hidden))
        x = nn.Dense(self.hidden)(pairs) + jnp.broadcast_to(ages, (*pairs.shape[:-1], self.hidden))
        for _ in range(self.depth):
            x = Block(self.num_heads)(x, mask)
        return x[..., -1, :]


def _transformer(hidden: int, depth: int, num_heads: int, window: int) -> Dynamics:
    """h is the last pairs of z and action, the newest last, how many there are, and z."""
    if hidden % num_heads:
        raise ValueError(f"{hidden} units of the dynamics must be a multiple of its {num_heads} heads")
    attends = _Attends(hidden, depth, num_heads)

    def init(key: Array, z: Array, action: Array) -> PyTree:
        key_attends, key_read = jax.random.split(key)
        pairs = jnp.broadcast_to(
            _pair(z, action)[..., None, :], (*z.shape[:-1], window, z.shape[-1] + action.shape[-1])
        )
        x, variables = attends.init_with_output(key_attends, pairs, jnp.ones(pairs.shape[:-1], bool))
        return {"attends": variables["params"], "read": _Read(z.shape[-1]).init(key_read, x)["params"]}

    def start(params: PyTree, z: Latent) -> PyTree:
        width = params["attends"]["Dense_0"]["kernel"].shape[0]
        return jnp.zeros((*z.value.shape[:-1], window, width)), jnp.int32(0), z.value

    def step(params: PyTree, h: PyTree, z: Latent, action: Array) -> PyTree:
        pairs, count, _ = h
        newest = _pair(z.value, action)[..., None, :]
        return jnp.concatenate([pairs[..., 1:, :], newest], axis=-2), jnp.minimum(count + 1, window), z.value

    def h_to_z(params: PyTree, h: PyTree) -> Array:
        pairs, count, z = h
        mask = jnp.broadcast_to(jnp.arange(window) >= window - count, pairs.shape[:-1])
        x = attends.apply({"params": params["attends"]}, pairs, mask)
        return z + _Read(z.shape[-1]).apply({"params": params["read"]}, x)

    return Dynamics(init, start, step, h_to_z)


def _pair(z: Array, action: Array) -> Array:
    return jnp.concatenate([z, action.astype(z.dtype)], axis=-1)


def teacher_forced(dynamics: Dynamics, norm: LatentNorm, params: PyTree, z: Latent, actions: Array) -> Latent:
    """Predictions of z_1 .. z_T, each from the true z before it. z [B, T, D] are z_0 .. z_{T-1}; actions [B, T, A]."""

    def one(h: PyTree, given: tuple[Latent, Array]) -> tuple[PyTree, Array]:
        h = dynamics.step(params, h, *given)
        return h, dynamics.h_to_z(params, h)

    along = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), (z, actions))
    return norm.predicted(jnp.moveaxis(jax.lax.scan(one, dynamics.start(params, at(z, 0)), along)[1], 0, 1))


def rollout(dynamics: Dynamics, norm: LatentNorm, params: PyTree, z: Latent, actions: Array) -> Latent:
    """Predictions [B, T, D] of z_1 .. z_T from z_0 [B, D] alone: each is fed back, as the policy lets it be seen."""

    def one(carry: tuple[PyTree, Latent], action: Array) -> tuple[tuple[PyTree, Latent], Latent]:
        h, seen = carry
        h = dynamics.step(params, h, seen, action)
        seen = norm.predicted(dynamics.h_to_z(params, h))
        return (h, seen), seen

    along = jnp.moveaxis(actions, 1, 0)
    predicted = jax.lax.scan(one, (dynamics.start(params, z), z), along)[1]
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), predicted)

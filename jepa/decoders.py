"""Decoders: what a latent shows, learned beside the model and with no say in it.

They take a `Latent`, through which no gradient flows, so that what they are shown has been through the policy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jepa.latent_norm import Latent
from jepa.modules import Mlp
from jepa.registry import nearest
from jepa.tables import NUM_CELL_VALUES
from jepa.types import Array, Observation, PyTree

KINDS = ("none", "pixels", "cells")


class Decoder(NamedTuple):
    """init(key, z [B, D], observation) -> params
    decode(params, z, observation) -> what the latent shows, in the shape of one frame [..., *frame]: of pixels a value
        in [0, 1], of cells the likeliest colour. The observation gives the shape alone
    loss(params, z, observation) -> cross entropy per pixel or cell, float32 [...]
    error(decoded, observation) -> squared error per pixel, or the share of wrong cells, [...]
    """

    init: Callable[..., PyTree]
    decode: Callable[..., Array]
    loss: Callable[..., Array]
    error: Callable[..., Array]


def build(kind: str, *, hidden: int = 256) -> Decoder | None:
    """Both by an MLP of one hidden layer: "pixels" of {"image": [..., H, W, C] in [0, 1]}, "cells" of
    {"cells": int [..., H, W]}, which take `NUM_CELL_VALUES` values. "none" is None."""
    if kind not in KINDS:
        raise ValueError(f"the decoder is {kind!r}: {nearest(kind, KINDS)}")
    if kind == "none":
        return None
    return _pixels(hidden) if kind == "pixels" else _cells(hidden)


def _apply(params: PyTree, z: Latent, hidden: int, shape: tuple[int, ...]) -> Array:
    seen = jax.lax.stop_gradient(z.value)
    out = Mlp((hidden, int(np.prod(shape)))).apply({"params": params}, seen)
    return out.reshape(*seen.shape[:-1], *shape)


def _pixels(hidden: int) -> Decoder:
    def init(key: Array, z: Array, observation: Observation) -> PyTree:
        return Mlp((hidden, int(np.prod(observation["image"].shape[-3:])))).init(key, z)["params"]

    def logits(params: PyTree, z: Latent, observation: Observation) -> Array:
        return _apply(params, z, hidden, observation["image"].shape[-3:])

    def decode(params: PyTree, z: Latent, observation: Observation) -> Array:
        return jax.nn.sigmoid(logits(params, z, observation))

    def loss(params: PyTree, z: Latent, observation: Observation) -> Array:
        entropy = optax.sigmoid_binary_cross_entropy(logits(params, z, observation), observation["image"])
        return jnp.mean(entropy, axis=(-3, -2, -1))

    def error(decoded: Array, observation: Observation) -> Array:
        return jnp.mean(jnp.square(decoded - observation["image"]), axis=(-3, -2, -1))

    return Decoder(init, decode, loss, error)


def _cells(hidden: int) -> Decoder:
    def init(key: Array, z: Array, observation: Observation) -> PyTree:
        return Mlp((hidden, NUM_CELL_VALUES * int(np.prod(observation["cells"].shape[-2:])))).init(key, z)["params"]

    def logits(params: PyTree, z: Latent, observation: Observation) -> Array:
        return _apply(params, z, hidden, (*observation["cells"].shape[-2:], NUM_CELL_VALUES))

    def decode(params: PyTree, z: Latent, observation: Observation) -> Array:
        return jnp.argmax(logits(params, z, observation), axis=-1)

    def loss(params: PyTree, z: Latent, observation: Observation) -> Array:
        # Against one-hot rows: the gradient of a look-up would be a scatter, slow on a CPU.
        true = jax.nn.one_hot(observation["cells"], NUM_CELL_VALUES)
        entropy = optax.softmax_cross_entropy(logits(params, z, observation), true)
        return jnp.mean(entropy, axis=(-2, -1))

    def error(decoded: Array, observation: Observation) -> Array:
        return jnp.mean(decoded != observation["cells"], axis=(-2, -1))

    return Decoder(init, decode, loss, error)

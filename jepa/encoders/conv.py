"""Convolutional encoder of images: strided convolutions, then one vector of all that they see, where it is."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from jepa.modules import LayerNorm
from jepa.precision import compute_dtype as resolve_dtype
from jepa.types import Array, Encoder, Observation, PyTree


class Cells(nn.Module):
    """Images [..., H, W, C] in [0, 1] -> features of cells [..., N, D]: each convolution halves the sides."""

    channels: tuple[int, ...]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, image: Array) -> Array:
        x = image.reshape(-1, *image.shape[-3:]).astype(self.dtype)
        for width in self.channels:
            x = nn.gelu(LayerNorm(dtype=self.dtype)(nn.Conv(width, (3, 3), strides=2, dtype=self.dtype)(x)))
        return x.reshape(*image.shape[:-3], -1, self.channels[-1]).astype(jnp.float32)


class Pool(nn.Module):
    """Cells [..., N, D] -> [..., dim]: linear in all of them, each with weights of its own."""

    dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        flat = tokens.reshape(*tokens.shape[:-2], -1)
        return nn.Dense(self.dim, dtype=self.dtype)(flat).astype(jnp.float32)


def build(*, dim: int = 32, channels: Sequence[int] = (16, 32, 32), compute_dtype: str = "float32") -> Encoder:
    """An encoder of {"image": [..., H, W, C] in [0, 1]}; `pooled` is [..., dim].

    channels: of the convolutions, 3 x 3 at stride 2 with LayerNorm and GELU. There is no pooling over places, since a
    small thing at some place is what such images are about.
    """
    if not channels or min(channels) < 1:
        raise ValueError(f"encoder.channels is {tuple(channels)}; it must name the width of at least one convolution")
    dtype = resolve_dtype(compute_dtype)
    cells, pooling = Cells(tuple(channels), dtype), Pool(dim, dtype)

    def init(key: Array, observation: Observation) -> PyTree:
        tokens, variables = cells.init_with_output(key, observation["image"])
        return {"cells": variables["params"], "pool": pooling.init(key, tokens)["params"]}

    def embed(params: PyTree, observation: Observation) -> tuple[Array, Array]:
        tokens = cells.apply({"params": params["cells"]}, observation["image"])
        return tokens, jnp.ones(tokens.shape[:-1], bool)

    def pool(params: PyTree, tokens: Array, mask: Array) -> Array:
        return pooling.apply({"params": params["pool"]}, tokens)

    return Encoder(init, embed, pool)

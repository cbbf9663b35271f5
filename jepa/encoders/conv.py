"""Convolutional encoder of images: strided convolutions, then one vector of all that they see, where it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp

from jepa.precision import compute_dtype as resolve_dtype
from jepa.types import Array, Encoder, Observation, PyTree


def windows(x: Array, side: int, stride: int) -> Array:
    """The windows of `side` x `side` at every `stride`-th place of [N, H, W, C], each as one vector:
    [N, ceil(H / stride), ceil(W / stride), side^2 C], filled up with zeros at the edges.

    A linear map of these is a convolution. XLA's convolutions and their gradients run on one core of a CPU where they
    are within a loop, as the steps of a dispatch and the seeds of a suite are; products of matrices do not.
    """
    sizes = [-(-length // stride) for length in x.shape[1:3]]
    fill = [max(0, (size - 1) * stride + side - length) for size, length in zip(sizes, x.shape[1:3], strict=True)]
    x = jnp.pad(x, ((0, 0), *((extra // 2, extra - extra // 2) for extra in fill), (0, 0)))

    def at(row: int, column: int) -> Array:
        return x[:, row : row + sizes[0] * stride : stride, column : column + sizes[1] * stride : stride]

    return jnp.concatenate([at(row, column) for row in range(side) for column in range(side)], axis=-1)


class Cells(nn.Module):
    """Images [..., H, W, C] in [0, 1] -> features of cells [..., N, D]: each convolution halves the sides, the first
    one divides them by `patch` where that is not 0."""

    channels: tuple[int, ...]
    patch: int
    scale: tuple[float, ...]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, image: Array) -> Array:
        x = image.reshape(-1, *image.shape[-3:]).astype(self.dtype)
        if self.scale:
            if len(self.scale) != x.shape[-1]:
                raise ValueError(f"encoder.scale has {len(self.scale)} factors, and images {x.shape[-1]} channels")
            x = x * jnp.asarray(self.scale, self.dtype)[None, None, None]
        for layer, width in enumerate(self.channels):
            seen = windows(x, self.patch, self.patch) if layer == 0 and self.patch else windows(x, 3, 2)
            x = nn.gelu(nn.Dense(width, dtype=self.dtype)(seen))
        return x.reshape(*image.shape[:-3], -1, self.channels[-1]).astype(jnp.float32)


class Pool(nn.Module):
    """Cells [..., N, D] -> [..., dim]: linear in all of them, each with weights of its own."""

    dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        flat = tokens.reshape(*tokens.shape[:-2], -1)
        return nn.Dense(self.dim, dtype=self.dtype)(flat).astype(jnp.float32)


def over_cells(cells: nn.Module, pooling: Pool, seen: Callable[[Observation], Array]) -> Encoder:
    """The encoder of what `seen` takes from an observation: tokens of all cells, and one vector of them."""

    def init(key: Array, observation: Observation) -> PyTree:
        tokens, variables = cells.init_with_output(key, seen(observation))
        return {"cells": variables["params"], "pool": pooling.init(key, tokens)["params"]}

    def embed(params: PyTree, observation: Observation) -> tuple[Array, Array]:
        tokens = cells.apply({"params": params["cells"]}, seen(observation))
        return tokens, jnp.ones(tokens.shape[:-1], bool)

    def pool(params: PyTree, tokens: Array, mask: Array) -> Array:
        return pooling.apply({"params": params["pool"]}, tokens)

    return Encoder(init, embed, pool)


def build(
    *,
    dim: int = 32,
    channels: Sequence[int] = (16, 32, 32),
    patch: int = 0,
    scale: Sequence[float] = (),
    compute_dtype: str = "float32",
) -> Encoder:
    """An encoder of {"image": [..., H, W, C] in [0, 1]}; `pooled` is [..., dim].

    channels: of the convolutions, 3 x 3 at stride 2 with GELU. patch: the side of the squares that the first one sees
    instead, without overlap, which is far cheaper; 0 for none. scale: what each channel of the image is multiplied by,
    the inverse of its standard deviation for instance. There is no pooling over places, since a
    small thing at some place is what such images are about.
    """
    if patch < 0:
        raise ValueError(f"encoder.patch is {patch}; it must be a number of pixels, or 0 for none")
    if not channels or min(channels) < 1:
        raise ValueError(f"encoder.channels is {tuple(channels)}; it must name the width of at least one convolution")
    if any(not factor > 0 for factor in scale):
        raise ValueError(f"encoder.scale is {tuple(scale)}; it must be a positive number for each channel of the image")
    dtype = resolve_dtype(compute_dtype)
    cells = Cells(tuple(channels), patch, tuple(scale), dtype)
    return over_cells(cells, Pool(dim, dtype), lambda observation: observation["image"])

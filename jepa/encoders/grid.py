"""Encoder of grids cell by cell: convolutions over what each cell is, then one vector of all, where they are."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jepa.encoders.conv import Pool, over_cells, windows
from jepa.modules import LayerNorm
from jepa.precision import compute_dtype as resolve_dtype
from jepa.tables import NUM_CELL_VALUES
from jepa.types import Array, Encoder, Observation


class Cells(nn.Module):
    """Cells int [..., S, S] -> features [..., N, D] of the squares of `stride` cells a side, the last ones cut short.

    A token is a sum of embeddings: of its place and, in a table for each cell of the square, of what that cell is.
    Each block adds what the neighbourhood of 3 x 3 tokens says to it.
    """

    dim: int
    depth: int
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, cells: Array) -> Array:
        kinds = jax.nn.one_hot(cells.reshape(-1, *cells.shape[-2:]), NUM_CELL_VALUES, dtype=self.dtype)
        # A product with one-hot rows: the gradient of a look-up would be a scatter, slow on a CPU.
        x = nn.Dense(self.dim, dtype=self.dtype, name="squares")(windows(kinds, self.stride, self.stride))
        places = self.param("places", nn.initializers.normal(0.02), x.shape[1:])
        x = x + places[None].astype(self.dtype)
        for _ in range(self.depth):
            near = nn.Dense(self.dim, dtype=self.dtype)(windows(LayerNorm(dtype=self.dtype)(x), 3, 1))
            x = x + nn.Dense(self.dim, dtype=self.dtype)(nn.gelu(near))
        return LayerNorm(dtype=self.dtype)(x).reshape(*cells.shape[:-2], -1, self.dim).astype(jnp.float32)


def build(
    *, dim: int = 128, cell_dim: int = 64, depth: int = 2, stride: int = 2, compute_dtype: str = "float32"
) -> Encoder:
    """An encoder of {"cells": int [..., S, S]}, colours and `tables.OUTSIDE`; `pooled` is [..., dim].

    cell_dim: of a token; depth: blocks of convolutions; stride: the side of the squares of cells that are one token, 1
    for one token a cell. What is outside is a cell like any other: it says how large the grid is. The embedding is
    linear in all tokens, each with weights of its own, as in `jepa.encoders.conv`.
    """
    for name, value, least in (("dim", dim, 1), ("cell_dim", cell_dim, 1), ("depth", depth, 0), ("stride", stride, 1)):
        if value < least:
            raise ValueError(f"encoder.{name} is {value}; it must be at least {least}")
    dtype = resolve_dtype(compute_dtype)
    return over_cells(Cells(cell_dim, depth, stride, dtype), Pool(dim, dtype), _cells)


def _cells(observation: Observation) -> Array:
    if "cells" not in observation:
        raise ValueError(
            f"encoder 'grid' reads the leaf 'cells', and the data shows {sorted(observation)}: set config.data.canvas"
        )
    return observation["cells"]

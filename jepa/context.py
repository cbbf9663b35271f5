"""Aggregation of a context over time: pooled embeddings [B, T, D] -> one vector [B, D]."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jepa.modules import Block
from jepa.types import Array

KINDS = ("mean", "last", "attention", "recurrent", "transformer")


class ContextAggregator(nn.Module):
    """One of five aggregations of z_1..z_T. `mean` alone does not know the order of its frames.

    mean         the average
    last         z_T
    attention    a softmax over time of a content score plus a learned score of the position
    recurrent    the last state of a GRU (Cho et al., arXiv:1406.1078)
    transformer  the last token of a block over z_t plus a learned position
    """

    kind: str
    num_heads: int = 4

    @nn.compact
    def __call__(self, z: Array) -> Array:
        num_steps, dim = z.shape[-2:]
        if self.kind == "mean":
            return jnp.mean(z, axis=-2)
        if self.kind == "last":
            return z[..., -1, :]
        if self.kind == "attention":
            position = self.param("position", nn.initializers.normal(1.0), (num_steps,))
            score = nn.Dense(1, use_bias=False, name="score")(z)[..., 0]  # [B, T]
            weight = jax.nn.softmax(score + jnp.broadcast_to(position, score.shape), axis=-1)
            return jnp.sum(weight[..., None] * z, axis=-2)
        if self.kind == "recurrent":
            return nn.RNN(nn.GRUCell(dim))(z)[..., -1, :]
        if self.kind == "transformer":
            position = self.param("position", nn.initializers.normal(1.0), (num_steps, dim))
            mask = jnp.ones(z.shape[:-1], bool)
            return Block(self.num_heads)(z + jnp.broadcast_to(position, z.shape), mask)[..., -1, :]
        raise ValueError(f"objective.context is {self.kind!r}; it must be one of {list(KINDS)}")

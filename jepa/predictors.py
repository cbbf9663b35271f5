"""Heads that predict the embedding of the next observation from the encoded context."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from jepa.context import KINDS, ContextAggregator, positions
from jepa.modules import Block, Mlp, Readouts
from jepa.precision import compute_dtype as resolve_dtype
from jepa.types import Array, Encoded


def frames(encoded: Encoded) -> Array:
    """Which frames are there, bool [..., T] of [..., T, N] tokens: a frame without a token is absent."""
    return jnp.any(encoded.mask, axis=-1)


class TokenPredictor(nn.Module):
    """A transformer over all tokens of the context, each marked with the role of its frame, then readouts.

    The tokens of an absent frame are masked like any other, and roles count from the last frame.
    """

    dim: int
    depth: int
    num_heads: int
    num_readouts: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, context: Encoded) -> Array:
        *batch, num_frames, num_tokens, _ = context.tokens.shape
        width = context.pooled.shape[-1]
        if width % self.num_readouts:
            raise ValueError(f"objective.num_readouts {self.num_readouts} must divide the embedding's width {width}")
        roles = positions(self, "roles", (num_frames, 1, self.dim)).astype(self.dtype)
        x = nn.Dense(self.dim, dtype=self.dtype, name="embed")(context.tokens)  # [B, T, N, D]
        x = x + jnp.broadcast_to(roles, x.shape)
        x = x.reshape(*batch, num_frames * num_tokens, self.dim)
        mask = context.mask.reshape(*batch, num_frames * num_tokens)
        for _ in range(self.depth):
            x = Block(self.num_heads, dtype=self.dtype)(x, mask)
        return Readouts(self.num_readouts, width // self.num_readouts, self.dtype)(x, mask)


class PooledPredictor(nn.Module):
    """An MLP on the pooled context embeddings, aggregated over time."""

    dim: int
    depth: int
    num_heads: int
    aggregation: str

    @nn.compact
    def __call__(self, context: Encoded) -> Array:
        z = ContextAggregator(self.aggregation, self.num_heads)(context.pooled, frames(context))
        return Mlp((self.dim,) * self.depth + (context.pooled.shape[-1],))(z)


class Aggregate(nn.Module):
    """The context's pooled embeddings, aggregated over time and not transformed any further."""

    num_heads: int
    aggregation: str

    @nn.compact
    def __call__(self, context: Encoded) -> Array:
        return ContextAggregator(self.aggregation, self.num_heads)(context.pooled, frames(context))


def build(
    kind: str, *, dim: int, depth: int, num_heads: int, num_readouts: int, aggregation: str, compute_dtype: str
) -> nn.Module:
    """The module of `objective.predictor`: context Encoded [B, T, ...] -> float32 [B, D]. ValueError for others."""
    if aggregation not in KINDS:
        raise ValueError(f"objective.context is {aggregation!r}; it must be one of {list(KINDS)}")
    if kind == "tokens":
        if dim % num_heads:
            raise ValueError(f"objective.predictor_dim {dim} must be a multiple of objective.num_heads {num_heads}")
        return TokenPredictor(dim, depth, num_heads, num_readouts, resolve_dtype(compute_dtype))
    if kind == "pooled":
        return PooledPredictor(dim, depth, num_heads, aggregation)
    if kind == "none":
        return Aggregate(num_heads, aggregation)
    raise ValueError(f"objective.predictor is {kind!r}; it must be 'tokens', 'pooled' or 'none'")

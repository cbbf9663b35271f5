"""Relational encoder of object tables: features of objects, attention biased by how they relate, readouts."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from jepa import tables
from jepa.modules import Block, Readouts, masked_mean
from jepa.precision import compute_dtype as resolve_dtype
from jepa.types import Array, Encoder, Observation, PyTree


class ObjectTokens(nn.Module):
    """Tokens are a linear map of table features plus an embedding of their kind (grid, object, overflow).

    Contact, same colour, same shape, containment and alignment enter every attention layer as a learned bias
    per head and per layer, zero at the start. No positional index: the order of rows carries no information.
    """

    dim: int
    depth: int
    num_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, observation: Observation) -> tuple[Array, Array]:
        features = tables.features(observation)  # [..., N, F]
        mask = observation["mask"]
        kinds = self.param("kinds", nn.initializers.normal(0.02), (3, self.dim))
        token_kind = jnp.array([0] + [1] * (mask.shape[-1] - 2) + [2])  # grid, objects, overflow
        x = nn.Dense(self.dim, dtype=self.dtype, name="embed")(features)
        x = x + jnp.broadcast_to(kinds[token_kind].astype(self.dtype), x.shape)
        biases = self.relation_biases(observation)
        for layer in range(self.depth):
            x = Block(self.num_heads, dtype=self.dtype)(x, mask, biases[..., layer, :, :, :])
        return x.astype(jnp.float32), mask

    def relation_biases(self, observation: Observation) -> Array:
        """[..., depth, H, N, N] from the relation bits [..., N, N, E]: one weight per relation, layer and head."""
        shape = (tables.NUM_EDGE_FEATURES, self.depth, self.num_heads)
        weights = self.param("relations", nn.initializers.zeros, shape)
        relations = tables.edge_features(observation).astype(self.dtype)
        return jnp.einsum("...nme,elh->...lhnm", relations, weights.astype(self.dtype))


class Pool(nn.Module):
    """Tokens [..., N, D] -> float32 [..., num_readouts * readout_dim]."""

    num_readouts: int
    readout_dim: int
    pooling: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, tokens: Array, mask: Array) -> Array:
        if self.pooling == "readouts":
            return Readouts(self.num_readouts, self.readout_dim, self.dtype)(tokens, mask)
        width = self.num_readouts * self.readout_dim
        return nn.Dense(width, dtype=self.dtype)(masked_mean(tokens, mask)).astype(jnp.float32)


def build(
    *,
    dim: int = 64,
    depth: int = 2,
    num_heads: int = 4,
    num_readouts: int = 8,
    readout_dim: int = 16,
    pooling: str = "readouts",
    compute_dtype: str = "float32",
) -> Encoder:
    """An encoder of object tables; `pooled` is [..., num_readouts * readout_dim] for either pooling.

    pooling: "readouts" concatenates learned-query attention readouts; "mean" is one mean-pooled vector.
    """
    if pooling not in ("readouts", "mean"):
        raise ValueError(f"encoder.pooling is {pooling!r}; it must be 'readouts' or 'mean'")
    if dim % num_heads:
        raise ValueError(f"encoder.dim {dim} must be a multiple of encoder.num_heads {num_heads}")
    dtype = resolve_dtype(compute_dtype)
    tokens_module = ObjectTokens(dim, depth, num_heads, dtype)
    pool_module = Pool(num_readouts, readout_dim, pooling, dtype)

    def init(key: Array, observation: Observation) -> PyTree:
        (tokens, mask), variables = tokens_module.init_with_output(key, observation)
        return variables["params"] | pool_module.init(key, tokens, mask)["params"]

    def embed(params: PyTree, observation: Observation) -> tuple[Array, Array]:
        return tokens_module.apply({"params": params}, observation)

    def pool(params: PyTree, tokens: Array, mask: Array) -> Array:
        return pool_module.apply({"params": params}, tokens, mask)

    return Encoder(init, embed, pool)

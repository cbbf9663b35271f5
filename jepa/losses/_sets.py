"""Sets of embeddings [..., N, D] of which a mask [..., N] says what rows are real; leading axes are separate sets."""

from __future__ import annotations

import jax.numpy as jnp

from jepa.precision import wide
from jepa.types import Array


def real_rows(embeddings: Array, mask: Array | None) -> tuple[Array, Array]:
    """Embeddings [..., N, D] in float32 or wider, 0 at masked rows whatever they held, and the number of others [...].

    Raises ValueError when mask has another shape than [..., N].
    """
    z = wide(embeddings)
    if mask is None:
        return z, jnp.full(z.shape[:-2], z.shape[-2], z.dtype)
    if mask.shape != embeddings.shape[:-1]:
        raise ValueError(f"mask must have the shape {embeddings.shape[:-1]} of the rows, got {mask.shape}")
    return jnp.where(mask[..., None], z, 0.0), jnp.sum(mask, axis=-1, dtype=z.dtype)


def mean_over_sets(value: Array, num: Array) -> Array:
    """Mean of one value for each set [...]; a set without real rows, num [...] = 0, scores 0."""
    return jnp.mean(jnp.where(num > 0, value, 0.0))

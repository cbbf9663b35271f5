"""Prediction losses in latent space: how far predicted embeddings are from their targets, per example."""

from __future__ import annotations

import jax.numpy as jnp

from jepa.types import Array


def squared_error(predicted: Array, target: Array) -> Array:
    """Squared distance per dimension, (1/D) |predicted - target|^2. [..., D] x2 -> float32 [...], so [B, D] -> [B].

    The mean over D, not the sum, so that the weight of this term does not depend on the width.
    No gradient is stopped here: whether the target is one is the objective's decision.
    Raises ValueError when the shapes differ, which would broadcast silently.
    """
    if predicted.shape != target.shape:
        raise ValueError(f"predicted and target must have one shape, got {predicted.shape} and {target.shape}")
    error = predicted.astype(jnp.float32) - target.astype(jnp.float32)
    return jnp.mean(jnp.square(error), axis=-1)


def view_invariance(projections: Array, num_global: int) -> Array:
    """Distance of every view from the centre of the global views; LeJEPA, arXiv:2511.08544, Algorithm 2.

    projections [B, V, D], the `num_global` global views first along V -> float32 [B]: the mean over views and
    dimensions of (mu - z_v)^2, mu the mean of the global views. Gradients flow through mu: there is no teacher.
    With num_global = V every view is in the centre. Raises ValueError when num_global is not in 1..V.
    """
    num_views = projections.shape[-2]
    if not 1 <= num_global <= num_views:
        raise ValueError(f"num_global must be between 1 and the number of views {num_views}, got {num_global}")
    z = projections.astype(jnp.float32)  # [B, V, D]
    mu = jnp.mean(z[..., :num_global, :], axis=-2, keepdims=True)  # [B, 1, D]
    return jnp.mean(jnp.square(mu - z), axis=(-2, -1))

"""Prediction losses in latent space: how far predicted embeddings are from their targets, per example.

Each error of `ERRORS` maps predicted and target [..., D] to float32 [...] by one number per pair of vectors; the mean
over examples is the caller's. No gradient is stopped here: whether the target is one is the objective's decision.
Everything is computed in float32, in float64 if that is what comes in.
"""

from __future__ import annotations

import jax.numpy as jnp

from jepa.precision import wide
from jepa.types import Array


def unit(x: Array, *, eps: float = 1e-6) -> Array:
    """x / |x| along the last axis, in float32; a row shorter than `eps` is divided by it, with finite gradients.

    `x / max(|x|, eps)` would have a NaN gradient at zero, where the norm has none.
    """
    x = wide(x)
    return x / jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), eps**2))


def squared_error(predicted: Array, target: Array) -> Array:
    """Squared distance per dimension, (1/D) |predicted - target|^2. [..., D] x2 -> float32 [...], so [B, D] -> [B].

    The mean over D, not the sum, so that the weight of this term does not depend on the width.
    Raises ValueError when the shapes differ, which would broadcast silently.
    """
    predicted, target = _paired(predicted, target)
    return jnp.mean(jnp.square(predicted - target), axis=-1)


def huber(predicted: Array, target: Array, *, delta: float = 1.0) -> Array:
    """Huber's loss (1964), the mean over D of a function of e = predicted - target. [..., D] x2 -> float32 [...].

    e^2 / 2 where |e| <= delta, delta (|e| - delta / 2) beyond: half the squared error near the target, and a gradient
    of at most delta / D in each coordinate far from it. `delta` is in units of the embedding. PyTorch's `huber_loss`
    is scaled alike; its `smooth_l1_loss(beta=delta)` is this divided by delta, with slope 1 at any beta.

    Raises ValueError when the shapes differ or delta is not positive.
    """
    if not delta > 0:
        raise ValueError(f"delta must be positive, the error at which the loss turns linear, got {delta}")
    predicted, target = _paired(predicted, target)
    error = jnp.abs(predicted - target)
    quadratic = jnp.minimum(error, delta)
    return jnp.mean(quadratic * (error - 0.5 * quadratic), axis=-1)


def cosine(predicted: Array, target: Array) -> Array:
    """1 - cos of the angle between the two vectors, in [0, 2], 1 where either is 0. [..., D] x2 -> float32 [...].

    In float32 the last 1e-7 is rounding, also below 0; `normalized_error` is twice this without the cancellation.
    As there, the gradient has no radial part. Raises ValueError when the shapes differ.
    """
    predicted, target = map(unit, _paired(predicted, target))
    return 1.0 - jnp.sum(predicted * target, axis=-1)


def normalized_error(predicted: Array, target: Array) -> Array:
    """Squared distance of the unit vectors, |p/|p| - t/|t||^2 = 2 - 2 cos, in [0, 4]; BYOL, arXiv:2006.07733, eq. 2.

    [..., D] x2 -> float32 [...]. The sum over D, not the mean: it does not grow with the width, since both have norm
    1. Taken as a difference because 2 - 2 cos cancels near 0. It is 1 where one of them is 0.

    A loss on z/|z| has no radial gradient, and a tangential one in proportion to 1/|z|. Nothing holds the raw norm:
    steps along tangents only lengthen z, so it random-walks upward and steps turn z ever less, as 1/|z|^2. Normalise
    z itself or anchor its norm (`jepa.losses.norm_anchor`). SIGReg belongs on the raw z: it is inert on a sphere.

    Raises ValueError when the shapes differ.
    """
    predicted, target = map(unit, _paired(predicted, target))
    return jnp.sum(jnp.square(predicted - target), axis=-1)


ERRORS = {"squared": squared_error, "huber": huber, "cosine": cosine, "normalized": normalized_error}


def view_invariance(projections: Array, num_global: int) -> Array:
    """Distance of every view from the centre of the global views; LeJEPA, arXiv:2511.08544, Algorithm 2.

    projections [B, V, D], the `num_global` global views first along V -> float32 [B]: the mean over views and
    dimensions of (mu - z_v)^2, mu the mean of the global views. Gradients flow through mu: there is no teacher.
    With num_global = V every view is in the centre. Raises ValueError when num_global is not in 1..V.
    """
    num_views = projections.shape[-2]
    if not 1 <= num_global <= num_views:
        raise ValueError(f"num_global must be between 1 and the number of views {num_views}, got {num_global}")
    z = wide(projections)  # [B, V, D]
    mu = jnp.mean(z[..., :num_global, :], axis=-2, keepdims=True)  # [B, 1, D]
    return jnp.mean(jnp.square(mu - z), axis=(-2, -1))


def _paired(predicted: Array, target: Array) -> tuple[Array, Array]:
    """Both in float32 at least, and of one shape: two that differ would broadcast silently."""
    if predicted.shape != target.shape:
        raise ValueError(f"predicted and target must have one shape, got {predicted.shape} and {target.shape}")
    return wide(predicted), wide(target)

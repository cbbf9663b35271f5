"""Norm anchor: holds the length of embeddings, and nothing else about them.

SIGReg (LeJEPA, arXiv:2511.08544) has no grip on embeddings far from unit scale. For 256 samples of N(0, s^2 I) the
expectation of T/N, and its slope in s, which is the pull back to s = 1, are

    s        .01   .1    .3    .7    1     2     5     10    20
    T/N     .402  .387  .285  .054  .004  .243  .842  1.15  1.27
    slope   -.03  -.30  -.65  -.36   .00   .31   .11   .04   .00

so that a norm which has drifted below about 0.03 or above 20 of its due stays there. The anchor covers those two
tails. It cannot stand in for SIGReg: a batch of one repeated vector of the right length scores 0, so an anchor alone
prevents neither collapse nor loss of rank.
"""

from __future__ import annotations

import math

import jax.numpy as jnp

from jepa.precision import wide
from jepa.types import Array


def norm_anchor(z: Array, *, target: float | None = None, relative: bool = False) -> Array:
    """(|z| - target)^2, or (|z| / target - 1)^2 if `relative`. [..., D] -> float32 [...], one number per vector.

    target None is sqrt(D), the norm of N(0, I) in D dimensions. The relative form is the plain one over target^2, so
    that with sqrt(D) its weight does not depend on the width. N(0, I) itself does not score 0 but the variance of its
    norm, about 1/2, or 1/(2D) relative.

    The gradient is radial, 2 (|z| - target) z/|z|: it tends to 2 target as z shrinks and grows with |z|, so that it
    vanishes at the target norm only. z = 0 has no direction to grow in, and there the gradient is 0.

    Raises ValueError when target is not positive.
    """
    if target is None:
        target = math.sqrt(z.shape[-1])
    if not target > 0:
        raise ValueError(f"target must be positive, the norm that embeddings are held to, got {target}")
    excess = _norm(wide(z)) - target
    return jnp.square(excess / target if relative else excess)


def _norm(z: Array) -> Array:
    """|z| along the last axis. The square root never sees a zero, where its slope is infinite."""
    squares = jnp.sum(jnp.square(z), axis=-1)
    nonzero = squares > 0
    return jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, squares, 1.0)), 0.0)

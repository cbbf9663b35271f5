"""Tests of multivariate normality without slices: the whole characteristic function at once, in O(N^2 D).

The characteristic function of the embeddings is compared with that of N(0, I) under the Gaussian weight
N(0, beta^2 I), which makes the integral over R^D a sum of kernels (Baringhaus and Henze, 1988):

    T = mean_nm exp(-beta^2 |z_n - z_m|^2 / 2)
        - 2 (1 + beta^2)^(-D/2) mean_n exp(-beta^2 |z_n|^2 / (2 (1 + beta^2)))  +  (1 + 2 beta^2)^(-D/2)

This is the squared maximum mean discrepancy between the embeddings and N(0, I). It is a distance, without the factor
N of a test statistic, so it does not grow with N under misfit and is about (1 - (1 + 2 beta^2)^(-D/2)) / N under the
null. The classical tests standardise first; here nothing is centred or scaled, since mean and scale are being tested.

It is for small D. Independent unit Gaussians lie sqrt(2 D) apart, so where beta^2 D >> 1 every kernel between different
rows underflows: T is then 1 / N, the diagonal, with no gradient. beta near 1 / sqrt(D) keeps the pairs in view.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jepa.losses._sets import mean_over_sets, real_rows
from jepa.precision import matmul
from jepa.types import Array


def bhep(embeddings: Array, key: Array, *, beta: float, mask: Array | None = None) -> Array:
    """BHEP distance from N(0, I) at width beta. [..., N, D] -> float32 [], >= 0.

    Called as `jepa.losses.sigreg.sigreg` is; it draws nothing and ignores the key. Leading axes are separate tests,
    averaged; mask [..., N] is True where a row is real; a set without real rows scores 0. At a collapse to 0 the
    gradient is zero, as every distance between characteristic functions has it.

    Source: Baringhaus and Henze, Metrika 35, 1988; Henze and Wagner, J. Multivariate Analysis 62, 1997.
    Raises ValueError when beta is not positive, which would leave nothing to compare.
    """
    del key
    if not beta > 0:
        raise ValueError(f"beta must be positive, the width of the weight on frequencies, got {beta}")
    z, num = real_rows(embeddings, mask)
    return mean_over_sets(_each_set(z, mask, num, jnp.full_like(num, beta)), num)


def henze_zirkler(embeddings: Array, key: Array, *, mask: Array | None = None) -> Array:
    """BHEP at the width of Henze and Zirkler (1990), beta = ((2 D + 1) N / 4)^(1 / (D + 4)) / sqrt(2).

    beta is that of a kernel density estimate; it grows, slowly, with N, so two batch sizes are two tests.
    [..., N, D] -> float32 []; otherwise as `bhep`. Source: Comm. Statistics, Theory and Methods 19, 1990.
    """
    del key
    z, num = real_rows(embeddings, mask)
    dim = z.shape[-1]
    beta = ((2 * dim + 1) * jnp.maximum(num, 1.0) / 4) ** (1 / (dim + 4)) / jnp.sqrt(2.0).astype(z.dtype)
    return mean_over_sets(_each_set(z, mask, num, beta), num)


def _each_set(z, mask, num, beta):
    """T [...] of each set of z [..., N, D] at its own width beta [...]."""
    mask = jnp.ones(z.shape[:-1], bool) if mask is None else mask
    weight = mask / jnp.maximum(num, 1.0)[..., None]  # [..., N]
    statistic = _bhep
    for _ in num.shape:
        statistic = jax.vmap(statistic)
    return statistic(z, weight.astype(z.dtype), beta)


def _bhep(z, weight, beta):
    """T [] of the rows of z [N, D] with weights [N] that sum to 1."""
    dim, square = z.shape[-1], jnp.square(beta)
    centred = z - matmul(weight, z)[None]  # distances do not change, and the squares below cancel less
    norm = jnp.sum(jnp.square(centred), axis=-1)
    distance = norm[:, None] + norm[None] - 2.0 * matmul(centred, centred.T)
    kernel = jnp.where(jnp.eye(len(z), dtype=bool), 1.0, jnp.exp(-0.5 * square * distance))  # exact on the diagonal
    pairs = matmul(weight, matmul(kernel, weight))
    origin = matmul(weight, jnp.exp(-0.5 * square / (1.0 + square) * jnp.sum(jnp.square(z), axis=-1)))
    cross = jnp.exp(-0.5 * dim * jnp.log1p(square)) * origin
    return pairs - 2.0 * cross + jnp.exp(-0.5 * dim * jnp.log1p(2.0 * square))

"""Regularisers of the first two moments, and of the quantiles: alternatives to `jepa.losses.sigreg`.

All are called as `sigreg` is, f(embeddings, key, *, mask=None, ...) -> [], with the same meaning of N, mask and leading
axes, so that an objective can exchange one for another; VICReg's two terms draw nothing and ignore the key. None grows
with N under misfit, so a weight on one holds for every batch size. A set without real rows scores 0.

    vicreg_variance     mean_d max(0, target - std_d)                       scale from below, no shape
    vicreg_covariance   mean_{d != e} C_de^2                                correlation only, blind to scale
    weak_sigreg         |cov(z S) - I|_F                                    the covariance, mean free
    visreg              mean^2 + (1 - std)^2 + sliced Wasserstein           mean, scale and shape, each on its own

Only `visreg` sees more than two moments. With all samples at one point it alone has a gradient that spreads them, since
sorting breaks the tie; the others, being smooth and symmetric, cannot tell the samples apart.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jepa.losses._sets import mean_over_sets, real_rows
from jepa.losses.sigreg import random_directions
from jepa.precision import einsum
from jepa.types import Array


def vicreg_variance(
    embeddings: Array, key: Array, *, mask: Array | None = None, target_std: float = 1.0, eps: float = 1e-4
) -> Array:
    """Hinge on the standard deviation, mean_d max(0, target_std - sqrt(var_d + eps)). [..., N, D] -> float32 [].

    var_d has the denominator N - 1. At most target_std - sqrt(eps), at total collapse, where its gradient is zero;
    eps bounds the gradient next to it. Source: VICReg, arXiv:2105.04906, equation 1 (averaged, as there, over d).
    """
    del key
    centred, _, num = _centre(embeddings, mask)
    std = jnp.sqrt(_variance(centred, num) + eps)  # [..., D]
    return mean_over_sets(jnp.mean(jax.nn.relu(target_std - std), axis=-1), num)


def vicreg_covariance(embeddings: Array, key: Array, *, mask: Array | None = None) -> Array:
    """Mean squared off-diagonal entry of the covariance (denominator N - 1). [..., N, D] -> float32 [], 0 when D = 1.

    The sum is divided by D (D - 1), the number of entries, as the public implementations do; VICReg's equation 4
    (arXiv:2105.04906) divides by D, so a weight from there is a weight D - 1 times as large here.
    """
    del key
    centred, _, num = _centre(embeddings, mask)
    dim = centred.shape[-1]
    off_diagonal = jnp.where(jnp.eye(dim, dtype=bool), 0.0, _covariance(centred, num))
    return mean_over_sets(jnp.sum(jnp.square(off_diagonal), axis=(-2, -1)) / max(1, dim * (dim - 1)), num)


def weak_sigreg(embeddings: Array, key: Array, *, mask: Array | None = None, sketch_dim: int = 64) -> Array:
    """Distance of the covariance from the identity, |cov(z S) - I|_F. [..., N, D] -> float32 [], >= 0.

    Where D > sketch_dim = K, S [D, K] is Gaussian with entries of variance 1/D, drawn from the key, so that E[S' S] = I
    and unit isotropic z keeps unit covariance in expectation; else there is no S. One draw does not keep it: then the
    distance at cov(z) = I is about K / sqrt(D), and its square is least on average over draws at the smaller variance
    D / (D + K + 1). A sample of N adds K / sqrt(N) to either, in quadrature. The mean of z is free.

    Source: Weak-SIGReg, arXiv:2603.05924.
    """
    dim = embeddings.shape[-1]
    sketch = gaussian_sketch(key, dim, sketch_dim) if dim > sketch_dim else None
    return jnp.mean(weak_sigreg_along(embeddings, sketch, mask=mask))


def weak_sigreg_along(embeddings: Array, sketch: Array | None, *, mask: Array | None = None) -> Array:
    """|cov(z S) - I|_F of each set. [..., N, D], the sketch S [D, K] or None for z itself -> float32 [...].

    The norm has no derivative at its zero, cov = I; the gradient there is 0.
    """
    z, _, num = _centre(embeddings, mask)
    if sketch is not None:
        z = einsum("...nd,dk->...nk", z, sketch.astype(z.dtype))
    cov = _covariance(z, num)
    excess = jnp.where(jnp.eye(cov.shape[-1], dtype=bool), cov - 1.0, cov)
    square = jnp.sum(jnp.square(excess), axis=(-2, -1))
    positive = (square > 0) & (num > 0)
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def gaussian_sketch(key: Array, dim: int, num: int) -> Array:
    """Gaussian S, float32 [dim, num], with entries of variance 1/dim, so that E[S' S] = I."""
    return jax.random.normal(key, (dim, num), jnp.float32) / jnp.sqrt(jnp.float32(dim))


def visreg(embeddings: Array, key: Array, *, mask: Array | None = None, num_slices: int = 1024) -> Array:
    """VISReg, mean_d mean_d^2 + mean_d (1 - std_d)^2 + shape. [..., N, D] -> float32 [], >= 0.

    Mean, scale and shape, each on its own. About 3.5 / N under N(0, I), 1 / N of it from the mean, 0.5 / N from the
    scale and the rest from the shape. At total collapse the scale term is 1, the shape term the second moment of
    N(0, 1) at N quantiles, just below 1, and the gradient of shape spreads the points. Source: VISReg,
    arXiv:2606.02572.
    """
    directions = random_directions(key, embeddings.shape[-1], num_slices)
    return jnp.mean(visreg_along(embeddings, directions, mask=mask))


def visreg_along(embeddings: Array, directions: Array, *, mask: Array | None = None, eps: float = 1e-6) -> Array:
    """VISReg of each set along given directions. [..., N, D], unit columns of [D, M] -> float32 [...].

    shape = mean_m mean_i (s_(i) - Phi^-1(i / (N + 1)))^2 is the squared Wasserstein distance between N(0, 1) and the
    projections s of (z - mean) / std in order, sampled at N quantiles. The std of this division is under
    `stop_gradient`: the value of shape is free of scale, its gradient is that of a division by a constant.
    std = sqrt(var + eps), var with the denominator N - 1; eps keeps the gradient of scale finite at a collapse, and
    bounds that of shape, which grows as 1 / std.
    """
    z, mean, num = _centre(embeddings, mask)
    std = jnp.sqrt(_variance(z, num) + eps)  # [..., D]
    centre = jnp.mean(jnp.square(mean), axis=-1)
    scale = jnp.mean(jnp.square(1.0 - std), axis=-1)

    standard = z / jax.lax.stop_gradient(std)[..., None, :]
    s = einsum("dm,...nd->...mn", directions.astype(z.dtype), standard)  # [..., M, N]
    if mask is not None:
        s = jnp.where(mask[..., None, :], s, jnp.inf)  # to the end of the order, where no quantile waits
    rank = jnp.broadcast_to(jnp.arange(1, z.shape[-2] + 1, dtype=z.dtype), z.shape[:-1])  # [..., N]
    real = rank <= num[..., None]
    quantile = jax.scipy.special.ndtri(jnp.where(real, rank / (num[..., None] + 1.0), 0.5))
    error = jnp.where(real[..., None, :], jnp.sort(s, axis=-1) - quantile[..., None, :], 0.0)
    shape = jnp.mean(jnp.sum(jnp.square(error), axis=-1), axis=-1) / jnp.maximum(num, 1.0)
    return jnp.where(num > 0, centre + scale + shape, 0.0)


def _centre(embeddings, mask):
    """z - mean [..., N, D], 0 at masked rows; the mean over real rows [..., D]; their number [...]."""
    z, num = real_rows(embeddings, mask)
    mean = jnp.sum(z, axis=-2) / jnp.maximum(num, 1.0)[..., None]
    centred = z - mean[..., None, :]
    return (centred if mask is None else jnp.where(mask[..., None], centred, 0.0)), mean, num


def _variance(centred, num):
    return jnp.sum(jnp.square(centred), axis=-2) / jnp.maximum(num - 1.0, 1.0)[..., None]


def _covariance(centred, num):
    return einsum("...nd,...ne->...de", centred, centred) / jnp.maximum(num - 1.0, 1.0)[..., None, None]

"""Univariate tests of N(0, 1), plugged into the sliced regulariser of LeJEPA, arXiv:2511.08544.

A statistic takes projections u [..., N, M] to [..., M], along the sample axis -2; Epps-Pulley's, which has a mask and a
gradient of its own, is `jepa.losses.sigreg.sigreg_along`. It tests against N(0, 1) itself, not against some Gaussian: u
is neither centred nor standardised, so a wrong mean or scale is a misfit like any other.

    statistic          grows as   far from N(0, 1)                             all samples at one point
    epps_pulley        N          bounded gradient, from bounded functions     one gradient for all: never spread
    anderson_darling   N          gradient linear in u                         spread, sorting breaks the tie
    cramer_von_mises   1          no gradient in the tails, Phi being flat     spread
    watson             1          the same                                     spread
    jarque_bera        N          gradient as u^3, and as 1 / variance         never spread; up to 1 / eps
    moments            1          gradient as u^3                              never spread

A statistic that grows as N is N times a distance; the others are the distance. `sliced` trains on the distance.

Of LeJEPA's other tests, Shapiro-Wilk is left out because it does not change with scale, Vasicek's entropy because it
changes with neither mean nor scale to speak of and its gradient is unbounded where two samples meet, and VCReg because
`jarque_bera` contains it; the likelihood of the order statistics repeats Anderson-Darling's sum. Of those kept, a few
moments do not determine a distribution (`jarque_bera`, `moments`), and sorting needs all samples in one place.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jepa.losses.sigreg import random_directions, sigreg_along
from jepa.precision import matmul, wide
from jepa.types import Array


def sliced(
    embeddings: Array,
    key: Array,
    *,
    statistic: str = "epps_pulley",
    mask: Array | None = None,
    num_slices: int = 1024,
    num_knots: int = 17,
    t_max: float = 3.0,
) -> Array:
    """Per-sample statistic of embeddings along random directions. [..., N, D] -> float32 [].

    Per sample is T / N for a statistic T that grows as N under misfit, and T itself for one that does not, so that a
    weight on it holds for every batch size: "epps_pulley" is `jepa.losses.sigreg.sigreg` over N. Leading axes are
    separate tests along one draw of directions, averaged; each is divided by its own N.

    Source: LeJEPA, arXiv:2511.08544. Raises ValueError as `sliced_along`.
    """
    directions = random_directions(key, embeddings.shape[-1], num_slices)
    along = sliced_along(embeddings, directions, statistic=statistic, mask=mask, num_knots=num_knots, t_max=t_max)
    return jnp.mean(along)


def sliced_along(
    embeddings: Array,
    directions: Array,
    *,
    statistic: str = "epps_pulley",
    mask: Array | None = None,
    num_knots: int = 17,
    t_max: float = 3.0,
) -> Array:
    """Per-sample statistic along each given direction. [..., N, D], unit columns of [D, M] -> float32 [..., M].

    num_knots, t_max and mask [..., N] (True where a row is real) belong to "epps_pulley".
    Raises ValueError for an unknown statistic, and for a mask with any other.
    """
    if statistic not in STATISTICS:
        raise ValueError(f"statistic must be one of {', '.join(sorted(STATISTICS))}, got {statistic!r}")
    num = embeddings.shape[-2]
    if statistic == "epps_pulley":
        value = sigreg_along(embeddings, directions, mask=mask, num_knots=num_knots, t_max=t_max)
        if mask is None:
            return value / num
        return value / jnp.maximum(jnp.sum(mask, axis=-1, dtype=value.dtype), 1.0)[..., None]
    if mask is not None:
        raise ValueError(f"a mask needs the statistic 'epps_pulley'; {statistic!r} takes every row as real")
    z = wide(embeddings)
    value = PROJECTED[statistic](matmul(z, directions.astype(z.dtype)))
    return value / num if statistic in EXTENSIVE else value


def anderson_darling(u: Array) -> Array:
    """A^2 = -N - mean_i (2i - 1) [log Phi(u_(i)) + log Phi(-u_(N+1-i))]. [..., N, M] -> float32 [..., M].

    Grows as N; 1 on average under the null. With p_i = (2i - 1) / 2N it is 2 sum_i KL(p_i || Phi(u_(i))) between coins
    plus a constant of N, 2 sum_i H(p_i) - N: computed so, no sums of size N cancel. log Phi is exact in the tails.

    Source: Anderson and Darling, J. American Statistical Association 49, 1954.
    """
    s, p = _in_order(u)
    q = 1.0 - p
    entropy = -float(np.sum(p * np.log(p) + q * np.log(q)))
    p, q, log_p, log_q = (x.astype(s.dtype) for x in (p, q, np.log(p), np.log(q)))
    divergence = p * (log_p - _log_cdf(s)) + q * (log_q - _log_cdf(-s))
    return 2.0 * jnp.sum(divergence, axis=-2) + (2.0 * entropy - p.size)


def cramer_von_mises(u: Array) -> Array:
    """mean_i (p_i - Phi(u_(i)))^2, p_i = (2i - 1) / 2N. [..., N, M] -> float32 [..., M].

    Does not grow with N: (W^2 - 1 / 12N) / N in terms of the classical W^2. 1 / 6N on average under the null, less
    1 / 12N^2; at most 1/3. Source: Anderson and Darling, Annals of Mathematical Statistics 23, 1952.
    """
    return jnp.mean(jnp.square(_excess(u)), axis=-2)


def watson(u: Array) -> Array:
    """Variance over i of p_i - Phi(u_(i)): `cramer_von_mises` less (mean Phi(u) - 1/2)^2. [..., N, M] -> [..., M].

    Does not grow with N: (U^2 - 1 / 12N) / N in terms of the classical U^2, a test for points on a circle, here
    u -> Phi(u); a rotation of that circle, such as a small shift of u, counts for less. 1 / 12N on average under the
    null, less 1 / 12N^2. Source: Watson, Biometrika 48, 1961.
    """
    excess = _excess(u)
    return jnp.mean(jnp.square(excess - jnp.mean(excess, axis=-2, keepdims=True)), axis=-2)


def jarque_bera(u: Array, *, eps: float = 1e-8) -> Array:
    """N m^2 / v + (N - 1) (v - 1)^2 / 2 + N (skewness^2 / 6 + (kurtosis - 3)^2 / 24). [..., N, M] -> float32 [..., M].

    Mean m, variance v with the denominator N - 1, skewness and kurtosis mean_n ((u_n - m) / sqrt(v))^k: the test of
    Jarque and Bera (1980) extended by those of mean and variance. Grows as N; about 4 under the null (chi-squared).
    Where v < eps it is divided by eps instead: constant u has a finite value, N m^2 / eps, and a finite gradient,
    huge unless m = 0. Source: LeJEPA, arXiv:2511.08544; Jarque and Bera, Economics Letters 6, 1980.
    """
    u = wide(u)
    num = u.shape[-2]
    mean = jnp.mean(u, axis=-2)
    d = u - mean[..., None, :]
    d = d - jnp.mean(d, axis=-2, keepdims=True)  # what rounding of the mean left, 3 / std of which skewness would see
    variance = jnp.sum(jnp.square(d), axis=-2) / max(1, num - 1)
    floor = jnp.maximum(variance, eps)
    t = d / jnp.sqrt(floor)[..., None, :]
    skewness, kurtosis = jnp.mean(t**3, axis=-2), jnp.mean(t**4, axis=-2)
    location = num * jnp.square(mean) / floor + 0.5 * (num - 1) * jnp.square(variance - 1.0)
    return location + num * (jnp.square(skewness) / 6.0 + jnp.square(kurtosis - 3.0) / 24.0)


def moments(u: Array, *, k_max: int = 4) -> Array:
    """sum_k w_k |mean u^k - E z^k|, z ~ N(0, 1), k = 1..k_max, w_1 = 1, w_k = e^-k. [..., N, M] -> float32 [..., M].

    Does not grow with N; of the order of 1 / sqrt(N) under the null. The absolute value keeps a gradient of constant
    size up to the zero of each term. Source: LeJEPA, arXiv:2511.08544; its weights are kept, that of the mean included.
    """
    u = wide(u)
    total = jnp.abs(jnp.mean(u, axis=-2))
    for k in range(2, k_max + 1):
        expected = math.prod(range(k - 1, 0, -2)) if k % 2 == 0 else 0  # (k - 1)!!
        total = total + math.exp(-k) * jnp.abs(jnp.mean(u**k, axis=-2) - expected)
    return total


PROJECTED: dict[str, Callable[[Array], Array]] = {
    "anderson_darling": anderson_darling,
    "cramer_von_mises": cramer_von_mises,
    "watson": watson,
    "jarque_bera": jarque_bera,
    "moments": moments,
}
STATISTICS = ("epps_pulley", *PROJECTED)  # the first is `sigreg_along`, which projects for itself, a tile at a time
EXTENSIVE = ("epps_pulley", "anderson_darling", "jarque_bera")  # grow as N under misfit


def _in_order(u):
    """u sorted along the samples [..., N, M], and the probabilities p_i = (2i - 1) / 2N that belong to them, NumPy's
    float64 [..., N, 1]."""
    num = u.shape[-2]
    p = (np.arange(num) + 0.5) / num
    return jnp.sort(wide(u), axis=-2), p.reshape(*(1 for _ in u.shape[:-2]), num, 1)


@jax.custom_jvp
def _log_cdf(x):
    return jax.scipy.special.log_ndtr(x)


@_log_cdf.defjvp
def _log_cdf_jvp(primals, tangents):
    """phi / Phi = t + 1 / (t + 2 / (t + 3 / ...)), t = -x (Laplace), in the tail, where exp(log phi - log Phi) would
    lose to rounding a part x^2 of its digits."""
    (x,), (tangent,) = primals, tangents
    log_cdf = _log_cdf(x)
    t = jnp.maximum(-x, 5.0)
    tail = t
    for k in range(24, 0, -1):
        tail = t + k / tail
    bulk = jnp.exp(
        -0.5 * jnp.square(jnp.maximum(x, -5.0)) - jnp.maximum(log_cdf, -20.0) - 0.5 * math.log(2.0 * math.pi)
    )
    return log_cdf, jnp.where(x < -5.0, tail, bulk) * tangent


def _excess(u):
    """p_i - Phi(u_(i)) [..., N, M]."""
    s, p = _in_order(u)
    return p.astype(s.dtype) - jax.scipy.special.ndtr(s)

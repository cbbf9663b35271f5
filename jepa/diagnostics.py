"""Diagnostics of a set of embeddings: spectrum, scale and Gaussianity. Always read scale and rank together.

`describe` takes the embeddings [N, D] at once. Where they come in batches, `jepa.moments` keeps what `finish` reads:
`finish(add(add(start(key, D), first), second))` is `describe` of both.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jepa.losses.prediction import unit
from jepa.moments import PHI, WEIGHT, Moments, Scatter, add, start
from jepa.precision import matmul
from jepa.types import Array

EPS = float(jnp.finfo(jnp.float32).eps)


def describe(embeddings: Array, key: Array) -> dict[str, Array]:
    """`finish` of one set of embeddings [N, D]; the key draws the directions along which T is taken."""
    return finish(add(start(key, embeddings.shape[-1]), embeddings))


def finish(moments: Moments) -> dict[str, Array]:
    """`spectrum`, `scale`, `gaussianity`, `rankme` and `uniformity` of what was seen: float32 scalars by name."""
    pairs = {"rankme": rankme(moments.scatter), "uniformity": uniformity(moments.sample, moments.scatter.num)}
    return spectrum(moments.scatter) | scale(moments) | gaussianity(moments) | pairs


def spectrum(scatter: Scatter) -> dict[str, Array]:
    """How the variance spreads over directions: eigenvalues l_1 >= l_2 >= ... of the covariance, as scalars.

    effective_rank           exp of the entropy of l / sum l (Roy and Vetterli, 2007), 1..D; 0 for a single point.
                             Blind to scale, hence to collapse onto a point plus noise. It depends on N: compare it with
    effective_rank_expected  what N(0, I) scores for the same N and D (`expected_effective_rank`), through
    rank_ratio               their quotient: about 1 when healthy, whatever N and D.
    participation_ratio      (sum l)^2 / sum l^2, 1..D; about D / (1 + D / N) for N(0, I).
    condition                largest over smallest living eigenvalue: read it beside
    dead_dims                the number of directions without variance, to float32 accuracy. At least D - N + 1.
    alpha                    the slope of the tail, l_i ~ i^-alpha (`power_law` over ranks 2 to D / 2): 0 when white,
                             larger the fewer directions carry the variance.

    An eigenvalue counts as dead below D 2^-23 of the largest: a covariance in float32 does not resolve it. alpha is the
    slope of what lives; where published code reads noise of 1e-8 beyond the rank as a cliff, it and dead_dims differ.
    """
    num, dim = scatter.num, len(scatter.mean)
    eigenvalues = jnp.maximum(jnp.linalg.eigvalsh(scatter.matrix / jnp.maximum(num - 1, 1)), 0.0)  # ascending
    largest = eigenvalues[-1]
    # Two floors: the eigensolver's rounding, and that of the embeddings themselves about a distant mean.
    square = jnp.trace(scatter.matrix) / num + jnp.sum(jnp.square(scatter.mean))  # mean |z|^2
    alive = eigenvalues > jnp.maximum(largest * dim * EPS, (4 * EPS) ** 2 * square)
    share = jnp.where(alive, eigenvalues, 0.0) / _nonzero(jnp.sum(eigenvalues, where=alive))
    effective_rank = jnp.where(alive[-1], jnp.exp(_entropy(share)), 0.0)
    expected = expected_effective_rank(num, dim)
    return {
        "effective_rank": effective_rank,
        "effective_rank_expected": expected,
        "rank_ratio": effective_rank / expected,
        "participation_ratio": jnp.sum(share) / _nonzero(jnp.sum(jnp.square(share))),
        "condition": jnp.where(alive[-1], largest / jnp.min(eigenvalues, where=alive, initial=jnp.inf), 1.0),
        "dead_dims": jnp.sum(~alive, dtype=jnp.float32),
        "alpha": power_law(jnp.where(alive, eigenvalues, 0.0)[::-1], 2, dim // 2),
    }


def participation(embeddings: Array) -> Array:
    """`participation_ratio` of embeddings [N, D] alone, [], which takes no eigenvalues: (tr C)^2 / tr C^2."""
    centred = embeddings - jnp.mean(embeddings, axis=0, keepdims=True)
    scatter = matmul(centred.T, centred)
    return jnp.square(jnp.trace(scatter)) / _nonzero(jnp.sum(jnp.square(scatter)))


def _nonzero(x):
    return jnp.where(x > 0, x, 1.0)


def _entropy(share):
    return -jnp.sum(share * jnp.log(_nonzero(share)))


def power_law(eigenvalues: Array, first: int, last: int) -> Array:
    """alpha of l_i ~ i^-alpha, i the rank from 1: alpha-ReQ (Agrawal et al., 2022), whose code weighs ranks by 1 / i.

    eigenvalues [D], descending, zeros at the end -> []: least squares of log l_i on log i over first <= i <= last and
    l_i > 0; 0 where that leaves fewer than two.
    """
    rank = np.arange(1, len(eigenvalues) + 1)
    weight = jnp.where(eigenvalues > 0, (rank >= first) & (rank <= last), False) / rank
    weight = weight / _nonzero(jnp.sum(weight))
    x, y = np.log(rank), jnp.log(_nonzero(eigenvalues))
    x = x - jnp.sum(weight * x)
    return -jnp.sum(weight * x * y) / _nonzero(jnp.sum(weight * jnp.square(x)))


def expected_effective_rank(num: Array | int, dim: int) -> Array:
    """Effective rank that `num` samples of N(0, I) in `dim` dimensions score on average; within 1 %. float32 [].

    exp of the mean entropy of the eigenvalues of a real Wishart matrix. The entropy ignores their scale and the zero
    eigenvalues, so only the smaller and the larger of dim and num - 1 (centring takes one sample) matter. The mean of
    x log x over the eigenvalues is that of the Marchenko-Pastur law plus the correction of order 1 / dim for real
    entries (Bai and Silverstein, 2004, eq. 5.13); their sum, the trace, is independent of their shares.
    """
    small = jnp.minimum(num - 1, dim).astype(jnp.float32)
    large = jnp.maximum(num - 1, dim).astype(jnp.float32)
    ratio = small / large
    # Over an angle, x = 1 + ratio - 2 sqrt(ratio) cos(angle), the square roots at the law's edges become smooth.
    angle = (np.arange(8192) + 0.5) * np.pi / 8192
    edges = jnp.square(1 + jnp.array([-1.0, 1.0]) * jnp.sqrt(ratio))
    x = edges[0] + 4 * jnp.sqrt(ratio) * np.sin(angle / 2).astype(np.float32) ** 2  # the same, without cancellation
    law = (2 / np.pi * np.sin(angle) ** 2).astype(np.float32) / x  # per unit angle
    correction = jnp.sum(edges * jnp.log(_nonzero(edges))) / 4 - jnp.mean(x * jnp.log(x)) / 2
    x_log_x = np.pi * jnp.mean(law * x * jnp.log(x)) + correction / jnp.maximum(small, 1)
    trace = jnp.log(jnp.maximum(small, 1)) + 1 / jnp.maximum(small * large, 1)  # E[tr log tr] / E[tr], tr a chi-squared
    return jnp.where(small < 2, 1.0, jnp.clip(jnp.exp(trace - x_log_x), 1.0, small))


def rankme(scatter: Scatter) -> Array:
    """RankMe as published (Garrido et al., arXiv:2210.02885): exp of the entropy of s / sum s + 1e-7. [], 1..D.

    s are the singular values of the embeddings as they are, not centred: unlike `effective_rank` it falls to 1 when the
    mean outgrows the spread, and it is larger where they agree, since it is taken over s and not s^2. It depends on N.
    They are roots of the eigenvalues of a Gram matrix in float32, which does not resolve s below sqrt(D 2^-23) of the
    largest: those count as 0. That lowers it by 1 % in the reference cases whose other singular values lie below
    2e-4 of the largest, and by more where more directions lie there.
    """
    dim = len(scatter.mean)
    gram = scatter.matrix + scatter.num * jnp.outer(scatter.mean, scatter.mean)
    eigenvalues = jnp.linalg.eigvalsh(gram)
    s = jnp.sqrt(jnp.where(eigenvalues > eigenvalues[-1] * dim * EPS, eigenvalues, 0.0))
    return jnp.exp(_entropy(s / _nonzero(jnp.sum(s)) + 1e-7))


def scale(moments: Moments) -> dict[str, Array]:
    """The size of the embeddings, in the units of their coordinates, as scalars.

    std, std_min, std_max  mean, smallest and largest standard deviation of a dimension over the rows.
    mean_norm              norm of the mean row: how far the cloud sits from the origin.
    norm, norm_spread      mean norm of a row (about sqrt(D) for N(0, I)); standard deviation of the norms over it.
    """
    scatter, norms = moments.scatter, moments.norms
    std = jnp.sqrt(jnp.diagonal(scatter.matrix) / jnp.maximum(scatter.num - 1, 1))
    return {
        "std": jnp.mean(std),
        "std_min": jnp.min(std),
        "std_max": jnp.max(std),
        "mean_norm": jnp.linalg.norm(scatter.mean),
        "norm": norms.mean[0],
        "norm_spread": jnp.sqrt(norms.matrix[0, 0] / norms.num) / _nonzero(norms.mean[0]),
    }


def gaussianity(moments: Moments) -> dict[str, Array]:
    """Distance from N(0, I), and of the dimensions from normality whatever their mean and scale, as scalars.

    sigreg_T, sigreg_T_over_N  `jepa.losses.sigreg.sigreg`: T is about 1.05 under N(0, I), T / N 0.40 for a point at 0.
    skew, excess_kurtosis      absolute values, averaged over the dimensions that vary; 0 for a Gaussian.
    """
    num = moments.scatter.num
    distance = jnp.square(jnp.abs(moments.waves / num - PHI[:, None]))  # [J, M]
    over_n = jnp.mean(matmul(WEIGHT, distance))

    std = jnp.sqrt(jnp.diagonal(moments.scatter.matrix) / num)
    alive = std > 4 * EPS * moments.largest
    num_alive = jnp.maximum(jnp.sum(alive), 1)
    return {
        "sigreg_T": num * over_n,
        "sigreg_T_over_N": over_n,
        "skew": jnp.sum(jnp.abs(moments.skew), where=alive) / num_alive,
        "excess_kurtosis": jnp.sum(jnp.abs(moments.kurtosis - 3.0), where=alive) / num_alive,
    }


def uniformity(embeddings: Array, num: Array | int) -> Array:
    """Log of the mean of exp(-2 |u_i - u_j|^2) over pairs of unit rows u; Wang and Isola, arXiv:2005.10242, t = 2.

    Of the first `num` rows of embeddings [S, D], all if there are fewer. [], 0 when all rows point one way, -4 + 8 / D
    and a little more on a sphere that they fill evenly; 0 for a single row. In float32 to 1e-6.
    """
    u = unit(embeddings)
    square = jnp.maximum(2.0 - 2.0 * matmul(u, u.T), 0.0)  # |u_i - u_j|^2
    real = jnp.arange(len(u)) < num
    potential = jnp.where(real[:, None] & real[None], jnp.exp(-2.0 * square), 0.0)
    num_rows = jnp.minimum(num, len(u))
    num_pairs = jnp.maximum(num_rows * (num_rows - 1), 1)  # each counted twice, as in the sum
    mean = (jnp.sum(potential) - jnp.trace(potential)) / num_pairs
    return jnp.where(num_rows > 1, jnp.log(_nonzero(mean)), 0.0)


def code_usage(codes: Array, num_codes: int) -> dict[str, Array]:
    """How a window of codes, int32 [n] in 0..num_codes-1, spreads over the codebook; scalars.

    usage        share of the codes that occur. n codes drawn evenly reach 1 - (1 - 1 / num_codes)^n and no more.
    perplexity   exp of the entropy of their frequencies, 1..num_codes: how many codes would do, used evenly.
    alive        share of the codes that occur more than 0.1 times as often as on average.
    dead         number of the codes that do not occur.
    window       n.
    """
    counts = jnp.bincount(codes, length=num_codes)
    share = counts / max(len(codes), 1)
    entropy = -jnp.sum(share * jnp.log(jnp.where(counts > 0, share, 1.0)))
    used = jnp.sum(counts > 0)
    return {
        "usage": used / num_codes,
        "perplexity": jnp.exp(entropy),
        "alive": jnp.mean(counts > 0.1 * len(codes) / num_codes),
        "dead": jnp.float32(num_codes - used),
        "window": jnp.float32(len(codes)),
    }


def change(before: Array, after: Array, mask: Array) -> Array:
    """Mean squared change of quantised values [..., N, D] over their variance before it, both over real tokens; [].

    About 2 when every token gets the value of another one, 0 when nothing changed.
    """
    weight = mask[..., None] / jnp.maximum(jnp.sum(mask), 1)
    axes = tuple(range(mask.ndim))
    mean = jnp.sum(before * weight, axis=axes, keepdims=True)
    variance = jnp.sum(jnp.square(before - mean) * weight)
    return jnp.sum(jnp.square(after - before) * weight) / _nonzero(variance)

"""Diagnostics of a set of embeddings [N, D]: spectrum, scale and Gaussianity. Always read scale and rank together."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jepa.losses.sigreg import sigreg
from jepa.types import Array


def spectrum(embeddings: Array) -> dict[str, Array]:
    """How the variance spreads over directions: eigenvalues l of the covariance of the centred rows. [N, D] -> scalars.

    effective_rank           exp of the entropy of l / sum l (Roy and Vetterli, 2007), 1..D; 0 for a single point.
                             Blind to scale, hence to collapse onto a point plus noise. It depends on N: compare it with
    effective_rank_expected  what N(0, I) scores for the same N and D (`expected_effective_rank`), through
    rank_ratio               their quotient: about 1 when healthy, whatever N and D.
    participation_ratio      (sum l)^2 / sum l^2, 1..D; about D / (1 + D / N) for N(0, I).
    condition                largest over smallest living eigenvalue: read it beside
    dead_dims                the number of directions without variance, to float32 accuracy. At least D - N + 1.
    """
    num, dim = embeddings.shape
    z = embeddings.astype(jnp.float32)
    centred = z - jnp.mean(z, axis=0, keepdims=True)
    covariance = jnp.matmul(centred.T, centred, precision=jax.lax.Precision.HIGHEST) / max(num - 1, 1)
    eigenvalues = jnp.maximum(jnp.linalg.eigvalsh(covariance), 0.0)  # ascending
    largest = eigenvalues[-1]
    eps = jnp.finfo(jnp.float32).eps
    # Two floors: the eigensolver's rounding, and that of the embeddings themselves about a distant mean.
    rounding = jnp.square(4 * eps) * jnp.mean(jnp.sum(jnp.square(z), axis=-1))
    alive = eigenvalues > jnp.maximum(largest * dim * eps, rounding)
    share = jnp.where(alive, eigenvalues, 0.0) / _nonzero(jnp.sum(eigenvalues, where=alive))
    entropy = -jnp.sum(share * jnp.log(jnp.where(alive, share, 1.0)))
    effective_rank = jnp.where(alive[-1], jnp.exp(entropy), 0.0)
    expected = expected_effective_rank(num, dim)
    return {
        "effective_rank": effective_rank,
        "effective_rank_expected": jnp.float32(expected),
        "rank_ratio": effective_rank / expected,
        "participation_ratio": jnp.sum(share) / _nonzero(jnp.sum(jnp.square(share))),
        "condition": jnp.where(alive[-1], largest / jnp.min(eigenvalues, where=alive, initial=jnp.inf), 1.0),
        "dead_dims": jnp.sum(~alive, dtype=jnp.float32),
    }


def _nonzero(x):
    return jnp.where(x > 0, x, 1.0)


@functools.cache
def expected_effective_rank(num: int, dim: int) -> float:
    """Effective rank that `num` samples of N(0, I) in `dim` dimensions score on average; within 1 %.

    exp of the mean entropy of the eigenvalues of a real Wishart matrix. The entropy ignores their scale and the zero
    eigenvalues, so only the smaller and the larger of dim and num - 1 (centring takes one sample) matter. The mean of
    x log x over the eigenvalues is that of the Marchenko-Pastur law plus the correction of order 1 / dim for real
    entries (Bai and Silverstein, 2004, eq. 5.13); their sum, the trace, is independent of their shares.
    """
    small, large = sorted((dim, num - 1))
    if small < 2:
        return 1.0
    ratio = small / large
    # Over an angle, x = 1 + ratio - 2 sqrt(ratio) cos(angle), the square roots at the law's edges become smooth.
    angle = (np.arange(8192) + 0.5) * np.pi / 8192
    x = 1 + ratio - 2 * math.sqrt(ratio) * np.cos(angle)
    law = 2 / np.pi * np.sin(angle) ** 2 / x  # per unit angle
    edges = np.array([(1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2])
    correction = np.sum(edges * np.log(np.maximum(edges, 1e-300))) / 4 - np.mean(x * np.log(x)) / 2
    x_log_x = np.pi * np.mean(law * x * np.log(x)) + correction / small
    trace = math.log(small) + 1 / (small * large)  # E[tr log tr] / E[tr], tr a chi-squared over `large`
    return float(np.clip(np.exp(trace - x_log_x), 1.0, small))


def scale(embeddings: Array) -> dict[str, Array]:
    """The size of the embeddings, in the units of their coordinates. [N, D] -> scalars.

    std, std_min, std_max  mean, smallest and largest standard deviation of a dimension over the rows.
    mean_norm              norm of the mean row: how far the cloud sits from the origin.
    norm, norm_spread      mean norm of a row (about sqrt(D) for N(0, I)); standard deviation of the norms over it.
    """
    z = embeddings.astype(jnp.float32)
    std = jnp.std(z, axis=0, ddof=min(1, z.shape[0] - 1))
    norms = jnp.linalg.norm(z, axis=-1)
    norm = jnp.mean(norms)
    return {
        "std": jnp.mean(std),
        "std_min": jnp.min(std),
        "std_max": jnp.max(std),
        "mean_norm": jnp.linalg.norm(jnp.mean(z, axis=0)),
        "norm": norm,
        "norm_spread": jnp.std(norms) / _nonzero(norm),
    }


def gaussianity(embeddings: Array, key: Array, *, num_slices: int = 256) -> dict[str, Array]:
    """Distance from N(0, I), and of the dimensions from normality whatever their mean and scale. [N, D] -> scalars.

    sigreg_T, sigreg_T_over_N  `jepa.losses.sigreg.sigreg`: T is about 1.05 under N(0, I), T / N 0.40 for a point at 0.
    skew, excess_kurtosis      absolute values, averaged over the dimensions that vary; 0 for a Gaussian.
    """
    z = embeddings.astype(jnp.float32)
    statistic = sigreg(z, key, num_slices=num_slices)
    centred = z - jnp.mean(z, axis=0, keepdims=True)
    std = jnp.std(z, axis=0)
    alive = std > 4 * jnp.finfo(jnp.float32).eps * jnp.max(jnp.abs(z), axis=0)
    standard = centred / jnp.where(alive, std, 1.0)[None]  # [N, D]
    skew = jnp.abs(jnp.mean(standard**3, axis=0))
    excess_kurtosis = jnp.abs(jnp.mean(standard**4, axis=0) - 3.0)
    num_alive = jnp.maximum(jnp.sum(alive), 1)
    return {
        "sigreg_T": statistic,
        "sigreg_T_over_N": statistic / z.shape[0],
        "skew": jnp.sum(skew, where=alive) / num_alive,
        "excess_kurtosis": jnp.sum(excess_kurtosis, where=alive) / num_alive,
    }


def describe(embeddings: Array, key: Array) -> dict[str, Array]:
    """`spectrum`, `scale` and `gaussianity` of one set of embeddings [N, D], as one dict of float32 scalars."""
    return {**spectrum(embeddings), **scale(embeddings), **gaussianity(embeddings, key)}


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

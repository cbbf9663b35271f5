"""What codebooks share: the nearest code, straight-through estimators, masked sums, and codebooks that start from data.

Rows are flat here: tokens [M, D] float32, mask bool [M], codes int32 [M] with -1 where masked.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jepa.precision import matmul
from jepa.types import Array

TILE = 512  # rows, at most, whose distances to every code are in memory at once: as many as fit a CPU's cache


def flat(tokens: Array, mask: Array) -> tuple[Array, Array]:
    """tokens [..., N, D], mask [..., N] -> float32 [M, D], 0 where masked whatever was there, and bool [M]."""
    real = mask.reshape(-1)
    return jnp.where(real[:, None], tokens.reshape(-1, tokens.shape[-1]).astype(jnp.float32), 0.0), real


def unit(x: Array, eps: float = 1e-6) -> Array:
    """x / max(||x||, eps), whose gradient is finite at 0."""
    return x / jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), eps**2))


def normalised(x: Array, eps: float = 1e-6) -> Array:
    """x with mean 0 and variance 1 over its last axis, 0 where it is constant (layer normalisation)."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred / jnp.sqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)


def nearest(tokens: Array, codebook: Array) -> Array:
    """Index of the code at the smallest Euclidean distance, int32 [M]; the first of equals."""
    # ||x - e||^2 - ||x||^2 = (x, 1) . (-2 e, ||e||^2) as one product: in parts, a compiler may round it in one way for
    # the minimum and in another for the comparison with it, and then no code is nearest.
    table = jnp.concatenate([-2.0 * codebook, jnp.sum(jnp.square(codebook), axis=-1, keepdims=True)], axis=-1)
    index = jnp.arange(len(codebook), dtype=jnp.int32)[None]

    def of_rows(rows: Array) -> Array:
        distances = matmul(jnp.pad(rows, ((0, 0), (0, 1)), constant_values=1.0), table.T)
        farther = distances > jnp.min(distances, axis=-1, keepdims=True)
        # Two minima of numbers use vector instructions on a CPU; argmin, of pairs, does not, and takes twice as long.
        return jnp.min(jnp.where(farther, len(codebook), index), axis=-1)

    # Tile t takes the rows t, t + tiles, ...: where rows are spread over devices, each has its share of every tile.
    tiles = 1 << ((len(tokens) - 1) // TILE).bit_length()
    split = jnp.pad(tokens, ((0, -len(tokens) % tiles), (0, 0))).reshape(-1, tiles, tokens.shape[-1])
    codes = jax.lax.map(lambda tile: of_rows(split[:, tile]), jnp.arange(tiles))
    return codes.T.reshape(-1)[: len(tokens)]


def straight_through(values: Array, tokens: Array) -> Array:
    """`values`, to the last bit in every precision, with the gradient of `tokens` (Bengio et al., arXiv:1308.3432).

    tokens + sg(values - tokens), the usual form, rounds.
    """
    return jax.lax.stop_gradient(values) + (tokens - jax.lax.stop_gradient(tokens))


def rotate(tokens: Array, values: Array) -> Array:
    """The tokens turned and stretched onto `values`: equal to them, with the gradient of that linear map held constant.

    The rotation trick, Fifty et al., arXiv:2410.06424, eq. 4: the map turns in the plane of the two vectors.
    """
    u, w = jax.lax.stop_gradient((unit(tokens), unit(values)))
    norms = jax.lax.stop_gradient((jnp.linalg.norm(tokens, axis=-1), jnp.linalg.norm(values, axis=-1)))
    stretch = (norms[1] / jnp.maximum(norms[0], 1e-6))[..., None]
    half = unit(u + w)
    along_half = jnp.sum(tokens * half, axis=-1, keepdims=True)
    along_u = jnp.sum(tokens * u, axis=-1, keepdims=True)
    return (tokens - 2.0 * along_half * half + 2.0 * along_u * w) * stretch


def masked_mean(x: Array, mask: Array) -> Array:
    """Mean of [M, ...] over the rows that are real, 0 where none is."""
    weight = mask.reshape(-1, *(1,) * (x.ndim - 1)).astype(x.dtype)
    return jnp.sum(x * weight, axis=0) / jnp.maximum(jnp.sum(mask), 1).astype(x.dtype)


def relative_error(tokens: Array, values: Array, mask: Array) -> Array:
    """Mean squared distance of values and tokens over the variance of the tokens, both over the real rows; []."""
    centred = tokens - masked_mean(tokens, mask)[None]
    variance = jnp.mean(masked_mean(jnp.square(centred), mask))
    error = jnp.mean(masked_mean(jnp.square(tokens - values), mask))
    return jax.lax.stop_gradient(error / jnp.where(variance > 0, variance, 1.0))


def assigned(tokens: Array, mask: Array, codes: Array, num_codes: int) -> tuple[Array, Array]:
    """How many real rows every code has, [K], and their sum, [K, D]."""
    index = jnp.where(mask, codes, num_codes)  # one past the end is dropped
    counts = jax.ops.segment_sum(mask.astype(jnp.float32), index, num_codes)
    return counts, jax.ops.segment_sum(tokens, index, num_codes)


def lookup(codebook: Array, codes: Array) -> Array:
    """Rows of the codebook, [..., D]; 0 where the code is -1."""
    return jnp.where(codes[..., None] >= 0, codebook[jnp.maximum(codes, 0)], 0.0)


def choose_rows(key: Array, mask: Array, num: int) -> Array:
    """`num` different real rows at random, int32 [num]; where there are fewer, they are taken in turn."""
    order = jax.lax.top_k(jnp.where(mask, jax.random.uniform(key, mask.shape), -1.0), min(num, len(mask)))[1]
    return order[jnp.arange(num) % jnp.clip(jnp.sum(mask), 1, len(order))]


def kmeans(tokens: Array, mask: Array, means: Array, *, num_steps: int, cosine: bool = False) -> tuple[Array, Array]:
    """Lloyd's algorithm from `means` [K, D]: the means after `num_steps`, and the counts of the last assignment.

    A cluster without a row keeps its mean. cosine: of unit rows, whose means are scaled back to the sphere.
    """

    def step(_, carry):
        means, _ = carry
        counts, sums = assigned(tokens, mask, nearest(tokens, means), len(means))
        moved = jnp.where(counts[:, None] > 0, sums / jnp.maximum(counts, 1.0)[:, None], means)
        return unit(moved) if cosine else moved, counts

    return jax.lax.fori_loop(0, num_steps, step, (means, jnp.zeros(len(means), jnp.float32)))

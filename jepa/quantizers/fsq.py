"""Finite scalar quantization (Mentzer et al., arXiv:2309.15505): a few scalars per token, each rounded to a few levels.

There is no codebook that could die. How many codes are used is a property of the scalars' distribution alone: scale and
correlation. So tokens are normalised, projected, standardised by running statistics, rounded, and expanded by an MLP;
a linear expansion would have no more rank than there are scalars.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from jepa.precision import matmul
from jepa.quantizers._codebook import flat, masked_mean, normalised, relative_error, straight_through
from jepa.types import Array, PyTree, Quantized, Quantizer


def bound(z: Array, levels: tuple[int, ...]) -> Array:
    """z squashed so that rounding gives one of L values per scalar, [..., S]; 0 lies on a level."""
    count = np.array(levels, np.float32)
    half = (count - 1) * (1 + 1e-3) / 2
    offset = np.where(count % 2 == 0, 0.5, 0.0).astype(np.float32)
    shift = np.arctanh(offset / half).astype(np.float32)
    half, offset, shift = (jnp.broadcast_to(jnp.asarray(x, z.dtype), z.shape) for x in (half, offset, shift))
    return jnp.tanh(z + shift) * half - offset


def halves(levels: tuple[int, ...]) -> np.ndarray:
    return np.array([level // 2 for level in levels], np.int32)


def round_to_levels(z: Array, levels: tuple[int, ...]) -> tuple[Array, Array]:
    """Symbols int32 [..., S] in 0..L-1 and their values in [-1, 1], with the straight-through gradient of `bound`."""
    bounded = bound(z, levels)
    rounded = jnp.round(bounded)
    half = jnp.broadcast_to(jnp.asarray(halves(levels)), z.shape)
    return rounded.astype(jnp.int32) + half, straight_through(rounded, bounded) / half.astype(z.dtype)


def pack(symbols: Array, levels: tuple[int, ...]) -> Array:
    """One int32 code per token of its symbols [..., S]; the first symbol counts fastest."""
    basis = jnp.asarray(np.cumprod([1, *levels[:-1]], dtype=np.int32))
    return jnp.sum(symbols * jnp.broadcast_to(basis, symbols.shape), axis=-1)


def unpack(codes: Array, levels: tuple[int, ...]) -> Array:
    """The inverse of `pack`: int32 [...] -> [..., S]."""
    symbols = []
    for level in levels:
        symbols.append(codes % level)
        codes = codes // level
    return jnp.stack(symbols, axis=-1)


def _dense(x: Array, layer: dict[str, Array]) -> Array:
    return matmul(x, layer["kernel"]) + layer["bias"][None]


def _dense_init(key: Array, fan_in: int, fan_out: int) -> dict[str, Array]:
    kernel = jax.random.truncated_normal(key, -2.0, 2.0, (fan_in, fan_out)) * fan_in**-0.5
    return {"kernel": kernel, "bias": jnp.zeros(fan_out)}


def build(*, levels: tuple[int, ...] = (8, 5, 5, 5), hidden_dim: int = 128, statistics_ema: float = 0.99) -> Quantizer:
    """FSQ with one scalar for each entry of `levels`, and as many codes as their product.

    hidden_dim: width of the MLP from the rounded scalars back to the tokens' width.
    statistics_ema: decay per step of the running mean and covariance by which the scalars are standardised. They are
    state, so that online encoder, teacher and evaluation give equal tokens equal codes.

    The loss is the mean squared difference of the scalars' second moments, after standardisation, and the identity:
    it keeps their scale in the range that uses every level, and them uncorrelated. It is 0 for white scalars.
    Metrics: `scale_min`, `scale_max` and `correlation`, the guards of that; `error` of rounding over the variance.
    """
    levels = tuple(levels)
    # Beyond 1000, what `bound` adds to the range is more than half a level.
    if not levels or min(levels) < 2 or max(levels) > 1000:
        raise ValueError(f"quantizer.levels is {levels}; it needs a number of levels from 2 to 1000 for every scalar")
    if math.prod(levels) >= 2**31:
        raise ValueError(f"quantizer.levels {levels} make {math.prod(levels)} codes; an int32 holds 2^31 - 1 at most")
    if hidden_dim < 1:
        raise ValueError(f"quantizer.hidden_dim is {hidden_dim}; it must be at least 1")
    if not 0 <= statistics_ema < 1:
        raise ValueError(f"quantizer.statistics_ema is {statistics_ema}; a decay lies in [0, 1)")

    def scalars(params: PyTree, rows: Array) -> Array:
        normed = normalised(rows) * params["norm"]["scale"][None] + params["norm"]["bias"][None]
        return _dense(normed, params["project"])

    def moments(u: Array, mask: Array) -> tuple[Array, Array]:
        mean = masked_mean(u, mask)
        centred = u - mean[None]
        return mean, masked_mean(centred[:, :, None] * centred[:, None, :], mask)

    def standardise(state: PyTree, u: Array) -> Array:
        return (u - state["mean"][None]) / jnp.sqrt(jnp.diag(state["covariance"]) + 1e-6)[None]

    def expand(params: PyTree, values: Array) -> Array:
        return _dense(jax.nn.gelu(_dense(values, params["hidden"])), params["expand"])

    def init(key: Array, tokens: Array, mask: Array) -> tuple[PyTree, PyTree]:
        rows, real = flat(tokens, mask)
        dim = rows.shape[-1]
        keys = jax.random.split(key, 3)
        params = {
            "norm": {"scale": jnp.ones(dim), "bias": jnp.zeros(dim)},
            "project": _dense_init(keys[0], dim, len(levels)),
            "hidden": _dense_init(keys[1], len(levels), hidden_dim),
            "expand": _dense_init(keys[2], hidden_dim, dim),
        }
        mean, covariance = moments(scalars(params, rows), real)
        return params, {"mean": mean, "covariance": covariance}

    def apply(params: PyTree, state: PyTree, tokens: Array, mask: Array, *, key: Array, train: bool) -> Quantized:
        rows, real = flat(tokens, mask)
        z = standardise(state, scalars(params, rows))  # [M, S]
        symbols, values = round_to_levels(z, levels)
        second = masked_mean(z[:, :, None] * z[:, None, :], real)
        loss = jnp.mean(jnp.square(second - jnp.eye(len(levels)))) * jnp.any(real)
        codes = jnp.where(real, pack(symbols, levels), -1).reshape(mask.shape)
        out = jnp.where(real[:, None], expand(params, values), 0.0).astype(tokens.dtype).reshape(tokens.shape)
        return Quantized(out, codes, loss, guards(z, real))

    def guards(z: Array, real: Array) -> dict[str, Array]:
        z = jax.lax.stop_gradient(z)
        _, covariance = moments(z, real)
        std = jnp.sqrt(jnp.diag(covariance))
        scale = jnp.maximum(std[:, None] * std[None], 1e-12)
        correlation = jnp.abs(covariance / scale) * (1 - jnp.eye(len(levels)))
        bounded = bound(z, levels)
        return {
            "scale_min": jnp.min(std),
            "scale_max": jnp.max(std),
            "correlation": jnp.max(correlation),
            "error": relative_error(bounded, jnp.round(bounded), real),
        }

    def update(params: PyTree, state: PyTree, tokens: Array, mask: Array, codes: Array, *, key: Array) -> PyTree:
        rows, real = flat(tokens, mask)
        mean, covariance = jax.lax.stop_gradient(moments(scalars(params, rows), real))
        new = {
            "mean": state["mean"] + (1 - statistics_ema) * (mean - state["mean"]),
            "covariance": state["covariance"] + (1 - statistics_ema) * (covariance - state["covariance"]),
        }
        return jax.tree.map(lambda after, before: jnp.where(jnp.any(real), after, before), new, state)

    def decode(params: PyTree, state: PyTree, codes: Array) -> Array:
        flat_codes = codes.reshape(-1)
        half = jnp.asarray(halves(levels))[None]
        values = (unpack(jnp.maximum(flat_codes, 0), levels) - half).astype(jnp.float32) / half.astype(jnp.float32)
        out = jnp.where(flat_codes[:, None] >= 0, expand(params, values), 0.0)
        return out.reshape(*codes.shape, out.shape[-1])

    return Quantizer(init, apply, update, decode, levels)

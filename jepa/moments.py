"""What is kept of embeddings that come batch by batch: sums from which `jepa.diagnostics` reads every figure.

Any split of N rows into batches, in any order, gives the sums of the whole to float32 rounding, also for a cloud far
from the origin: each batch is centred on its own mean, and two sets are merged about the mean of both (Chan, Golub and
LeVeque, 1979, for second moments; Pebay, 2008, for third and fourth). Only `Moments.sample` knows of an order.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jepa.losses.sigreg import knots, random_directions
from jepa.precision import matmul
from jepa.types import Array

T, PHI, WEIGHT = knots(17, 3.0)  # [J] each: where characteristic functions are compared, as SIGReg does by default


class Scatter(NamedTuple):
    """Second moments of `num` rows about their mean; D^2 numbers, however many rows."""

    num: Array  # int32 []
    mean: Array  # [D]
    matrix: Array  # [D, D]: sum over rows of (z - mean)(z - mean)^T


class Moments(NamedTuple):
    """All that is kept of a set of embeddings [N, D], float32 but for the waves."""

    scatter: Scatter
    norms: Scatter  # of the norms of the rows, as one dimension
    skew: Array  # [D]: mean of the cubes of the standardised values of each dimension ...
    kurtosis: Array  # [D]: ... and of their fourth powers: 0 and 3 for a Gaussian, 0 and 0 where nothing varies
    largest: Array  # [D]: largest absolute value
    directions: Array  # [D, M]: unit columns, the same in everything that is merged
    waves: Array  # complex64 [J, M]: sum over rows of e^{i t_j u}, u the row along a direction
    sample: Array  # [S, D]: the first rows, zeros where there were fewer; for what needs pairs


def start(key: Array, dim: int, *, num_slices: int = 256, num_sample: int = 512) -> Moments:
    """Moments of no rows of width `dim`; the key draws the directions."""
    zeros = jnp.zeros(dim)
    waves = jnp.zeros((len(T), num_slices), jnp.complex64)
    directions, sample = random_directions(key, dim, num_slices), jnp.zeros((num_sample, dim))
    return Moments(start_scatter(dim), start_scatter(1), zeros, zeros, zeros, directions, waves, sample)


def start_scatter(dim: int) -> Scatter:
    """The scatter of no rows."""
    return Scatter(jnp.int32(0), jnp.zeros(dim), jnp.zeros((dim, dim)))


def add(moments: Moments, embeddings: Array) -> Moments:
    """The moments of what was seen before and of the rows of embeddings [n, D]."""
    z = embeddings.astype(jnp.float32)
    scatter = scatter_of(z)
    standard = (z - scatter.mean[None]) * _inverse(_std(scatter))[None]  # [n, D]
    num_sample = len(moments.sample)
    batch = Moments(
        scatter,
        scatter_of(jnp.linalg.norm(z, axis=-1, keepdims=True)),
        jnp.mean(standard**3, axis=0),
        jnp.mean(standard**4, axis=0),
        jnp.max(jnp.abs(z), axis=0),
        moments.directions,
        _waves(matmul(z, moments.directions)),
        jnp.zeros_like(moments.sample).at[: len(z)].set(z[:num_sample]),
    )
    return merge(moments, batch)


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of the rows of both, which were started with the same key. The sample is a's rows before b's."""
    scatter = merge_scatter(a.scatter, b.scatter)
    inverse = _inverse(_std(scatter))
    skew = kurtosis = jnp.zeros_like(a.skew)
    for part in (a, b):  # moments about the common mean, in units of the common deviation: powers neither overflow ...
        share = part.scatter.num / jnp.maximum(scatter.num, 1)
        r = _std(part.scatter) * inverse  # ... nor underflow
        d = (part.scatter.mean - scatter.mean) * inverse
        skew += share * (r**3 * part.skew + 3 * r**2 * d + d**3)
        kurtosis += share * (r**4 * part.kurtosis + 4 * r**3 * part.skew * d + 6 * r**2 * d**2 + d**4)
    return Moments(
        scatter,
        merge_scatter(a.norms, b.norms),
        skew,
        kurtosis,
        jnp.maximum(a.largest, b.largest),
        a.directions,
        a.waves + b.waves,
        _first_rows(a, b),
    )


def scatter_of(z: Array) -> Scatter:
    """The scatter of the rows of z [n, D], n >= 1."""
    mean = jnp.mean(z, axis=0)
    mean += jnp.mean(z - mean[None], axis=0)  # what a float32 sum lost: at a distance it would pass for variance
    centred = z - mean[None]
    return Scatter(jnp.int32(len(z)), mean, matmul(centred.T, centred))


def merge_scatter(a: Scatter, b: Scatter) -> Scatter:
    """The scatter of the rows of both."""
    num = a.num + b.num
    share = b.num / jnp.maximum(num, 1)
    delta = b.mean - a.mean
    between = a.num * share * jnp.outer(delta, delta)
    return Scatter(num, a.mean + share * delta, a.matrix + b.matrix + between)


def _std(scatter):
    return jnp.sqrt(jnp.diagonal(scatter.matrix) / jnp.maximum(scatter.num, 1))


def _inverse(x):
    return jnp.where(x > 0, 1 / jnp.where(x > 0, x, 1.0), 0.0)


def _waves(u):
    """Sums [J, M] over the rows of u [n, M] of e^{i t_j u}, as powers of the first: the knots are equally spaced."""
    angle = T[0] * u
    rotation = jax.lax.complex(jnp.cos(angle), jnp.sin(angle))
    _, sums = jax.lax.scan(lambda power, _: (power * rotation, jnp.sum(power, axis=0)), rotation, length=len(T))
    return sums


def _first_rows(a, b):
    """The sample of a, filled up with that of b."""
    size = len(a.sample)
    place = jnp.arange(size)
    place = jnp.where(place < b.scatter.num, jnp.minimum(a.scatter.num, size) + place, size)
    return a.sample.at[place].set(b.sample, mode="drop")

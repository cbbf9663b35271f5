"""Vector quantization whose codes are moving averages of their tokens (van den Oord et al., 1711.00937, appendix A).

Codebooks die of their start and of their refresh, not of the method: a start from data with counts that fit the sums,
and a refresh that is relative to the mean count and capped, keep one alive without ever moving most of it at once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jepa.quantizers._codebook import (
    assigned,
    choose_rows,
    flat,
    kmeans,
    lookup,
    masked_mean,
    nearest,
    relative_error,
    rotate,
    straight_through,
    unit,
)
from jepa.registry import nearest as nearest_name
from jepa.types import Array, PyTree, Quantized, Quantizer

INITIALISE = ("data", "kmeans", "documented")
REFRESH = ("none", "split", "reseed", "absolute", "documented")
KMEANS_STEPS = 10


def moving_average(state: PyTree, counts: Array, sums: Array, *, decay: float, smoothing: float) -> PyTree:
    """`state` after a step that gave every code `counts` [K] tokens with `sums` [K, D]; eq. 6 to 8 of appendix A.

    A code without a token keeps its place, since its count and its sum shrink alike. `smoothing` adds so many tokens to
    every count (Laplace): with it, an unused code drifts to the origin.
    """
    counts = state["counts"] + (1 - decay) * (counts - state["counts"])
    sums = state["sums"] + (1 - decay) * (sums - state["sums"])
    size = jnp.sum(counts)
    smoothed = (counts + smoothing) / (size + len(counts) * smoothing) * size if smoothing else counts
    alive = smoothed > 1e-20  # below, the quotient of two vanishing numbers is rounding
    codebook = jnp.where(alive[:, None], sums / jnp.where(alive, smoothed, 1.0)[:, None], state["codebook"])
    return state | {"codebook": codebook, "counts": counts, "sums": sums}


def replace(state: PyTree, dead: Array, rows: Array, count: float | Array) -> PyTree:
    """The codes where `dead` [K], replaced by `rows` [K, D], each as if `count` tokens had been there."""
    return state | {
        "codebook": jnp.where(dead[:, None], rows, state["codebook"]),
        "counts": jnp.where(dead, count, state["counts"]),
        "sums": jnp.where(dead[:, None], rows * count, state["sums"]),
    }


def expire(state: PyTree, rows: Array, *, threshold: float | Array, count: float | Array) -> PyTree:
    """Every code whose count is below `threshold` replaced: the j-th of them by the j-th of `rows` [K, D]."""
    dead = state["counts"] < threshold
    return replace(state, dead, rows[jnp.maximum(jnp.cumsum(dead) - 1, 0)], count)


def most_starved(counts: Array, num: int, relative: float) -> tuple[Array, Array]:
    """The `num` codes with the smallest counts, smallest first, and which of them are below `relative` x the mean."""
    smallest = jax.lax.top_k(-counts, num)[1]
    return smallest, counts[smallest] < relative * jnp.mean(counts)


def split(state: PyTree, key: Array, *, num: int, relative: float = 0.1, spread: float = 0.01) -> PyTree:
    """At most `num` starved codes move to the fullest ones, the j-th to the j-th, which share count and sum with them.

    They start `spread` of the code's norm beside it, so that the values which tokens are given hardly move. Only a code
    with more than the mean count is split: a collapsed codebook has fewer of those than `num`.
    """
    smallest, starved = most_starved(state["counts"], num, relative)
    fullest = jax.lax.top_k(state["counts"], num)[1]
    starved &= state["counts"][fullest] > jnp.mean(state["counts"])
    half = jnp.where(starved, 0.5, 1.0)
    counts = state["counts"].at[fullest].multiply(half)
    sums = state["sums"].at[fullest].multiply(half[:, None])
    origin = state["codebook"][fullest]
    beside = origin + spread * jnp.linalg.norm(origin, axis=-1, keepdims=True) * unit(
        jax.random.normal(key, origin.shape)
    )

    def moved(values: Array, new: Array) -> Array:
        keep = starved.reshape(-1, *(1,) * (values.ndim - 1))
        return values.at[smallest].set(jnp.where(keep, new, values[smallest]))

    return state | {
        "codebook": moved(state["codebook"], beside),
        "counts": moved(counts, counts[fullest]),
        "sums": moved(sums, beside * counts[fullest][:, None]),
    }


def reseed(state: PyTree, rows: Array, *, relative: float = 0.1) -> PyTree:
    """As many starved codes as there are `rows` [num, D] move to them, each with the mean count."""
    smallest, starved = most_starved(state["counts"], len(rows), relative)
    chosen = jnp.zeros(len(state["counts"]), bool).at[smallest].set(starved)
    placed = jnp.zeros_like(state["codebook"]).at[smallest].set(rows)
    return replace(state, chosen, placed, jnp.mean(state["counts"]))


def start(key: Array, rows: Array, real: Array, num_codes: int, initialise: str, cosine: bool) -> PyTree:
    """Codebook, counts and sums before the first step. "documented" is the start that the codebooks died of."""
    if initialise == "documented":
        codebook = jax.random.uniform(key, (num_codes, rows.shape[-1]), minval=-1 / num_codes, maxval=1 / num_codes)
        return {"codebook": codebook, "counts": jnp.zeros(num_codes), "sums": codebook}
    first = rows[choose_rows(key, real, num_codes)]
    steps = KMEANS_STEPS if initialise == "kmeans" else 1
    codebook, counts = kmeans(rows, real, first, num_steps=steps, cosine=cosine)
    return {"codebook": codebook, "counts": counts, "sums": codebook * counts[:, None]}


def build(
    *,
    num_codes: int = 768,
    decay: float = 0.99,
    commitment: float = 0.25,
    distance: str = "euclidean",
    rotation: bool = False,
    initialise: str = "data",
    refresh: str = "split",
    refresh_every: int = 1,
    smoothing: float = 0.0,
) -> Quantizer:
    """EMA VQ with `num_codes` codes.

    commitment: weight of mean (x - sg(code))^2 over real tokens and dimensions, the loss. distance: "euclidean", or
    "cosine" between unit tokens and unit codes. rotation: the gradient of the rotation trick instead of the identity.
    initialise: "data" (tokens of the first batches, and one step of k-means), "kmeans", or "documented" (tiny uniform
    codes with counts of 0). refresh: "none"; "split" and "reseed", which move at most 1 % of the codes at once, those
    with less than a tenth of the mean count; "absolute" (a count below 1) and "documented" (below 1 % of all
    assignments), which move all such codes to tokens of the batch; every `refresh_every` steps.
    smoothing: as in `moving_average`.
    Metrics: `starved`, the codes below a tenth of the mean count; `error` over the variance of the tokens.
    """
    for name, value, known in (("initialise", initialise, INITIALISE), ("refresh", refresh, REFRESH)):
        if value not in known:
            raise ValueError(f"quantizer.{name} is {value!r}: {nearest_name(value, known)}")
    if distance not in ("euclidean", "cosine"):
        raise ValueError(f"quantizer.distance is {distance!r}; it must be 'euclidean' or 'cosine'")
    for name, value, least in (
        ("num_codes", num_codes, 2),
        ("refresh_every", refresh_every, 1),
        ("smoothing", smoothing, 0),
    ):
        if value < least:
            raise ValueError(f"quantizer.{name} is {value}; it must be at least {least}")
    if not 0 <= decay < 1:
        raise ValueError(f"quantizer.decay is {decay}; a decay lies in [0, 1)")
    cosine = distance == "cosine"
    capped = max(1, num_codes // 100)

    def prepared(tokens: Array, mask: Array) -> tuple[Array, Array]:
        rows, real = flat(tokens, mask)
        return (unit(rows) if cosine else rows), real

    def init(key: Array, tokens: Array, mask: Array) -> tuple[PyTree, PyTree]:
        rows, real = prepared(tokens, mask)
        return {}, start(key, rows, real, num_codes, initialise, cosine) | {"calls": jnp.int32(0)}

    def apply(params: PyTree, state: PyTree, tokens: Array, mask: Array, *, key: Array, train: bool) -> Quantized:
        rows, real = prepared(tokens, mask)
        codes = jnp.where(real, nearest(jax.lax.stop_gradient(rows), state["codebook"]), -1)
        chosen = lookup(state["codebook"], codes)
        loss = commitment * jnp.mean(masked_mean(jnp.square(rows - jax.lax.stop_gradient(chosen)), real))
        values = chosen.astype(tokens.dtype)
        path = rotate(rows, chosen) if rotation else rows
        values = straight_through(values, path.astype(tokens.dtype))
        starved = jnp.sum(state["counts"] < 0.1 * jnp.mean(state["counts"]), dtype=jnp.float32)
        metrics = {"starved": starved, "error": relative_error(rows, chosen, real)}
        return Quantized(values.reshape(tokens.shape), codes.reshape(mask.shape), loss, metrics)

    def refreshed(state: PyTree, rows: Array, real: Array, key: Array) -> PyTree:
        if refresh == "split":
            return split(state, key, num=capped)
        if refresh == "reseed":
            return reseed(state, rows[choose_rows(key, real, capped)])
        drawn = rows[choose_rows(key, real, num_codes)]
        if refresh == "absolute":
            return expire(state, drawn, threshold=1.0, count=1.0)
        return expire(state, drawn, threshold=0.01 * jnp.sum(state["counts"]), count=1.0)

    def update(params: PyTree, state: PyTree, tokens: Array, mask: Array, codes: Array, *, key: Array) -> PyTree:
        rows, real = jax.lax.stop_gradient(prepared(tokens, mask))
        counts, sums = assigned(rows, real, codes.reshape(-1), num_codes)
        new = moving_average(state, counts, sums, decay=decay, smoothing=smoothing) | {"calls": state["calls"] + 1}
        if refresh != "none":
            due = new["calls"] % refresh_every == 0
            after = refreshed(new, rows, real, key)
            new = jax.tree.map(lambda a, b: jnp.where(due, a, b), after, new)
        if cosine:
            new["codebook"] = unit(new["codebook"])
        return jax.tree.map(lambda a, b: jnp.where(jnp.any(real), a, b), new, state)

    def decode(params: PyTree, state: PyTree, codes: Array) -> Array:
        return lookup(state["codebook"], codes)

    return Quantizer(init, apply, update, decode, (num_codes,))

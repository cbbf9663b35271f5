"""Relational losses: how the tokens of one grid lie relative to each other, compared between two grids.

The relation of tokens i and j is their squared distance R_ij = |x_i - x_j|^2, so rotating or translating all tokens of
a grid changes nothing. Comparing raw R by squared error is *quartic* in the scale of the embeddings: tokens c x cost
c^4 as much, and the gradient grows as c^3. Such a loss rises because embeddings spread, whatever their relations, and
falls fastest by shrinking them. Normalised relations, R divided by its own mean, are the same for every c > 0, and
their gradient has no component along the scale; it goes as 1/c instead. The raw form is for comparison.

`relational` compares token i of one grid with token i of the other. Where tokens do not correspond, as objects found
in two grids do not, only statistics that ignore their order can be compared: `relational_quantiles`.

Source: Relational knowledge distillation, Park et al., arXiv:1904.05068, whose distance-wise loss divides distances
by their mean over pairs; here they are squared, and compared by squared error in place of Huber's.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jepa.precision import einsum, wide
from jepa.types import Array

NORMALIZATIONS = ("mean", "variance", "none")
COLLAPSED = 1e-18  # a mean squared distance below which there is no scale to divide by


def relations(
    tokens: Array, mask: Array, *, adjacency: Array | None = None, normalize: str = "mean"
) -> tuple[Array, Array]:
    """Squared distances between tokens, and which pairs count. [..., N, D], bool [..., N] -> R, bool, both [..., N, N].

    A pair counts if both tokens are real, i != j and, where adjacency (bool [..., N, N]) is given, it is True for
    (i, j) or (j, i). R is symmetric, and 0 where the pair does not count. What masked tokens hold has no effect.

    normalize: "mean" divides R by its mean over the pairs that count; "variance" by twice the total variance of the
    real tokens (mean squared deviation from their mean, summed over D), which is the mean of R over all ordered pairs
    of real tokens, i = j included, whatever the adjacency; "none" leaves it raw. The divisor is differentiated.
    Tokens all in one place have no scale: their R is 0, with gradient 0.

    Float32 at least. Raises ValueError when normalize is unknown or the shapes do not fit.
    """
    _check(tokens, mask, adjacency, normalize)
    x = wide(jnp.where(mask[..., None], tokens, 0))
    other = jnp.broadcast_to(~np.eye(mask.shape[-1], dtype=bool), (*mask.shape, mask.shape[-1]))
    real = mask[..., :, None] & mask[..., None, :] & other
    pairs = real if adjacency is None else real & (adjacency | jnp.swapaxes(adjacency, -1, -2))
    raw = jnp.where(real, _squared_distances(x, mask), 0.0)
    distances = jnp.where(pairs, raw, 0.0)
    if normalize == "none":
        return distances, pairs
    if normalize == "mean":
        scale = _masked_mean(distances, pairs)
    else:
        scale = jnp.sum(raw, axis=(-2, -1)) / jnp.maximum(jnp.sum(mask, axis=-1), 1) ** 2
    # Not max(scale, COLLAPSED): that would multiply the rounding of a gradient that should be zero by 1e18.
    scale = jnp.where(scale > COLLAPSED, scale, 1.0)
    return distances / scale[..., None, None], pairs


def relational(
    predicted: Array, target: Array, mask: Array, *, adjacency: Array | None = None, normalize: str = "mean"
) -> Array:
    """Mean over pairs of (R_predicted - R_target)^2 between corresponding tokens. [..., N, D] x2, [..., N] -> [...].

    One mask and one adjacency for both, as token i is the same thing in both. 0 where no pair counts. Gradients flow
    into both sides. R, normalize, adjacency and the errors are those of `relations`.
    """
    if predicted.shape != target.shape:
        raise ValueError(f"predicted and target must have one shape, got {predicted.shape} and {target.shape}")
    r_predicted, pairs = relations(predicted, mask, adjacency=adjacency, normalize=normalize)
    r_target, _ = relations(target, mask, adjacency=adjacency, normalize=normalize)
    return _masked_mean(jnp.square(r_predicted - r_target), pairs)


def distance_quantiles(
    tokens: Array, mask: Array, *, adjacency: Array | None = None, normalize: str = "mean", num_levels: int = 16
) -> tuple[Array, Array]:
    """The quantile function of R over the pairs that count, at levels (l + 1/2) / L, and whether there are any pairs.

    [..., N, D], [..., N] -> [..., L], bool [...]; the quantiles are zeros where no pair counts.

    It ignores the order of tokens, and compares grids with different numbers of them. The i-th smallest of n values
    sits at level (i + 1/2) / n, with straight lines between and the extreme values beyond (Hazen, 1914), so that
    with n = L the quantiles are the sorted values, and the mean squared difference of two such functions is the
    squared 2-Wasserstein distance between the two sets of distances.

    Each quantile is a mean of at most two distances: only those receive its gradient. Errors as in `relations`, and a
    ValueError when num_levels < 1.
    """
    distances, pairs = relations(tokens, mask, adjacency=adjacency, normalize=normalize)
    return _quantiles(distances, pairs, num_levels), jnp.any(pairs, axis=(-2, -1))


def relational_quantiles(
    context: Array,
    context_mask: Array,
    target: Array,
    target_mask: Array,
    *,
    context_adjacency: Array | None = None,
    target_adjacency: Array | None = None,
    normalize: str = "mean",
    num_levels: int = 16,
) -> tuple[Array, Array]:
    """(cross, self) [B] each: relations of context frames against the target's, and against each other.

    context [B, T, N, D], context_mask [B, T, N]; target [B, N', D'], target_mask [B, N']. With Q the quantiles of R,
    M = mean_t Q(context_t): cross is the mean over levels of (M - Q(target))^2, self the mean over t and levels of
    (Q(context_t) - M)^2. A frame without a pair that counts is left out of the means over t; cross is 0 where the
    target, or every frame, is such a grid. Gradients flow into context and target.

    Raises ValueError as `distance_quantiles`, and when context and target are not [B, T, N, D] and [B, N', D'].
    """
    if context.ndim != 4 or target.ndim != 3 or context.shape[0] != target.shape[0]:
        raise ValueError(
            f"context must be [B, T, N, D] and target [B, N, D] with one B, got {context.shape} and {target.shape}"
        )
    quantiles = functools.partial(distance_quantiles, normalize=normalize, num_levels=num_levels)
    q_context, counts = quantiles(context, context_mask, adjacency=context_adjacency)  # [B, T, L], [B, T]
    q_target, target_counts = quantiles(target, target_mask, adjacency=target_adjacency)  # [B, L], [B]

    share = counts.astype(q_context.dtype) / jnp.maximum(jnp.sum(counts, axis=1, keepdims=True), 1)
    mean = jnp.sum(share[..., None] * q_context, axis=1)  # [B, L]
    comparable = jnp.any(counts, axis=1) & target_counts  # [B]
    cross_loss = jnp.where(comparable, jnp.mean(jnp.square(mean - q_target), axis=-1), 0.0)
    self_loss = jnp.sum(share * jnp.mean(jnp.square(q_context - mean[:, None]), axis=-1), axis=1)
    return cross_loss, self_loss


def _quantiles(distances, pairs, num_levels):
    """[..., L] of symmetric distances and pairs [..., N, N]."""
    if num_levels < 1:
        raise ValueError(f"num_levels must be at least 1, got {num_levels}")
    *lead, num, _ = distances.shape
    upper = np.flatnonzero(np.triu(np.ones((num, num), bool)))  # each pair once; the diagonal never counts
    distances, counts = distances.reshape(*lead, num * num), pairs.reshape(*lead, num * num)[..., upper]
    keys = jnp.where(counts, jax.lax.stop_gradient(distances)[..., upper], jnp.inf)
    order = jnp.asarray(upper)[jnp.argsort(keys, axis=-1)]  # [..., P], into distances; pairs that count come first

    # Position level * n - 1/2 of each level among the n sorted values, in units of 1 / (2 L), where it is an integer.
    n = jnp.sum(counts, axis=-1, keepdims=True, dtype=jnp.int32)
    odd = jnp.broadcast_to(2 * jnp.arange(num_levels, dtype=jnp.int32) + 1, (*lead, num_levels))
    position = jnp.clip(odd * n - num_levels, 0, 2 * num_levels * jnp.maximum(n - 1, 0))
    below, rest = position // (2 * num_levels), position % (2 * num_levels)
    weight = rest.astype(distances.dtype) / (2 * num_levels)

    def at(i):  # the i-th smallest; only what is read is differentiated, not the sort
        return jnp.take_along_axis(distances, jnp.take_along_axis(order, i, axis=-1), axis=-1)

    low, high = at(below), at(below + (rest > 0))
    return low + weight * (high - low)


@jax.custom_jvp
def _squared_distances(x, mask):
    """|x_i - x_j|^2 [..., N, N], by differences: |x_i|^2 + |x_j|^2 - 2 x_i . x_j loses the distance of close tokens."""
    return jnp.sum(jnp.square(x[..., :, None, :] - x[..., None, :, :]), axis=-1)


@_squared_distances.defjvp
def _squared_distances_jvp(primals, tangents):
    """2 (x_i - x_j) . (dx_i - dx_j), multiplied out, so that its transpose is a matmul and not [..., N, N, D] wide."""
    (x, mask), (dx, _) = primals, tangents
    mean = jnp.sum(x, axis=-2, keepdims=True) / jnp.maximum(jnp.sum(mask, axis=-1), 1)[..., None, None]
    centred = jnp.where(mask[..., None], x - mean, 0.0)  # distances ignore the mean; rounding does not
    own = jnp.sum(centred * dx, axis=-1)
    crossed = einsum("...id,...jd->...ij", centred, dx)
    tangent = own[..., :, None] + own[..., None, :] - crossed - jnp.swapaxes(crossed, -1, -2)
    return _squared_distances(x, mask), 2.0 * tangent


def _masked_mean(values, pairs):
    """Mean of values over the pairs that count, both [..., N, N] -> [...]; 0 where there are none."""
    return jnp.sum(jnp.where(pairs, values, 0.0), axis=(-2, -1)) / jnp.maximum(jnp.sum(pairs, axis=(-2, -1)), 1)


def _check(tokens, mask, adjacency, normalize):
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize must be one of {', '.join(NORMALIZATIONS)}, got {normalize!r}")
    if tokens.ndim < 2 or mask.shape != tokens.shape[:-1]:
        raise ValueError(f"mask must have the shape [..., N] of tokens [..., N, D], got {mask.shape}, {tokens.shape}")
    square = (*mask.shape, mask.shape[-1])
    if adjacency is not None and adjacency.shape != square:
        raise ValueError(f"adjacency must have the shape {square} of pairs of tokens, got {adjacency.shape}")

"""InfoNCE: tell the positive from negatives; van den Oord et al., arXiv:1807.03748. The queue: MoCo, arXiv:1911.05722.

With unit rows a_i (anchors), p_i (positives) and a temperature tau, the candidates c_j of row i are its positive, the
positives of the other rows, and the rows of a queue of past targets:

    loss_i = -log [ exp(a_i . p_i / tau) / sum_j exp(a_i . c_j / tau) ]
           = softplus( log sum_(j negative) exp((a_i . c_j - a_i . p_i) / tau) )

The second form loses no digits when the loss is small, and is 0 when a row has no negative at all. Guessing costs the
log of the number of candidates. A candidate that shows the same target as the row (equal ids) is no negative: it is
left out, of the batch and of the queue alike.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jepa.losses.prediction import unit
from jepa.precision import matmul, wide
from jepa.types import Array

MASKED = -1e30  # a logit whose exponential is 0; finite, so that a row of nothing else has finite gradients


class QueueState(NamedTuple):
    """Ring buffer of past targets. Rows 0..size-1 are filled; `cursor` is the row to be written next.

    Oldest first, the rows are 0..size-1 while it fills, and cursor..K-1, 0..cursor-1 once it is full.
    """

    embeddings: Array  # float32 [K, D], unit rows
    ids: Array  # int32 [K]: what each row shows
    size: Array  # int32 []
    cursor: Array  # int32 []


def queue_init(num_rows: int, dim: int) -> QueueState:
    """An empty queue of num_rows rows. Raises ValueError when it could hold none."""
    if num_rows < 1:
        raise ValueError(f"a queue must have at least 1 row, got {num_rows}; for no queue pass None to infonce")
    return QueueState(
        embeddings=jnp.zeros((num_rows, dim), jnp.float32),
        ids=jnp.full((num_rows,), -1, jnp.int32),
        size=jnp.zeros((), jnp.int32),
        cursor=jnp.zeros((), jnp.int32),
    )


def queue_push(queue: QueueState, embeddings: Array, ids: Array) -> QueueState:
    """The queue with a batch of targets [B, D] and their ids [B] in place of its oldest rows.

    Rows are made unit and their gradient is stopped: the queue holds what the target encoder said, not a function of
    the present parameters. Of a batch of K rows or more the last K remain, from row 0 on.
    Raises ValueError when the shapes do not fit the queue.
    """
    num_rows, dim = queue.embeddings.shape
    if embeddings.ndim != 2 or embeddings.shape[1] != dim or ids.shape != embeddings.shape[:1]:
        shapes = f"{embeddings.shape} and {ids.shape}"
        raise ValueError(f"a queue of width {dim} takes embeddings [B, {dim}] and ids [B], got {shapes}")
    rows = unit(jax.lax.stop_gradient(embeddings)).astype(queue.embeddings.dtype)
    ids = ids.astype(queue.ids.dtype)
    num = rows.shape[0]
    if num >= num_rows:
        full, first = jnp.full_like(queue.size, num_rows), jnp.zeros_like(queue.cursor)
        return QueueState(rows[num - num_rows :], ids[num - num_rows :], full, first)
    places = (queue.cursor + jnp.arange(num, dtype=jnp.int32)) % num_rows
    return QueueState(
        embeddings=queue.embeddings.at[places].set(rows),
        ids=queue.ids.at[places].set(ids),
        size=jnp.minimum(queue.size + num, num_rows),
        cursor=(queue.cursor + num) % num_rows,
    )


def temperature(log_tau: Array, *, low: float, high: float) -> Array:
    """tau = exp(log_tau) clamped to [low, high], with a gradient that can leave the clamp. [] -> [].

    A clip has no gradient outside its bounds, so one overshoot (momentum is enough) would fix tau at that bound for
    the rest of training, whatever the loss wants. Here the gradient outside is tau dL/dtau, tau being the bound that
    the loss saw, where a descent step along it moves log_tau back towards the bounds, and 0 where it would move
    further out. Inside, and at a bound, it is the gradient of exp.

    Only reverse-mode differentiation is defined: the rule needs the sign of dL/dtau.
    Raises ValueError unless 0 < low <= high.
    """
    if not 0 < low <= high:
        raise ValueError(f"the bounds of the temperature must satisfy 0 < low <= high, got low={low}, high={high}")
    return _clamped_exp(wide(log_tau), float(low), float(high))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _clamped_exp(log_tau, low, high):
    return jnp.clip(jnp.exp(log_tau), low, high)


def _clamped_exp_fwd(log_tau, low, high):
    tau = jnp.exp(log_tau)
    return jnp.clip(tau, low, high), tau


def _clamped_exp_bwd(low, high, tau, cotangent):
    outwards = ((tau > high) & (cotangent < 0)) | ((tau < low) & (cotangent > 0))
    return (jnp.where(outwards, 0.0, cotangent * jnp.clip(tau, low, high)),)


_clamped_exp.defvjp(_clamped_exp_fwd, _clamped_exp_bwd)


def infonce(
    anchors: Array, positives: Array, ids: Array, queue: QueueState | None, *, tau: Array, symmetric: bool = False
) -> tuple[Array, dict[str, Array]]:
    """Cross-entropy of telling each anchor's positive from the batch and the queue. [B, D] x2, ids [B] -> [B].

    anchors and positives must be unit rows, as `jepa.losses.prediction.unit` makes them: nothing is normalised here.
    ids say what each positive shows. Candidates are masked where they have the row's own id, and queue rows where they
    are not filled. Gradients flow into anchors, positives and tau. Computed in float32 (float64 stays float64).
    symmetric averages with the reverse direction, positives as anchors of the anchors in the batch; the queue holds
    only targets, so the reverse has none.

    Returns the loss and metrics, float32 [], without gradient: means over rows and, if symmetric, over directions.
    - `chance`, `gain`: log number of candidates, ln(B + filled) if nothing is masked; chance - loss, in nats.
    - `in_batch`, `in_batch_chance`, `in_batch_gain`, `in_batch_accuracy`: loss, chance and gain without the queue, and
      how often the positive is the best of the batch (it shares a tie, so that collapse scores 1/B).
    - `queue_share`: 1 - in_batch_gain / gain, or 0 without a gain. Stale queue rows are easy negatives: an older
      encoder wrote them, so they can be told from any present target without looking at what it shows. The loss then
      falls below chance while nothing is matched. A share near 1 says that this is all the gain there is; above 1,
      that the batch alone is matched worse than by guessing. It means little while the gain is near 0.
    - `masked`: share of the other rows and filled queue rows masked for showing the row's own target.
    - `queue_filled`: filled rows of the queue. `tau`: the temperature.
    - `tau_gradient`: d mean(loss) / d log tau, whatever clamp tau came through. Negative: the loss wants tau to grow.

    Source: van den Oord et al., arXiv:1807.03748, equation 4; the queue, He et al., arXiv:1911.05722.
    Raises ValueError when shapes disagree or tau is not one number.
    """
    _check(anchors, positives, ids, queue, tau)
    anchors, positives = wide(anchors), wide(positives)
    num = anchors.shape[0]
    similarity = matmul(anchors, positives.T)  # [B, B], the positives on its diagonal
    tau = jnp.asarray(tau, similarity.dtype)
    positive = jnp.diagonal(similarity)
    different = ids[:, None] != ids[None, :]  # False on the diagonal: the positive is no negative
    in_batch = _negatives(similarity, positive, different, tau)

    filled = jnp.zeros((), jnp.int32) if queue is None else queue.size
    negatives, real = in_batch, different
    if queue is not None:
        stale, usable = _queue_negatives(anchors, positive, ids, queue, tau)
        negatives = jnp.concatenate([negatives, stale], axis=1)  # [B, B + K]
        real = jnp.concatenate([real, usable], axis=1)
    rows = _direction(negatives, real, num)
    if symmetric:
        reverse = _direction(_negatives(similarity.T, positive, different, tau), different, num)
        rows = jax.tree.map(lambda forward, backward: 0.5 * (forward + backward), rows, reverse)

    means = {name: jnp.mean(x) for name, x in rows.items()}
    gain = means["chance"] - means.pop("loss")
    in_batch_gain = means["in_batch_chance"] - means["in_batch"]
    others = jnp.maximum(num - 1 + filled, 1)
    metrics = means | {
        "gain": gain,
        "in_batch_gain": in_batch_gain,
        "queue_share": jnp.where(gain > 0, 1.0 - in_batch_gain / jnp.where(gain > 0, gain, 1.0), 0.0),
        "masked": jnp.mean((num - 1 + filled - jnp.sum(real, axis=1)) / others),
        "queue_filled": filled,
        "tau": tau,
    }
    return rows["loss"], {name: jax.lax.stop_gradient(x).astype(jnp.float32) for name, x in metrics.items()}


def infonce_candidates(
    anchors: Array, positives: Array, negatives: Array, real: Array, *, tau: Array
) -> tuple[Array, Array, Array]:
    """InfoNCE over a list of negatives for each row. [B, D] x2, [B, K, D], bool [B, K] -> loss, chance, hit, each [B].

    All rows must be unit, as `jepa.losses.prediction.unit` makes them. real is True where a negative exists; what the
    others hold counts for nothing. chance is ln(1 + number of real negatives). hit is 1 where the positive is the most
    similar candidate, 1 / (1 + t) where it ties with t negatives for that, and 0 otherwise: its mean is the accuracy.
    No gradient is stopped; hit has none. A row without negatives has loss 0, chance 0 and hit 1.
    Raises ValueError when shapes disagree.
    """
    num, dim = anchors.shape
    if positives.shape != (num, dim) or negatives.shape[::2] != (num, dim) or real.shape != negatives.shape[:2]:
        shapes = f"{anchors.shape}, {positives.shape}, {negatives.shape} and {real.shape}"
        raise ValueError(f"candidates need anchors, positives [B, D], negatives [B, K, D], real [B, K], got {shapes}")
    candidates = jnp.concatenate([positives[:, None], jnp.where(real[..., None], negatives, 0)], axis=1)
    # One product for all [B, 1 + K], so that a negative equal to the positive ties with it to the last bit.
    similarity = matmul(wide(candidates), wide(anchors)[..., None])[..., 0]
    relative = _negatives(similarity[:, 1:], similarity[:, 0], real, jnp.asarray(tau, similarity.dtype))
    return _cross_entropy(relative), _chance(real, relative.dtype), _hit(relative)


def _check(anchors, positives, ids, queue, tau):
    if anchors.ndim != 2 or positives.shape != anchors.shape or ids.shape != anchors.shape[:1]:
        shapes = f"{anchors.shape}, {positives.shape} and {ids.shape}"
        raise ValueError(f"infonce takes anchors and positives of one shape [B, D] and ids [B], got {shapes}")
    if queue is not None and queue.embeddings.shape[1] != anchors.shape[1]:
        raise ValueError(f"the queue must be as wide as the anchors, {anchors.shape[1]}, got {queue.embeddings.shape}")
    if jnp.ndim(tau) != 0:
        raise ValueError(f"tau must be one number for all rows, got an array of shape {jnp.shape(tau)}")


def _queue_negatives(anchors, positive, ids, queue, tau):
    """Logits of the queue rows less the positive's [B, K], and where they are negatives, bool [B, K]."""
    filled = jnp.arange(queue.ids.shape[0]) < queue.size
    stored = jnp.where(filled[:, None], queue.embeddings, 0).astype(anchors.dtype)  # 0 x NaN would be NaN in gradients
    usable = filled[None, :] & (ids[:, None] != queue.ids[None, :])
    return _negatives(matmul(anchors, stored.T), positive, usable, tau), usable


def _negatives(similarity, positive, real, tau):
    """Logits [B, C] less the positive's [B], MASKED where not real."""
    return jnp.where(real, (similarity - positive[:, None]) / tau, MASKED)


def _direction(negatives, real, num_in_batch):
    """Everything known of each row [B], from its negatives [B, C] of which the first are those in the batch."""
    loss = _cross_entropy(negatives)
    in_batch, in_batch_real = negatives[:, :num_in_batch], real[:, :num_in_batch]
    return {
        "loss": loss,
        "chance": _chance(real, loss.dtype),
        "in_batch": _cross_entropy(in_batch),
        "in_batch_chance": _chance(in_batch_real, loss.dtype),
        "in_batch_accuracy": _hit(in_batch),
        # positive logit - sum_j p_j logit_j over all candidates; p_j = exp(negative_j - loss), the positive gives 0
        "tau_gradient": -jnp.sum(jnp.exp(negatives - loss[:, None]) * negatives, axis=1),
    }


def _cross_entropy(negatives):
    return jax.nn.softplus(jax.nn.logsumexp(negatives, axis=1))


def _chance(real, dtype):
    return jnp.log1p(jnp.sum(real, axis=1).astype(dtype))


def _hit(negatives):
    ties = jnp.sum(negatives == 0, axis=1).astype(negatives.dtype)
    return jnp.where(jnp.any(negatives > 0, axis=1), 0.0, 1.0 / (1.0 + ties))

"""A context over time, of which some frames may be absent: aggregation [B, T, D] -> [B, D], and what is left to say.

A context shorter than its window has absent frames before its own, and masking takes frames out; the last frame is
always there. Positions count from the last frame, so that frames put before a context shift nothing.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jepa.modules import NEGATIVE, Block, masked_mean
from jepa.types import Array, Batch, Observation

KINDS = ("mean", "last", "attention", "recurrent", "transformer")


def with_target(batch: Batch) -> Observation:
    """The frames of the context and the target after them as one sequence, leaves [B, T + 1, ...]."""
    return jax.tree.map(lambda c, t: jnp.concatenate([c, t[:, None]], axis=1), batch.context, batch.target)


class ContextAggregator(nn.Module):
    """One of five aggregations of z_1..z_T, those of frames that are `present` (bool [B, T]).

    `mean` alone does not know the order of its frames.

    mean         the average
    last         z_T
    attention    a softmax over time of a content score plus a learned score of the position
    recurrent    the last state of a GRU (Cho et al., arXiv:1406.1078)
    transformer  the last token of a block over z_t plus a learned position
    """

    kind: str
    num_heads: int = 4

    @nn.compact
    def __call__(self, z: Array, present: Array) -> Array:
        num_steps, dim = z.shape[-2:]
        if self.kind == "mean":
            return masked_mean(z, present)
        if self.kind == "last":
            return z[..., -1, :]
        if self.kind == "attention":
            position = positions(self, "position", (num_steps,))
            score = nn.Dense(1, use_bias=False, name="score")(z)[..., 0]  # [B, T]
            score = jnp.where(present, score + jnp.broadcast_to(position, score.shape), NEGATIVE)
            return jnp.sum(jax.nn.softmax(score, axis=-1)[..., None] * z, axis=-2)
        if self.kind == "recurrent":
            # Absent frames come last, after the state that is read.
            order = jnp.argsort(~present, axis=-1, stable=True)
            states = nn.RNN(nn.GRUCell(dim))(jnp.take_along_axis(z, order[..., None], axis=-2))
            last = jnp.sum(present, axis=-1, keepdims=True) - 1
            return jnp.take_along_axis(states, last[..., None], axis=-2)[..., 0, :]
        if self.kind == "transformer":
            position = positions(self, "position", (num_steps, dim))
            return Block(self.num_heads)(z + jnp.broadcast_to(position, z.shape), present)[..., -1, :]
        raise ValueError(f"objective.context is {self.kind!r}; it must be one of {list(KINDS)}")


def positions(module: nn.Module, name: str, shape: tuple[int, ...]) -> Array:
    """A learned parameter of each of the last T steps before what is predicted, [T, ...] = `shape`.

    A module that was initialised with more steps gives those of its last T. Raises ValueError where it has fewer.
    """
    num_steps, *rest = shape
    known = module.get_variable("params", name).shape[0] if module.has_variable("params", name) else num_steps
    if num_steps > known:
        raise ValueError(f"a context of {num_steps} frames is longer than the {known} that the predictor was made for")
    learned = module.param(name, nn.initializers.normal(1.0), (known, *rest))
    return learned[known - num_steps :]


def fill_absent(z: Array, present: Array) -> Array:
    """z [B, T, D] with the rows of absent frames replaced by those of frames of the same time step, in turn.

    For what takes the B rows of a step as a sample: none of the univariate tests but one knows of masks, nor do the
    diagnostics, and a row that repeats another changes neither the mean, the scale nor the rank that they see by more
    than the draw of a smaller batch would. present bool [B, T]. A time step that no row has repeats the last one.
    """
    order = jnp.argsort(~present, axis=0, stable=True)  # [B, T]: the rows that are there, then the others
    num = jnp.sum(present, axis=0, keepdims=True)
    turn = (jnp.cumsum(~present, axis=0) - 1) % jnp.maximum(num, 1)  # of every absent row among those that are there
    own = jnp.broadcast_to(jnp.arange(len(z))[:, None], present.shape)
    rows = jnp.where(present, own, jnp.take_along_axis(order, turn, axis=0))
    filled = jnp.take_along_axis(z, rows[..., None], axis=0)
    return jnp.where((num > 0)[..., None], filled, z[:, -1:])

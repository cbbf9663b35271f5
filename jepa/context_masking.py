"""Masking of contexts as augmentation: objects and frames that are hidden, objects that are not quite as they were.

Everything acts on the context alone and stays within the schema of `jepa.tables`: what is hidden is 0 everywhere, as
what was never there. The target is as it was.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jepa import tables
from jepa.types import Array, Batch, Observation, PyTree

STEPS = ((-1, 0), (1, 0), (0, -1), (0, 1))  # where `disturb` shifts an object


def check(*, drop_objects: float, drop_frames: float, noise: float) -> None:
    """Raises ValueError naming the key of `config.data` that is no probability."""
    for name, share in (("drop_objects", drop_objects), ("drop_frames", drop_frames), ("noise", noise)):
        if not 0 <= share <= 1:
            raise ValueError(f"data.{name} is {share}; it is a probability, from 0 to 1")


def masked(
    gather: Callable[..., Batch], *, drop_objects: float, drop_frames: float, noise: float
) -> Callable[..., Batch]:
    """The `gather` of a `Source`, with contexts masked in training by a draw of their own: all else keeps its bits.

    It is for the training source: validation is gathered with `train` as well, and sees contexts whole, so that runs
    with and without masks compare.
    """
    probabilities = {"drop_objects": drop_objects, "drop_frames": drop_frames, "noise": noise}
    if not any(probabilities.values()):
        return gather

    def gather_masked(tables: PyTree, rows: PyTree, key: Array, train: bool) -> Batch:
        batch = gather(tables, rows, key, train)
        if not train:
            return batch
        return batch._replace(context=mask_context(batch.context, jax.random.fold_in(key, 1), **probabilities))

    return gather_masked


def mask_context(
    context: Observation, key: Array, *, drop_objects: float, drop_frames: float, noise: float
) -> Observation:
    """Contexts, leaves [B, T, ...], after `disturb`, `hide_objects` and `hide_frames`, each with its probability.

    One of probability 0 is not there at all: with all three the context comes back as it is.
    """
    key_noise, key_objects, key_frames = jax.random.split(key, 3)
    if noise:
        context = disturb(context, key_noise, noise)
    if drop_objects:
        context = hide_objects(context, key_objects, drop_objects)
    if drop_frames:
        context = hide_frames(context, key_frames, drop_frames)
    return context


def hide_objects(table: Observation, key: Array, probability: float) -> Observation:
    """Tables [..., N, ...] without each token but the grid's with `probability`, nor its row and column of `edges`.

    What other tokens say of it stays: the grid's counts of objects and cells, and how many an object touches.
    """
    hidden = jax.random.bernoulli(key, probability, table["mask"].shape).at[..., 0].set(False)
    columns = {"edges": jnp.where(hidden[..., None, :], 0, table["edges"])}
    by_token = {name: leaf for name, leaf in {**table, **columns}.items() if name not in ("size", "offset")}
    return {**table, **{name: _zero(leaf, hidden) for name, leaf in by_token.items()}}


def hide_frames(context: Observation, key: Array, probability: float) -> Observation:
    """Contexts [..., T, ...] in which each frame but the last is absent with `probability`.

    The last one, whose successor is asked for, always stays, so that no context is empty.
    """
    present = context["mask"].shape[:-1]
    hidden = jax.random.bernoulli(key, probability, present).at[..., -1].set(False)
    return {name: _zero(leaf, hidden) for name, leaf in context.items()}


def disturb(table: Observation, key: Array, probability: float) -> Observation:
    """Tables [..., N, ...] in which each object with `probability` is moved by a cell or has other colours.

    It moves up, down, left or right, and stays where it would leave the grid; or every colour c of it becomes c + s
    modulo 10 for one s of 1 to 9. The grid token and the relations are those of the objects as they were: a context
    that contradicts itself is what noise is.
    """
    key_which, key_kind, key_step, key_colour = jax.random.split(key, 4)
    near, extent = jnp.split(table["box"].astype(jnp.int32), 2, axis=-1)
    objects = table["mask"].at[..., 0].set(False).at[..., tables.OVERFLOW].set(False)
    chosen = jax.random.bernoulli(key_which, probability, objects.shape) & objects
    moves = jax.random.bernoulli(key_kind, 0.5, chosen.shape)

    size = table["size"].astype(jnp.int32)[..., None, :]
    step = jnp.array(STEPS)[jax.random.randint(key_step, chosen.shape, 0, len(STEPS))]  # [..., N, 2]
    inside = jnp.all((near + step >= 0) & (near + step + extent <= size), axis=-1)
    moved = chosen & moves & inside
    step = jnp.where(moved[..., None], step, 0)
    near = near + step
    touches = jnp.any((near == 0) | (near + extent == size), axis=-1)

    shift = jax.random.randint(key_colour, chosen.shape, 1, tables.NUM_COLOURS)
    shift = jnp.where(chosen & ~moves, shift, 0)
    before = jnp.arange(tables.NUM_COLOURS).reshape((1,) * chosen.ndim + (-1,)) - shift[..., None]
    histogram = jnp.take_along_axis(table["histogram"], before % tables.NUM_COLOURS, axis=-1)
    return {
        **table,
        "box": jnp.concatenate([near, extent], axis=-1),
        "moment": table["moment"].astype(jnp.int32) + table["shape"][..., :1].astype(jnp.int32) * step,
        "border": jnp.where(moved, touches, table["border"]),
        "histogram": histogram,
    }


def _zero(leaf: Array, where: Array) -> Array:
    """The leaf with 0 where `where`, whose axes lead its own."""
    where = where.reshape(where.shape + (1,) * (leaf.ndim - where.ndim))
    return jnp.where(where, jnp.zeros((), leaf.dtype), leaf)

"""Episodes of a world that is made here: what was shown at every step, and the actions in between.

An episode is a function of its number, drawn on the device when it is shown, so that nothing is stored and nothing
waited for. Held-out episodes have numbers of their own, and layouts: no clip of one is ever trained on.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jepa import two_rooms
from jepa.data import _batches
from jepa.registry import nearest
from jepa.types import Array, Batch, PyTree, Source

WORLDS = ("two_rooms",)
VERSION = 1  # of what a number means
HELD_OUT = 10_000  # episodes, numbered after those that are trained on


def build(
    *,
    seed: int,
    batch_size: int,
    cache_dir: str | Path,
    world: str = "two_rooms",
    length: int = 16,
    num_episodes: int = 100_000,
    crossing_share: float = 0.35,
) -> Source:
    """`num_episodes` of `length` steps each; `context` {"image": [B, length, 65, 65, 2]} are the frames but the last,
    `target` is the last, `actions` float32 [B, length, 2] what led from each to the next.

    crossing_share: of the episodes in two rooms, those that are laid through the door.
    """
    if world not in WORLDS:
        raise ValueError(f"data.world is {world!r}: {nearest(world, WORLDS)}")
    if length < 1 or num_episodes < 1:
        raise ValueError(f"data.length is {length} and data.num_episodes {num_episodes}; both must be at least 1")
    if not 0 <= crossing_share <= 1:
        raise ValueError(f"data.crossing_share is {crossing_share}; it is a share, from 0 to 1")
    options = (VERSION, world, length, num_episodes, crossing_share)
    gather = functools.partial(_gather, length, crossing_share)

    def source(first: int, num: int, order: _batches.Indices, validation: dict[str, Source]) -> Source:
        return Source(
            tables={"key": jax.random.key_data(jax.random.key(VERSION))},
            indices=lambda step, level=0: (first + order(step)).astype(np.int32),
            gather=gather,
            validation=validation,
            num_examples=num,
            ids=(),
            digest=hashlib.sha256(repr(options).encode()).hexdigest(),
            stats={"episodes": float(num)},
        )

    kept = source(num_episodes, HELD_OUT, _batches.stored(HELD_OUT, batch_size=batch_size), {})
    shuffled = _batches.shuffled(num_episodes, seed=seed, batch_size=batch_size)
    return source(0, num_episodes, shuffled, {"episodes": kept})


def _gather(length: int, crossing_share: float, tables: PyTree, rows: Array, key: Array, train: bool) -> Batch:
    """The episodes of these numbers; there is nothing to draw for the step."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.wrap_key_data(tables["key"]), rows)
    drawn = jax.vmap(lambda k: two_rooms.episode(k, length, crossing_share))(keys)
    layouts = jnp.broadcast_to(drawn.layout[:, None], drawn.positions.shape)
    frames = two_rooms.render(drawn.positions, layouts)
    return Batch(
        ids=rows,
        groups=rows,
        context={"image": frames[:, :-1]},
        target={"image": frames[:, -1]},
        actions=drawn.actions,
    )

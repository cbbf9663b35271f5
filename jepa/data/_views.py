"""Random symmetries of sequences of object tables, drawn inside the compiled step."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jepa import tables
from jepa.types import Array, Observation


def augment(
    sequence: Observation, extent: Array, key: Array, *, d4: bool, palette: bool, translation: bool
) -> Observation:
    """One random symmetry per sequence, the same for all its grids: another one for each would destroy the rule.

    sequence: leaves [..., T, ...]; extent int32 [..., 2]: height and width that the grids need together. Drawn are an
    element of D4, a permutation of the ten colours, and where the top-left of the grids lies in the canvas, each
    uniform over what keeps `extent` inside it; a symmetry that is off stays the identity.
    """
    key_d4, key_palette, key_offset = jax.random.split(key, 3)
    leading, length = sequence["size"].shape[:-2], sequence["size"].shape[-2]

    element = jax.random.randint(key_d4, leading, 0, 8 if d4 else 1)
    colours = jnp.broadcast_to(jnp.arange(tables.NUM_COLOURS), (*leading, tables.NUM_COLOURS))
    if palette:
        colours = jax.random.permutation(key_palette, colours, axis=-1, independent=True)
    transposed = (element & 4) > 0
    room = tables.CANVAS - jnp.where(transposed[..., None], extent[..., ::-1], extent)
    offset = jax.random.randint(key_offset, (*leading, 2), 0, room + 1 if translation else 1)

    def along_sequence(draw: Array) -> Array:  # [..., *] -> [..., T, *]
        axis = len(leading)
        return jnp.repeat(jnp.expand_dims(draw, axis), length, axis=axis)

    return tables.transform(sequence, *map(along_sequence, (element, colours, offset)))

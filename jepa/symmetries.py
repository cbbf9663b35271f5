"""Random symmetries of sequences of object tables, drawn inside the compiled step."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jepa import tables
from jepa.types import Array, Observation


class Symmetry(NamedTuple):
    """What `tables.transform` takes after a table: an element of D4, a palette, and how far the grid moves."""

    d4: Array  # int32 [...]
    palette: Array  # int32 [..., 10]
    offset: Array  # int32 [..., 2]


def draw(key: Array, extent: Array, *, d4: bool, palette: bool, translation: bool) -> Symmetry:
    """One random symmetry for each extent, int32 [..., 2]: the height and width that have to fit in the canvas.

    Drawn are an element of D4, a permutation of the ten colours, and where the top-left of the extent lies in the
    canvas, each uniform over what keeps the extent inside it; a part that is off stays the identity.
    """
    key_d4, key_palette, key_offset = jax.random.split(key, 3)
    leading = extent.shape[:-1]

    element = jax.random.randint(key_d4, leading, 0, 8 if d4 else 1)
    colours = jnp.broadcast_to(jnp.arange(tables.NUM_COLOURS), (*leading, tables.NUM_COLOURS))
    if palette:
        colours = jax.random.permutation(key_palette, colours, axis=-1, independent=True)
    transposed = (element & 4) > 0
    room = tables.CANVAS - jnp.where(transposed[..., None], extent[..., ::-1], extent)
    offset = jax.random.randint(key_offset, (*leading, 2), 0, room + 1 if translation else 1)
    return Symmetry(element, colours, offset)


def augment(
    sequence: Observation, extent: Array, key: Array, *, d4: bool, palette: bool, translation: bool
) -> Observation:
    """One random symmetry per sequence, the same for all its grids: another one for each would destroy the rule.

    sequence: leaves [..., T, ...]; extent int32 [..., 2]: height and width that the grids need together; the rest as
    `draw`. The offset drawn is added to that of the tables, which is 0 as they come from the tokenizer.
    """
    symmetry = draw(key, extent, d4=d4, palette=palette, translation=translation)
    axis, length = extent.ndim - 1, sequence["size"].shape[-2]

    def along_sequence(part: Array) -> Array:  # [..., *] -> [..., T, *]
        return jnp.repeat(jnp.expand_dims(part, axis), length, axis=axis)

    return tables.transform(sequence, *map(along_sequence, symmetry))

"""Embedding consistency: a grid and its image under a symmetry should have one embedding.

Colours are permuted, the grid is turned or mirrored and moved in the canvas, all exactly, on object tables.

Off by default on ARC, where the rules live in colours, positions and orientations. "Mirror" or "recolour" is the
difference between the embeddings of two grids that this loss would make equal: with z(gx) = z(x) for every g, the rule
x -> gx leaves no trace, and what the prediction needs is erased. (Invariance to the very thing a task asks about is
the known price of such losses: Xiao et al., arXiv:2008.05659.) To use the symmetry without that price, put a whole
sequence, demonstrations and target, under one draw (`jepa.symmetries.augment`): the rule is moved along with it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jepa import symmetries, tables
from jepa.losses.prediction import squared_error
from jepa.types import Array, Observation

STOP_GRADIENT = ("none", "original", "moved")


def moved(
    observation: Observation, key: Array, *, d4: bool = True, palette: bool = True, translation: bool = True
) -> Observation:
    """Each table under a random symmetry of its own. Leaves [..., *] -> [..., *], any leading axes, none included.

    With translation the grid, as it then lies, goes anywhere inside the 30 x 30 canvas, wherever it was. Without, its
    top-left cell stays where it is, and so a grid that would leave the canvas on its side is not transposed: its
    element of D4 is uniform over the four that keep its height. (At offset 0, where tables come from the tokenizer,
    every grid fits.) d4, palette and translation each turn off one part of the symmetry.
    """
    size, offset = (observation[name].astype(jnp.int32) for name in ("size", "offset"))
    symmetry = symmetries.draw(key, size, d4=d4, palette=palette, translation=translation)
    if translation:
        offset = jnp.zeros_like(offset)  # `transform` adds the place that was drawn
    else:
        fits = jnp.all(offset + size[..., ::-1] <= tables.CANVAS, axis=-1)
        symmetry = symmetry._replace(d4=jnp.where(fits, symmetry.d4, symmetry.d4 & 3))
    return tables.transform({**observation, "offset": offset}, *symmetry)


def invariance(z: Array, z_moved: Array, *, stop_gradient: str = "none") -> Array:
    """Squared distance per dimension, (1/D) |z - z_moved|^2, of embeddings of grids and of the moved grids.

    [..., D] x2 -> float32 [...], the mean over D. stop_gradient names the side that is held constant: "none", so that
    the gradient flows into both, "original" for z, or "moved" for z_moved.

    The constant embedding has no error at all: like every invariance this needs a term that forbids collapse.
    Raises ValueError when the shapes differ or stop_gradient has another value.
    """
    if stop_gradient not in STOP_GRADIENT:
        raise ValueError(f"stop_gradient must be one of {', '.join(STOP_GRADIENT)}, got {stop_gradient!r}")
    if z.shape != z_moved.shape:
        raise ValueError(f"z and z_moved must have one shape, got {z.shape} and {z_moved.shape}")
    if stop_gradient == "original":
        z = jax.lax.stop_gradient(z)
    if stop_gradient == "moved":
        z_moved = jax.lax.stop_gradient(z_moved)
    return squared_error(z_moved, z)

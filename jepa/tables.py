"""Object tables: the schema of an observation, the exact group actions on it, and the features a network reads.

An observation is a dict of integer arrays with any leading axes [...]. Token 0 is the grid, tokens 1 to 32 are
objects, token 33 stands for the objects that did not fit. Rows carry no order. Geometry is local to the grid, in
cells, so that symmetries of the square, palettes and translations act without rounding.

| key         | dtype, shape       | meaning                                                                        |
|-------------|--------------------|--------------------------------------------------------------------------------|
| `size`      | int32 [..., 2]     | height, width of the grid, 1 to 30                                             |
| `offset`    | int32 [..., 2]     | row, column of the grid's top-left cell in the 30 x 30 canvas                  |
| `mask`      | bool [..., N]      | tokens that exist                                                              |
| `histogram` | int32 [..., N, 10] | cells by colour: of the object, the whole grid, all dropped objects            |
| `box`       | int32 [..., N, 4]  | top, left, height, width; 0 for the overflow token                             |
| `moment`    | int32 [..., N, 2]  | sum of row indices, sum of column indices of the token's cells                 |
| `shape`     | int32 [..., N, 4]  | area, perimeter, holes, count: objects touched; objects found; objects dropped |
| `border`    | bool [..., N]      | touches the border of the grid                                                 |
| `symmetry`  | bool [..., N, 5]   | left-right, up-down, 180 degrees, main, anti-diagonal; objects only            |
| `bitmap`    | uint8 [..., N, 8]  | 8 x 8 samples of the object in its box, a byte a row, high bit leftmost        |
| `edges`     | uint8 [..., N, N]  | bits between two objects, see `EDGE_NAMES`                                     |

Absent tokens are 0 everywhere, and so is an absent frame, one that a sequence lacks: a table of zeros, without a token.
Narrower integers are accepted; results have the dtypes above.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jepa.types import Array, Observation

NUM_OBJECTS = 32
NUM_TOKENS = NUM_OBJECTS + 2
OVERFLOW = NUM_TOKENS - 1  # row of the token of the dropped objects; the grid token is row 0
NUM_COLOURS = 10
CANVAS = 30
BITMAP = 8
# An observation that shows a grid cell by cell is {"cells": int [..., S, S]} instead: colours, and what is no cell.
OUTSIDE = NUM_COLOURS
NUM_CELL_VALUES = NUM_COLOURS + 1

EDGE_NAMES = (  # bit b of `edges[i, j]`; "contains" means strictly inside on all four sides
    "contact",
    "same_colours",
    "same_shape",
    "contains",
    "contained",
    "row_aligned",
    "column_aligned",
)
ROW_ALIGNED, COLUMN_ALIGNED = (1 << EDGE_NAMES.index(name) for name in ("row_aligned", "column_aligned"))
NUM_EDGE_FEATURES = len(EDGE_NAMES)

FEATURE_NAMES = (
    *("log_area", "log_perimeter", "height", "width"),
    *("row", "column", "relative_row", "relative_column"),
    *("top", "left", "bottom", "right"),
    *("relative_top", "relative_left", "relative_bottom", "relative_right"),
    *("fill", "log_holes"),
    *("symmetric_left_right", "symmetric_up_down", "symmetric_180", "symmetric_main", "symmetric_anti"),
    *("border", "log_count"),
    *(f"colour_{colour}" for colour in range(NUM_COLOURS)),
    *(f"bitmap_{row}_{column}" for row in range(BITMAP) for column in range(BITMAP)),
)
NUM_FEATURES = len(FEATURE_NAMES)


def transform(table: Observation, d4: Array, palette: Array, offset: Array) -> dict[str, Array]:
    """The table of the transformed grid, exactly: transform(tokenise(G)) = tokenise(g G), rows in the same order.

    d4 int32 [...] in 0..7: transpose if d4 & 4, then turn upside down if d4 & 2, then mirror left-right if d4 & 1.
    palette int32 [..., 10]: a permutation, colour c becomes palette[c]. offset int32 [..., 2]: added to the table's.
    All three have the leading axes of the table and may be traced.
    """
    transposed, flipped, mirrored = (d4 & bit != 0 for bit in (4, 2, 1))
    flips = jnp.stack([flipped, mirrored], axis=-1)  # [..., 2]: rows, columns
    size = _swap_if(transposed, table["size"].astype(jnp.int32))
    offset = jnp.where(size > 0, offset.astype(jnp.int32), 0)  # an absent frame lies nowhere
    return {
        "size": size,
        "offset": table["offset"].astype(jnp.int32) + offset,
        "mask": table["mask"],
        "histogram": _recolour(table["histogram"].astype(jnp.int32), palette),
        "box": _transform_box(table["box"].astype(jnp.int32), transposed, flips, size),
        "moment": _transform_moment(table["moment"].astype(jnp.int32), table["shape"][..., 0], transposed, flips, size),
        "shape": table["shape"].astype(jnp.int32),
        "border": table["border"],
        "symmetry": _transform_symmetry(table["symmetry"], transposed, flipped != mirrored),
        "bitmap": _transform_bitmap(table["bitmap"], transposed, flipped, mirrored),
        "edges": _transform_edges(table["edges"], transposed),
    }


def features(table: Observation) -> Array:
    """What a network reads of each token: float32 [..., N, NUM_FEATURES] in the order of `FEATURE_NAMES`.

    Lengths and absolute positions are in units of the canvas; relative ones run from -1 to 1 over the grid and so
    change sign under a flip. A cell's position is its centre; a box is given by its outer edges. The overflow token
    has no box. Absent tokens are 0.
    """
    size = jnp.maximum(table["size"].astype(jnp.float32), 1.0)[..., None, :]  # [..., 1, 2]; an absent frame has none
    offset = table["offset"].astype(jnp.float32)[..., None, :]
    area, perimeter, holes, count = jnp.split(table["shape"].astype(jnp.float32), 4, axis=-1)
    near, extent = jnp.split(table["box"].astype(jnp.float32), 2, axis=-1)
    far = near + extent
    present = table["mask"][..., None]
    boxed = extent[..., :1] > 0
    centre = table["moment"].astype(jnp.float32) / jnp.maximum(area, 1.0) + 0.5
    columns = [
        jnp.log(jnp.maximum(area, 1.0)),
        jnp.log(jnp.maximum(perimeter, 1.0)),
        extent / CANVAS,
        (centre + offset) / CANVAS,
        2.0 * centre / size - 1.0,
        jnp.where(boxed, jnp.concatenate([near + offset, far + offset], axis=-1) / CANVAS, 0.0),
        jnp.where(boxed, jnp.concatenate([2.0 * near / size - 1.0, 2.0 * far / size - 1.0], axis=-1), 0.0),
        area / jnp.maximum(extent[..., :1] * extent[..., 1:], 1.0) * boxed,
        jnp.log1p(holes),
        table["symmetry"].astype(jnp.float32),
        table["border"].astype(jnp.float32)[..., None],
        jnp.log1p(count),
        table["histogram"].astype(jnp.float32) / jnp.maximum(area, 1.0),
        _bits(table["bitmap"]).astype(jnp.float32).reshape(*table["bitmap"].shape[:-1], BITMAP * BITMAP),
    ]
    return jnp.where(present, jnp.concatenate(columns, axis=-1), 0.0)


def edge_features(table: Observation) -> Array:
    """How every pair of objects relates: float32 [..., N, N, NUM_EDGE_FEATURES], each 0 or 1, see `EDGE_NAMES`."""
    edges = table["edges"].astype(jnp.int32)
    return jnp.stack([(edges >> bit) & 1 for bit in range(NUM_EDGE_FEATURES)], axis=-1).astype(jnp.float32)


def contacts(table: Observation) -> Array:
    """Which objects touch, bool [..., N, N]."""
    return (table["edges"] & (1 << EDGE_NAMES.index("contact"))) > 0


def grid_features(table: Observation) -> Array:
    """What is known of a grid without objects: its share of each colour, its height and width over 30; [..., 12]."""
    size = table["size"].astype(jnp.float32)
    cells = jnp.maximum(size[..., :1] * size[..., 1:], 1.0)
    return jnp.concatenate([table["histogram"][..., 0, :].astype(jnp.float32) / cells, size / CANVAS], axis=-1)


def _swap_if(transposed: Array, pair: Array) -> Array:
    """Exchanges the two entries of the last axis where `transposed`, whose axes lead those of `pair`."""
    return jnp.where(_lead(transposed, pair), pair[..., ::-1], pair)


def _lead(condition: Array, x: Array) -> Array:
    """`condition` with trailing axes of length 1, to select among `x`."""
    return condition.reshape(condition.shape + (1,) * (x.ndim - condition.ndim))


def _recolour(histogram: Array, palette: Array) -> Array:
    new_colour = jax.lax.broadcasted_iota(palette.dtype, (*palette.shape, NUM_COLOURS), palette.ndim - 1)
    old_colour = jnp.argmax(palette[..., None, :] == new_colour, axis=-1)  # [..., 10]: the inverse of the palette
    return jnp.take_along_axis(histogram, old_colour[..., None, :], axis=-1)


def _transform_box(box: Array, transposed: Array, flips: Array, size: Array) -> Array:
    near, extent = _swap_if(transposed, box[..., :2]), _swap_if(transposed, box[..., 2:])
    opposite = jnp.where(extent > 0, size[..., None, :] - near - extent, 0)  # a missing box stays 0
    return jnp.concatenate([jnp.where(flips[..., None, :], opposite, near), extent], axis=-1)


def _transform_moment(moment: Array, area: Array, transposed: Array, flips: Array, size: Array) -> Array:
    moment = _swap_if(transposed, moment)
    opposite = area.astype(jnp.int32)[..., None] * (size[..., None, :] - 1) - moment
    return jnp.where(flips[..., None, :], opposite, moment)


def _transform_symmetry(symmetry: Array, transposed: Array, one_flip: Array) -> Array:
    """Conjugation: transposing exchanges the two mirrors, a single flip exchanges the two diagonals."""
    mirrors = _swap_if(transposed, symmetry[..., :2])
    diagonals = _swap_if(one_flip, symmetry[..., 3:])
    return jnp.concatenate([mirrors, symmetry[..., 2:3], diagonals], axis=-1)


def _bits(bitmap: Array) -> Array:
    """[..., 8] bytes -> [..., 8, 8] of 0 and 1, column 0 from the highest bit."""
    return jnp.unpackbits(jnp.asarray(bitmap, jnp.uint8), axis=-1).reshape(*bitmap.shape, BITMAP)


def _transform_bitmap(bitmap: Array, transposed: Array, flipped: Array, mirrored: Array) -> Array:
    bits = _bits(bitmap)  # [..., N, 8, 8]
    bits = jnp.where(_lead(transposed, bits), bits.swapaxes(-1, -2), bits)
    bits = jnp.where(_lead(flipped, bits), bits[..., ::-1, :], bits)
    bits = jnp.where(_lead(mirrored, bits), bits[..., ::-1], bits)
    return jnp.packbits(bits, axis=-1)[..., 0]


def _transform_edges(edges: Array, transposed: Array) -> Array:
    aligned = ROW_ALIGNED | COLUMN_ALIGNED
    exchanged = (edges & ~jnp.uint8(aligned)) | ((edges & ROW_ALIGNED) << 1) | ((edges & COLUMN_ALIGNED) >> 1)
    return jnp.where(_lead(transposed, edges), exchanged, edges)

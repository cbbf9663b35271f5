"""Object tables as bytes: only the tokens that exist, and of them only what does not follow from the rest.

The record of a grid with n tokens, c colours of tokens in all and m objects, little-endian:

| bytes          | meaning                                                                                        |
|----------------|------------------------------------------------------------------------------------------------|
| 2              | height, width                                                                                  |
| 5              | `mask`, a bit a token                                                                          |
| 25 n           | by token: which colours it has, `shape` without the area, `moment`, `box`, flags, `bitmap`     |
| 2 c            | by token and colour: cells                                                                     |
| m (m - 1) / 2  | `edges` of objects i < j, row by row                                                           |

The area is the sum of the cells; edges the other way round say "contained" for "contains"; the offset is 0. A grid of
programs takes 160 bytes where its tables have 3000.
"""

from __future__ import annotations

import numpy as np

from jepa.tables import BITMAP, EDGE_NAMES, NUM_COLOURS, NUM_TOKENS, OVERFLOW

FORMAT = 1  # raise it whenever a reader of the old format would misread a record

_TOKEN = np.dtype(
    [
        ("colours", "<u2"),
        ("shape", "<u2", 3),
        ("moment", "<u2", 2),
        ("box", "u1", 4),
        ("flags", "u1"),  # bit 0 the border, bits 1 to 5 the symmetries
        ("bitmap", "u1", BITMAP),
    ]
)
_MASK_BYTES = -(-NUM_TOKENS // 8)
_HEADER = 2 + _MASK_BYTES
_COLOURS = (1 << np.arange(NUM_COLOURS)).astype(np.uint16)
_FLAGS = (1 << np.arange(6)).astype(np.uint8)
_CONTAINS, _CONTAINED = (EDGE_NAMES.index(name) for name in ("contains", "contained"))
_EDGES = np.arange(256, dtype=np.uint8)  # by the bits of (i, j), those of (j, i)
_TURNED = (
    (_EDGES & ~np.uint8(1 << _CONTAINS | 1 << _CONTAINED))
    | (_EDGES >> _CONTAINS & 1) << _CONTAINED
    | (_EDGES >> _CONTAINED & 1) << _CONTAINS
).astype(np.uint8)
_UPPER = np.triu(np.ones((OVERFLOW - 1, OVERFLOW - 1), bool), 1)


def empty(num_grids: int) -> dict[str, np.ndarray]:
    """Tables of no token at all, in the narrowest integers that hold counts of up to 30 x 30 cells."""
    rows = (num_grids, NUM_TOKENS)
    return {
        "size": np.zeros((num_grids, 2), np.int16),
        "offset": np.zeros((num_grids, 2), np.int16),
        "mask": np.zeros(rows, bool),
        "histogram": np.zeros((*rows, NUM_COLOURS), np.int16),
        "box": np.zeros((*rows, 4), np.int16),
        "moment": np.zeros((*rows, 2), np.int16),
        "shape": np.zeros((*rows, 4), np.int16),
        "border": np.zeros(rows, bool),
        "symmetry": np.zeros((*rows, 5), bool),
        "bitmap": np.zeros((*rows, BITMAP), np.uint8),
        "edges": np.zeros((*rows, NUM_TOKENS), np.uint8),
    }


def pack(tables: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The records of G grids one after the other, uint8 [bytes], and the length of each, int64 [G].

    Tables [G, ...] are as they come from the tokenizer, before any symmetry. Raises ValueError where they are not.
    """
    mask = tables["mask"]
    tokens = np.zeros(np.count_nonzero(mask), _TOKEN)
    counts = tables["histogram"][mask]
    tokens["colours"] = (counts > 0) @ _COLOURS
    for key in ("moment", "box", "bitmap"):
        tokens[key] = tables[key][mask]
    tokens["shape"] = tables["shape"][mask][:, 1:]
    flags = np.concatenate([tables["border"][mask][:, None], tables["symmetry"][mask]], axis=1)
    tokens["flags"] = flags @ _FLAGS
    header = np.concatenate([tables["size"].astype(np.uint8), np.packbits(mask, axis=1)], axis=1)
    grid, first, second = _pairs(mask)

    places, lengths = _places(mask, counts > 0, grid)
    starts = np.cumsum(lengths) - lengths
    records = np.zeros(int(lengths.sum()), np.uint8)
    records[starts[:, None] + np.arange(_HEADER)] = header
    for at, section in zip(
        places(starts), (tokens, counts[counts > 0].astype("<u2"), tables["edges"][grid, first, second]), strict=True
    ):
        width = section.dtype.itemsize
        records[at[:, None] + np.arange(width)] = section.view(np.uint8).reshape(-1, width)
    again = unpack(records, starts)
    wrong = [key for key, leaf in again.items() if not np.array_equal(leaf, tables[key])]
    if wrong:
        raise ValueError(
            f"tables {wrong} do not come from the tokenizer as they are; there is no record of such tables"
        )
    return records, lengths


def unpack(records: np.ndarray, starts: np.ndarray) -> dict[str, np.ndarray]:
    """The tables [G, ...] of the grids whose records begin at `starts`, int64 [G], of the bytes `records`."""
    tables = empty(len(starts))
    header = records[starts[:, None] + np.arange(_HEADER)]
    mask = np.unpackbits(header[:, 2:], axis=1, count=NUM_TOKENS).view(bool)
    tables["size"][:], tables["mask"][:] = header[:, :2], mask

    grid, token = np.nonzero(mask)
    at = np.repeat(starts + _HEADER, mask.sum(axis=1)) + _within(grid, len(starts)) * _TOKEN.itemsize
    tokens = records[at[:, None] + np.arange(_TOKEN.itemsize)].view(_TOKEN)[:, 0]
    coloured = (tokens["colours"][:, None] & _COLOURS) > 0
    pair_grid, first, second = _pairs(mask)
    places, _ = _places(mask, coloured, pair_grid)
    _, at_counts, at_edges = places(starts)

    counts = np.zeros(coloured.shape, np.int16)
    counts[coloured] = records[at_counts[:, None] + np.arange(2)].view("<u2")[:, 0]
    flags = (tokens["flags"][:, None] & _FLAGS) > 0
    tables["histogram"][grid, token] = counts
    tables["shape"][grid, token] = np.concatenate(
        [counts.sum(axis=1, dtype=np.int16)[:, None], tokens["shape"]], axis=1
    )
    tables["border"][grid, token], tables["symmetry"][grid, token] = flags[:, 0], flags[:, 1:]
    for key in ("moment", "box", "bitmap"):
        tables[key][grid, token] = tokens[key]
    edges = records[at_edges]
    tables["edges"][pair_grid, first, second] = edges
    tables["edges"][pair_grid, second, first] = _TURNED[edges]
    return tables


def _pairs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grid and tokens i < j of all pairs of objects, grid by grid; the grid token and the overflow have no edges."""
    objects = mask[:, 1:OVERFLOW]
    widest = int(np.flatnonzero(objects.any(axis=0)).max(initial=-1)) + 1
    objects = objects[:, :widest]
    together = objects[:, :, None] & objects[:, None, :] & _UPPER[None, :widest, :widest]
    place, second = np.divmod(np.flatnonzero(together), max(widest, 1))  # several times as fast as np.nonzero
    grid, first = np.divmod(place, max(widest, 1))
    return grid, first + 1, second + 1


def _places(mask: np.ndarray, coloured: np.ndarray, pair_grid: np.ndarray):
    """A function starts -> where each token, count and edge lies; and the lengths of the records, int64 [G]."""
    num_grids = len(mask)
    grid = np.nonzero(mask)[0]
    count_grid = np.repeat(grid, coloured.sum(axis=1))
    sections = [(grid, _TOKEN.itemsize), (count_grid, 2), (pair_grid, 1)]
    sizes = [np.bincount(of, minlength=num_grids) * width for of, width in sections]

    def places(starts: np.ndarray) -> list[np.ndarray]:
        found, begin = [], starts + _HEADER
        for (of, width), size in zip(sections, sizes, strict=True):
            found.append(begin[of] + _within(of, num_grids) * width)
            begin = begin + size
        return found

    return places, _HEADER + sum(sizes)


def _within(grid: np.ndarray, num_grids: int) -> np.ndarray:
    """The number of each entry among those of its grid; `grid` ascends."""
    counts = np.bincount(grid, minlength=num_grids)
    return np.arange(len(grid)) - np.repeat(np.cumsum(counts) - counts, counts)

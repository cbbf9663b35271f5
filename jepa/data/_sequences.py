"""Sequences of grids as examples: numbered rows of one object table, and the batch that is made of them.

What a step shows, before any augmentation, is a tree of arrays, "the rows of a step"; every sequence source gives this
one, whether its tables lie in memory, are drawn, or are read from disk:

| key         | dtype, shape             | meaning                                                                     |
|-------------|--------------------------|-----------------------------------------------------------------------------|
| `grids`     | object tables [B, T, ..] | the frames, the target last; a frame that is missing has no token at all    |
| `ids`       | int32 [B]                | content of the target grid                                                  |
| `groups`    | int32 [B]                | the task                                                                    |
| `extent`    | int [B, 2]               | the height and the width that the sequence needs in the canvas              |
| `negatives` | optional                 | `table` [B, K, ..], `ids` [B, K], `palettes` [B, K, 10]                     |
| `labels`    | optional, int32 [B]      | as in `Batch`                                                               |
| `actions`   | optional, [B, T, A]      | as in `Batch`                                                               |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jepa import symmetries
from jepa.data import _negatives, _objects
from jepa.types import Array, Batch, Observation, PyTree

# Held-out examples come in the same order in every run, so that runs of different seeds compare on the same ones.
VALIDATION_SEED = 0

Grid = np.ndarray | None  # uint8 [height, width]; None for a frame that is missing
Key = tuple[tuple[int, int], bytes, int]  # shape, content, background


class Examples(NamedTuple):
    """Sequences of T rows of an object table, task by task; the last row of a sequence is its target."""

    windows: np.ndarray  # int32 [W, T]: rows
    ids: np.ndarray  # int32 [W]: content of the target grid; equal grids have equal ids, in other tasks too
    groups: np.ndarray  # int32 [W]: index of the task
    extent: np.ndarray  # int32 [W, 2]: the height and the width that hold every grid of the sequence


# From grids to tables, on the host.


def number(
    tasks: Iterable[Iterable[tuple[Sequence[Grid], int]]], rows: dict[Key | None, int], contents: dict[tuple, int]
) -> Examples:
    """The examples of tasks, each an iterable of (grids, background); new grids are added to `rows` and `contents`."""
    windows, ids, groups, extent = [], [], [], []
    for group, sequences in enumerate(tasks):
        for grids, background in sequences:
            keys = [None if grid is None else (grid.shape, grid.tobytes(), background) for grid in grids]
            windows.append([rows.setdefault(key, len(rows)) for key in keys])
            ids.append(contents.setdefault(keys[-1][:2], len(contents)))
            groups.append(group)
            extent.append(np.max([key[0] for key in keys if key is not None], axis=0))
    return Examples(*(np.array(column, np.int32) for column in (windows, ids, groups, extent)))


def tokenise(rows: Mapping[Key | None, int], cache_dir: str | Path) -> Observation:
    """The object table of all rows, zero for the missing frame, in the narrowest integers that hold 30 x 30 counts."""
    present = [key for key in rows if key is not None]
    grids = [np.frombuffer(content, np.uint8).reshape(shape) for shape, content, _ in present]
    table = _objects.tokenise_cached(grids, [background for *_, background in present], cache_dir)
    table = {key: leaf if leaf.dtype.itemsize == 1 else leaf.astype(np.int16) for key, leaf in table.items()}
    if None not in rows:
        return table
    return {key: np.insert(leaf, rows[None], 0, axis=0) for key, leaf in table.items()}


def with_foreign_demonstrations(own: Examples) -> tuple[Examples, Examples]:
    """Analogies, and the same ones after the demonstrations of another task, drawn once and for all.

    Where the window has room for more than one, those of another task may be more or fewer. A borrowed grid keeps the
    background under which it was tokenised at home: a common one for the new context would
    change x_j and the target too, and the two figures would no longer differ in the demonstration alone. Both take the
    room in the canvas that either of them needs, so that one key translates them alike.
    """
    rng = np.random.default_rng(VALIDATION_SEED)
    counts = per_task(own)
    other = (own.groups + rng.integers(1, len(counts), size=len(own.groups))) % len(counts)
    lender = (np.cumsum(counts) - counts)[other] + rng.integers(counts[other])
    windows = np.concatenate([own.windows[lender, :-2], own.windows[:, -2:]], axis=1)
    extent = np.maximum(own.extent, own.extent[lender])
    return own._replace(extent=extent), own._replace(windows=windows, extent=extent)


def per_task(examples: Examples) -> np.ndarray:
    """int64 [tasks]: how many examples each task has."""
    return np.bincount(examples.groups)


def stats(examples: Examples, table: Observation) -> dict[str, float]:
    """Facts about examples that are worth logging once."""
    rows = np.unique(examples.windows)
    rows = rows[table["mask"][rows, 0]]
    context = examples.windows[:, :-1]
    frames = {"frames_mean": float(table["mask"][context, 0].sum(1).mean())} if context.shape[1] else {}
    return {
        "tasks": float(examples.groups.max() + 1),
        "examples": float(len(examples.ids)),
        "grids": float(len(rows)),
        "objects_mean": float(table["mask"][rows, 1:-1].sum(-1).mean()),
        "truncated_share": float(table["mask"][rows, -1].mean()),
        **frames,
    }


# From rows to a batch, inside the compiled step.


def look_up(tables: PyTree, indices: Array) -> dict[str, PyTree]:
    """The rows of a step of a source whose object tables `rows` and `Examples` lie in memory, of examples int32 [B]."""
    rows = {
        "grids": jax.tree.map(lambda leaf: leaf[tables["windows"][indices]], tables["rows"]),
        **{key: tables[key][indices] for key in ("ids", "groups", "extent")},
    }
    if "negatives" in tables:
        chosen = jax.tree.map(lambda leaf: leaf[indices], tables["negatives"])
        table = jax.tree.map(lambda leaf: leaf[chosen.rows], tables["rows"])
        rows["negatives"] = {"table": table, "ids": chosen.ids, "palettes": chosen.palettes}
    return rows


def to_batch(symmetry: Mapping[str, bool], rows: Mapping[str, PyTree], key: Array, train: bool) -> Batch:
    """Context and target of the rows of a step: one symmetry for each sequence and its negatives if `train`."""
    sequence, extent = rows["grids"], rows["extent"].astype(jnp.int32)
    if train:
        sequence = symmetries.augment(sequence, extent, key, **symmetry)
    batch = Batch(
        rows["ids"],
        rows["groups"],
        context=jax.tree.map(lambda leaf: leaf[:, :-1], sequence),
        target=jax.tree.map(lambda leaf: leaf[:, -1], sequence),
        **{key: rows[key] for key in ("labels", "actions") if key in rows},
    )
    if "negatives" not in rows:
        return batch
    # One key, one draw: this is the symmetry of the sequence once more.
    drawn = symmetries.draw(key, extent, **{part: on and train for part, on in symmetry.items()})
    negatives = rows["negatives"]
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), negatives["table"])
    places = jnp.arange(negatives["ids"].size).reshape(negatives["ids"].shape)
    chosen = _negatives.Negatives(places, negatives["ids"], negatives["palettes"])
    return batch._replace(negatives=_negatives.show(flat, chosen, drawn), negative_ids=negatives["ids"])


def gather_rows(symmetry: Mapping[str, bool], tables: PyTree, rows: PyTree, key: Array, train: bool) -> Batch:
    """`gather` of a source whose rows are the grids themselves: there are no tables."""
    return to_batch(symmetry, rows, key, train)


def gather_examples(symmetry: Mapping[str, bool], tables: PyTree, indices: Array, key: Array, train: bool) -> Batch:
    """`gather` of a source whose tables lie in memory."""
    return to_batch(symmetry, look_up(tables, indices), key, train)


def to_views(
    symmetry: Mapping[str, bool], num_views: int, rows: Mapping[str, PyTree], key: Array, train: bool
) -> Batch:
    """`num_views` V views of the rows of a step, single grids, each under a symmetry of its own if `train`."""

    def repeated(leaf: Array) -> Array:  # [B, ...] -> [B, V, ...]
        return jnp.repeat(leaf[:, None], num_views, axis=1)

    sequence = jax.tree.map(repeated, rows["grids"])  # [B, V, 1, ...]
    if train:
        sequence = symmetries.augment(sequence, repeated(rows["extent"].astype(jnp.int32)), key, **symmetry)
    return Batch(rows["ids"], rows["groups"], views=jax.tree.map(lambda leaf: leaf[:, :, 0], sequence))

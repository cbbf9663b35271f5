"""ARC as a source: analogies such as (x_i, y_i, x_j) -> y_j of a task, or single grids seen several times.

The grids are tokenised once (`jepa.data._objects`) and lie on the device as object tables; the compiled step gathers
the rows of a batch and draws the symmetries, under which tables transform exactly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jepa import context_masking, symmetries
from jepa.data import _analogies, _batches, _collections, _negatives, _objects
from jepa.data._collections import Task, recognised
from jepa.registry import nearest
from jepa.types import Array, Batch, Observation, PyTree, Source

STREAMS = ("analogy", "views")
# Held-out examples come in the same order in every run, so that runs of different seeds compare on the same ones.
VALIDATION_SEED = 0
ABSENT = -1  # the row of a frame that a sequence lacks: the last one of a table, and zero

# What was there before it could be chosen leaves the digest as it was.
USUAL = {"context_window": 3, "drop_objects": 0.0, "drop_frames": 0.0, "noise": 0.0}

Sequences = Callable[[Task], Iterator[tuple[list[np.ndarray | None], int]]]


class Examples(NamedTuple):
    """Sequences of T rows of an object table, task by task; the last row of a sequence is its target."""

    windows: np.ndarray  # int32 [W, T]: rows, ABSENT for a frame that the sequence lacks
    ids: np.ndarray  # int32 [W]: content of the target grid; equal grids have equal ids, in other tasks too
    groups: np.ndarray  # int32 [W]: index of the task
    extent: np.ndarray  # int32 [W, 2]: the height and the width that hold every grid of the sequence


def build(
    *,
    seed: int,
    batch_size: int,
    cache_dir: str | Path,
    collection: str = "arc2-clean",
    folder: str | Path | None = None,
    validation_share: float = 0.1,
    d4: bool = True,
    palette: bool = True,
    translation: bool = True,
    stream: str = "analogy",
    num_views: int = 4,
    num_negatives: int = 0,
    context_window: int = 3,
    target_offset: int = 1,
    drop_objects: float = 0.0,
    drop_frames: float = 0.0,
    noise: float = 0.0,
) -> Source:
    """Tasks of a collection of `jepa.data._collections`, or of the ARC JSON files of `folder` instead.

    stream 'analogy': every ordered choice of two pairs of a task, as `context` [B, T, ...] and `target` [B, ...] under
    one symmetry. The context is the last T = `context_window` grids of further demonstrations, (x_i, y_i) and x_j
    (`jepa.data._analogies`); where a task has too few pairs it begins with absent frames. The target comes next,
    `target_offset` 1. In training, and there alone, drop_objects, drop_frames and noise are the probabilities of
    `jepa.context_masking`. stream 'views': every grid, as `views` [B, num_views, ...], each under a symmetry of its
    own. d4, palette and translation turn parts of the symmetry off. A task of a single pair is no analogy and left out.

    A hash of the task id holds out `validation_share` of the tasks. `validation['arc']` enumerates their examples;
    for analogies `validation['arc_foreign_demo']` has the same rows in the same order, with the demonstrations of
    another held-out task, and one key draws the same symmetries for both; a window of 1 has none to exchange. With
    `num_negatives` K above 0 there are two more with the very batches of 'arc' and K wrong targets beside each:
    `validation['arc_same_task']` shows other outputs of the task, `validation['arc_palette_matched']` outputs of other
    held-out tasks in the colours and near the size of the target, each at the offset of the target
    (`jepa.data._negatives`).

    Raises ValueError for an unknown name, a size out of range, a bad file, or a share that leaves too few tasks.
    """
    masking = {"drop_objects": drop_objects, "drop_frames": drop_frames, "noise": noise}
    _check(batch_size, stream, num_views, num_negatives)
    _check_context(stream, context_window, target_offset, masking)
    tasks = _collections.load(collection) if folder is None else _collections.load_folder(folder)
    analogy = stream == "analogy"
    usable = [task for task in tasks if len(_pairs(task)) > 1 or not analogy]
    shown, held_out = _split(usable, validation_share)

    rows: dict[tuple, int] = {}  # (shape, content, background) -> row
    contents: dict[tuple, int] = {}  # (shape, content) -> id
    sequences = partial(_windows, context_window) if analogy else _single_grids
    training, validation = (_number(side, sequences, rows, contents) for side in (shown, held_out))
    controls = _with_foreign_demonstrations(validation) if analogy else {"arc": validation}
    negatives = _choose_negatives(controls["arc"], rows, num_negatives) if num_negatives else {}
    lacking = any((examples.windows == ABSENT).any() for examples in (training, *controls.values()))
    table = _tokenise(rows, cache_dir, absent=lacking)
    on_device = jax.tree.map(jnp.asarray, table)  # one copy; a source reaches the rows that its own windows name

    symmetry = {"d4": d4, "palette": palette, "translation": translation}
    gather = partial(_gather_analogies, symmetry) if analogy else partial(_gather_views, symmetry, num_views)
    chosen = {"context_window": context_window, **masking}
    unusual = [option for option in chosen.items() if option not in USUAL.items()]
    digest = _digest(tasks, (stream, num_views, validation_share, d4, palette, translation, *unusual))

    def source(examples: Examples, tasks: list[Task], indices: _batches.Indices, validation: dict) -> Source:
        return Source(
            tables={"rows": on_device, **jax.tree.map(jnp.asarray, examples._asdict())},
            indices=indices,
            gather=gather,
            validation=validation,
            num_examples=len(examples.ids),
            ids=tuple(dict.fromkeys([task.id for task in tasks] + ([] if folder is None else recognised(tasks)))),
            digest=digest,
            stats=_stats(examples, table),
        )

    in_order = _batches.enumerated(len(validation.ids), seed=VALIDATION_SEED, batch_size=batch_size)
    at_random = _batches.uniform_over_tasks(np.bincount(training.groups), seed=seed, batch_size=batch_size)
    sources = {name: source(examples, held_out, in_order, {}) for name, examples in controls.items()}
    sources |= {name: _with_negatives(sources["arc"], chosen) for name, chosen in negatives.items()}
    training_source = source(training, shown, at_random, sources)
    return training_source._replace(gather=context_masking.masked(gather, **masking))


def _check(batch_size: int, stream: str, num_views: int, num_negatives: int) -> None:
    for name, size in (("batch_size", batch_size), ("num_views", num_views)):
        if size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1")
    if stream not in STREAMS:
        raise ValueError(f"there is no stream {stream!r}: {nearest(stream, STREAMS)}")
    if num_negatives < 0:
        raise ValueError(f"num_negatives is {num_negatives}; it must be at least 0")
    if num_negatives and stream != "analogy":
        raise ValueError(f"num_negatives is {num_negatives}, but only stream 'analogy' has targets; it must be 0 here")


def _check_context(stream: str, context_window: int, target_offset: int, masking: Mapping[str, float]) -> None:
    _analogies.check(context_window, target_offset)
    context_masking.check(**masking)
    masked = [name for name, probability in masking.items() if probability]
    if masked and stream != "analogy":
        raise ValueError(f"data.{masked[0]} is not 0, but only stream 'analogy' has contexts; it must be 0 here")


# From tasks to examples.


def _pairs(task: Task) -> list[_collections.Pair]:
    return task.demos + task.tests


def _windows(context_window: int, task: Task) -> Iterator[tuple[list[np.ndarray | None], int]]:
    """A window for all i != j. The background is the context's: the target is unknown at test time."""
    for grids in _analogies.windows(_pairs(task), context_window, task.id):
        yield grids, _objects.background([grid for grid in grids[:-1] if grid is not None])


def _single_grids(task: Task) -> Iterator[tuple[list[np.ndarray], int]]:
    """Every distinct grid by itself, under the background of the whole task, of which a single grid says too little."""
    grids = [grid for pair in _pairs(task) for grid in pair]
    background = _objects.background(grids)
    for grid in {(grid.shape, grid.tobytes()): grid for grid in grids}.values():
        yield [grid], background


def _number(tasks: list[Task], sequences: Sequences, rows: dict[tuple, int], contents: dict[tuple, int]) -> Examples:
    """The examples of tasks; new (grid, background) pairs and new grids are added to `rows` and `contents`."""
    windows, ids, groups, extent = [], [], [], []
    for group, task in enumerate(tasks):
        for grids, background in sequences(task):
            present = [grid for grid in grids if grid is not None]
            keys = [(grid.shape, grid.tobytes()) for grid in present]
            numbers = [rows.setdefault((*key, background), len(rows)) for key in keys]
            windows.append([ABSENT] * (len(grids) - len(present)) + numbers)  # what is absent comes first
            ids.append(contents.setdefault(keys[-1], len(contents)))
            groups.append(group)
            extent.append(np.max([grid.shape for grid in present], axis=0))
    return Examples(*(np.array(column, np.int32) for column in (windows, ids, groups, extent)))


def _with_foreign_demonstrations(own: Examples) -> dict[str, Examples]:
    """Analogies, and the same ones after another task's demonstrations, drawn once and for all.

    Where the window has room for more than one, those of another task may be more or fewer. A borrowed grid keeps the
    background under which it was tokenised at home: a common one for the new context would change x_j and the target
    too, and the two figures would no longer differ in the demonstrations alone. Both take the room in the canvas that
    either of them needs, so that one key translates them alike.
    """
    if own.windows.shape[1] == 2:  # a context of x_j alone
        return {"arc": own}
    rng = np.random.default_rng(VALIDATION_SEED)
    counts = np.bincount(own.groups)
    other = (own.groups + rng.integers(1, len(counts), size=len(own.groups))) % len(counts)
    lender = (np.cumsum(counts) - counts)[other] + rng.integers(counts[other])
    windows = np.concatenate([own.windows[lender, :-2], own.windows[:, -2:]], axis=1)
    extent = np.maximum(own.extent, own.extent[lender])
    return {"arc": own._replace(extent=extent), "arc_foreign_demo": own._replace(windows=windows, extent=extent)}


def _choose_negatives(held_out: Examples, rows: dict[tuple, int], num: int) -> dict[str, _negatives.Negatives]:
    """The negatives of every held-out example, by the name of their source, drawn once and for all."""
    choose = {"arc_same_task": _negatives.same_task, "arc_palette_matched": _negatives.palette_matched}
    return {name: function(*held_out, rows, num=num, seed=VALIDATION_SEED) for name, function in choose.items()}


def _with_negatives(source: Source, negatives: _negatives.Negatives) -> Source:
    counts = _negatives.stats(negatives, np.asarray(source.tables["ids"]))
    on_device = jax.tree.map(jnp.asarray, negatives)
    return source._replace(tables=source.tables | {"negatives": on_device}, stats=source.stats | counts)


def _split(tasks: list[Task], validation_share: float) -> tuple[list[Task], list[Task]]:
    """Tasks to train on and tasks to validate on; two at least to validate on, to lend each other demonstrations."""
    training, validation = map(set, _collections.split([task.id for task in tasks], validation_share))
    if len(training) < 1 or len(validation) < 2:
        raise ValueError(
            f"validation_share {validation_share} of {len(tasks)} tasks leaves {len(training)} to train on and "
            f"{len(validation)} to validate on; at least 1 and 2 are needed: change the share or add tasks"
        )
    return [task for task in tasks if task.id in training], [task for task in tasks if task.id in validation]


def _tokenise(rows: dict[tuple, int], cache_dir: str | Path, *, absent: bool) -> Observation:
    """The object table of all rows, stored in the narrowest integers that hold counts of up to 30 x 30 cells.

    absent: it ends with the row ABSENT.
    """
    grids = [np.frombuffer(content, np.uint8).reshape(shape) for shape, content, _ in rows]
    backgrounds = [background for *_, background in rows]
    table = _objects.tokenise_cached(grids, backgrounds, cache_dir)
    if absent:
        table = {key: np.concatenate([leaf, np.zeros_like(leaf[:1])]) for key, leaf in table.items()}
    return {key: leaf if leaf.dtype.itemsize == 1 else leaf.astype(np.int16) for key, leaf in table.items()}


def _digest(tasks: list[Task], options: tuple) -> str:
    content = [
        (task.id, [[(grid.shape, grid.tobytes()) for pair in pairs for grid in pair] for pairs in task[1:]])
        for task in tasks
    ]
    return hashlib.sha256(repr((content, options)).encode()).hexdigest()


def _stats(examples: Examples, table: Observation) -> dict[str, float]:
    rows = np.unique(examples.windows[examples.windows != ABSENT])
    context = examples.windows[:, :-1]
    counts = {"frames_mean": float((context != ABSENT).sum(1).mean())} if context.shape[1] else {}
    return {
        "tasks": float(examples.groups.max() + 1),
        "examples": float(len(examples.ids)),
        "grids": float(len(rows)),
        "objects_mean": float(table["mask"][rows, 1:-1].sum(-1).mean()),
        "truncated_share": float(table["mask"][rows, -1].mean()),
        **counts,
    }


# From examples to a batch, inside the compiled step.


def _take(tables: PyTree, windows: Array) -> Observation:
    return jax.tree.map(lambda leaf: leaf[windows], tables["rows"])


def _gather_analogies(symmetry: Mapping[str, bool], tables: PyTree, indices: Array, key: Array, train: bool) -> Batch:
    """One symmetry for each of the B sequences and its negatives if `train`, else the grids as they are."""
    sequence, extent = _take(tables, tables["windows"][indices]), tables["extent"][indices]  # [B, T + 1, ...], [B, 2]
    if train:
        sequence = symmetries.augment(sequence, extent, key, **symmetry)
    context = jax.tree.map(lambda leaf: leaf[:, :-1], sequence)
    target = jax.tree.map(lambda leaf: leaf[:, -1], sequence)
    batch = Batch(tables["ids"][indices], tables["groups"][indices], context=context, target=target)
    if "negatives" not in tables:
        return batch
    negatives = jax.tree.map(lambda leaf: leaf[indices], tables["negatives"])
    # One key, one draw: this is the symmetry of the sequence once more.
    drawn = symmetries.draw(key, extent, **{part: on and train for part, on in symmetry.items()})
    return batch._replace(negatives=_negatives.show(tables["rows"], negatives, drawn), negative_ids=negatives.ids)


def _gather_views(
    symmetry: Mapping[str, bool], num_views: int, tables: PyTree, indices: Array, key: Array, train: bool
) -> Batch:
    """A symmetry for each of the V views of the B grids if `train`, else V times the grid as it is."""
    views = jnp.repeat(indices[:, None], num_views, axis=1)  # [B, V]
    sequence = _take(tables, tables["windows"][views])  # [B, V, 1, ...]
    if train:
        sequence = symmetries.augment(sequence, tables["extent"][views], key, **symmetry)
    views = jax.tree.map(lambda leaf: leaf[:, :, 0], sequence)
    return Batch(tables["ids"][indices], tables["groups"][indices], views=views)

"""ARC as a source: analogies such as (x_i, y_i, x_j) -> y_j of a task, or single grids seen several times.

The grids are tokenised once (`jepa.data._objects`) and lie on the device as object tables; the compiled step gathers
the rows of a batch and draws the symmetries, under which tables transform exactly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jepa import context_masking
from jepa.data import _analogies, _batches, _collections, _negatives, _objects, _sequences
from jepa.data._collections import Task, recognised
from jepa.data._sequences import VALIDATION_SEED, Examples
from jepa.registry import nearest
from jepa.types import Array, Batch, PyTree, Source

STREAMS = ("analogy", "views")
# What was there before it could be chosen leaves the digest as it was.
USUAL = {"context_window": 3, "drop_objects": 0.0, "drop_frames": 0.0, "noise": 0.0}


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

    rows: dict[_sequences.Key | None, int] = {}
    contents: dict[tuple, int] = {}  # (shape, content) -> id
    sequences = partial(_windows, context_window) if analogy else _single_grids
    training, validation = (_sequences.number(map(sequences, side), rows, contents) for side in (shown, held_out))
    controls = {"arc": validation}
    if analogy and context_window > 1:
        own, foreign = _sequences.with_foreign_demonstrations(validation)
        controls = {"arc": own, "arc_foreign_demo": foreign}
    negatives = _choose_negatives(controls["arc"], rows, num_negatives) if num_negatives else {}
    table = _sequences.tokenise(rows, cache_dir)
    on_device = jax.tree.map(jnp.asarray, table)  # one copy; a source reaches the rows that its own windows name

    symmetry = {"d4": d4, "palette": palette, "translation": translation}
    gather = partial(_sequences.gather_examples, symmetry) if analogy else partial(_gather_views, symmetry, num_views)
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
            stats=_sequences.stats(examples, table),
        )

    in_order = _batches.enumerated(len(validation.ids), seed=VALIDATION_SEED, batch_size=batch_size)
    at_random = _batches.uniform_over_tasks(_sequences.per_task(training), seed=seed, batch_size=batch_size)
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


def _digest(tasks: list[Task], options: tuple) -> str:
    content = [
        (task.id, [[(grid.shape, grid.tobytes()) for pair in pairs for grid in pair] for pairs in task[1:]])
        for task in tasks
    ]
    return hashlib.sha256(repr((content, options)).encode()).hexdigest()


# From examples to a batch, inside the compiled step.


def _gather_views(
    symmetry: Mapping[str, bool], num_views: int, tables: PyTree, indices: Array, key: Array, train: bool
) -> Batch:
    return _sequences.to_views(symmetry, num_views, _sequences.look_up(tables, indices), key, train)

"""Your own sequences of grids as a source: JSON Lines, plain or gzipped, and folders of ARC JSON.

What a file may hold stands at the top of `jepa/data/_manifest_files.py`.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jepa import context_masking
from jepa.data import _analogies, _batches, _collections, _manifest_files, _objects, _sequences
from jepa.data._manifest_files import Reading, Record
from jepa.data._sequences import VALIDATION_SEED, Examples, Grid
from jepa.types import Source

Task = list[Record]  # what has one name


def build(
    *,
    seed: int,
    batch_size: int,
    cache_dir: str | Path,
    paths: str | tuple[str, ...] | None = None,
    skip_malformed: bool = False,
    validation_share: float = 0.1,
    context_window: int = 3,
    target_offset: int = 1,
    max_demonstrations: int = 8,
    drop_objects: float = 0.0,
    drop_frames: float = 0.0,
    noise: float = 0.0,
    d4: bool = True,
    palette: bool = True,
    translation: bool = True,
) -> Source:
    """The sequences of `paths`: files, folders that are searched with their subfolders, or patterns such as a/*.jsonl.

    The context is always the last `context_window` T of the grids before the target, filled up on the left with frames
    that have no token where there are fewer. Frames give a window for every place they have room for, its target
    `target_offset` after the context. Pairs of one task or rule are joined into analogies, (x_i, y_i, x_j) and y_j: all
    n (n - 1) of them, or n times `max_demonstrations` where that is less; a pair by itself shows x and asks for y.

    A hash of the task holds out `validation_share` of the tasks. `validation['manifest']` enumerates their examples
    and, if all are analogies, `validation['manifest_foreign_demo']` the same ones after demonstrations of another
    task. d4, palette and translation turn parts of the symmetry off, one of which is drawn for each sequence. The
    background is that of the context. drop_objects, drop_frames, noise: probabilities of `jepa.context_masking`, in
    training alone.

    Raises ValueError, naming file, line and field, for what is malformed; with `skip_malformed` such lines are left
    out, counted in `stats`, and the first is printed. Also for a size out of range, and a share that leaves no task.
    """
    _check(batch_size, context_window, target_offset, max_demonstrations)
    masking = {"drop_objects": drop_objects, "drop_frames": drop_frames, "noise": noise}
    context_masking.check(**masking)
    tasks, reading = _read(paths or (), skip_malformed, target_offset)
    sequences = partial(_sequences_of, window=context_window, offset=target_offset, most=max_demonstrations)
    usable = [name for name, task in tasks.items() if next(sequences(task), None) is not None]
    shown, held_out = _collections.split(usable, validation_share)
    if not shown or not held_out:
        raise ValueError(
            f"validation_share {validation_share} of {len(usable)} tasks leaves {len(shown)} to train on and "
            f"{len(held_out)} to validate on; at least 1 and 1 are needed: change the share or add tasks"
        )
    rows: dict = {}
    contents: dict = {}
    training, validation = (
        _sequences.number((sequences(tasks[name]) for name in side), rows, contents) for side in (shown, held_out)
    )
    table = _sequences.tokenise(rows, cache_dir)
    on_device = jax.tree.map(jnp.asarray, table)  # one copy; a source reaches the rows that its own windows name

    options = (context_window, target_offset, max_demonstrations, validation_share, masking, d4, palette, translation)
    reading.digest.update(repr(options).encode())
    gather = partial(_sequences.gather_examples, {"d4": d4, "palette": palette, "translation": translation})

    def source(examples: Examples, names: list[str], indices: _batches.Indices, validation: Mapping) -> Source:
        return Source(
            tables={"rows": on_device, **jax.tree.map(jnp.asarray, examples._asdict())},
            indices=indices,
            gather=gather,
            validation=validation,
            num_examples=len(examples.ids),
            ids=tuple(dict.fromkeys([*names, *_public([tasks[name] for name in names])])),
            digest=reading.digest.hexdigest(),
            stats=_sequences.stats(examples, table) | {"malformed": float(len(reading.skipped))},
        )

    controls = {"manifest": validation}
    analogies = context_window > 1 and all(_is_analogy(tasks[name]) for name in held_out)
    if analogies and len(held_out) > 1:
        own, foreign = _sequences.with_foreign_demonstrations(validation)
        controls = {"manifest": own, "manifest_foreign_demo": foreign}
    in_order = _batches.enumerated(len(validation.ids), seed=VALIDATION_SEED, batch_size=batch_size)
    at_random = _batches.uniform_over_tasks(_sequences.per_task(training), seed=seed, batch_size=batch_size)
    sources = {name: source(examples, held_out, in_order, {}) for name, examples in controls.items()}
    own = source(training, shown, at_random, sources)
    return own._replace(gather=context_masking.masked(gather, **masking))


def _check(batch_size: int, context_window: int, target_offset: int, max_demonstrations: int) -> None:
    for name, size in (
        ("batch_size", batch_size),
        ("context_window", context_window),
        ("target_offset", target_offset),
        ("max_demonstrations", max_demonstrations),
    ):
        if size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1")
    if context_window > _analogies.LONGEST:
        raise ValueError(f"context_window is {context_window}; it must be from 1 to {_analogies.LONGEST}")


def _read(paths: str | tuple[str, ...], skip_malformed: bool, target_offset: int) -> tuple[dict[str, Task], Reading]:
    """The records of all files by the task that they name, and what else there is to say of the reading."""
    reading = Reading(hashlib.sha256(), [])
    tasks: dict[str, Task] = {}
    for record in _manifest_files.read(_manifest_files.files_of(paths), skip_malformed=skip_malformed, reading=reading):
        if record.kind != "frames" and target_offset > 1:
            raise ValueError(
                f"{record.where} has a single answer, but target_offset is {target_offset}; only lines of frames have "
                "a grid so far ahead"
            )
        tasks.setdefault(record.task, []).append(record)
    if reading.skipped:
        print(f"{len(reading.skipped)} malformed lines or files are left out, the first of them: {reading.skipped[0]}")
    return tasks, reading


# From records to sequences.


def _is_analogy(task: Task) -> bool:
    return len(task) > 1 and all(record.kind == "pair" for record in task)


def _sequences_of(task: Task, *, window: int, offset: int, most: int) -> Iterator[tuple[list[Grid], int]]:
    """Every sequence of a task, `window` context grids and the target, and its background."""
    pairs = [tuple(record.grids) for record in task if record.kind == "pair"]
    for context, target in _of_pairs(pairs, window, most, task[0].task):
        yield _framed(context, target, window)
    for record in task:
        if record.kind == "context":
            yield _framed(record.grids[:-1], record.grids[-1], window)
        elif record.kind == "frames":
            last = len(record.grids) - offset  # contexts end before it
            for end in range(max(1, min(window, last)), last + 1):
                yield _framed(record.grids[:end], record.grids[end + offset - 1], window)


def _of_pairs(
    pairs: list[tuple[np.ndarray, np.ndarray]], window: int, most: int, name: str
) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
    """(..., x_i, y_i, x_j) and y_j for i != j, up to `most` i for each j: those that come before it, round the task.

    Where that is all of them, further demonstrations, for a longer window, are those of `_analogies`; in a larger task,
    where a shuffle of all pairs for each would be long, they are the pairs that follow i, round the task, without j.
    """
    num = len(pairs)
    if num == 1:
        yield [pairs[0][0]], pairs[0][1]
    elif num <= most + 1:
        for *context, target in _analogies.windows(pairs, window, name):
            yield [grid for grid in context if grid is not None], target
    else:
        for i, back in itertools.product(range(num), range(1, most + 1)):
            j = (i + back) % num
            further = [k % num for k in range(i, i + min(window // 2 + 1, num)) if k % num != j][: window // 2]
            yield [*(grid for k in reversed(further) for grid in pairs[k]), pairs[j][0]], pairs[j][1]


def _framed(context: list[np.ndarray], target: np.ndarray, window: int) -> tuple[list[Grid], int]:
    """The last `window` grids of the context, filled up on the left, and the target; the background of what is there.

    The target has no say in the background: it is unknown at test time.
    """
    shown = context[-window:]
    return [*[None] * (window - len(shown)), *shown, target], _objects.background(shown)


def _public(tasks: list[Task]) -> list[str]:
    """Ids of the ARC tasks that share a pair of consecutive grids with one of these, whatever it is called."""
    consecutive = [list(zip(record.grids[:-1], record.grids[1:], strict=True)) for task in tasks for record in task]
    return _collections.recognised(_collections.Task("", pairs, []) for pairs in consecutive)

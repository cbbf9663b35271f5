"""A cache written by `python -m jepa.cache` as a source: what any source shows, read by memory map while it trains.

Only the pages that a step's grids lie on are read, and nothing is kept of them, so that memory does not grow with the
number of grids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jepa import context_masking
from jepa.data import _batches, _sequences, _shards
from jepa.data._sequences import VALIDATION_SEED
from jepa.data._shards import Shards
from jepa.registry import nearest
from jepa.types import Array, Batch, PyTree, Source

ORDERS = ("shuffled", "tasks", "stored")


def build(
    *,
    seed: int,
    batch_size: int,
    cache_dir: str | Path,
    folder: str | None = None,
    order: str | None = None,
    d4: bool = True,
    palette: bool = True,
    translation: bool = True,
    num_views: int = 4,
    drop_objects: float = 0.0,
    drop_frames: float = 0.0,
    noise: float = 0.0,
    verify: bool = True,
) -> Source:
    """The cache in `folder`, with the held-out sources of the source it was made of, under the same names.

    What is stored is what that source shows before augmentation; d4, palette and translation turn parts of the symmetry
    off, as they do there, and drop_objects, drop_frames and noise are those of `jepa.context_masking`. A cache of
    single grids gives `num_views` of each.

    order 'shuffled': every epoch shows each example once, in a new order; 'tasks': each task once, by one of its
    examples at random; 'stored': as they were written. By default it is 'tasks' where the source shows it so, and the
    batches are the same ones, to the bit; of what was drawn without end it is 'shuffled'. Held-out examples come in
    the order of the source. With `verify` the checksum of every file is compared first, a second for each gigabyte.

    Raises ValueError for an unknown name, a size out of range, and a folder that is no cache or has a damaged file.
    """
    if folder is None:
        raise ValueError("a cache needs a folder: set config.data.folder to what python -m jepa.cache has written")
    for name, size in (("batch_size", batch_size), ("num_views", num_views)):
        if size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1")
    if order is not None and order not in ORDERS:
        raise ValueError(f"there is no order {order!r}: {nearest(order, ORDERS)}")
    masking = {"drop_objects": drop_objects, "drop_frames": drop_frames, "noise": noise}
    context_masking.check(**masking)
    shards = _shards.read(folder, verify=verify)
    facts = shards.index["splits"]
    symmetry = {"d4": d4, "palette": palette, "translation": translation}
    options = repr((order, symmetry, num_views, masking))
    digest = hashlib.sha256((shards.index["digest"] + options).encode()).hexdigest()

    single = shards.columns["train"]["windows"].shape[1] == 1
    if single and any(masking.values()):
        raise ValueError(
            f"{folder} holds single grids, which have no context: drop_objects, drop_frames, noise must be 0"
        )

    def source(split: str, examples: Callable[[int], np.ndarray], validation: Mapping[str, Source]) -> Source:
        views = partial(_gather_views, symmetry, num_views)
        return Source(
            tables={},
            indices=partial(_rows, shards, split, examples),
            gather=views if single else partial(_sequences.gather_rows, symmetry),
            validation=validation,
            num_examples=facts[split]["examples"],
            ids=tuple(facts[split]["ids"]),
            digest=digest,
            stats=facts[split]["stats"] | {"bytes_per_grid": shards.index["bytes_per_grid"]},
        )

    validation = {
        split: source(split, _held_out_order(facts[split], batch_size), {}) for split in facts if split != "train"
    }
    chosen = order or ("shuffled" if facts["train"]["drawn"] else "tasks")
    own = source("train", _order(shards, chosen, seed, batch_size), validation)
    return own._replace(gather=context_masking.masked(own.gather, **masking))


def _order(shards: Shards, order: str, seed: int, batch_size: int) -> Callable[[int], np.ndarray]:
    num = shards.index["splits"]["train"]["examples"]
    if order == "shuffled":
        return _batches.shuffled(num, seed=seed, batch_size=batch_size)
    if order == "stored":
        return _batches.stored(num, batch_size=batch_size)
    groups = shards.columns["train"]["groups"]
    if shards.index["splits"]["train"]["drawn"]:
        raise ValueError("order is 'tasks', but this cache was drawn, and every example is a task of its own")
    return _batches.uniform_over_tasks(np.bincount(groups), seed=seed, batch_size=batch_size)


def _held_out_order(facts: Mapping[str, Any], batch_size: int) -> Callable[[int], np.ndarray]:
    if facts["drawn"]:
        return _batches.stored(facts["examples"], batch_size=batch_size)
    return _batches.enumerated(facts["examples"], seed=VALIDATION_SEED, batch_size=batch_size)


def _rows(
    shards: Shards, split: str, examples: Callable[[int], np.ndarray], step: int, level: int = 0
) -> dict[str, Any]:
    return _shards.rows(shards, split, examples(step))


def _gather_views(
    symmetry: Mapping[str, bool], num_views: int, tables: PyTree, rows: PyTree, key: Array, train: bool
) -> Batch:
    return _sequences.to_views(symmetry, num_views, rows, key, train)

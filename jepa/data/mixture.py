"""Several sources in one batch: a fixed share of its rows from each, every source with held-out ones of its own.

The shares are rounded to whole rows once and for all, by largest remainder, so that a batch has one shape and the
place of every source in its own stream is a closed form of the step.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jepa import registry
from jepa.types import Array, Batch, PyTree, Source


def build(
    *, seed: int, batch_size: int, cache_dir: str | Path, shares: str, sources: Mapping[str, Mapping[str, Any]]
) -> Source:
    """Sources under names of their own, such as shares 'arc:0.5,orbits:0.5' of `sources`; others take no part.

    sources: by name the options of an entry of this folder, `name` the entry. The first one that `shares` names comes
    first in `validation`, where a source is called as it is here, followed by what its own name is followed by. A batch
    has the rows of one source after those of another. A source of fewer levels than another stays at its last one.

    Raises ValueError for shares that name no source, or are so small that a source has no row, and where batches differ
    in what they hold.
    """
    wanted = _parse(shares, sources)
    counts = _rows(wanted, batch_size)
    built = {}
    for name, count in counts.items():
        options = {key: value for key, value in sources[name].items() if key != "name"}
        fixed = dict(seed=seed, batch_size=count, cache_dir=cache_dir)
        try:
            built[name] = registry.build("data", sources[name]["name"], **fixed, **options)
        except ValueError as error:
            raise ValueError(f"config.data.sources.{name}: {error}") from error
    validation = {
        f"{name}{theirs.removeprefix(next(iter(source.validation)))}": _whole(held_out, counts[name], batch_size)
        for name, source in built.items()
        for theirs, held_out in source.validation.items()
    }
    digest = hashlib.sha256(repr([(name, counts[name], source.digest) for name, source in built.items()]).encode())
    return Source(
        tables={name: source.tables for name, source in built.items()},
        indices=functools.partial(_indices, {name: source.indices for name, source in built.items()}),
        gather=functools.partial(_gather, {name: source.gather for name, source in built.items()}),
        validation=validation,
        num_examples=sum(source.num_examples for source in built.values()),
        ids=tuple(dict.fromkeys(task for source in built.values() for task in source.ids)),
        digest=digest.hexdigest(),
        stats={f"{name}_{fact}": value for name, source in built.items() for fact, value in source.stats.items()},
        num_levels=max(source.num_levels for source in built.values()),
        close=functools.partial(_close, list(built.values())),
    )


def _parse(shares: str, sources: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    wanted: dict[str, float] = {}
    for part in shares.split(","):
        name, _, share = part.strip().partition(":")
        if name not in sources:
            raise ValueError(f"shares {shares!r} names {name!r}, which is no source: {registry.nearest(name, sources)}")
        try:
            wanted[name] = float(share)
        except ValueError:
            raise ValueError(
                f"shares {shares!r}: {part.strip()!r} is not a name and a number, as in 'arc:0.5'"
            ) from None
        if not wanted[name] > 0:
            raise ValueError(f"shares {shares!r}: the share of {name!r} must be above 0; leave it out instead")
        if "name" not in sources[name]:
            raise ValueError(f"sources.{name} lacks `name`, the entry of jepa/data that it is")
    return wanted


def _rows(wanted: Mapping[str, float], batch_size: int) -> dict[str, int]:
    """Rows of each source, in all `batch_size`: the whole part of its share, one more for the largest remainders."""
    exact = np.array(list(wanted.values())) / sum(wanted.values()) * batch_size
    counts = np.floor(exact + 1e-9).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: batch_size - counts.sum()]] += 1
    rows = dict(zip(wanted, counts.tolist(), strict=True))
    for name, count in rows.items():
        if not count:
            raise ValueError(f"a batch of {batch_size} has no row for source {name!r}: give it a larger share")
    return rows


def _whole(held_out: Source, count: int, batch_size: int) -> Source:
    """A held-out source of batches of `count` in whole batches, so that statistics of a batch compare with training."""
    steps = -(-batch_size // count)

    def indices(step: int, level: int = 0) -> PyTree:
        parts = [held_out.indices(step * steps + i, level) for i in range(steps)]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:batch_size], *parts)

    return held_out._replace(indices=indices)


def _indices(parts: Mapping[str, Callable[..., PyTree]], step: int, level: int = 0) -> dict[str, PyTree]:
    return {name: indices(step, level) for name, indices in parts.items()}


def _gather(parts: Mapping[str, Callable[..., Batch]], tables: PyTree, rows: PyTree, key: Array, train: bool) -> Batch:
    """The rows of all sources, one source after the other, each under symmetries of its own."""
    names, keys = list(parts), jax.random.split(key, len(parts))
    batches = [
        gather(tables[name], rows[name], key, train) for key, (name, gather) in zip(keys, parts.items(), strict=True)
    ]
    shapes = [jax.tree.map(lambda leaf: leaf.shape[1:], batch) for batch in batches]
    for name, shape in zip(names[1:], shapes[1:], strict=True):
        if shape != shapes[0]:
            raise ValueError(
                f"sources {names[0]!r} and {name!r} cannot share a batch, since their rows differ in shape: give both "
                "the same context_window, and streams of contexts and targets"
            )
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *batches)


def _close(sources: list[Source]) -> None:
    for source in sources:
        source.close()

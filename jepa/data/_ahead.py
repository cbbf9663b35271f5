"""What worker processes make ahead of the time it is needed, numbered, so that nothing depends on who made it when."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, NamedTuple


class Ahead(NamedTuple):
    """get(number) -> what `make` gives for it; close() ends the workers."""

    get: Callable[[int], Any]
    close: Callable[[], None]


def ahead(make: Callable[[int], Any], *, num_workers: int, depth: int) -> Ahead:
    """`make` of a number, with the next `depth` numbers begun by `num_workers` processes; with none, made when asked.

    `make` has to be picklable, and a function of its number alone. The number asked for last is kept, so that the
    next batch of the same block costs nothing. An error in a worker is raised by the `get` of its number.
    """
    if num_workers < 0 or depth < 1:
        raise ValueError(f"{num_workers} workers, {depth} ahead; there must be at least 0 and 1")
    if not num_workers:
        kept: dict[int, Any] = {}

        def get_here(number: int) -> Any:
            if number not in kept:
                made = make(number)
                kept.clear()
                kept[number] = made
            return kept[number]

        return Ahead(get_here, kept.clear)

    # A forked process would inherit the locks of the threads that JAX runs.
    pool = ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn"))
    begun: dict[int, Future] = {}

    def get(number: int) -> Any:
        wanted = range(number, number + depth + 1)
        for old in [n for n in begun if n not in wanted]:
            begun.pop(old).cancel()
        for n in wanted:
            if n not in begun:
                begun[n] = pool.submit(make, n)
        return begun[number].result()

    def close() -> None:
        begun.clear()
        pool.shutdown(cancel_futures=True)

    return Ahead(get, close)

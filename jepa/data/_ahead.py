"""What worker processes make ahead of the time it is needed, by keys, so that nothing depends on who made it when."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple


class Ahead(NamedTuple):
    """get(key, upcoming=()) -> what `make` gives for the key, those that come next begun; close() ends the workers."""

    get: Callable[..., Any]
    close: Callable[[], None]


def ahead(make: Callable[[Any], Any], *, num_workers: int) -> Ahead:
    """`make` of a key, made by `num_workers` processes, which start with the first key; with none, made when asked.

    `make` has to be picklable, and a function of its key alone. What was asked for last is kept, so that the next batch
    of the same block costs nothing; what was begun and is not upcoming any more is dropped. An error in a worker is
    raised by the `get` of its key; OSError where a worker was killed.
    """
    if num_workers < 0:
        raise ValueError(f"{num_workers} workers; there must be at least 0")
    return _by_workers(make, num_workers) if num_workers else _here(make)


def _here(make: Callable[[Any], Any]) -> Ahead:
    kept: dict[Hashable, Any] = {}

    def get(key: Hashable, upcoming: Sequence[Hashable] = ()) -> Any:
        if key not in kept:
            made = make(key)
            kept.clear()
            kept[key] = made
        return kept[key]

    return Ahead(get, kept.clear)


def _by_workers(make: Callable[[Any], Any], num_workers: int) -> Ahead:
    pool: ProcessPoolExecutor | None = None
    begun: dict[Hashable, Future] = {}

    def get(key: Hashable, upcoming: Sequence[Hashable] = ()) -> Any:
        nonlocal pool
        if pool is None:
            # A forked process would inherit the locks of the threads that JAX runs.
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_outlive_nothing)
        wanted = [key, *upcoming]
        for old in [other for other in begun if other not in wanted]:
            begun.pop(old).cancel()
        try:
            for new in wanted:
                if new not in begun:
                    begun[new] = pool.submit(make, new)
            return begun[key].result()
        except BrokenProcessPool as error:
            raise OSError(
                "a process that makes data ahead of the run was killed, perhaps since memory was short; "
                "config.data.num_workers=0 makes it in the run itself"
            ) from error

    def close() -> None:
        nonlocal pool
        begun.clear()
        if pool is not None:
            pool.shutdown(cancel_futures=True)
            pool = None

    return Ahead(get, close)


def _outlive_nothing() -> None:
    """A worker ends with its run, however that ends, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

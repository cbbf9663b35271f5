"""Where the wall time of a run goes: waiting for data, evaluating, diagnosing; the rest is training."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

import jax

from jepa.types import PyTree

PARTS = ("input", "evaluation", "diagnosis")


class Stopwatch(NamedTuple):
    """part(name, after=()): a context whose duration counts for that part, once the arrays in `after` are there: what
    was dispatched before would count for whoever waits for it.

    lap(step): figures of the time since the last lap: `time/step_seconds`, wall seconds per step with everything that
    was done besides, and `time/<part>_share` for each of `PARTS`.

    whole(): the same shares of all the time up to the last lap.
    """

    part: Callable[..., AbstractContextManager[None]]
    lap: Callable[[int], dict[str, float]]
    whole: Callable[[], dict[str, float]]


def start(step: int, clock: Callable[[], float] = time.monotonic) -> Stopwatch:
    """A stopwatch that runs from `step` on."""
    began, at = clock(), step
    first = began
    spent, before = dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 0.0)

    @contextlib.contextmanager
    def part(name: str, after: PyTree = ()) -> Iterator[None]:
        jax.block_until_ready(after)
        entered = clock()
        try:
            yield
        finally:
            spent[name] += clock() - entered

    def lap(step: int) -> dict[str, float]:
        nonlocal began, at
        now = clock()
        wall = max(now - began, 1e-9)
        figures = {"time/step_seconds": wall / max(step - at, 1)}
        figures |= {f"time/{name}_share": seconds / wall for name, seconds in spent.items()}
        began, at = now, step
        before.update({name: before[name] + seconds for name, seconds in spent.items()})
        spent.update(dict.fromkeys(PARTS, 0.0))
        return figures

    def whole() -> dict[str, float]:
        return {name: seconds / max(began - first, 1e-9) for name, seconds in before.items()}

    return Stopwatch(part, lap, whole)

"""How benchmarks time: in turn, so that other work on the machine falls on all alike."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax


def timed(calls: dict[str, Callable], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each call, round by round, all called in turn; a first round warms up."""
    seconds = {name: [] for name in calls}
    for _ in range(repetitions + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - start)
    return {name: times[1:] for name, times in seconds.items()}

"""Which examples a step sees, as a closed form of the step: a resumed stream equals an uninterrupted one."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

Indices = Callable[..., np.ndarray]  # of a step, and of a level of difficulty, of which there is one here


def uniform_over_tasks(counts: np.ndarray, *, seed: int, batch_size: int) -> Indices:
    """indices(step) -> int32 [B]: every epoch shows each task once, in a new order, by one of its examples at random.

    counts int [tasks] >= 1: examples of each task, which are numbered task by task. Without this, a task of n pairs
    would be seen n (n - 1) times as often as it deserves.
    """
    counts = np.asarray(counts)
    first_of_task = np.cumsum(counts) - counts
    epoch_length = len(counts)

    @functools.lru_cache(maxsize=4)
    def epoch(number: int) -> np.ndarray:
        rng = np.random.default_rng([seed, number])
        tasks = rng.permutation(epoch_length)
        return (first_of_task[tasks] + rng.integers(counts[tasks])).astype(np.int32)

    def indices(step: int, level: int = 0) -> np.ndarray:
        first = step * batch_size
        last = first + batch_size - 1
        examples = np.concatenate([epoch(n) for n in range(first // epoch_length, last // epoch_length + 1)])
        return examples[first % epoch_length :][:batch_size]

    return indices


def enumerated(num_examples: int, *, seed: int, batch_size: int) -> Indices:
    """indices(step) -> int32 [B]: all examples in one seeded order, then round again."""
    order = np.random.default_rng(seed).permutation(num_examples).astype(np.int32)

    def indices(step: int, level: int = 0) -> np.ndarray:
        return order[(step * batch_size + np.arange(batch_size)) % num_examples]

    return indices

"""Which examples a step sees, as a closed form of the step: a resumed stream equals an uninterrupted one."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

Indices = Callable[..., np.ndarray]  # of a step, and of a level of difficulty, of which there is one here

_FEISTEL_ROUNDS = 6


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


def stored(num_examples: int, *, batch_size: int) -> Indices:
    """indices(step) -> int64 [B]: all examples as they are numbered, then round again."""

    def indices(step: int, level: int = 0) -> np.ndarray:
        return (step * batch_size + np.arange(batch_size)) % num_examples

    return indices


def shuffled(num_examples: int, *, seed: int, batch_size: int) -> Indices:
    """indices(step) -> int64 [B]: every epoch shows each example once, in a new order; nothing of length N is kept.

    The order is a keyed permutation: a Feistel network on the pairs of digits of a number, walked until the number is
    below N (Black & Rogaway, Ciphers with arbitrary finite domains, CT-RSA 2002, the cycle-walking cipher).
    """

    def indices(step: int, level: int = 0) -> np.ndarray:
        epoch, place = np.divmod(step * batch_size + np.arange(batch_size), num_examples)
        examples = np.empty(batch_size, np.int64)
        for number in range(epoch[0], epoch[-1] + 1):
            here = epoch == number
            examples[here] = _permuted(place[here], num_examples, seed, number)
        return examples

    return indices


def _permuted(place: np.ndarray, num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """The images of `place`, int [n] in 0..N-1, under a permutation of 0..N-1."""
    half = max(1, -(-(num_examples - 1).bit_length() // 2))  # bits of a digit
    keys = np.random.default_rng([seed, epoch]).integers(2**64, size=_FEISTEL_ROUNDS, dtype=np.uint64)
    value = place.astype(np.uint64)
    outside = np.ones(len(value), bool)
    while outside.any():  # a power of 4 below 4 N: a quarter of all numbers at least is inside
        left, right = value[outside] >> half, value[outside] & np.uint64((1 << half) - 1)
        for key in keys:
            left, right = right, left ^ (_mixed(right + key) >> np.uint64(64 - half))
        value[outside] = left << half | right
        outside = value >= num_examples
    return value.astype(np.int64)


def _mixed(word: np.ndarray) -> np.ndarray:
    """Steele et al., Fast splittable pseudorandom number generators, OOPSLA 2014: the finaliser of SplitMix64."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))

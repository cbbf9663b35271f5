"""How difficult the data of a step is: levels that begin at given steps, or once the one before is learnt no further.

When the levels reached so far began is all there is to know, so that the data stays a function of the step.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from jepa.types import PyTree, Source


class Curriculum(NamedTuple):
    """`starts`: the step at which each level reached so far begins, the first one 0; known beforehand with a schedule.
    `best`: the lowest held-out error of the last of them, `waited`: evaluations since it fell noticeably."""

    starts: Sequence[int] = (0,)
    best: float | None = None
    waited: int = 0


def check(starts: Sequence[int], patience: int | None, min_delta: float, num_levels: int) -> None:
    """Raises ValueError for a curriculum that does not fit data of so many levels."""
    if num_levels == 1:
        if starts or patience is not None:
            raise ValueError("config.curriculum moves between levels, but the data has one: leave starts and patience")
        return
    if bool(starts) == (patience is not None):
        raise ValueError(
            f"the data has {num_levels} levels: give config.curriculum.starts, a step for each, or "
            "config.curriculum.patience, and not both"
        )
    if starts and (len(starts) != num_levels or starts[0] != 0 or list(starts) != sorted(set(starts))):
        raise ValueError(
            f"config.curriculum.starts is {tuple(starts)}; the data has {num_levels} levels, which begin at as many "
            "rising steps, the first one 0"
        )
    if patience is not None and patience < 1:
        raise ValueError(f"config.curriculum.patience is {patience}; it must be at least 1")
    if not 0 <= min_delta < 1:
        raise ValueError(f"config.curriculum.min_delta is {min_delta}; it is a share of the error, from 0 to below 1")


def begin(starts: Sequence[int]) -> Curriculum:
    """The curriculum of a fresh run: the whole schedule, or the first level."""
    return Curriculum(list(starts) or [0])


def level(starts: Sequence[int], step: int) -> int:
    """The level from which the batch of the step after `step` others is drawn."""
    return bisect.bisect_right(starts, step) - 1


def watch(
    now: Curriculum, step: int, error: float, *, patience: int | None, min_delta: float, num_levels: int
) -> Curriculum:
    """The curriculum after an evaluation that measured this held-out error of the current level.

    The next level begins once the error has not fallen by the share `min_delta` of the lowest for `patience`
    evaluations. Without patience it is a schedule and stays as it is.
    """
    if patience is None or len(now.starts) == num_levels:
        return now
    if math.isfinite(error) and (now.best is None or error < (1 - min_delta) * now.best):
        return now._replace(best=error, waited=0)
    if now.waited + 1 < patience:
        return now._replace(waited=now.waited + 1)
    return Curriculum([*now.starts, step])


def rows(source: Source, first: int, num: int, starts: Sequence[int] = (0,)) -> PyTree:
    """The rows of `num` steps from `first` on, one over the other: leaves [num, B, ...]."""
    steps = range(first, first + num)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *(source.indices(s, level(starts, s)) for s in steps))

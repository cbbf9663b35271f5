"""The grids of an analogy: demonstrations (x_k, y_k), ..., (x_i, y_i), then x_j, and y_j to be predicted.

The context is the last `context_window` grids before y_j: x_j for 1, y_i and x_j for 2, one demonstration for 3, two
for 5, three for 7.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

LONGEST = 7
SEED = 0  # which demonstrations go together is the same in every run, as held-out examples are


def check(context_window: int, target_offset: int) -> None:
    """Raises ValueError for a window out of range, and for a target that is not the answer."""
    if not 1 <= context_window <= LONGEST:
        raise ValueError(f"data.context_window is {context_window}; it must be between 1 and {LONGEST} grids")
    if target_offset != 1:
        raise ValueError(
            f"data.target_offset is {target_offset}, but the grid after the answer of an analogy belongs to another "
            "pair; it must be 1 here"
        )


def windows(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], context_window: int, task_id: str
) -> Iterator[list[np.ndarray | None]]:
    """Context and target, `context_window` + 1 grids, for all i != j of n pairs: n (n - 1) windows of any length.

    Demonstrations before that of i are other pairs than i and j, at random, by a draw that the id of the task alone
    decides. Where there are too few, absent frames, None, come first.
    """
    rng = np.random.default_rng([SEED, *task_id.encode()])
    for i, j in itertools.permutations(range(len(pairs)), 2):
        before = [k for k in rng.permutation(len(pairs)) if k not in (i, j)]
        shown = [grid for k in (*reversed(before), i) for grid in pairs[k]] + [pairs[j][0]]
        context = shown[-context_window:]
        yield [None] * (context_window - len(context)) + context + [pairs[j][1]]

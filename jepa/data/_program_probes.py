"""Questions about programs for frozen embeddings, built once: which family made this pair, what comes next, what first.

Every number in a question is a row of one list of distinct (grid, background) pairs, as in `jepa.data._probes`. Pairs
start from real grids, so that no scene gives its family away.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jepa.data import _grids, _program_rankings, _real_grids
from jepa.data._collections import Task
from jepa.data._primitives import numbers
from jepa.data._probes import row_of
from jepa.data._program_rankings import Ranking
from jepa.data._real_grids import APPLICABLE, CLASSIFIED, Inputs, exchanged


class Pairs(NamedTuple):
    """Real grids and what a primitive makes of them, as many of each family."""

    groups: np.ndarray  # int32 [n]: the task whose input it is
    rows: np.ndarray  # int32 [n, 2]: before, after
    families: np.ndarray  # int64 [n], numbers of `_primitives.FAMILIES`


class Episodes(NamedTuple):
    """Small classification tasks: pairs of N families, as examples and as queries."""

    support: np.ndarray  # int64 [E, N, K]: indices of pairs
    queries: np.ndarray  # int64 [E, N, q]


class Questions(NamedTuple):
    grids: list[np.ndarray]  # distinct (grid, background) pairs
    backgrounds: np.ndarray  # int32 [len(grids)]
    training: Pairs  # of CLASSIFIED, on tasks to fit on
    evaluation: Pairs  # of APPLICABLE, on other tasks
    orbits: Ranking
    first_steps: dict[int, Ranking]  # by the length of the program


def build(
    training: Sequence[Task],
    evaluation: Sequence[Task],
    *,
    seed: int = 0,
    num_fitted: int = 64,
    num_pairs: int = 100,
    num_orbits: int = 600,
    num_programs: int = 416,
) -> Questions:
    """All questions; the seed and the tasks decide every draw.

    num_fitted and num_pairs: pairs of each family to fit on and to test on, or as many as there are. num_orbits, and
    num_programs, the hidden ones of each length: a little fewer are found.
    """
    rows: dict[tuple, int] = {}
    shown, fresh = _real_grids.inputs(training), _real_grids.inputs(evaluation)
    rngs = [np.random.default_rng([seed, part]) for part in range(5)]
    built = (
        pairs(rows, shown, CLASSIFIED, num_fitted, rngs[0]),
        pairs(rows, fresh, APPLICABLE, num_pairs, rngs[1]),
        _program_rankings.orbits(rows, num_orbits, rngs[2]),
        {n: _program_rankings.first_steps(rows, fresh, n, num_programs, rngs[1 + n]) for n in (2, 3)},
    )
    grids = [np.frombuffer(content, np.uint8).reshape(shape) for shape, content, _ in rows]
    return Questions(grids, np.array([background for *_, background in rows], np.int32), *built)


def pairs(rows: dict, given: Inputs, families: Sequence[str], number: int, rng: np.random.Generator) -> Pairs:
    """`number` pairs of each family, or as many as there are, from as many tasks as possible."""
    groups, numbered, labels = [], [], []
    for family in numbers(families):
        order = rng.permutation(len(given.groups))
        order = order[np.argsort(_real_grids.occurrence(given.groups[order]), kind="stable")]
        before = _grids.select(given.grids, order)
        after, good = _real_grids.drawn(rng, before, np.full((len(order), 1), family))
        found = zip(_grids.unstack(before), _grids.unstack(after), order, strict=True)
        for *pair, place in itertools.islice(itertools.compress(found, good), number):
            background = given.backgrounds[place]
            numbered.append([row_of(rows, exchanged(grid, background), background) for grid in pair])
            groups.append(given.groups[place])
            labels.append(family)
    return Pairs(np.array(groups, np.int32), np.array(numbered, np.int32), np.array(labels))


def episodes(
    known: Pairs,
    families: Sequence[str],
    *,
    ways: int = 5,
    shots: int = 5,
    queries: int = 3,
    number: int = 400,
    seed: int = 0,
) -> Episodes:
    """Episodes of `ways` families, or of all where there are fewer; the seed and the families decide every draw.

    No task lends an episode two inputs of one family. Raises ValueError where a family has pairs of too few tasks.
    """
    chosen = numbers(families)
    rng = np.random.default_rng([seed, *chosen])
    members = {family: np.flatnonzero(known.families == family) for family in chosen}
    for name, family in zip(families, chosen, strict=True):
        count = len(np.unique(known.groups[members[family]]))
        if count < shots + queries:
            raise ValueError(f"{name!r} has pairs of {count} tasks; an episode takes {shots + queries}")
    drawn = []
    for _ in range(number):
        some = rng.choice(chosen, size=min(ways, len(chosen)), replace=False)
        drawn.append([_of_different_tasks(known, rng.permutation(members[f]), shots + queries) for f in some])
    drawn = np.array(drawn)
    return Episodes(drawn[..., :shots], drawn[..., shots:])


def _of_different_tasks(known: Pairs, order: np.ndarray, number: int) -> np.ndarray:
    _, first = np.unique(known.groups[order], return_index=True)
    return order[np.sort(first)[:number]]

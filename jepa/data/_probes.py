"""Questions for frozen embeddings, built once from ARC grids: rule matching, same-task retrieval, grid facts.

Every number in a question is a row of one list of distinct (grid, background) pairs, so that each is tokenised
and embedded once whatever encoder is scored. A background is chosen per sequence, from the demonstrations and the
test input: what is known at test time, and the same for every candidate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from jepa.data import _objects

SYMMETRIES = ("left-right", "180", "diagonal")
_EIGHT = np.ones((3, 3), int)


class RuleQueries(NamedTuple):
    """Which candidate is the output of the demonstrated rule? Column 0 of `candidates` is the truth, 1 the input."""

    groups: np.ndarray  # int32 [Q]: the task
    inputs: np.ndarray  # int32 [Q]: the test input x
    demos: np.ndarray  # int32 [Q, M, 2]: demonstration pairs (x_i, y_i)
    demo_mask: np.ndarray  # bool [Q, M]: pairs averaged into the rule
    candidates: np.ndarray  # int32 [Q, C]
    candidate_mask: np.ndarray  # bool [Q, C]
    foreign: np.ndarray  # int32 [Q]: the query of another task that lends its demonstrations to the control


class RetrievalQueries(NamedTuple):
    """Which task is this pair from? The first test pair of each, seen through a random symmetry and palette."""

    groups: np.ndarray  # int32 [Q]: the task
    query: np.ndarray  # int32 [Q, 2]: the test pair, conjugated
    demos: np.ndarray  # int32 [Q, M, 2]: the gallery, by task: demonstration pairs as they are
    demo_mask: np.ndarray  # bool [Q, M]


class GridFacts(NamedTuple):
    """Grids of two colours or more, and which equal their left-right mirror, their half turn, their transpose."""

    groups: np.ndarray  # int32 [R]: the task
    rows: np.ndarray  # int32 [R]
    symmetry: np.ndarray  # bool [R, 3], in the order of SYMMETRIES


class Questions(NamedTuple):
    grids: list[np.ndarray]  # distinct (grid, background) pairs
    backgrounds: np.ndarray  # int32 [len(grids)]
    rule: dict[str, RuleQueries]  # '<collection>/edit' and '<collection>/hard'
    retrieval: dict[str, RetrievalQueries]  # by collection
    facts: dict[str, GridFacts]  # by collection


def mirror_left_right(grid, background, rng):
    return grid[:, ::-1]


def mirror_up_down(grid, background, rng):
    return grid[::-1]


def roll(grid, background, rng):
    return np.roll(grid, [rng.integers(size) for size in grid.shape], axis=(0, 1))


def swap_colours(grid, background, rng):
    """Exchanges a colour of the grid with another one: of the grid where it has two, else any."""
    present = np.unique(grid)
    first = rng.choice(present)
    second = rng.choice(np.setdiff1d(present if len(present) > 1 else np.arange(10), first))
    palette = np.arange(10, dtype=np.uint8)
    palette[[first, second]] = second, first
    return palette[grid]


def edit_object(grid, background, rng):
    """Recolours or deletes one connected object (8 neighbours, one colour); the grid itself where it has none."""
    colours = [colour for colour in np.unique(grid) if colour != background]
    if not colours:
        return grid
    labels, counts = zip(*(ndimage.label(grid == colour, _EIGHT) for colour in colours), strict=True)
    owner = np.repeat(np.arange(len(colours)), counts)
    number = np.concatenate([np.arange(1, count + 1) for count in counts])
    k = rng.integers(len(owner))
    old = colours[owner[k]]
    new = background if background >= 0 and rng.random() < 0.5 else rng.choice(np.setdiff1d(np.arange(10), old))
    return np.where(labels[owner[k]] == number[k], new, grid).astype(np.uint8)


def noise(grid, background, rng):
    """Another colour in 2 % of the cells, at least one."""
    cells = rng.choice(grid.size, size=max(1, round(0.02 * grid.size)), replace=False)
    edited = grid.copy().reshape(-1)
    edited[cells] = (edited[cells] + rng.integers(1, 10, size=len(cells))) % 10
    return edited.reshape(grid.shape)


EDITS = (mirror_left_right, mirror_up_down, roll, swap_colours, edit_object, noise)


def edits(truth: np.ndarray, x: np.ndarray, background: int, rng: np.random.Generator) -> list[np.ndarray]:
    """One edit of the true output from each family of EDITS, all different from it, from the input and one another.

    A draw that coincides is drawn again; a family with nothing left to offer (a symmetric grid has no mirror image
    of its own) gives its place to another draw of `noise`, which cannot run out, so there is always one edit of each.
    """
    taken, found = [truth, x], []
    for family in EDITS:
        for attempt in range(100):
            edited = (family if attempt < 8 else noise)(truth, background, rng)
            if not any(np.array_equal(edited, other) for other in taken):
                break
        else:
            raise ValueError(f"no edit of a {truth.shape[0]}x{truth.shape[1]} grid differs from its other edits")
        taken.append(edited)
        found.append(np.ascontiguousarray(edited, np.uint8))
    return found


def conjugate(pair: Sequence[np.ndarray], rng: np.random.Generator) -> tuple[list[np.ndarray], np.ndarray]:
    """Both grids of a pair under one random element of D4 and one palette of colours 1 to 9, and that palette [10].

    Colour 0, black, stays: it is the canvas of most tasks. Never the identity.
    """
    d4, palette = 0, np.arange(10)
    while d4 == 0 and (palette == np.arange(10)).all():
        d4, palette = int(rng.integers(8)), np.concatenate([[0], 1 + rng.permutation(9)])
    return [_objects.transform_grid(grid, d4, palette) for grid in pair], palette


def build(training: Sequence, evaluation: Mapping[str, Sequence], *, seed: int = 0) -> Questions:
    """All questions about tasks (id, demos, tests), for `training`, to fit on, and for each evaluated collection.

    The seed and the id of a task alone decide its random draws, so a subset of the tasks asks the same about them.
    """
    rows: dict[tuple, int] = {}
    rule, retrieval, facts, number = {}, {}, {}, 0
    for name, tasks in {"training": training, **evaluation}.items():
        numbered = list(enumerate(tasks, number))
        for kind in ("edit", "hard"):
            rule[f"{name}/{kind}"] = _rule(rows, numbered, seed, hard=kind == "hard")
        retrieval[name] = _retrieval(rows, numbered, seed + 1)
        facts[name] = _facts(rows, numbered)
        number += len(tasks)
    grids = [np.frombuffer(content, np.uint8).reshape(shape) for shape, content, _ in rows]
    return Questions(grids, np.array([background for *_, background in rows], np.int32), rule, retrieval, facts)


def _generator(seed: int, task_id: str) -> np.random.Generator:
    return np.random.default_rng([seed, *task_id.encode()])


def row_of(rows: dict, grid: np.ndarray, background: int) -> int:
    """The row of a (grid, background) pair in `rows`, a new one if it has none."""
    grid = np.ascontiguousarray(grid, np.uint8)
    return rows.setdefault((grid.shape, grid.tobytes(), int(background)), len(rows))


def _known(task, x: np.ndarray) -> list[np.ndarray]:
    """The grids of a task that are known when it asks for the output of x."""
    return [grid for pair in task.demos for grid in pair] + [x]


def _rule(rows: dict, numbered: list, seed: int, *, hard: bool) -> RuleQueries:
    drafts = [d for group, task in numbered for d in _rule_drafts(rows, task, group, _generator(seed, task.id), hard)]
    groups, inputs, demos, kept, candidates, present = zip(*drafts, strict=True)
    pairs, mask = _pad(demos, kept)
    groups, inputs, candidates = (np.array(a, np.int32) for a in (groups, inputs, candidates))
    distinct, first = np.unique(groups, return_index=True)
    # Another task lends its demonstrations: half the collection away, so never itself.
    other = (np.searchsorted(distinct, groups) + max(1, len(distinct) // 2)) % len(distinct)
    return RuleQueries(groups, inputs, pairs, mask, candidates, np.array(present), first[other].astype(np.int32))


def _rule_drafts(rows: dict, task, group: int, rng: np.random.Generator, hard: bool):
    """(group, input, demo pairs, kept demos, candidates, present candidates) of each test input of a task.

    The candidate of `hard` is the output of a demonstration, which then leaves the mean over demonstrations: it must
    not be scored by a rule it is part of. It is absent where no output differs from the other candidates or no
    demonstration would be left, and the input is absent where it is the answer.
    """
    for x, truth in task.tests:
        background = _objects.background(_known(task, x))
        candidates = [truth, x, *edits(truth, x, background, rng)]
        present = [True, not np.array_equal(x, truth)] + [True] * len(EDITS)
        kept = [True] * len(task.demos)
        order = rng.permutation(len(task.demos))
        if hard:
            fresh = [i for i in order if not any(np.array_equal(task.demos[i][1], other) for other in candidates)]
            present.append(bool(fresh) and len(kept) > 1)
            candidates.append(task.demos[fresh[0]][1] if fresh else truth)
            if present[-1]:
                kept[fresh[0]] = False
        demos = [[row_of(rows, grid, background) for grid in pair] for pair in task.demos]
        candidates = [row_of(rows, grid, background) for grid in candidates]
        yield group, row_of(rows, x, background), demos, kept, candidates, present


def _pad(demos: Sequence, kept: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Pairs int32 [Q, M, 2] and their mask bool [Q, M] from lists of different lengths; padding is row 0."""
    width = max(map(len, demos))
    pairs = [list(some) + [[0, 0]] * (width - len(some)) for some in demos]
    return np.array(pairs, np.int32), np.array([list(some) + [False] * (width - len(some)) for some in kept])


def _retrieval(rows: dict, numbered: list, seed: int) -> RetrievalQueries:
    query, demos = [], []
    for _, task in numbered:
        background = _objects.background(_known(task, task.tests[0][0]))
        conjugated, palette = conjugate(task.tests[0], _generator(seed, task.id))
        recoloured = palette[background] if background >= 0 else background
        query.append([row_of(rows, grid, recoloured) for grid in conjugated])
        demos.append([[row_of(rows, grid, background) for grid in pair] for pair in task.demos])
    groups = np.array([group for group, _ in numbered], np.int32)
    return RetrievalQueries(groups, np.array(query, np.int32), *_pad(demos, [[True] * len(some) for some in demos]))


def _facts(rows: dict, numbered: list) -> GridFacts:
    """Every distinct grid of each task, demonstrations and tests; a grid of one colour is trivially symmetric."""
    found = {}
    for group, task in numbered:
        for x, y in task.tests:
            background = _objects.background(_known(task, x))
            for grid in [*_known(task, x), y]:
                if grid.min() < grid.max():
                    found[group, row_of(rows, grid, background)] = grid
    grids = found.values()
    symmetry = [[np.array_equal(g, image) for image in (g[:, ::-1], g[::-1, ::-1], g.T)] for g in grids]
    groups, numbers = np.array(list(found), np.int32).T
    return GridFacts(groups, numbers, np.array(symmetry))

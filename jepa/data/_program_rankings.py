"""Questions with candidates: what comes next in the orbit of a program, and which step of a hidden program came first.

Orbits start from scenes, which leave room for three applications; hidden programs start from real grids.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from jepa.data import _grids, _probes, _programs
from jepa.data._grids import Grids
from jepa.data._primitives import FAMILIES, numbers, repeating
from jepa.data._probes import row_of
from jepa.data._real_grids import CLASSIFIED, Inputs, applied, drawn, exchanged, key, occurrence
from jepa.data._scenes import UNLIMITED

# The third application of a reflection, or of a half turn, is the first one again.
ORBITING = tuple(name for name in repeating(3) if name != "reflect")
_HALF_TURN = 3
NUM_NEXT, NUM_FIRST = 32, 35  # candidates
_OTHER_PARAMETERS, _OTHER_SCENES, _EDITED_INPUTS, _OTHER_PRIMITIVES = 6, 3, 3, 5
_ATTEMPTS = 48  # scenes and parameters of each orbit; half of the pairs of families find none
_TRIES = 4  # parameters of each family as a first step


class Ranking(NamedTuple):
    """Which candidates are right? Column 0 always is."""

    groups: np.ndarray  # int32 [Q]: the task, or the program where scenes are drawn for it
    programs: np.ndarray  # int64 [Q, L]: the families of the program's steps, a single one repeated
    shown: np.ndarray  # int32 [Q, T]: the grids that are known
    candidates: np.ndarray  # int32 [Q, C], all different
    right: np.ndarray  # bool [Q, C]


def orbits(rows: dict, number: int, rng: np.random.Generator) -> Ranking:
    """g, P g and P P g are shown, P P P g is right; P is one primitive in half of them, and two in a row in the others.

    A program that finds no orbit of four different grids leaves its place empty.
    """
    families = numbers(ORBITING)
    single = np.resize(families, (number - number // 2, 1))
    first = rng.integers(len(families), size=number // 2)
    second = (first + rng.integers(1, len(families), size=number // 2)) % len(families)
    drafts = [*_orbits_of(rows, single, rng), *_orbits_of(rows, families[np.stack([first, second], axis=1)], rng)]
    programs, shown, candidates = zip(*drafts, strict=True)
    right = np.zeros((len(drafts), NUM_NEXT), bool)
    right[:, 0] = True
    return Ranking(
        np.arange(len(drafts), dtype=np.int32),
        np.array([np.resize(program, 2) for program in programs]),
        np.array(shown, np.int32),
        np.array(candidates, np.int32),
        right,
    )


def _orbits_of(rows: dict, wanted: np.ndarray, rng: np.random.Generator) -> Iterator[tuple]:
    """(program, rows shown, rows of candidates) for the programs wanted, int64 [n, L], that find an orbit."""
    programs = np.repeat(wanted, _ATTEMPTS, axis=0)
    parameters = _programs.draw_parameters(rng, programs, False)
    orbit = [_scenes_for(rng, programs, parameters)]
    good = ~((programs == FAMILIES.index("rotate")) & (parameters[..., 0] == _HALF_TURN)).any(axis=1)
    for _ in range(3):
        steps, fine = applied(orbit[-1], programs, parameters)
        good &= fine & ~np.any([_grids.equal(steps[-1], grids) for grids in orbit], axis=0)
        orbit.append(steps[-1])
    _, first = np.unique(np.flatnonzero(good) // _ATTEMPTS, return_index=True)
    found = np.flatnonzero(good)[first]
    orbit = [_grids.select(grids, found) for grids in orbit]
    pools = _distractors(programs[found], parameters[found], orbit, rng)
    for k, grids in enumerate(zip(*map(_plain, orbit), strict=True)):
        *context, truth = grids
        candidates = {key(grid): grid for grid in (truth, *context)}
        for pool, limit in pools:
            _add(candidates, pool[k], min(len(candidates) + limit, NUM_NEXT))
        for _ in range(8):
            _add(candidates, _probes.edits(truth, context[-1], 0, rng), NUM_NEXT)
        if len(candidates) == NUM_NEXT:  # too small a grid has not as many edits
            yield (
                programs[found[k]],
                *([row_of(rows, grid, 0) for grid in some] for some in (context, candidates.values())),
            )


def _scenes_for(rng: np.random.Generator, programs: np.ndarray, parameters: np.ndarray) -> Grids:
    """A scene for one of the steps of each program, as in `_programs.draw`."""
    rows, step = np.arange(len(programs)), rng.integers(programs.shape[1], size=len(programs))
    return _programs.scenes(rng, programs[rows, step], parameters[rows, step], UNLIMITED)


def _distractors(
    programs: np.ndarray, parameters: np.ndarray, orbit: list[Grids], rng: np.random.Generator
) -> list[tuple[list[list[np.ndarray]], int]]:
    """Grids for each question, and how many of them it takes: one step too many; of the last grid, the program with
    other parameters; the program on other scenes, and on edits of the last grid; of that, other primitives."""
    last, n = orbit[2], len(programs)

    def again(times: int) -> np.ndarray:
        return np.repeat(np.arange(n), times)

    a, b, c, d = (
        again(3 * _OTHER_PARAMETERS),
        again(3 * _OTHER_SCENES),
        again(2 * len(_probes.EDITS)),
        again(5 * _OTHER_PRIMITIVES),
    )
    edited = [grid for shown in _plain(last) for _ in range(2) for grid in _probes.edits(shown, shown, 0, rng)]
    beyond, fine = applied(orbit[3], programs, parameters)
    elsewhere, possible = applied(_scenes_for(rng, programs[b], parameters[b]), programs[b], parameters[b])
    nearby, defined = applied(_grids.stack(edited), programs[c], parameters[c])
    others = rng.integers(len(FAMILIES), size=(len(d), 1))
    made = (
        ((beyond[-1], fine), 1),
        (drawn(rng, _grids.select(last, a), programs[a]), _OTHER_PARAMETERS),
        ((elsewhere[-1], possible), _OTHER_SCENES),
        ((nearby[-1], defined), _EDITED_INPUTS),
        (drawn(rng, _grids.select(last, d), others), _OTHER_PRIMITIVES),
    )
    return [(_by_question(*grids, n), limit) for grids, limit in made]


def first_steps(rows: dict, given: Inputs, length: int, number: int, rng: np.random.Generator) -> Ranking:
    """A grid and what a program of `length` steps makes of it are shown; what its first step makes of it is right.

    As many programs have each family of CLASSIFIED as their first. A first step is as right as the program's own if the
    other steps, in some order, lead from it to the same result. A program all of whose steps may come first has no
    first step, and is rejected.
    """
    families = numbers(CLASSIFIED)
    programs = families[rng.integers(len(families), size=(40 * number, length))]
    programs[:, 0] = np.resize(families, len(programs))
    parameters = _programs.draw_parameters(rng, programs, False)
    places = rng.integers(len(given.groups), size=len(programs))
    x = _grids.select(given.grids, places)
    steps, good = applied(x, programs, parameters)
    for a, b in itertools.combinations([x, *steps], 2):
        good &= ~_grids.equal(a, b)
    x, result, programs, parameters, places = _kept(good, x, steps[-1], programs, parameters, places)
    own, possible, right = _own_first_steps(x, result, programs, parameters)
    ordered = ~right.all(axis=1)
    ordered[ordered] = occurrence(programs[ordered, 0]) < -(-number // len(families))
    x, result, programs, places, possible, right, *own = _kept(
        ordered, x, result, programs, places, possible, right, *own
    )
    drafts = list(_first_candidates(rows, given.backgrounds[places], [x, result, *own], possible, right, rng))
    kept, shown, candidates, marks = (np.array(column) for column in zip(*drafts, strict=True))
    groups = given.groups[places[kept]].astype(np.int32)
    return Ranking(groups, programs[kept], shown.astype(np.int32), candidates.astype(np.int32), marks)


def _kept(chosen: np.ndarray, *batches: Grids | np.ndarray) -> list:
    """The chosen rows of every batch."""
    return [_grids.select(batch, chosen) if isinstance(batch, Grids) else batch[chosen] for batch in batches]


def _own_first_steps(
    x: Grids, result: Grids, programs: np.ndarray, parameters: np.ndarray
) -> tuple[list[Grids], np.ndarray, np.ndarray]:
    """What each step of a program makes of x, bool [n, L]: whether that is defined, and whether it may come first."""
    length = programs.shape[1]
    first = [applied(x, programs[:, k : k + 1], parameters[:, k : k + 1]) for k in range(length)]
    right = np.zeros(programs.shape, bool)
    for order in map(list, itertools.permutations(range(length))):
        steps, good = applied(x, programs[:, order], parameters[:, order])
        right[:, order[0]] |= good & _grids.equal(steps[-1], result)
    return [steps[0] for steps, _ in first], np.stack([good for _, good in first], axis=1), right


def _first_candidates(
    rows: dict,
    backgrounds: np.ndarray,
    grids: list[Grids],
    possible: np.ndarray,
    right: np.ndarray,
    rng: np.random.Generator,
) -> Iterator[tuple]:
    """(question, rows shown, rows of candidates, right) with what the steps of the program make of x and, for the rest,
    what all families do, one of each before a second one. Neither x nor the result is a candidate."""
    n, families = len(possible), numbers(CLASSIFIED)
    again = np.repeat(np.arange(n), len(families) * _TRIES)
    others = np.concatenate([rng.permutation(families) for _ in range(n * _TRIES)])[:, None]
    pool = _by_question(*drawn(rng, _grids.select(grids[0], again), others), n)
    for k, (x, result, *own) in enumerate(zip(*map(_plain, grids), strict=True)):
        taken, marks = {key(x): x, key(result): result}, {}
        for grid, fine, mark in zip(own, possible[k], right[k], strict=True):
            if fine and key(grid) not in taken:
                taken[key(grid)], marks[key(grid)] = grid, mark
        _add(taken, pool[k], 2 + NUM_FIRST)
        numbered = [row_of(rows, exchanged(grid, backgrounds[k]), backgrounds[k]) for grid in taken.values()]
        if len(numbered) == 2 + NUM_FIRST:
            yield k, numbered[:2], numbered[2:], [name in marks and marks[name] for name in list(taken)[2:]]


def _plain(grids: Grids) -> list[np.ndarray]:
    return [np.ascontiguousarray(grid) for grid in _grids.unstack(grids)]


def _by_question(grids: Grids, good: np.ndarray, n: int) -> list[list[np.ndarray]]:
    """The good ones among the grids of each of n questions, which have as many each."""
    each, plain = len(good) // n, _plain(grids)
    return [[plain[i] for i in range(k * each, (k + 1) * each) if good[i]] for k in range(n)]


def _add(candidates: dict, grids: Iterable[np.ndarray], most: int) -> None:
    """Adds grids that are not there yet, up to `most` in all."""
    for grid in grids:
        if len(candidates) >= most:
            return
        candidates.setdefault(key(grid), grid)

"""Programs, one or several primitives in a row, applied to scenes that meet their preconditions, with every step kept.

What a primitive does not change, or is not defined on, is rejected and counted, and another scene is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jepa.data import _grids
from jepa.data._grids import CANVAS, Grids
from jepa.data._primitives import FAMILIES, MAX_PARAMETERS, PRIMITIVES
from jepa.data._scenes import UNLIMITED, Limits

_ROUNDS = 96  # of drawing, after which a program is given up
_PATIENCE = 8  # rounds after which a program whose scenes are not complete gets new parameters
_LEAST = 16  # rows of a round: few programs that are left are tried several times at once
_FEW = 3  # rounds after which `fill` takes another program instead
_NEXT = 8  # families tried as the next step of a program before it is given up


class Trace(NamedTuple):
    """n programs of L steps on S scenes each: what was applied, and the grid before and after every step."""

    families: np.ndarray  # int64 [n, L], numbers of `_primitives.FAMILIES`
    parameters: np.ndarray  # int64 [n, L, 10], those of each family and then 0
    cells: np.ndarray  # uint8 [n, S, L + 1, 30, 30]
    size: np.ndarray  # int64 [n, S, L + 1, 2]: heights and widths


class Tally(NamedTuple):
    """How often each family was applied, int64 [families], and how often that was rejected."""

    applied: np.ndarray
    undefined: np.ndarray  # its precondition did not hold, or the result was too large
    unchanged: np.ndarray  # it changed nothing, or led back to an earlier grid of the program


def draw(
    rng: np.random.Generator,
    families: np.ndarray,
    *,
    num_scenes: int = 1,
    orbit: bool = False,
    limits: Limits = UNLIMITED,
) -> tuple[Trace, Tally]:
    """Programs with these families, int64 [n, L], on `num_scenes` scenes each, and the count of what was rejected.

    Every step changes its grid, and no step leads back to an earlier grid of its program. In an orbit g, P g, P P g,
    ... all families of a program are one, its parameters are drawn once, and only consecutive grids need to differ.
    Raises ValueError if a program finds no scenes.
    """
    trace, tally, found = search(rng, families, num_scenes=num_scenes, orbit=orbit, limits=limits)
    if not found.all():
        stuck = " then ".join(FAMILIES[number] for number in families[~found][0])
        raise ValueError(f"no scenes for the program {stuck}: leave it out")
    return trace, tally


def search(
    rng: np.random.Generator,
    families: np.ndarray,
    *,
    num_scenes: int = 1,
    orbit: bool = False,
    limits: Limits = UNLIMITED,
    rounds: int = _ROUNDS,
) -> tuple[Trace, Tally, np.ndarray]:
    """As `draw`, with bool [n]: the programs that found their scenes within so many rounds of drawing."""
    n, length = families.shape
    if orbit and (families != families[:, :1]).any():
        raise ValueError("an orbit applies one family; its row of families holds several")
    parameters = draw_parameters(rng, families, orbit)
    grids = np.zeros((n * num_scenes, length + 1, CANVAS, CANVAS), np.uint8)
    size = np.zeros((n * num_scenes, length + 1, 2), np.int64)
    tally = Tally(*np.zeros((3, len(FAMILIES)), np.int64))
    pending = np.ones((n, num_scenes), bool)
    for attempt in range(rounds):
        if attempt and attempt % _PATIENCE == 0:
            again = pending.any(axis=1)
            parameters[again] = draw_parameters(rng, families[again], orbit)
            pending[again] = True
        rows = np.flatnonzero(pending)
        if not len(rows):
            break
        tried = np.repeat(rows, -(-_LEAST // len(rows)))
        program = tried // num_scenes
        kept, steps = _attempt(rng, families[program], parameters[program], orbit, limits, tally)
        for step, after in enumerate(steps):
            grids[tried[kept], step] = after.cells
            size[tried[kept], step] = np.stack(after[1:], axis=1)
        pending.reshape(-1)[tried[kept]] = False
    shape = (n, num_scenes, length + 1)
    trace = Trace(families, parameters, grids.reshape(*shape, CANVAS, CANVAS), size.reshape(*shape, 2))
    return trace, tally, ~pending.any(axis=1)


def fill(
    rng: np.random.Generator,
    number: int,
    sample: Callable[[np.random.Generator, int], np.ndarray],
    *,
    num_scenes: int = 1,
    orbit: bool = False,
    limits: Limits = UNLIMITED,
    later: Sequence[np.ndarray] = (),
) -> tuple[Trace, Tally]:
    """As `draw`, for `number` programs with families from sample(rng, n) -> int64 [n, L].

    A program that does not find its scenes at once makes room for another one: to insist on the few hard ones would
    take most of the time. So what is rarely possible is drawn less often than `sample` says.

    later, bool [K, K] each: what may follow what at steps after those of `sample`, by which programs on one scene are
    extended one after the other.
    """
    traces, tallies, missing, share = [], [], number, 1.0
    for _ in range(_ROUNDS):
        if missing <= 0:
            break
        families = sample(rng, int(missing / max(share, 0.1)) + _LEAST)
        trace, tally, found = search(rng, families, num_scenes=num_scenes, orbit=orbit, limits=limits, rounds=_FEW)
        trace = Trace(*(field[found] for field in trace))
        for follows in later:
            trace = extend(rng, trace, follows, limits, tally)
        traces.append(trace)
        tallies.append(tally)
        missing, share = missing - len(trace.families), len(trace.families) / len(families)
    else:
        raise ValueError(f"{missing} of {number} programs find no scenes: hold out fewer families, or shorten programs")
    whole = Trace(*(np.concatenate(fields)[:number] for fields in zip(*traces, strict=True)))
    return whole, Tally(*(np.sum(counts, axis=0) for counts in zip(*tallies, strict=True)))


def extend(rng: np.random.Generator, trace: Trace, follows: np.ndarray, limits: Limits, tally: Tally) -> Trace:
    """Programs on one scene with one more step, as many of them as found one; counted in the tally.

    follows bool [K, K]: what may follow what. The family and its parameters are drawn anew until a step is accepted:
    whole programs of many steps, drawn before their scenes, almost never are.
    """
    count, _, length = trace.size.shape[:3]
    steps = [Grids(trace.cells[:, 0, t], *trace.size[:, 0, t].T) for t in range(length)]
    after = Grids(*(np.zeros_like(field) for field in steps[-1]))
    families, parameters = np.zeros(count, np.int64), np.zeros((count, MAX_PARAMETERS), np.int64)
    allowed = follows[trace.families[:, -1]]  # [n, K]
    pending, found = allowed.any(axis=1), np.zeros(count, bool)
    for _ in range(_NEXT):
        rows = np.flatnonzero(pending & ~found)
        if not len(rows):
            break
        family = one_of(rng, allowed[rows])
        drawn = draw_parameters(rng, family[:, None], False)[:, 0]
        made, good = _step([_grids.select(before, rows) for before in steps], family, drawn, limits, tally)
        kept = rows[good]
        families[kept], parameters[kept], found[kept] = family[good], drawn[good], True
        for field, part in zip(after, _grids.select(made, good), strict=True):
            field[kept] = part
    whole = Trace(
        np.concatenate([trace.families, families[:, None]], axis=1),
        np.concatenate([trace.parameters, parameters[:, None]], axis=1),
        np.concatenate([trace.cells, after.cells[:, None, None]], axis=2),
        np.concatenate([trace.size, np.stack(after[1:], axis=1)[:, None, None]], axis=2),
    )
    return Trace(*(field[found] for field in whole))


def one_of(rng: np.random.Generator, allowed: np.ndarray) -> np.ndarray:
    """A uniform choice among the True entries of each row of bool [n, K]."""
    return (rng.random(allowed.shape) * allowed).argmax(axis=1)


def _attempt(
    rng: np.random.Generator, families: np.ndarray, parameters: np.ndarray, orbit: bool, limits: Limits, tally: Tally
) -> tuple[np.ndarray, list[Grids]]:
    """One scene for each program: the rows whose every step was accepted, and their grids step by step.

    The scene is drawn for one of the steps, since a later one may ask for more than the first: what is to be scaled
    has to be small before it is mirrored.
    """
    rows = np.arange(len(families))
    step = rng.integers(families.shape[1], size=len(families))
    steps = [scenes(rng, families[rows, step], parameters[rows, step], limits)]
    for step in range(families.shape[1]):
        earlier = steps[-1:] if orbit else steps
        after, good = _step(earlier, families[rows, step], parameters[rows, step], limits, tally)
        if not good.all():
            rows, after = rows[good], _grids.select(after, good)
            steps = [_grids.select(before, good) for before in steps]
        steps.append(after)
    return rows, steps


def _step(
    earlier: Sequence[Grids], families: np.ndarray, parameters: np.ndarray, limits: Limits, tally: Tally
) -> tuple[Grids, np.ndarray]:
    """What a step makes of the last of the earlier grids, and bool [n]: it is defined, keeps to the canvas and is none
    of them. Counted in the tally."""
    after, defined = apply(earlier[-1], families, parameters)
    defined &= np.maximum(after.height, after.width) <= limits.canvas
    changed = ~np.any([_grids.equal(after, before) for before in earlier], axis=0)
    for count, chosen in zip(tally, (defined | True, ~defined, defined & ~changed), strict=True):
        count += np.bincount(families[chosen], minlength=len(FAMILIES))
    return after, defined & changed


def attempted(rng: np.random.Generator, families: np.ndarray) -> np.ndarray:
    """The indices of the programs with these families, int64 [n, L], whose one and only scene was accepted."""
    tally = Tally(*np.zeros((3, len(FAMILIES)), np.int64))
    return _attempt(rng, families, draw_parameters(rng, families, False), False, UNLIMITED, tally)[0]


def _groups(families: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """The numbers of the families that occur, and the rows of each."""
    return [(number, np.flatnonzero(families == number)) for number in np.unique(families)]


def draw_parameters(rng: np.random.Generator, families: np.ndarray, orbit: bool) -> np.ndarray:
    """Parameters int64 [n, L, 10] of families [n, L]; in an orbit, the same for all steps."""
    if orbit:
        return np.repeat(draw_parameters(rng, families[:, :1], False), families.shape[1], axis=1)
    drawn = np.zeros((families.size, MAX_PARAMETERS), np.int64)
    for number, rows in _groups(families.reshape(-1)):
        primitive = PRIMITIVES[FAMILIES[number]]
        drawn[rows, : len(primitive.parameters)] = primitive.draw(rng, len(rows))
    return drawn.reshape(*families.shape, MAX_PARAMETERS)


def scenes(rng: np.random.Generator, families: np.ndarray, parameters: np.ndarray, limits: Limits) -> Grids:
    """A scene for each family, int64 [n], with its parameters, int64 [n, 10]."""
    parts, places = [], []
    for number, rows in _groups(families):
        primitive = PRIMITIVES[FAMILIES[number]]
        parts.append(primitive.scene(rng, parameters[rows, : len(primitive.parameters)], limits))
        places.append(rows)
    return _together(parts, places)


def apply(grids: Grids, families: np.ndarray, parameters: np.ndarray) -> tuple[Grids, np.ndarray]:
    """A family, int64 [n], with its parameters, int64 [n, 10], applied to each grid, and whether it is defined there.

    Where it is not, the result means nothing.
    """
    parts, places = [], []
    defined = np.zeros(len(families), bool)
    for number, rows in _groups(families):
        primitive = PRIMITIVES[FAMILIES[number]]
        part = grids if len(rows) == len(families) else _grids.select(grids, rows)
        after, defined[rows] = primitive.apply(part, parameters[rows, : len(primitive.parameters)])
        parts.append(after)
        places.append(rows)
    return _together(parts, places), defined


def _together(parts: list[Grids], places: list[np.ndarray]) -> Grids:
    """Parts of a batch, each with the rows it belongs to, in the order of the rows."""
    if not parts:
        return _grids.stack([])
    if len(parts) == 1:
        return parts[0]
    order = np.argsort(np.concatenate(places))
    return _grids.select(_grids.concatenate(parts), order)

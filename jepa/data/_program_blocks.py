"""Programs by the block, since one large draw costs less than many small ones, and what may be drawn for what."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from jepa.data import _compositions, _grids, _objects, _programs, _scenes
from jepa.data._primitives import FAMILIES, PRIMITIVES
from jepa.data._programs import Trace
from jepa.data._scenes import UNLIMITED, Limits
from jepa.tables import CANVAS


class Recipe(NamedTuple):
    """What is drawn: programs of `length` steps on `num_scenes` scenes each, or orbits of one family.

    The first steps are drawn as a whole, and those that `later` stands for one by one, for what the grid has become.
    """

    length: int
    num_scenes: int
    orbit: bool
    first: np.ndarray  # bool [K]: the families a program may begin with
    pairs: tuple[np.ndarray, ...]  # bool [K, K] each: what may follow what at each transition of the first steps
    limits: Limits  # how large scenes may be
    later: tuple[np.ndarray, ...] = ()  # bool [K, K] each: what may follow what from there on


def recipes(
    split: _compositions.Split,
    *,
    length: int,
    num_scenes: int,
    orbit: bool,
    limits: Limits = UNLIMITED,
    stepwise: bool = False,
) -> dict[str, Recipe]:
    """What may be trained on, by `train`, and what is held out, by `families` and, for compositions, `compositions`.

    In `families` every program begins with a held-out family or, from the second step on, meets one in its first pair;
    in `compositions` its first pair is held out. The rest of a program is what is trained on. A held-out set without a
    member is left out. stepwise: from the third step on, a step that does not fit is drawn again, since long programs
    that are drawn as a whole almost never do. Raises ValueError for a length below 1, for limits that are too narrow,
    and if nothing is left to train on.
    """
    if length < 1:
        raise ValueError(f"programs of {length} steps; they have at least 1")
    _scenes.check(limits)
    room = np.array([PRIMITIVES[name].repeats >= length for name in FAMILIES])
    any_family = np.ones(len(FAMILIES), bool)
    if orbit:
        chosen = {"train": split.families & room, "families": split.held_out & room}
        found = {
            name: Recipe(length, num_scenes, True, first, (), limits) for name, first in chosen.items() if first.any()
        }
    elif length == 1:
        chosen = {"train": split.families, "families": split.held_out}
        found = {
            name: Recipe(length, num_scenes, False, first, (), limits) for name, first in chosen.items() if first.any()
        }
    else:
        firsts = {"train": split.pairs, "families": split.novel_pairs, "compositions": split.held_out_pairs}
        # A held-out family in the first pair may be its second, and then has to be followed by something.
        after = {"train": split.pairs, "families": split.pairs | split.novel_pairs, "compositions": split.pairs}
        found = {}
        for name, pairs in firsts.items():
            rest = (after[name],) * (length - 2)
            whole, later = ((pairs,), rest) if stepwise else ((pairs, *rest), ())
            if pairs.any():
                found[name] = Recipe(length, num_scenes, False, any_family, whole, limits, later)
    if "train" not in found:
        raise ValueError(f"no program of {length} steps is left to train on: hold out fewer families")
    return found


def sample(recipe: Recipe, rng: np.random.Generator, number: int) -> np.ndarray:
    """Families int64 [number, length] of programs of the recipe, but for the later steps."""
    families = _compositions.chains(rng, number, recipe.first, recipe.pairs)
    return np.repeat(families, recipe.length, axis=1) if recipe.orbit else families


def block(recipe: Recipe, seed: int, size: int, number: int) -> tuple[Trace, _programs.Tally]:
    """The `size` programs of a block, and the count of what was rejected; the same wherever it is drawn."""
    return draw(recipe, np.random.default_rng([seed, number]), size)


def draw(recipe: Recipe, rng: np.random.Generator, number: int) -> tuple[Trace, _programs.Tally]:
    """Programs of the recipe, and the count of what was rejected."""
    families = functools.partial(sample, recipe)
    options = dict(num_scenes=recipe.num_scenes, orbit=recipe.orbit, limits=recipe.limits, later=recipe.later)
    return _programs.fill(rng, number, families, **options)


def tables(cells: np.ndarray, size: np.ndarray) -> dict[str, np.ndarray]:
    """The object tables of grids uint8 [..., 30, 30] of sizes [..., 2], under their background, which is colour 0.

    In the narrowest integers that hold counts of up to 30 x 30 cells.
    """
    leading = size.shape[:-1]
    grids = _grids.unstack(_grids.Grids(cells.reshape(-1, CANVAS, CANVAS), *size.reshape(-1, 2).T))
    found = _objects.tokenise(grids, [0] * len(grids))
    return {
        key: (leaf if leaf.dtype.itemsize == 1 else leaf.astype(np.int16)).reshape(*leading, *leaf.shape[1:])
        for key, leaf in found.items()
    }

"""What a primitive is: one family of transformations of grids, with explicit parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jepa.data._grids import Grids
from jepa.data._scenes import Limits

Parameters = np.ndarray  # int64 [n, P], one row for each grid


class Primitive(NamedTuple):
    """A family of transformations; everything takes many grids at once, each with parameters of its own.

    parameters: the names of the P parameters
    draw(rng, n) -> Parameters
    apply(grids, parameters) -> (results, bool [n]: where the precondition holds). Elsewhere the result means nothing.
    scene(rng, parameters, limits) -> Grids within the limits, that mostly meet the precondition and are changed
    inverse(parameters) -> (family, its parameters) that undo it wherever the precondition holds; None without
    repeats: how often in a row its scenes leave room for it; 1 where a second time changes nothing or finds no room
    """

    parameters: tuple[str, ...]
    draw: Callable[[np.random.Generator, int], Parameters]
    apply: Callable[[Grids, Parameters], tuple[Grids, np.ndarray]]
    scene: Callable[[np.random.Generator, Parameters, Limits], Grids]
    inverse: Callable[[Parameters], tuple[str, Parameters]] | None = None
    repeats: int = 1


def choices(*options: tuple[int, ...]) -> Callable[[np.random.Generator, int], Parameters]:
    """`draw` of parameters that are independent, each uniform over its options."""

    def draw(rng: np.random.Generator, number: int) -> Parameters:
        columns = [np.array(option, np.int64)[rng.integers(len(option), size=number)] for option in options]
        return np.stack(columns, axis=1) if columns else np.zeros((number, 0), np.int64)

    return draw


def everywhere(grids: Grids) -> np.ndarray:
    """A precondition that every grid meets."""
    return np.ones(len(grids.height), bool)

"""All primitive families by name."""

from __future__ import annotations

import numpy as np

from jepa.data import _primitives_cells, _primitives_geometry, _primitives_lines, _primitives_objects
from jepa.data._primitive import Primitive

PRIMITIVES: dict[str, Primitive] = {
    **_primitives_geometry.PRIMITIVES,
    **_primitives_cells.PRIMITIVES,
    **_primitives_lines.PRIMITIVES,
    **_primitives_objects.PRIMITIVES,
}
FAMILIES = tuple(PRIMITIVES)
SETS = {  # families that belong together
    "geometry": tuple(_primitives_geometry.PRIMITIVES),
    "cells": tuple(_primitives_cells.PRIMITIVES),
    "lines": tuple(_primitives_lines.PRIMITIVES),
    "objects": tuple(_primitives_objects.PRIMITIVES),
}
MAX_PARAMETERS = max(len(primitive.parameters) for primitive in PRIMITIVES.values())


def repeating(length: int) -> tuple[str, ...]:
    """The families with orbits of `length` applications."""
    return tuple(name for name, primitive in PRIMITIVES.items() if primitive.repeats >= length)


def numbers(families: np.ndarray | list | tuple) -> np.ndarray:
    """Numbers of families, int64 in the shape of their names."""
    names = np.asarray(families)
    return np.array([FAMILIES.index(name) for name in names.ravel()], np.int64).reshape(names.shape)

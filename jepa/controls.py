"""Fixed encoders that learned nothing, of object tables or of the grids themselves: what an embedding has to beat."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jepa import tables as object_tables
from jepa.tables import CANVAS, NUM_COLOURS
from jepa.types import Observation


def randnet(table: Observation, *, width: int = 256, seed: int = 0) -> jax.Array:
    """A random ReLU network on each object (F-256-256, He initialisation): mean, max and sum over objects, [n, 768]."""
    x, mask = _objects_of(table)
    keys = jax.random.split(jax.random.key(seed), 2)
    for key in keys:
        w = jax.random.normal(key, (x.shape[-1], width)) * jnp.sqrt(2.0 / x.shape[-1])
        x = jax.nn.relu(x @ w)
    return _pool(x, mask)


def raw_tables(table: Observation) -> jax.Array:
    """Mean, max and sum of the raw object features, the grid's histogram and its size, [n, 3 F + 12]."""
    return jnp.concatenate([_pool(*_objects_of(table)), object_tables.grid_features(table)], axis=-1)


def histogram(table: Observation) -> jax.Array:
    """The grid's share of each colour, [n, 10]."""
    return object_tables.grid_features(table)[..., :NUM_COLOURS]


def one_hot_pixels(grids: list[np.ndarray]) -> np.ndarray:
    """Each cell's colour at the top left of a 30x30 canvas, zero outside the grid, [n, 9000]."""
    canvas = np.zeros((len(grids), CANVAS, CANVAS, NUM_COLOURS), np.float32)
    for image, grid in zip(canvas, grids, strict=True):
        image[: grid.shape[0], : grid.shape[1]] = np.eye(NUM_COLOURS, dtype=np.float32)[grid]
    return canvas.reshape(len(grids), -1)


def _objects_of(table: Observation) -> tuple[jax.Array, jax.Array]:
    rows = slice(1, 1 + object_tables.NUM_OBJECTS)
    return object_tables.features(table)[..., rows, :], jnp.asarray(table["mask"])[..., rows]


def _pool(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean, max and sum over the objects that exist; zero where there is none. [n, N, D] -> [n, 3 D]."""
    real = mask[..., None]
    count = jnp.maximum(jnp.sum(real, -2), 1)
    total = jnp.sum(jnp.where(real, x, 0.0), -2)
    largest = jnp.where(jnp.any(real, -2), jnp.max(jnp.where(real, x, -jnp.inf), -2), 0.0)
    return jnp.concatenate([total / count, largest, total], axis=-1)


CONTROLS = {"randnet": randnet, "tables": raw_tables, "histogram": histogram}

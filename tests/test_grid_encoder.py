"""The encoder of cells: every cell counts, wherever it is, and leading axes are independent."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa import registry
from jepa.tables import NUM_CELL_VALUES, OUTSIDE

SIDE = 7  # no multiple of 2
CELLS = jax.random.randint(jax.random.key(0), (4, 3, SIDE, SIDE), 0, NUM_CELL_VALUES)


@functools.cache
def built(stride=2):
    encoder = registry.build("encoders", "grid", dim=10, cell_dim=12, depth=1, stride=stride)
    return encoder, jax.jit(encoder.init)(jax.random.key(1), {"cells": CELLS}), jax.jit(encoder.apply)


@pytest.mark.parametrize("stride", [1, 2])
def test_every_change_of_one_cell_is_seen(stride):
    _, params, apply = built(stride)
    grid = np.asarray(CELLS[0, 0])
    rows, columns, values = (i.ravel() for i in np.meshgrid(np.arange(SIDE), np.arange(SIDE), [OUTSIDE, 0, 3]))
    changed = np.repeat(grid[None], 1 + len(rows), axis=0)
    changed[np.arange(1, len(changed)), rows, columns] = values
    z = np.asarray(apply(params, {"cells": changed}).pooled)
    own, z, differs = z[0], z[1:], values != grid[rows, columns]
    moved = np.abs(z - own).max(axis=-1)
    assert moved[differs].min() > 1e-3
    assert moved[~differs].max() < 1e-5
    # And no two changes are taken for each other.
    z = z[differs]
    apart = np.abs(z[:, None] - z[None]).max(axis=-1) + np.eye(len(z))
    assert apart.min() > 1e-4


def test_it_is_the_same_eagerly_and_compiled_and_by_each_frame():
    encoder, params, apply = built()
    compiled, eager = apply(params, {"cells": CELLS}), encoder.apply(params, {"cells": CELLS})
    assert compiled.pooled.shape == (4, 3, 10) and compiled.pooled.dtype == jnp.float32
    assert compiled.tokens.shape == (4, 3, 16, 12) and bool(compiled.mask.all())
    np.testing.assert_allclose(compiled.pooled, eager.pooled, rtol=1e-4, atol=1e-5)
    for b in range(4):
        alone = apply(params, {"cells": CELLS[b, 1]}).pooled
        np.testing.assert_allclose(alone, compiled.pooled[b, 1], rtol=1e-4, atol=1e-5)


def test_colours_are_kinds_and_not_numbers():
    """Between two colours there is nothing: the embedding of a middle one is not between those of its neighbours."""
    _, params, apply = built()
    plain = jnp.broadcast_to(jnp.arange(1, 4)[:, None, None], (3, SIDE, SIDE))
    low, middle, high = apply(params, {"cells": plain}).pooled
    assert float(jnp.linalg.norm(middle - (low + high) / 2)) > 0.3 * float(jnp.linalg.norm(high - low))


def test_half_precision_is_that_of_the_inside():
    encoder = registry.build("encoders", "grid", dim=10, cell_dim=12, depth=1, compute_dtype="bfloat16")
    _, params, apply = built()
    z, exact = jax.jit(encoder.apply)(params, {"cells": CELLS}), apply(params, {"cells": CELLS})
    assert z.pooled.dtype == z.tokens.dtype == jnp.float32
    np.testing.assert_allclose(z.pooled, exact.pooled, atol=0.05 * float(jnp.abs(exact.pooled).max()))


def test_a_mistake_is_named():
    with pytest.raises(ValueError, match=r"encoder\.stride is 0; it must be at least 1"):
        registry.build("encoders", "grid", stride=0)
    encoder, params, _ = built()
    with pytest.raises(ValueError, match=r"reads the leaf 'cells', and the data shows \['size'\]"):
        encoder.embed(params, {"size": jnp.zeros((2, 2))})

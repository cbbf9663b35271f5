"""Laws of the object encoder on real tables: sets in, sets out, and nothing read from rows that do not exist."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa import registry, tables
from jepa.data import _collections, _objects

SMALL = dict(dim=16, depth=2, num_heads=2, num_readouts=3, readout_dim=5)


@pytest.fixture(scope="module")
def table():
    grids = [x for task in _collections.load("arc1-train")[:12] for x, _ in task.demos[:1]]
    return jax.tree.map(jnp.asarray, _objects.tokenise(grids, [_objects.background([g]) for g in grids]))


def encoder_and_params(table, **overrides):
    encoder = registry.build("encoders", "objects", **SMALL | overrides)
    params = encoder.init(jax.random.key(0), table)
    keys = jax.random.split(jax.random.key(1), len(jax.tree.leaves(params)))
    noise = jax.tree.unflatten(jax.tree.structure(params), list(keys))
    # Away from the initialisation, where relations have no effect yet.
    return encoder, jax.tree.map(lambda p, k: p + 0.3 * jax.random.normal(k, p.shape), params, noise)


def permute_objects(table, order):
    full = np.concatenate([[0], 1 + order, [tables.OVERFLOW]])
    permuted = {k: leaf[:, full] if k not in ("size", "offset") else leaf for k, leaf in table.items()}
    permuted["edges"] = table["edges"][:, full][:, :, full]
    return permuted, full


@pytest.mark.parametrize("pooling", ["readouts", "mean"])
def test_the_order_of_objects_changes_nothing(table, pooling):
    encoder, params = encoder_and_params(table, pooling=pooling)
    permuted, full = permute_objects(table, np.random.default_rng(0).permutation(tables.NUM_OBJECTS))
    one, other = encoder.apply(params, table), encoder.apply(params, permuted)
    assert one.pooled.shape == (12, 15) and one.pooled.dtype == jnp.float32
    np.testing.assert_allclose(one.pooled, other.pooled, rtol=1e-4, atol=1e-5)
    real = np.asarray(permuted["mask"])
    np.testing.assert_allclose(one.tokens[:, full][real], other.tokens[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["readouts", "mean"])
def test_rows_that_do_not_exist_are_not_read(table, pooling):
    encoder, params = encoder_and_params(table, pooling=pooling)
    absent = ~table["mask"]
    rubbish = dict(table)
    for key in ("histogram", "box", "moment", "shape"):
        rubbish[key] = jnp.where(absent[..., None], 7, table[key])
    either = absent[..., :, None] | absent[..., None, :]
    rubbish["edges"] = jnp.where(either, 127, table["edges"]).astype(jnp.uint8)
    one, other = encoder.apply(params, table).pooled, jax.jit(encoder.apply)(params, rubbish).pooled
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_how_objects_relate_is_read(table):
    encoder, params = encoder_and_params(table)
    unrelated = table | {"edges": jnp.zeros_like(table["edges"])}
    changed = jnp.abs(encoder.apply(params, table).pooled - encoder.apply(params, unrelated).pooled).max(axis=-1)
    related = np.asarray(table["edges"]).any(axis=(1, 2))
    assert (changed[related] > 1e-3).all() and (changed[~related] == 0).all()


def test_nothing_fixes_the_scale_of_the_embedding(table):
    encoder, params = encoder_and_params(table)
    scaled = jax.tree.map(lambda x: x, params)
    scaled["Readouts_0"]["values"] = jax.tree.map(lambda x: 10 * x, params["Readouts_0"]["values"])
    np.testing.assert_allclose(
        encoder.apply(scaled, table).pooled, 10 * encoder.apply(params, table).pooled, rtol=1e-4, atol=1e-4
    )


def test_leading_axes_are_independent(table):
    encoder, params = encoder_and_params(table)
    stacked = jax.tree.map(lambda leaf: leaf.reshape(4, 3, *leaf.shape[1:]), table)
    np.testing.assert_allclose(
        encoder.apply(params, stacked).pooled.reshape(12, -1), encoder.apply(params, table).pooled, rtol=1e-4, atol=1e-5
    )


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match=r"encoder\.pooling is 'max'"):
        registry.build("encoders", "objects", pooling="max")
    with pytest.raises(ValueError, match=r"must be a multiple of encoder\.num_heads"):
        registry.build("encoders", "objects", dim=10, num_heads=4)

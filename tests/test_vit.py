"""Laws of the vision transformer: patches, positions, views of two sizes, registers and drop path."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa import modules, registry
from jepa.encoders import vit

SMALL = dict(dim=16, depth=2, num_heads=2, size=12, patch=4, width=6)


def images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=shape), jnp.float32)


@functools.cache
def encoder_and_params(**overrides):
    encoder = registry.build("encoders", "vit", **SMALL | overrides)
    params = jax.jit(encoder.init)(jax.random.key(0), {"image": images(2, 12, 12, 3)})
    rng = np.random.default_rng(1)
    # Away from the initialisation, where positions are nearly alike.
    return encoder, jax.tree.map(lambda p: p + 0.2 * rng.normal(size=p.shape).astype(np.float32), params)


def apply(observation, **overrides):
    encoder, params = encoder_and_params(**overrides)
    return jax.jit(encoder.apply)(params, observation)


def test_patches_are_cut_in_reading_order():
    image = np.asarray(images(2, 6, 9, 2))
    cut = vit.patches(jnp.asarray(image), 3)
    assert cut.shape == (2, 2, 3, 18)
    for row in range(2):
        for column in range(3):
            expected = image[:, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3].reshape(2, -1)
            np.testing.assert_array_equal(cut[:, row, column], expected)
    with pytest.raises(ValueError, match="images are 6 x 9 but encoder"):
        vit.patches(jnp.asarray(image), 4)


@pytest.mark.parametrize("pooling", vit.POOLINGS)
def test_one_vector_an_image_whatever_the_leading_axes(pooling):
    batch = images(2, 3, 12, 12, 3)
    encoded = apply({"image": batch}, pooling=pooling, num_registers=2)
    assert encoded.tokens.shape == (2, 3, 10, 16) and encoded.pooled.shape == (2, 3, 6)  # [CLS] and 9 patches
    assert encoded.pooled.dtype == encoded.tokens.dtype == jnp.float32 and encoded.mask.all()
    alone = apply({"image": batch[1, 2]}, pooling=pooling, num_registers=2)
    np.testing.assert_allclose(encoded.pooled[1, 2], alone.pooled, rtol=1e-4, atol=1e-5)


def test_bytes_are_shares_of_255():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3)).astype(np.uint8)
    one, other = apply({"image": pixels}), apply({"image": jnp.float32(pixels) / 255})
    np.testing.assert_allclose(one.pooled, other.pooled, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", vit.POOLINGS)
def test_smaller_views_are_encoded_as_they_would_be_alone(pooling):
    near, far = images(2, 2, 12, 12, 3), images(2, 3, 8, 8, 3, seed=1)
    both = apply({"image": near, "local": far}, pooling=pooling)
    one, other = apply({"image": near}, pooling=pooling), apply({"image": far}, pooling=pooling)
    np.testing.assert_allclose(both.pooled, jnp.concatenate([one.pooled, other.pooled], axis=1), rtol=1e-4, atol=1e-5)
    assert both.tokens.shape == (2, 5, 10, 16)
    np.testing.assert_array_equal(both.mask.sum(-1), [[10, 10, 5, 5, 5]] * 2)
    np.testing.assert_array_equal(both.tokens[~both.mask], 0.0)


@pytest.mark.parametrize("positions", vit.POSITIONS)
def test_where_a_patch_is_matters(positions):
    image = images(1, 12, 12, 3)
    moved = jnp.roll(image, 4, axis=1)  # the same patches in other rows
    one, other = (apply({"image": x}, positions=positions, pooling="mean").pooled for x in (image, moved))
    assert np.abs(one - other).max() > 1e-2


def test_without_positions_the_order_of_patches_means_nothing_to_their_mean():
    encoder, params = encoder_and_params(pooling="mean")
    params = params | {"positions": jnp.zeros_like(params["positions"])}
    image = images(1, 12, 12, 3)
    one, other = (jax.jit(encoder.apply)(params, {"image": x}).pooled for x in (image, jnp.roll(image, 4, axis=2)))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_sincos_positions_tell_rows_from_columns():
    table = vit.sincos(5, 16)
    assert table.shape == (5, 5, 16)
    np.testing.assert_array_equal(
        table[2, :, :8], np.broadcast_to(table[2, :1, :8], (5, 8))
    )  # the row, in every column
    np.testing.assert_array_equal(table.transpose(1, 0, 2)[..., 8:], table[..., :8])
    np.testing.assert_allclose(table[3, 0, :8:4], [np.sin(3), np.cos(3)], rtol=1e-6)
    flat = table.reshape(25, 16)
    assert np.linalg.norm(flat[:, None] - flat[None], axis=-1)[~np.eye(25, dtype=bool)].min() > 0.1


def test_registers_are_read_but_not_handed_on():
    image = {"image": images(1, 12, 12, 3)}
    encoder, params = encoder_and_params(num_registers=2)
    other = params | {"extra": params["extra"].at[1:].multiply(-1.0)}
    one, moved = (jax.jit(encoder.apply)(p, image) for p in (params, other))
    assert one.tokens.shape[-2] == 10 and np.abs(one.pooled - moved.pooled).max() > 1e-3


def test_paths_are_dropped_in_training_alone_and_more_often_with_depth():
    encoder, params = encoder_and_params(drop_rate=0.5)
    observation = {"image": jnp.broadcast_to(images(12, 12, 3)[None], (64, 12, 12, 3))}
    plain = jax.jit(encoder.embed)(params, observation)[0]
    assert np.abs(plain - plain[:1]).max() < 1e-5
    train = jax.jit(encoder.embed_train)
    dropped = np.asarray(train(params, observation, jax.random.key(0))[0]).reshape(64, -1)
    np.testing.assert_array_equal(dropped, np.asarray(train(params, observation, jax.random.key(0))[0]).reshape(64, -1))
    # The first block keeps everything, the second drops attention, MLP, both or neither, independently for each image.
    _, counts = np.unique(np.round(dropped, 3), axis=0, return_counts=True)
    assert len(counts) == 4 and counts.min() >= 6
    assert registry.build("encoders", "vit", **SMALL).embed_train is None


def test_dropped_branches_keep_their_expectation():
    kept = modules.drop_path(jax.random.key(0), (20_000,), 0.3)
    np.testing.assert_allclose(np.unique(kept), [0.0, 1 / 0.7], rtol=1e-6)
    assert abs(kept.mean() - 1.0) < 0.02


def test_gradients_reach_every_parameter():
    encoder, params = encoder_and_params(num_registers=1)
    observation = {"image": images(2, 2, 12, 12, 3), "local": images(2, 1, 8, 8, 3, seed=1)}
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(encoder.apply(p, observation).pooled))))(params)
    assert all(np.abs(leaf).max() > 0 and np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(pooling="max"), "encoder.pooling is 'max'"),
        (dict(positions="rope"), "encoder.positions is 'rope'"),
        (dict(num_heads=3), "encoder.dim 16 must be a multiple of 4 and of encoder.num_heads 3"),
        (dict(patch=5), "encoder.patch 5 must divide encoder.size 12"),
        (dict(drop_rate=1.0), "encoder.drop_rate is 1.0"),
    ],
)
def test_what_cannot_be_built_is_said(options, message):
    with pytest.raises(ValueError, match=message):
        registry.build("encoders", "vit", **SMALL | options)


def test_object_tables_are_no_images():
    encoder, params = encoder_and_params()
    with pytest.raises(ValueError, match="encoder 'vit' sees images"):
        encoder.embed(params, {"mask": jnp.ones((2, 3), bool)})

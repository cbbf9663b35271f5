"""Views of images: each part against an independent reference, and multi-crop as one observation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jepa import views

KEYS = jax.random.split(jax.random.key(0), 200)
PLAIN = views.Colours(0.0, 0.0, 0.0, 0.0, 0.0)


def picture(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=shape), jnp.float32)


def over_keys(function, image, **options):
    """`function` of the image under every key of KEYS."""
    return np.asarray(jax.jit(jax.vmap(lambda key: function(image, key, **options)))(KEYS))


# --- crops ----------------------------------------------------------------------------------------------------------


def test_the_whole_image_at_its_own_size_is_the_image():
    image = picture(7, 7, 3)
    shown = over_keys(views.crop, image, size=7, scale=(1.0, 1.0), log_ratio=0.0)
    np.testing.assert_allclose(shown, np.broadcast_to(image[None], shown.shape), atol=1e-6)


def test_a_crop_is_a_rectangle_of_the_drawn_area_inside_the_image():
    height, width = 40, 60
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    # Bilinear sampling is exact on coordinates, so that they say which part of the image a crop shows.
    image = jnp.asarray(np.stack([y, x, 0 * x], axis=-1), jnp.float32)
    shown = over_keys(views.crop, image, size=50, scale=(0.2, 0.5))[..., :2]
    inner = shown[:, 5:-5, 5:-5]  # a pixel at the border is flat by half of its width
    step_y, step_x = np.diff(inner[..., 0], axis=1), np.diff(inner[..., 1], axis=2)
    for steps in (step_y, step_x):
        assert (np.ptp(steps, axis=(1, 2)) < 2e-3).all()
    extent_y, extent_x = 50 * step_y.mean((1, 2)), 50 * step_x.mean((1, 2))
    area, ratio = extent_y * extent_x, extent_x / extent_y
    assert (area > 0.195).all() and (area < 0.505).all() and area.min() < 0.22 and area.max() > 0.48
    assert (ratio > 0.74).all() and (ratio < 1.35).all() and ratio.min() < 0.8 and ratio.max() > 1.25
    first = inner[:, 0, 0] - 5.5 * np.stack([extent_y, extent_x], axis=-1) / 50
    assert (first > -0.01).all() and (first + np.stack([extent_y, extent_x], axis=-1) < 1.01).all()
    room = 1 - np.stack([extent_y, extent_x], axis=-1)
    assert abs((first / room).mean() - 0.5) < 0.05  # every place is as likely


def test_a_crop_of_a_few_pixels_is_sampled_bilinearly():
    image = picture(9, 9, 1)
    key = KEYS[3]
    shown = views.crop(image, key, size=30, scale=(0.3, 0.3), log_ratio=0.0)[..., 0]
    side = np.sqrt(0.3) * 9
    first = np.asarray(jax.random.uniform(jax.random.split(key, 3)[2], (2,))) * (9 - side)
    points = [f + (np.arange(30) + 0.5) * side / 30 - 0.5 for f in first]
    grid = np.meshgrid(*points, indexing="ij")
    expected = ndimage.map_coordinates(np.asarray(image[..., 0]), grid, order=1, mode="nearest")
    np.testing.assert_allclose(shown, expected, atol=1e-4)


# --- colours, blur, noise -------------------------------------------------------------------------------------------


def test_jitter_of_nothing_is_the_image():
    image = picture(5, 6, 3)
    shown = over_keys(views.jitter, image, brightness=0.0, contrast=0.0, saturation=0.0)
    np.testing.assert_allclose(shown, np.broadcast_to(image[None], shown.shape), atol=1e-6)


def test_brightness_is_a_factor():
    image = 0.5 * picture(5, 6, 1) + 0.05
    factors = over_keys(views.jitter, image, brightness=0.4, contrast=0.0, saturation=0.0) / np.asarray(image)[None]
    assert (np.ptp(factors, axis=(1, 2, 3)) < 1e-4).all()
    factors = factors[:, 0, 0, 0]
    assert 0.6 <= factors.min() < 0.63 and 1.37 < factors.max() <= 1.4


def test_contrast_keeps_the_mean_and_saturation_the_luminance():
    image = 0.2 * picture(8, 8, 3) + 0.4  # far from where values are clipped
    contrast = over_keys(views.jitter, image, brightness=0.0, contrast=0.5, saturation=0.0)
    grey = np.asarray(image) @ views.LUMA
    np.testing.assert_allclose((contrast @ views.LUMA).mean((1, 2)), grey.mean(), atol=1e-5)
    deviation = contrast.std((1, 2, 3)) / np.std(image)
    assert deviation.min() < 0.6 and deviation.max() > 1.4
    vivid = over_keys(views.jitter, image, brightness=0.0, contrast=0.0, saturation=0.5)
    np.testing.assert_allclose(vivid @ views.LUMA, np.broadcast_to(grey[None], vivid.shape[:-1]), atol=1e-5)
    assert vivid.std(-1).mean((1, 2)).std() > 0.01


def test_blur_is_a_gaussian_filter():
    image = picture(41, 41, 2)
    blurred = views.blur(image, jnp.float32(1.7))
    for channel in range(2):
        expected = ndimage.gaussian_filter(np.asarray(image[..., channel], np.float64), 1.7, truncate=8)
        np.testing.assert_allclose(blurred[14:-14, 14:-14, channel], expected[14:-14, 14:-14], atol=1e-5)
    np.testing.assert_allclose(views.blur(jnp.full((9, 9, 1), 0.3), jnp.float32(2.0)), 0.3, rtol=1e-6)
    np.testing.assert_allclose(views.blur(image, jnp.float32(0.0)), image, atol=1e-6)


def test_noise_is_of_at_most_the_given_deviation_and_flips_are_half_of_the_views():
    image = jnp.full((16, 16, 1), 0.5)
    colours = PLAIN._replace(noise=0.1)
    noisy = over_keys(views.view, image, size=16, scale=(1.0, 1.0), colours=colours)
    deviation = noisy.std((1, 2, 3))
    assert deviation.max() < 0.12 and abs(deviation.mean() - 0.05) < 0.01
    ramp = jnp.broadcast_to(jnp.linspace(0, 1, 16)[None, :, None], (16, 16, 1))
    mirrored = over_keys(views.view, ramp, size=16, scale=(1.0, 1.0), colours=PLAIN, flip=True)
    assert 0.35 < (mirrored[:, 8, 0, 0] > mirrored[:, 8, -1, 0]).mean() < 0.65
    straight = over_keys(views.view, ramp, size=16, scale=(1.0, 1.0), colours=PLAIN)
    assert (straight[:, 8, 0, 0] < straight[:, 8, -1, 0]).all()


# --- multi-crop -----------------------------------------------------------------------------------------------------


def multi_crop(images, key, **overrides):
    options = dict(num_global=2, num_local=3, global_size=12, local_size=6, global_scale=(0.5, 1.0))
    options |= dict(local_scale=(0.05, 0.2), colours=PLAIN)
    return jax.jit(functools.partial(views.multi_crop, **options | overrides))(images, key)


def test_global_and_local_views_are_two_arrays_where_their_sizes_differ_and_one_where_not():
    images = picture(4, 12, 12, 3)
    shown = multi_crop(images, KEYS[0])
    assert shown["image"].shape == (4, 2, 12, 12, 3) and shown["local"].shape == (4, 3, 6, 6, 3)
    (one,) = multi_crop(images, KEYS[0], local_size=12).values()
    assert one.shape == (4, 5, 12, 12, 3)
    np.testing.assert_array_equal(one[:, :2], shown["image"])  # global views first
    (two,) = multi_crop(images, KEYS[0], num_local=0).values()
    assert two.shape == (4, 2, 12, 12, 3)


def test_every_view_has_a_draw_of_its_own_and_a_key_repeats_them():
    images = jnp.broadcast_to(picture(12, 12, 1)[None], (3, 12, 12, 1))
    shown = np.asarray(multi_crop(images, KEYS[0])["image"]).reshape(6, -1)
    distance = np.abs(shown[:, None] - shown[None]).max(-1)
    assert distance[~np.eye(6, dtype=bool)].min() > 0.01
    np.testing.assert_array_equal(shown, np.asarray(multi_crop(images, KEYS[0])["image"]).reshape(6, -1))
    assert np.abs(shown - np.asarray(multi_crop(images, KEYS[1])["image"]).reshape(6, -1)).max() > 0.01


def test_local_views_show_less_of_the_image():
    y, x = np.meshgrid(np.arange(12) / 12, np.arange(12) / 12, indexing="ij")
    images = jnp.asarray(np.stack([y, x, 0 * x], axis=-1)[None].repeat(20, 0), jnp.float32)
    shown = multi_crop(images, KEYS[0])
    area = {name: np.prod(np.ptp(np.asarray(crops)[..., :2], axis=(2, 3)), axis=-1) for name, crops in shown.items()}
    assert area["local"].max() < area["image"].min()


def test_bytes_are_shown_as_shares_of_255():
    images = np.random.default_rng(0).integers(0, 256, (3, 12, 12, 1)).astype(np.uint8)
    from_bytes, from_floats = multi_crop(images, KEYS[0]), multi_crop(jnp.float32(images) / 255, KEYS[0])
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), from_bytes, from_floats)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_stays_within_black_and_white(channels):
    colours = views.Colours(0.8, 0.8, 0.8, 2.0, 0.5)
    shown = over_keys(views.view, picture(8, 8, channels), size=8, scale=(0.1, 1.0), colours=colours, flip=True)
    assert shown.min() >= 0.0 and shown.max() <= 1.0 and np.isfinite(shown).all()

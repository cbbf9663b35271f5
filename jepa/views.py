"""Random views of images, as pure functions on the device: crop, colours, blur, noise, mirror; and multi-crop.

An image is float32 [H, W, C] in [0, 1], with one channel or three. Every function takes one image and one key, so that
`jax.vmap` gives every view its own draw. The recipe is that of DINO's multi-crop (arXiv:2104.14294) and of LeJEPA
(arXiv:2511.08544): a few global views that show most of the image, and local ones that show a small part of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jepa.types import Array

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue: ITU-R BT.601, as PIL has it


class Colours(NamedTuple):
    """How far colours, sharpness and noise vary from view to view; 0 leaves each as it is."""

    brightness: float  # a factor in [1 - b, 1 + b]
    contrast: float  # likewise, around the mean of the image
    saturation: float  # likewise, around the grey image; nothing where there is one channel
    blur: float  # the largest standard deviation of a Gaussian, in pixels
    noise: float  # the largest standard deviation of what is added to every pixel


def crop(
    image: Array, key: Array, *, size: int, scale: tuple[float, float], log_ratio: float = float(np.log(4 / 3))
) -> Array:
    """A random rectangle of the image, resized to [size, size, C]; Inception crops (arXiv:1409.4842).

    Its area is uniform in `scale`, as a share of the image, the logarithm of its aspect uniform in +-log_ratio, both
    cut off at the sides of the image; its place is uniform. Bilinear, averaged where pixels are lost.
    """
    height, width, num_channels = image.shape
    key_area, key_ratio, key_place = jax.random.split(key, 3)
    area = jax.random.uniform(key_area, minval=scale[0], maxval=scale[1])
    ratio = jnp.exp(jax.random.uniform(key_ratio, minval=-log_ratio, maxval=log_ratio))
    extent = jnp.minimum(jnp.sqrt(area * jnp.stack([1 / ratio, ratio])), 1.0)  # [2], as a share of each side
    sides = jnp.array([height, width], jnp.float32)
    first = jax.random.uniform(key_place, (2,)) * (1.0 - extent) * sides
    zoom = size / (extent * sides)
    out = jax.image.scale_and_translate(image, (size, size, num_channels), (0, 1), zoom, -first * zoom, "linear")
    return jnp.clip(out, 0.0, 1.0)


def grey(image: Array) -> Array:
    """The luminance [H, W, 1]."""
    return image if image.shape[-1] == 1 else (image @ LUMA)[..., None]


def jitter(image: Array, key: Array, *, brightness: float, contrast: float, saturation: float) -> Array:
    """Brightness, contrast and saturation by random factors, in this order, each clipped to [0, 1]."""
    spread = jnp.array([brightness, contrast, saturation])
    bright, strong, vivid = 1.0 + spread * jax.random.uniform(key, (3,), minval=-1.0, maxval=1.0)
    image = jnp.clip(bright * image, 0.0, 1.0)
    mean = jnp.mean(grey(image))
    image = jnp.clip(mean + strong * (image - mean), 0.0, 1.0)
    if image.shape[-1] == 1:
        return image
    return jnp.clip(grey(image) + vivid * (image - grey(image)), 0.0, 1.0)


def blur(image: Array, sigma: Array) -> Array:
    """A Gaussian blur of standard deviation sigma [] in pixels, 0 for none; weights are renormalised at the border."""

    def weights(num: int) -> Array:
        distance = jnp.square(jnp.arange(num)[:, None] - jnp.arange(num)[None]).astype(jnp.float32)
        return jax.nn.softmax(-distance / (2.0 * jnp.square(jnp.maximum(sigma, 1e-2))), axis=-1)

    return jnp.einsum("yh,xw,hwc->yxc", weights(image.shape[0]), weights(image.shape[1]), image)


def view(
    image: Array, key: Array, *, size: int, scale: tuple[float, float], colours: Colours, flip: bool = False
) -> Array:
    """One random view [size, size, C] of an image: crop, mirror image in half of the views, colours, blur and noise."""
    key_crop, key_flip, key_jitter, key_blur, key_noise, key_pixels = jax.random.split(key, 6)
    out = crop(image, key_crop, size=size, scale=scale)
    if flip:
        out = jnp.where(jax.random.bernoulli(key_flip), out[:, ::-1], out)
    if colours.brightness or colours.contrast or colours.saturation:
        spread = dict(brightness=colours.brightness, contrast=colours.contrast, saturation=colours.saturation)
        out = jitter(out, key_jitter, **spread)
    if colours.blur:
        out = blur(out, jax.random.uniform(key_blur, maxval=colours.blur))
    if colours.noise:
        out = out + jax.random.uniform(key_noise, maxval=colours.noise) * jax.random.normal(key_pixels, out.shape)
    return jnp.clip(out, 0.0, 1.0)


def multi_crop(
    images: Array,
    key: Array,
    *,
    num_global: int,
    num_local: int,
    global_size: int,
    local_size: int,
    global_scale: tuple[float, float],
    local_scale: tuple[float, float],
    colours: Colours,
    flip: bool = False,
) -> dict[str, Array]:
    """Global and local views of images [B, H, W, C], uint8 or in [0, 1], as one observation; each view has its own key.

    `image` [B, V, size, size, C] has the global views first and then the local ones, where both are of one size. Where
    local views are smaller, they are `local` [B, num_local, local_size, local_size, C], and V counts both.
    """
    images = jnp.float32(images) / 255.0 if images.dtype == jnp.uint8 else images
    keys = jax.random.split(key, (len(images), num_global + num_local))
    draw = functools.partial(view, colours=colours, flip=flip)

    def views(function: Callable, keys: Array) -> Array:  # keys [B, v]
        return jax.vmap(jax.vmap(function, (None, 0)))(images, keys)

    near = views(functools.partial(draw, size=global_size, scale=global_scale), keys[:, :num_global])
    if not num_local:
        return {"image": near}
    far = views(functools.partial(draw, size=local_size, scale=local_scale), keys[:, num_global:])
    if local_size == global_size:
        return {"image": jnp.concatenate([near, far], axis=1)}
    return {"image": near, "local": far}

"""Labelled images as a source: several random views of an image, and the image itself.

All images lie on the device as uint8 at one size; the compiled step takes those of a batch and draws their views
(`jepa.views`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jepa import views
from jepa.data import _batches, _images
from jepa.registry import nearest
from jepa.types import Array, Batch, PyTree, Source

# Held-out images come in the same order in every run, so that runs of different seeds compare on the same ones.
VALIDATION_SEED = 0


def build(
    *,
    seed: int,
    batch_size: int,
    cache_dir: str | Path,
    collection: str = "digits",
    path: str | Path | None = None,
    hub: str | None = None,
    size: int = 16,
    channels: int = 1,
    validation_share: float = 0.2,
    num_global: int = 4,
    num_local: int = 0,
    local_size: int | None = None,
    global_scale: tuple[float, float] = (0.3, 1.0),
    local_scale: tuple[float, float] = (0.05, 0.3),
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    blur: float = 0.0,
    noise: float = 0.0,
    flip: bool = False,
) -> Source:
    """Images of `collection`, of `path`, a folder of class subfolders or an .npz file, or of a data set of the `hub`.

    Their largest central square is shown at `size` x `size` pixels and 1 or 3 `channels`. A batch has `views`, the
    `num_global` global ones first (`jepa.views.multi_crop`; local_size None shows local ones at `size` too), `target`
    {"image": uint8 [B, size, size, C]}, the images as they are, and `labels`; an image is its own group. Without
    `train` every view is the image as it is. brightness, contrast, saturation, blur and noise are `views.Colours`.

    Of every class, `validation_share` is held out by a hash of the pixels, whatever the seed; equal images of a class
    stay on one side. `validation["images"]` enumerates them.

    Raises ValueError for an unknown name, a value out of range, a bad file, or a class that cannot be split.
    """
    _check(size, channels, validation_share, num_global, num_local, local_size, global_scale, local_scale)
    images = _load(collection, path, hub, size, channels)
    held_out = _held_out(images, validation_share)
    colours = views.Colours(brightness, contrast, saturation, blur, noise)
    crops = dict(
        num_global=num_global,
        num_local=num_local,
        global_size=size,
        local_size=size if local_size is None else local_size,
        global_scale=tuple(global_scale),
        local_scale=tuple(local_scale),
        colours=colours,
        flip=flip,
    )
    pixels, labels = jnp.asarray(images.pixels), jnp.asarray(images.labels)  # one copy for both sides
    digest = hashlib.sha256(
        images.pixels.tobytes() + images.labels.tobytes() + repr((validation_share, crops)).encode()
    )

    def source(numbers: np.ndarray, indices: Callable, validation: dict) -> Source:
        return Source(
            tables={"pixels": pixels, "labels": labels, "numbers": jnp.asarray(numbers, jnp.int32)},
            indices=indices,
            gather=partial(_gather, partial(views.multi_crop, **crops)),
            validation=validation,
            num_examples=len(numbers),
            ids=(),
            digest=digest.hexdigest(),
            stats={"images": float(len(numbers)), "classes": float(len(images.classes))},
        )

    shown, kept = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    in_order = _batches.enumerated(len(kept), seed=VALIDATION_SEED, batch_size=batch_size)
    shuffled = _batches.uniform_over_tasks(np.ones(len(shown), np.int32), seed=seed, batch_size=batch_size)
    return source(shown, shuffled, {"images": source(kept, in_order, {})})


def _check(
    size: int,
    channels: int,
    validation_share: float,
    num_global: int,
    num_local: int,
    local_size: int | None,
    global_scale: tuple[float, float],
    local_scale: tuple[float, float],
) -> None:
    if size < 1 or (local_size is not None and not 1 <= local_size <= size):
        raise ValueError(f"data.size is {size} and data.local_size {local_size}; 1 <= local_size <= size must hold")
    if channels not in _images.MODES:
        raise ValueError(f"data.channels is {channels}; it must be 1 for grey images or 3 for red, green and blue")
    if not 0 < validation_share < 1:
        raise ValueError(f"data.validation_share is {validation_share}; it must lie between 0 and 1")
    if num_global < 1 or num_local < 0 or num_global + num_local < 2:
        raise ValueError(
            f"data.num_global is {num_global} and data.num_local {num_local}; one must be global, and two in all"
        )
    for name, scale in {"global_scale": global_scale, "local_scale": local_scale}.items():
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(
                f"data.{name} is {tuple(scale)}; it must be (least, largest), as shares of the image's area"
            )


def _load(collection: str, path: str | Path | None, hub: str | None, size: int, channels: int) -> _images.Images:
    if path is not None and hub is not None:
        raise ValueError("data.path and data.hub both say where the images are: leave one of them at none")
    if hub is not None:
        return _images.of_hub(hub, size, channels)
    if path is None:
        if collection not in _images.COLLECTIONS:
            raise ValueError(f"data.collection is {collection!r}: {nearest(collection, _images.COLLECTIONS)}")
        return _images.COLLECTIONS[collection](size, channels)
    file = Path(path).expanduser()
    if file.is_dir():
        return _images.of_folder(file, size, channels)
    if file.is_file() and file.suffix == ".npz":
        return _images.of_npz(file, size, channels)
    raise ValueError(f"data.path {path} is neither a folder of class subfolders nor an .npz file")


def _held_out(images: _images.Images, share: float) -> np.ndarray:
    """bool [n]: which images are held out, of every class those with the least hash of their pixels."""
    hashes = np.array(
        [int.from_bytes(hashlib.sha256(p.tobytes()).digest()[:8], "big") for p in images.pixels], np.uint64
    )
    held_out = np.zeros(len(hashes), bool)
    for label, name in enumerate(images.classes):
        rows = np.flatnonzero(images.labels == label)
        count = max(1, round(share * len(rows)))
        # Below a threshold, and not the first so many, since equal images must not be on both sides.
        held_out[rows] = hashes[rows] < np.sort(hashes[rows])[count] if len(rows) > count else True
        if not 0 < held_out[rows].sum() < len(rows):
            raise ValueError(
                f"class {name!r} has {len(rows)} images, of which data.validation_share {share} leaves none to train "
                "on or none to hold out: add images to the class, or remove it"
            )
    return held_out


def _gather(multi_crop: Callable, tables: PyTree, rows: Array, key: Array, train: bool) -> Batch:
    numbers = tables["numbers"][rows]
    pixels, labels = tables["pixels"][numbers], tables["labels"][numbers]
    shown = multi_crop(pixels, key)
    if not train:
        shown = {name: _plain(pixels, *crops.shape[1:3]) for name, crops in shown.items()}
    return Batch(numbers, numbers, views=shown, target={"image": pixels}, labels=labels)


def _plain(pixels: Array, num_views: int, size: int) -> Array:
    """float32 [B, num_views, size, size, C]: the images as they are, at the size of the views."""
    images = jnp.float32(pixels) / 255.0
    images = jax.image.resize(images, (len(images), size, size, images.shape[-1]), "linear")
    return jnp.repeat(images[:, None], num_views, axis=1)

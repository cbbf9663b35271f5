"""Collections of labelled images, at one size on the host: digits, folders, .npz files and Hugging Face data sets."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from rich.progress import track
from sklearn.datasets import load_digits

SUFFIXES = (".png", ".jpg", ".jpeg")
MODES = {1: "L", 3: "RGB"}


class Images(NamedTuple):
    """Labelled images in a fixed order."""

    pixels: np.ndarray  # uint8 [n, size, size, C]
    labels: np.ndarray  # int32 [n]
    classes: tuple[str, ...]


def shown(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """uint8 [size, size, C] of a picture: its largest central square, resized."""
    side, (width, height) = min(image.size), image.size
    left, top = (width - side) // 2, (height - side) // 2
    square = image.convert(MODES[channels]).crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR)).reshape(size, size, channels)


def digits(size: int, channels: int) -> Images:
    """The 1797 handwritten digits that scikit-learn brings, 8 x 8 pixels of 17 greys (Alpaydin and Kaynak, 1998)."""
    data = load_digits()
    pictures = np.round(data.images * (255 / 16)).astype(np.uint8)
    pixels = np.stack([shown(Image.fromarray(picture), size, channels) for picture in pictures])
    return Images(pixels, data.target.astype(np.int32), tuple(map(str, data.target_names)))


COLLECTIONS = {"digits": digits}


def of_folder(folder: Path, size: int, channels: int) -> Images:
    """The .png and .jpg files of `folder/<class>/`. Raises ValueError for no such folder and for what is no picture."""
    classes = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
    files = [(path, label) for label, name in enumerate(classes) for path in _pictures(folder / name)]
    if not files:
        raise ValueError(f"{folder} has no pictures: put .png or .jpg files into a subfolder for each class")
    pixels = np.empty((len(files), size, size, channels), np.uint8)
    for row, (path, _) in enumerate(track(files, "reading images", transient=True)):
        try:
            with Image.open(path) as image:
                pixels[row] = shown(image, size, channels)
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise ValueError(f"{path} cannot be read as a picture: replace or remove it ({error})") from error
    return Images(pixels, np.array([label for _, label in files], np.int32), classes)


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def of_npz(path: Path, size: int, channels: int) -> Images:
    """The arrays `images`, uint8 [n, H, W] or [n, H, W, C], and `labels` [n] of an .npz file."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not an .npz file, or a damaged one: write it with numpy.savez")
    with np.load(path) as file:
        missing = sorted({"images", "labels"} - set(file.files))
        if missing:
            raise ValueError(f"{path} lacks the arrays {missing}; it has {sorted(file.files)}")
        images, labels = file["images"], file["labels"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] not in MODES):
        raise ValueError(
            f"{path}: images must be uint8 [n, H, W], [n, H, W, 1] or [n, H, W, 3], got {images.dtype} {images.shape}"
        )
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{path}: labels must be [{len(images)}], one for each image, got {labels.shape}")
    names, numbers = np.unique(labels, return_inverse=True)
    pictures = images[..., 0] if images.ndim == 4 and images.shape[-1] == 1 else images
    pixels = [
        shown(Image.fromarray(picture), size, channels)
        for picture in track(pictures, "resizing images", transient=True)
    ]
    return Images(np.stack(pixels), numbers.astype(np.int32), tuple(map(str, names)))


def of_hub(name: str, size: int, channels: int) -> Images:
    """The split "train" of a data set of the Hugging Face hub, or of a folder that `datasets` saved.

    Raises ValueError without the package `datasets`, and for a data set without a column of images or of class labels.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            "data.hub needs the package 'datasets': install the extra, pip install 'jepa[datasets]'"
        ) from error
    on_disk = Path(name).is_dir()
    data = datasets.load_from_disk(name) if on_disk else datasets.load_dataset(name, split="train")
    image = _column(name, data.features, datasets.Image, "images")
    label = _column(name, data.features, datasets.ClassLabel, "class labels")
    rows = track(data, "reading images", total=len(data), transient=True)
    pixels = np.stack([shown(row[image], size, channels) for row in rows])
    return Images(pixels, np.array(data[label], np.int32), tuple(data.features[label].names))


def _column(name: str, features: Any, kind: type, what: str) -> str:
    """The first column of that kind."""
    columns = [column for column, feature in features.items() if isinstance(feature, kind)]
    if not columns:
        raise ValueError(f"data.hub {name!r} has no column of {what}; it has {sorted(features)}")
    return columns[0]

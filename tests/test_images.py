"""Images as a source: where they come from, what is held out, and what a batch has."""

import sys
import types

import jax
import numpy as np
import pytest
from PIL import Image

from jepa import registry

OPTIONS = dict(seed=0, batch_size=16, cache_dir="~/unused", size=8, num_global=2)


def source_of(**overrides):
    return registry.build("data", "images", **OPTIONS | overrides)


def batch_of(source, step=0, train=True):
    gather = jax.jit(source.gather, static_argnums=3)
    return gather(source.tables, source.indices(step), jax.random.key(step), train)


def numbers(source):
    return np.asarray(source.tables["numbers"])


def pictures(num, height=9, width=9, channels=3, seed=0):
    shape = (num, height, width) if channels == 1 else (num, height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def test_digits_are_split_alike_in_every_run_and_class_by_class():
    source, other = source_of(), source_of(seed=1, batch_size=5)
    held_out = source.validation["images"]
    assert len(numbers(source)) == source.num_examples and source.num_examples + held_out.num_examples == 1797
    assert not set(numbers(source)) & set(numbers(held_out))
    np.testing.assert_array_equal(numbers(source), numbers(other))
    labels = np.asarray(source.tables["labels"])
    share = np.bincount(labels[numbers(held_out)]) / np.bincount(labels)
    assert abs(share - 0.2).max() < 0.01 and source.stats["classes"] == 10
    assert source.digest == other.digest != source_of(validation_share=0.3).digest


def test_an_epoch_shows_every_image_once_in_the_order_of_the_seed():
    source = source_of(batch_size=10)
    epoch = np.concatenate([source.indices(step) for step in range(144)])[: source.num_examples]
    np.testing.assert_array_equal(np.sort(epoch), np.arange(source.num_examples))
    assert (source.indices(0) != source_of(batch_size=10, seed=1).indices(0)).any()
    held_out, again = (source_of(seed=seed).validation["images"] for seed in (0, 1))
    np.testing.assert_array_equal(held_out.indices(3), again.indices(3))


def test_a_batch_has_views_the_image_itself_and_its_label():
    source = source_of(num_local=3, local_size=4)
    batch, rows = batch_of(source), numbers(source)[source.indices(0)]
    assert batch.views["image"].shape == (16, 2, 8, 8, 1) and batch.views["local"].shape == (16, 3, 4, 4, 1)
    np.testing.assert_array_equal(batch.target["image"], np.asarray(source.tables["pixels"])[rows])
    np.testing.assert_array_equal(batch.labels, np.asarray(source.tables["labels"])[rows])
    np.testing.assert_array_equal(batch.ids, rows)
    plain = batch_of(source, train=False)
    for view in range(2):
        np.testing.assert_allclose(plain.views["image"][:, view], batch.target["image"] / np.float32(255), rtol=1e-6)
    assert np.ptp(plain.views["local"], axis=1).max() == 0.0 and np.abs(batch.views["image"][:, 0]).max() > 0
    assert np.abs(batch.views["image"] - plain.views["image"]).max() > 0.1


def test_digits_are_what_scikit_learn_has():
    from sklearn.datasets import load_digits

    source = source_of(size=8)
    np.testing.assert_allclose(
        np.asarray(source.tables["pixels"])[..., 0] * (16 / 255), load_digits().images, atol=0.04
    )
    np.testing.assert_array_equal(source.tables["labels"], load_digits().target)


def test_equal_images_of_a_class_are_on_one_side(tmp_path):
    images = pictures(30).repeat(4, axis=0)
    np.savez(tmp_path / "twice.npz", images=images, labels=np.zeros(120, int))
    source = source_of(path=tmp_path / "twice.npz", size=9, channels=3)
    sides = [{images[i].tobytes() for i in numbers(side)} for side in (source, source.validation["images"])]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 30


def test_a_folder_and_an_npz_file_of_the_same_pictures_are_the_same_data(tmp_path):
    images = pictures(12)
    for number, image in enumerate(images):
        folder = tmp_path / "all" / ("cat" if number % 2 else "ant")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:02}.png")
    (tmp_path / "all" / "ant" / "readme.txt").write_text("no picture")
    (tmp_path / "all" / ".hidden").mkdir()
    order = [*range(0, 12, 2), *range(1, 12, 2)]
    labels = np.array(["ant", "cat"])[np.arange(12) % 2]
    np.savez(tmp_path / "all.npz", images=images[order], labels=labels[order])
    options = dict(size=9, channels=3, validation_share=0.3)
    folder, file = (source_of(path=tmp_path / name, **options) for name in ("all", "all.npz"))
    for leaf in ("pixels", "labels", "numbers"):
        np.testing.assert_array_equal(folder.tables[leaf], file.tables[leaf])
    np.testing.assert_array_equal(folder.tables["pixels"], images[order])
    assert folder.digest == file.digest


def test_the_largest_central_square_is_shown(tmp_path):
    image = pictures(1, 9, 15, 1)[0]
    np.savez(tmp_path / "wide.npz", images=np.stack([image, image[::-1]]), labels=[7, 7])
    source = source_of(path=tmp_path / "wide.npz", size=9, validation_share=0.5)
    np.testing.assert_array_equal(np.asarray(source.tables["pixels"])[0, ..., 0], image[:, 3:12])


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the package `datasets`, with one data set of 8 pictures."""

    class Column:
        def __init__(self, names=()):
            self.names = names

    class ImageColumn(Column):
        pass

    class ClassLabel(Column):
        pass

    class Data(list):
        def __getitem__(self, key):
            return [row[key] for row in self] if isinstance(key, str) else list.__getitem__(self, key)

    Data.features = {"id": Column(), "picture": ImageColumn(), "kind": ClassLabel(("ant", "cat"))}
    rows = [{"id": i, "picture": Image.fromarray(p), "kind": i % 2} for i, p in enumerate(pictures(8))]
    module = types.ModuleType("datasets")
    module.Image, module.ClassLabel = ImageColumn, ClassLabel
    module.load_dataset = lambda name, split: Data(rows) if (name, split) == ("owner/pets", "train") else None
    monkeypatch.setitem(sys.modules, "datasets", module)
    return Data


def test_a_data_set_of_the_hub(hub):
    source = source_of(hub="owner/pets", size=9, channels=3)
    np.testing.assert_array_equal(source.tables["pixels"], pictures(8))
    np.testing.assert_array_equal(source.tables["labels"], np.arange(8) % 2)


def test_a_data_set_of_the_hub_without_labels(hub):
    del hub.features["kind"]
    with pytest.raises(ValueError, match=r"no column of class labels; it has \['id', 'picture'\]"):
        source_of(hub="owner/pets")


def test_the_hub_needs_a_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"install the extra, pip install 'jepa\[datasets\]'"):
        source_of(hub="owner/pets")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(collection="digit"), "data.collection is 'digit': did you mean 'digits'"),
        (dict(path="nowhere"), "nowhere is neither a folder"),
        (dict(path="a", hub="b"), "data.path and data.hub"),
        (dict(channels=2), "data.channels is 2"),
        (dict(size=0), "data.size is 0"),
        (dict(local_size=9), "data.local_size 9"),
        (dict(num_global=1), "two in all"),
        (dict(validation_share=1.0), "data.validation_share is 1.0"),
        (dict(global_scale=(0.5, 1.5)), r"data.global_scale is \(0.5, 1.5\)"),
    ],
)
def test_what_cannot_be_is_said(options, message):
    with pytest.raises(ValueError, match=message):
        source_of(**options)


def test_a_bad_file_is_named(tmp_path):
    (tmp_path / "ant").mkdir()
    with pytest.raises(ValueError, match="has no pictures"):
        source_of(path=tmp_path)
    (tmp_path / "ant" / "1.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"1\.png cannot be read as a picture"):
        source_of(path=tmp_path)
    file = tmp_path / "x.npz"
    file.write_bytes(b"no arrays")
    with pytest.raises(ValueError, match=r"x\.npz is not an \.npz file"):
        source_of(path=file)
    for arrays, message in (
        (dict(images=pictures(4)), r"x\.npz lacks the arrays \['labels'\]"),
        (dict(images=np.zeros((4, 9, 9)), labels=np.zeros(4)), "images must be uint8"),
        (dict(images=pictures(4), labels=np.zeros(3)), r"labels must be \[4\]"),
        (dict(images=pictures(4), labels=[0, 0, 0, 1]), "class '1' has 1 images"),
    ):
        np.savez(file, **arrays)
        with pytest.raises(ValueError, match=message):
            source_of(path=file)

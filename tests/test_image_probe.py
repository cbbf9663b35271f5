"""Probes of images on features whose answers are known, and their tables."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa import image_probe, registry, report_probes

CLASSES, SIDE = 4, 8


@functools.cache
def source(path):
    options = dict(seed=0, batch_size=8, cache_dir="~/unused", size=SIDE, num_global=2, validation_share=0.25)
    return registry.build("data", "images", path=path, **options)


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """160 images of noise whose first pixels are its class, one-hot, too faint to be near neighbours by."""
    rng = np.random.default_rng(0)
    labels = np.arange(160) % CLASSES
    images = rng.integers(0, 256, (160, SIDE, SIDE)).astype(np.uint8)
    images[:, 0, :CLASSES] = np.where(np.arange(CLASSES)[None] == labels[:, None], 40, 0)
    file = tmp_path_factory.mktemp("images") / "marked.npz"
    np.savez(file, images=images, labels=labels)
    return source(file)


@jax.jit
def clean(observation):
    return jnp.float32(observation["image"][:, 0, :CLASSES, 0])


@jax.jit
def blind(observation):
    image = observation["image"].reshape(len(observation["image"]), -1)
    return jnp.float32(image[:, -3:])  # noise alone


@pytest.fixture(scope="module")
def result(marked):
    return image_probe.evaluate(marked, clean, blind, draws=6)


def test_an_encoder_that_shows_the_class_knows_it_and_a_blind_one_guesses(result):
    scores = {row["probe"]: row for row in result["rows"]}
    assert list(scores) == ["logistic", "5-nn", "5-shot"]
    assert (result["num_training"], result["num_held_out"], result["num_classes"]) == (120, 40, 4)
    for row in scores.values():
        assert row["score"] == row["low"] == row["high"] == 1.0 and row["chance"] == 0.25
        assert row["floors"]["untrained"]["score"] < 0.5
        over = row["over_best_floor"]
        assert over["difference"] == pytest.approx(1.0 - row["floors"][over["floor"]]["score"])
    assert scores["logistic"]["over_best_floor"]["difference"] == 0.0  # which finds the four pixels too
    assert scores["5-nn"]["over_best_floor"]["low"] > 0 and scores["5-shot"]["over_best_floor"]["low"] > 0
    assert scores["5-nn"]["floors"]["pixels"]["score"] < 0.6  # among 64 pixels, four faint ones


def test_the_probes_are_those_of_scikit_learn(marked):
    training, held_out = image_probe.read(marked), image_probe.read(marked.validation["images"])
    z, asked = (image_probe.pixels(side) for side in (training, held_out))
    distance = np.linalg.norm(asked[:, None] - z[None], axis=-1)
    nearest = training.labels[np.argsort(distance, axis=1)[:, :5]]
    votes = (nearest[..., None] == np.arange(CLASSES)).sum(1)
    found = image_probe.answers(image_probe.Features(z, asked), training, held_out, neighbours=5, shots=5, draws=2)
    np.testing.assert_array_equal(found["5-nn"].values, votes.argmax(1) == held_out.labels)


def test_an_image_is_read_as_it_is_with_its_label(marked):
    side = image_probe.read(marked)
    numbers = np.asarray(marked.tables["numbers"])
    np.testing.assert_array_equal(side.labels, numbers % CLASSES)
    np.testing.assert_array_equal(side.observation["image"], np.asarray(marked.tables["pixels"])[numbers])


def test_shots_are_of_every_class_and_another_choice_in_every_draw():
    labels = np.random.default_rng(0).integers(0, 3, 100)
    chosen = [image_probe.choose_shots(labels, 4, draw) for draw in range(3)]
    for rows in chosen:
        assert len(set(rows)) == 12 and (np.bincount(labels[rows]) == 4).all()
    assert set(chosen[0]) != set(chosen[1]) != set(chosen[2])
    np.testing.assert_array_equal(chosen[0], image_probe.choose_shots(labels, 4, 0))


def test_a_constant_embedding_scores_what_a_guess_does(marked):
    result = image_probe.evaluate(marked, lambda observation: jnp.ones((len(observation["image"]), 3)), blind, draws=2)
    assert all(row["score"] <= 0.3 for row in result["rows"])


def test_classes_too_small_for_the_shots_have_no_such_probe(marked):
    result = image_probe.evaluate(marked, clean, blind, shots=31, draws=1)
    assert [row["probe"] for row in result["rows"]] == ["logistic", "5-nn"]


def test_the_tables_show_every_score(result):
    lines = image_probe.rows(result)
    assert [line["probe"] for line in lines] == ["logistic", "5-nn", "5-shot"]
    assert all(line["trained"] == 1.0 and line["95 %"] == "[1.000, 1.000]" for line in lines)
    page = report_probes.probe_tables({"image_probes": result})
    assert "40 held-out images" in page and page.count("<b>1.000</b>") == 3 and 'class="good"' in page
    for row in result["rows"]:
        assert row["probe"] in page and f"{row['floors']['pixels']['score']:.3f}" in page

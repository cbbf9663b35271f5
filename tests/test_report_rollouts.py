"""Rollouts in the report: frames in their colours, the moving picture, and what is said where nothing is to be seen."""

import base64
import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jepa import latent_norm, report_rollouts, report_strips
from jepa.dynamics import WorldModel
from jepa.report_rollouts import Shown
from jepa.types import Batch, Objective, Source

NORM = latent_norm.build("none")
SIDE, LENGTH = 5, 3


def opened(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def gather(tables, rows, key, train):
    """Grids of one value, which an action adds to."""
    actions = jnp.broadcast_to(tables["actions"][None, :, None], (len(rows), LENGTH, 1))
    values = rows[:, None] + jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(tables["actions"])])[None]
    cells = jnp.broadcast_to(values[..., None, None], (*values.shape, SIDE, SIDE))
    return Batch(rows, rows, context={"cells": cells[:, :-1]}, target={"cells": cells[:, -1]}, actions=actions)


SOURCE = Source(
    {"actions": jnp.array([1, 2, 1])}, lambda step, level=0: np.arange(6, dtype=np.int32), gather, {}, 6, (), "", {}
)


def see(params, state, frames):
    return NORM.encoded(jnp.float32(frames["cells"][..., 0, :2]) + 1)


def imagine(params, z, actions):
    """Half of what happens."""
    return NORM.predicted(z.value[:, None] + 0.5 * jnp.cumsum(jnp.float32(actions), axis=1))


def show(params, z, frame):
    return jnp.broadcast_to(jnp.int32(z.value[..., :1, None] - 1), (*z.value.shape[:-1], SIDE, SIDE))


WORLD = Objective(*[None] * 7, world=WorldModel(see, imagine, show))


def episodes(num=2):
    return report_rollouts.imagined(WORLD, {}, {}, SOURCE, num, "families")


def test_an_episode_is_true_decoded_and_imagined():
    first, second = episodes()
    np.testing.assert_array_equal(first.true["cells"][:, 0, 0], [0, 1, 3, 4])
    np.testing.assert_array_equal(second.true["cells"][:, 0, 0], [3, 4, 6, 7])  # the fourth of six
    np.testing.assert_array_equal(first.decoded["cells"], first.true["cells"])
    np.testing.assert_array_equal(first.rolled["cells"][:, 0, 0], [0, 0, 1, 2])
    np.testing.assert_allclose(first.norm_ratio, [1, 1.5 / 2, 2.5 / 4, 3 / 5], rtol=1e-6)
    np.testing.assert_allclose(first.cosine, 1.0, rtol=1e-6)
    np.testing.assert_array_equal(report_rollouts.error(first.rolled, first.true), [0, 1, 1, 1])


def test_the_error_of_pixels_is_the_root_of_their_mean_square():
    rng = np.random.default_rng(0)
    a, b = ({"image": rng.uniform(size=(3, 4, 5, 2))} for _ in range(2))
    expected = [np.linalg.norm(x - y) / np.sqrt(40) for x, y in zip(a["image"], b["image"], strict=True)]
    np.testing.assert_allclose(report_rollouts.error(a, b), expected)


def test_a_section_shows_every_frame_of_every_episode():
    shown = Shown(episodes(), horizon=2, step=70)
    page = report_rollouts.section(shown)
    pictures = re.findall(r'<img src="([^"]*)" alt="([^"]*)"', page)
    assert len(pictures) == 1 + 2 * 3 * (LENGTH + 1)
    assert "Step 70" in page and "rollouts of 2" in page and "Episode 2, families" in page
    by_alt = {alt: uri for uri, alt in reversed(pictures)}  # those of the first episode
    for t, value in enumerate([0, 0, 1, 2]):
        picture = opened(by_alt[f"decoded, rollout, step {t}"])
        np.testing.assert_array_equal(picture, np.broadcast_to(report_strips.CELLS[value], (SIDE, SIDE, 3)))
    assert page.count("wrong cells, of the rollout") == 2 and "<td>0.75</td>" in page


def test_the_moving_picture_shows_truth_and_rollout_side_by_side():
    picture = Image.open(io.BytesIO(report_rollouts.animation(Shown(episodes(), 2, 70))))
    scale = round(report_strips.SIDE / SIDE)
    pair = 2 * SIDE * scale + report_strips.GAP
    assert picture.n_frames == LENGTH + 1 and picture.size == (2 * pair + 6 * report_strips.GAP, SIDE * scale)
    for t, (true, rolled) in enumerate([(0, 0), (1, 0), (3, 1), (4, 2)]):
        picture.seek(t)
        frame = np.asarray(picture.convert("RGB"))
        np.testing.assert_array_equal(frame[3, 3], report_strips.CELLS[true])
        np.testing.assert_array_equal(frame[3, pair - 3], report_strips.CELLS[rolled])
    assert report_rollouts.animation(Shown([], 0, 0, "nothing")) is None


def test_colours_of_pixels():
    image = np.zeros((2, 2, 2))
    image[0, 0], image[0, 1], image[1, 0] = (1, 0), (0, 1), (1, 1)
    colours = report_strips.coloured({"image": image})
    for place, colour in (((0, 0), "AGENT"), ((0, 1), "WALL"), ((1, 0), "AGENT"), ((1, 1), "PAPER")):
        np.testing.assert_array_equal(colours[place], getattr(report_strips, colour))
    grey = np.linspace(-1, 2, 7).reshape(1, 7, 1)
    np.testing.assert_array_equal(report_strips.coloured({"image": grey})[0, :, 1], [0, 0, 0, 128, 255, 255, 255])
    rgb = np.random.default_rng(0).uniform(size=(3, 3, 3))
    np.testing.assert_allclose(report_strips.coloured({"image": rgb}), 255 * rgb, atol=0.5)


def test_colours_of_cells_are_those_of_the_page_and_the_outside_has_one():
    cells = np.arange(11).reshape(1, 11)
    colours = report_strips.coloured({"cells": cells})[0]
    script = (report_rollouts.Path(report_rollouts.__file__).with_name("page.js")).read_text()
    inks = re.search(r"const INKS = \[(.*?)\]", script)[1].replace('"', "").split(", ")
    assert [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in colours[:10]] == inks
    assert len({tuple(colour) for colour in colours}) == 11


@pytest.mark.parametrize("frames", [{"series": np.zeros((3, 4))}, {"image": np.zeros((3, 4, 5))}])
def test_what_cannot_be_drawn_is_said(frames):
    with pytest.raises(ValueError, match="cannot be drawn"):
        report_strips.coloured(frames)


def test_a_reason_is_shown_where_there_are_no_rollouts():
    page = report_rollouts.section(Shown([], 0, 0, "There are no rollouts to see: a < b."))
    assert "a &lt; b" in page and "<img" not in page


def test_what_is_shown_repeats():
    first, again = (report_rollouts.section(Shown(episodes(), 2, 70)) for _ in range(2))
    assert first == again and jax.tree.structure(episodes()) == jax.tree.structure(episodes())

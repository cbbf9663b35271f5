"""The world model on programs: what counts as an exact rollout, and a run of it from beginning to end."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jepa
from jepa import decoders, evaluation, main, train
from jepa.data._program_rows import framed
from jepa.latent_norm import build as build_norm
from jepa.objectives import world_model
from jepa.parts import build
from jepa.tables import NUM_CELL_VALUES

CONFIG = "configs/world_model.py"
B, T, SIDE = 5, 4, 3
KINDS = ("exact", "cells")


def tiny(**overrides):
    config = main.load_config(f"{CONFIG}:tiny")
    config.update_from_flattened_dict(overrides)
    return config


def seen(z: np.ndarray):
    """A `Latent` of z, as the policy `none` lets it be."""
    return build_norm("none").encoded(jnp.asarray(z, jnp.float32))


# --- exact rollouts -------------------------------------------------------------------------------------------------


def printed() -> decoders.Decoder:
    """A decoder that is never wrong: z is a grid, written out cell by cell."""
    cells = decoders.build("cells")

    def decode(params, z, observation):
        return z.value.reshape(*z.value.shape[:-1], SIDE, SIDE).astype(jnp.int32)

    return cells._replace(decode=decode)


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
def test_a_rollout_is_exact_where_every_cell_is_right(jitted):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, NUM_CELL_VALUES, (B, T + 1, SIDE, SIDE))
    frames[2] = frames[2, :1]  # nothing happens there, so that copying is right
    z = frames.reshape(B, T + 1, -1).copy()
    rolled = z[:, 1:].copy()
    wrong = np.zeros((B, T), np.int64)
    for episode, step, cells in ((0, 0, 1), (1, 1, 2), (1, 3, 9), (4, 3, 1)):
        wrong[episode, step] = cells
        rolled[episode, step, :cells] = (rolled[episode, step, :cells] + 1) % NUM_CELL_VALUES
    z[3, 4, 0] = (z[3, 4, 0] + 1) % NUM_CELL_VALUES  # the encoder missed a cell of the last frame

    def of(z, rolled, frames):
        return world_model.exact_rollouts(printed(), {}, z, rolled, {"cells": frames})

    found = (jax.jit(of) if jitted else of)(seen(z), seen(rolled), jnp.asarray(frames))
    for k in (1, 2, 4):
        unlike = (frames[:, 0] != frames[:, k]).sum((1, 2))
        missed = np.array([0, 0, 0, k == 4, 0])
        for name, count in (("", wrong[:, k - 1]), ("copy_", unlike), ("seen_", missed)):
            np.testing.assert_array_equal(found[f"rollout/exact_{name}{k}"], count == 0)
            np.testing.assert_allclose(found[f"rollout/cells_{name}{k}"], 1 - count / SIDE**2, atol=1e-6)
    assert {name.split("_")[-1] for name in found} == {"1", "2", "4"}


def test_held_out_figures_of_rollouts_are_means_of_their_examples():
    examples = {"prediction": np.ones(4), "rollout/exact_2": np.array([0.0, 1, 1, 0]), "alignment": np.ones(4)}
    assert evaluation.errors(examples) == {"prediction": 1.0, "rollout/exact_2": 0.5}


def test_cells_that_are_certain_cost_nothing_and_a_guess_costs_what_it_should():
    """The decoder's loss against its definition: minus the log of the probability of the true value."""
    rng = np.random.default_rng(0)
    cells = rng.integers(0, NUM_CELL_VALUES, (B, SIDE, SIDE))
    shown, z = decoders.build("cells", hidden=6), seen(rng.normal(size=(B, 4)))
    params = jax.jit(shown.init)(jax.random.key(0), z.value, {"cells": cells})
    loss = jax.jit(shown.loss)(params, z, {"cells": cells})
    hidden = jax.nn.gelu(z.value @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None])
    scores = np.asarray(hidden @ params["Dense_1"]["kernel"]).reshape(B, SIDE, SIDE, NUM_CELL_VALUES)
    chance = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    of_the_true = np.take_along_axis(chance, cells[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(loss, -np.log(of_the_true).mean((1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(shown.decode(params, z, {"cells": cells}), scores.argmax(-1))


# --- the configs ----------------------------------------------------------------------------------------------------


def test_programs_are_the_default_and_two_rooms_a_variant():
    config = main.load_config(CONFIG)
    assert config.data.name == "programs" and config.encoder.name == "grid" and config.objective.decoder == "cells"
    assert config.objective.horizon == config.data.length == 8
    rooms = main.load_config(f"{CONFIG}:two_rooms,tiny")
    assert rooms.data.world == "two_rooms" and rooms.encoder.name == "conv" and rooms.num_steps == 20


def test_a_run_that_cannot_show_cells_is_told_what_to_set():
    with pytest.raises(ValueError, match=r"set config\.data\.canvas"):
        build(tiny(**{"data.canvas": None})).init()
    with pytest.raises(ValueError, match=r"objective\.horizon is 8, but the data has 3 steps"):
        build(tiny(**{"objective.horizon": 8})).init()


# --- a run ----------------------------------------------------------------------------------------------------------


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "one"
    train.run(tiny(), workdir)
    return workdir


@pytest.mark.slow
def test_a_run_says_how_many_rollouts_are_exact_on_every_held_out_source_and_repeats_to_the_same_bits(run, tmp_path):
    figures = json.loads((run / "probes.json").read_text())["validation"]
    for source in ("", "families/", "compositions/"):
        assert np.isfinite(figures[f"val/{source}prediction"])
        for kind in KINDS:
            for name in ("", "copy_", "seen_"):
                for k in (1, 2):
                    assert 0 <= figures[f"val/{source}rollout/{kind}_{name}{k}"] <= 1
        assert figures[f"val/{source}rollout/exact_copy_1"] == 0  # every step of a program changes its grid
        assert figures[f"val/{source}rollout/cells_copy_1"] > 0.5
    assert np.isfinite(figures["val/rollout/error_1"]) and np.isfinite(figures["val/decoder/error"])
    assert not any("exact" in name for row in rows(run) for name in row if "loss/total" in row)

    train.run(tiny(**{"data.num_workers": 1}), tmp_path / "two")  # wherever the programs are drawn
    assert rows(run) == rows(tmp_path / "two")


@pytest.mark.slow
def test_a_model_of_cells_encodes_grids_that_fit_its_frames(run):
    model, rng = jepa.load(run), np.random.default_rng(0)
    canvas = model.config.data.canvas
    grids = [rng.integers(0, 10, size) for size in ((1, 1), (3, canvas), (canvas, canvas))]
    built = build(model.config)
    sizes = np.array([grid.shape for grid in grids])
    padded = np.stack([np.pad(grid, [(0, 30 - side) for side in grid.shape]) for grid in grids])
    frames = {"cells": framed(padded, sizes, canvas).astype(np.int32)}
    expected = built.objective.encode(model.params, built.init().objective_state, frames).pooled
    built.source.close()
    np.testing.assert_allclose(model.encode(grids), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=rf"grid 1 is 2 x {canvas + 1}; .*frames of {canvas} x {canvas} .*canvas"):
        model.encode([grids[0], np.zeros((2, canvas + 1), int)])

"""The probe of planning: who sees the world and its walls gets there, who sees nothing does not, on the same tasks."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import world_model
from jepa import config_checks, latent_norm, navigation, planning_probe, probes, report_probes, two_rooms
from jepa.dynamics import WorldModel
from jepa.planning_probe import Options, options_of
from jepa.suite_summary import measure
from jepa.suites import Metric, Run

NORM = latent_norm.build("none")
PIXELS = jnp.arange(float(two_rooms.SIZE))
SMALL = dict(
    methods=("mppi", "cem"), num_tasks=24, num_steps=80, horizon=12, num_samples=48, num_elites=6, num_iterations=2
)


def read(frames):
    """(x, y) of the agent, x of the wall and y of the door, from the picture alone: [..., 4]."""
    spot, walls = frames["image"][..., 0], frames["image"][..., 5:60, 5:60, 1]
    total = jnp.sum(spot, axis=(-1, -2))
    x, y = (jnp.sum(spot.sum(axis) * jnp.expand_dims(PIXELS, range(spot.ndim - 2)), -1) / total for axis in (-2, -1))
    inner = jnp.expand_dims(PIXELS[5:60], range(spot.ndim - 2))
    is_wall = jnp.float32(jnp.mean(walls, axis=-2) > 0.5)
    wall = jnp.sum(is_wall * inner, -1) / jnp.sum(is_wall, -1)
    open_rows = 1 - jnp.sum(walls * is_wall[..., None, :], -1) / jnp.sum(is_wall, -1, keepdims=True)
    door = jnp.sum(open_rows * inner, -1) / jnp.sum(open_rows, -1)
    return jnp.stack([x, y, wall, door], axis=-1)


def imagine(params, z, actions):
    """The world itself."""
    layout = z.value[:, 2:]

    def step(position, action):
        there = two_rooms.move(position, action, layout)
        return there, jnp.concatenate([there, layout], axis=-1)

    return NORM.predicted(jnp.swapaxes(jax.lax.scan(step, z.value[:, :2], jnp.swapaxes(actions, 0, 1))[1], 0, 1))


seeing = WorldModel(lambda params, state, frames: NORM.encoded(read(frames)), imagine, None)
blind = WorldModel(lambda params, state, frames: NORM.encoded(jnp.zeros_like(read(frames))), imagine, None)


@functools.cache
def result(world):
    return planning_probe.evaluate(world, {}, {}, options_of(SMALL))


def by_name(found):
    return {row["probe"]: row for row in found["rows"]}


def test_the_picture_tells_the_reader_of_these_tests_all():
    tasks = navigation.draw(jax.random.key(3), 20)
    seen = jax.jit(read)({"image": two_rooms.render(tasks.start, tasks.layout)})
    np.testing.assert_allclose(seen, jnp.concatenate([tasks.start, tasks.layout], axis=-1), atol=0.02)


def test_a_model_that_sees_the_world_finds_the_way_and_a_blind_one_does_not():
    known, unknown = by_name(result(seeing)), by_name(result(blind))
    for method in ("mppi", "cem"):
        assert known[method]["over_random"]["low"] > 0  # no more: the straight way may end at a wall
        assert unknown[method]["score"] < 0.3 and unknown[method]["over_random"]["low"] <= 0
        assert known[method]["nearest"] < unknown[method]["nearest"]


def test_the_floors_are_the_same_for_every_model():
    known, unknown = by_name(result(seeing)), by_name(result(blind))
    by_methods = ["mppi", "mppi in the true world", "cem", "cem in the true world"]
    assert list(known) == ["random", "still", "oracle", *by_methods]
    for floor in planning_probe.FLOORS:
        assert known[floor] == unknown[floor]
    assert (known["oracle"]["score"], known["still"]["score"], known["still"]["steps"]) == (1.0, 0.0, None)
    assert known["random"]["score"] < 0.3 and "over_random" not in known["random"]


def test_a_result_repeats():
    again = planning_probe.evaluate(seeing, {}, {}, options_of(SMALL))
    assert json.dumps(again) == json.dumps(result(seeing))


def test_walking_in_stretches_is_walking():
    """As in one program, and no further than until all have been there."""
    tasks = navigation.draw(jax.random.key(planning_probe.SEED), 7)
    key = jax.random.key(planning_probe.SEED + 1)
    walked = planning_probe.walk(navigation.at_random, (), tasks, 23, "random")
    reached, positions = jax.jit(lambda t, key: navigation.run(navigation.at_random(), t, key, num_steps=23))(
        tasks, key
    )
    np.testing.assert_allclose(walked, positions, atol=1e-4)
    np.testing.assert_array_equal(navigation.arrival(walked, tasks) >= 0, reached)
    short = planning_probe.walk(navigation.oracle, (), tasks, 400, "oracle")
    assert len(short) < 200 and (navigation.arrival(short, tasks) > 0).all()


def test_arrival_is_the_first_step_at_the_goal():
    tasks = navigation.Tasks(jnp.zeros((2, 2)), jnp.array([[6.0, 0.0], [50.0, 0.0]]), jnp.zeros((2, 2)))
    positions = np.stack([np.arange(9.0)[:, None] * np.ones((1, 2)), np.zeros((9, 2))], axis=-1)
    np.testing.assert_array_equal(navigation.arrival(positions, tasks), [2, -1])  # nearer than 4.5 pixels


def test_a_suite_reads_the_rows(tmp_path):
    (tmp_path / "probes.json").write_text(json.dumps({"validation": {}, "probes": {"planning": result(seeing)}}))
    run = Run("base", 0, None, "id", Path(tmp_path))
    for name, row in by_name(result(seeing)).items():
        score, resampled = measure(run, Metric("success", f"planning: {name}", "probe"))
        assert score == row["score"] and len(resampled) == 200
        assert np.mean(resampled) == pytest.approx(score, abs=0.05)


def test_the_tables_show_every_policy():
    lines = planning_probe.rows(result(seeing))
    assert [line["policy"] for line in lines] == list(by_name(result(seeing)))
    by_policy = {line["policy"]: line for line in lines}
    assert by_policy["still"]["steps"] == "" and by_policy["oracle"]["solved"] == 1.0
    page = report_probes.probe_tables({"probes": {"planning": result(seeing)}})
    assert "24 tasks" in page and page.count('class="good"') == 2 and "num samples 48" in page
    assert "did not ask" in report_probes.probe_tables({})


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        (dict(num_taks=3), r"config\.planning\.num_taks is read by nothing.*num_tasks"),
        (dict(method="cem"), r"config\.planning\.method is read by nothing.*methods"),
        (dict(num_tasks=0), r"config\.planning\.num_tasks is 0"),
        (dict(methods=()), r"config\.planning\.methods is empty"),
        (dict(methods=("mmpi",)), r"config\.planning: the planner is 'mmpi'.*mppi"),
        (dict(num_elites=500), r"config\.planning: 500 elites of 200 samples"),
        (dict(horizon=0), r"config\.planning: the planner's horizon is 0"),
    ],
)
def test_options_that_make_no_sense_are_one_sentence(section, sentence):
    with pytest.raises(ValueError, match=sentence):
        options_of(section)


def test_options_are_those_of_the_config_and_else_the_defaults():
    assert options_of({}) == Options()
    config = world_model.get_config("two_rooms_tiny")
    options = options_of(config.planning.to_dict())
    assert options.planner.num_samples == config.planning.num_samples and options.num_tasks >= 100
    assert config.probes == ("planning",)


def test_who_is_asked_to_plan_has_to_be_able_to():
    config = world_model.get_config("two_rooms_tiny")
    config_checks.check(config)
    config.objective.name = "lejepa"
    with pytest.raises(ValueError, match=r"'planning' asks a world model.*config\.objective\.name 'world_model'"):
        config_checks.check(config)
    config = world_model.get_config("two_rooms_tiny")
    del config["planning"]
    with pytest.raises(ValueError, match=r"reads config\.planning, which is missing"):
        config_checks.check(config)
    config = world_model.get_config("two_rooms_tiny")
    config.planning.num_steps = 0
    config.probes = ()
    with pytest.raises(ValueError, match=r"config\.planning\.num_steps is 0"):
        config_checks.check(config)


def test_options_are_given_on_the_command_line():
    config = world_model.get_config("two_rooms_tiny")
    probes.set_options(config, ["num_tasks=7", "std=0.5", "methods=cem", "every_step=False"])
    options = options_of(config.planning.to_dict())
    assert (options.num_tasks, options.planner.std, options.methods, options.every_step) == (7, 0.5, ("cem",), False)
    for text, sentence in (("num_task=7", "names 'num_task'.*num_tasks"), ("num_tasks=x", "'x' is not of the kind")):
        with pytest.raises(ValueError, match=sentence):
            probes.set_options(config, [text])

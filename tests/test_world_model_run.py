"""A run of a world model from end to end: it plans, is reported with its rollouts, and keeps to its policy."""

import json
import shutil

import pytest
from PIL import Image

import jepa
from configs import world_model
from jepa import checkpoint, config_checks, parts, probes, report, report_rollouts, run_folder, start, train

pytestmark = pytest.mark.slow
PLANS = dict(num_tasks=3, num_steps=6, horizon=3, num_samples=6, num_elites=2, num_iterations=1, replan_every=2)


def tiny(**objective):
    config = world_model.get_config("two_rooms,tiny")
    config.probes = ("planning",)
    config.planning.update(PLANS)
    config.diagnose_every = 1000  # never: the longest of all to compile
    config.objective.update(objective)
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    train.run(tiny(), workdir)
    return workdir


def copied(run, tmp_path, **objective):
    """The same checkpoints beside another config."""
    other = tmp_path / "other"
    shutil.copytree(run, other)
    (other / "config.json").write_text(json.dumps(config_checks.as_json(tiny(**objective))))
    return other


def test_a_finished_run_has_planned_and_can_be_asked_again(run, tmp_path, monkeypatch):
    result = json.loads((run / "probes.json").read_text())
    rows = {row["probe"]: row for row in result["probes"]["planning"]["rows"]}
    assert {"mppi", "cem in the true world", "random", "oracle"} < set(rows) and rows["still"]["score"] == 0
    assert result["asked"] == ["planning"] and rows["mppi"]["n"] == 3
    probes.main([str(run), "--probes=planning", f"--output={tmp_path / 'again.json'}"])
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["probes"]["planning"] == result["probes"]["planning"] and again["step"] == result["step"]
    fewer = probes.of_run(run, ["planning"], "latest", None, ["num_tasks=2", "methods=cem"])["probes"]["planning"]
    assert [row["n"] for row in fewer["rows"]] == [2] * 5


def test_a_model_of_pictures_encodes_no_grids(run):
    with pytest.raises(ValueError, match="encoder 'conv', which reads no grids"):
        jepa.load(run)


def test_the_record_of_a_checkpoint_names_the_policy(run):
    assert checkpoint.read(run).host["latent_norm"] == ["none", None]


def test_a_run_does_not_go_on_under_another_policy(run, tmp_path):
    config = tiny(latent_norm="global")
    with pytest.raises(ValueError, match=r'objective\.latent_norm: "none" in the run, "global" now'):
        train.run(config, run)
    with pytest.raises(ValueError, match=r"config\.objective\.latent_norm is 'global', but .* under 'none'"):
        train.run(config, copied(run, tmp_path, latent_norm="global"))  # whatever its folder says


@pytest.mark.parametrize(
    ("objective", "asked"),
    [
        (dict(latent_norm="global"), "'global'"),
        (dict(latent_norm="anchor", target_norm=2.0), "'anchor' with target_norm 2"),
    ],
)
def test_weights_are_not_taken_over_under_another_policy(run, objective, asked):
    config = tiny(**objective)
    config.init_from = str(run)
    built = parts.build(config)
    with pytest.raises(ValueError, match=rf"config\.objective\.latent_norm is {asked}, but the weights of .*'none'"):
        start.start_from(config, built)


def test_a_record_without_a_policy_has_none_to_differ_in():
    config_checks.check_latent_norm(tiny(latent_norm="global"), {}, "runs/old")
    config_checks.check_latent_norm(tiny(latent_norm="global"), {"latent_norm": None}, "runs/lejepa")
    config_checks.check_latent_norm(tiny(), {"latent_norm": ["none", None]}, "runs/same")


def test_the_report_shows_rollouts(run, tmp_path):
    report.write([run], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert '<section id="rollouts">' in page and "Episode 4" in page and "3 tasks from one room" in page
    with Image.open(tmp_path / "page-rollouts.png") as moving:
        assert moving.n_frames == 4
    assert "Length of a rollout" in page and "Decoded rollouts" in page


def test_a_run_without_a_decoder_says_so(run, tmp_path):
    shown = report_rollouts.collect(copied(run, tmp_path, decoder="none"), "latest")
    assert shown.episodes == [] and "no decoder" in shown.missing
    config = json.loads((run / "config.json").read_text())
    config["objective"]["name"] = "lejepa"
    other = tmp_path / "lejepa"
    other.mkdir()
    run_folder.write_config(other, config)
    assert report_rollouts.collect(other, "latest") is None

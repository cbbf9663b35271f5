"""A suite is data: what it resolves to, how its runs are known, and what is left to train."""

import json
from pathlib import Path

import pytest

from jepa import config_checks, run_folder, suites
from jepa.suites import Claim, Metric, Suite

ROOT = Path(__file__).resolve().parents[1]
COMMITTED = [path for path in sorted((ROOT / "experiments").glob("*.py")) if "SUITE = Suite(" in path.read_text()]


def suite(**fields):
    given = dict(
        question="Does it?",
        config="configs/lejepa.py:tiny",
        variants={"heavy": {"weights.sigreg": 100.0}, "slow": {"optimizer.learning_rate": 1e-4}},
        metrics=[Metric("error", "val/prediction")],
        seeds=(0, 1),
    )
    return Suite(**given | fields)


def changed(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    return 0.5 if value is None else (*value, "x")


def test_runs_that_differ_in_any_key_have_different_folders():
    config = suites.resolve(suite(), "base", 0)
    flat = run_folder.flatten(config_checks.as_json(config))
    ids = {suites.identity(config, "data")}
    for key in flat:
        other = suites.resolve(suite(), "base", 0)
        section, name = suites.section_of(other, key)
        with section.ignore_type():
            section[name] = changed(section[name])
        ids.add(suites.identity(other, "data"))
    assert len(ids) == 1 + len(flat) > 80


def test_a_run_is_known_by_its_config_and_its_data_and_nothing_else():
    one, again = (suites.resolve(suite(), "base", 0) for _ in range(2))
    assert suites.identity(one, "data") == suites.identity(again, "data") != suites.identity(again, "other data")
    # Another suite that comes to the same config shares the run.
    other = suite(variants={"x": {"weights.sigreg": 3.0}}, overrides={"weights.sigreg": 100.0})
    heavy = suites.identity(suites.resolve(suite(), "heavy", 1), "data")
    assert suites.identity(suites.resolve(other, "base", 1), "data") == heavy
    assert suites.identity(suites.resolve(other, "x", 1), "data") != heavy


def test_variants_share_their_seeds_and_the_base_comes_first(tmp_path):
    planned = suites.runs(suite(variants={"heavy": {"weights.sigreg": 100.0}}), tmp_path)
    assert [(run.variant, run.seed) for run in planned] == [("base", 0), ("base", 1), ("heavy", 0), ("heavy", 1)]
    assert len({run.workdir for run in planned}) == 4
    assert [run.config.weights.sigreg for run in planned] == [10.0, 10.0, 100.0, 100.0]
    assert [run.config.seed for run in planned] == [0, 1, 0, 1]


def test_overrides_are_those_of_the_command_line():
    config = suites.resolve(
        suite(overrides={"weights.bhep": 1, "quantizer": {"name": "fsq", "levels": (4, 4)}}), "base", 0
    )
    assert config.weights.bhep == 1.0 and config.quantizer.levels == (4, 4)
    assert suites.resolve(suite(overrides={"weights.sigreg": None}), "base", 0).weights.sigreg is None


def test_what_a_variant_changes_is_told_key_by_key_and_no_further():
    other = {"weights.sigreg": 100.0, "quantizer": {"name": "fsq", "levels": (4, 4)}, "weights.bhep": None}
    said = suites.changed(suite(variants={"codes": other}), "codes")
    assert said == {"weights.sigreg": 100.0, "quantizer.name": "fsq", "quantizer.levels": [4, 4]}
    section = suites.resolve(suite(), "base", 0).encoder.to_dict() | {"dim": 8}
    assert suites.changed(suite(variants={"narrow": {"encoder": section}}), "narrow") == {"encoder.dim": 8}


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        ({"weights.sigregg": 1.0}, "unknown config key 'weights.sigregg'.*weights.sigreg"),
        ({"num_steps": "many"}, "config.num_steps cannot be 'many'"),
    ],
)
def test_an_override_that_does_not_fit_is_one_sentence(overrides, sentence):
    with pytest.raises(ValueError, match=sentence):
        suites.resolve(suite(overrides=overrides), "base", 0)


def test_a_variant_that_cannot_be_run_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"variant 'none'.*batch_size"):
        suites.runs(suite(variants={"none": {"batch_size": 0}}), tmp_path)


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(variants={"base": {"batch_size": 8}}), "it can differ in nothing"),
        (dict(metrics=[Metric("error", "val/prediction", source="nowhere")]), "is from 'nowhere'"),
        (dict(claims=[Claim("it does", "hevy", "error", "lower")]), "names the variant 'hevy'"),
        (dict(claims=[Claim("it does", "heavy", "error", "lower", against="bass")]), "names the variant 'bass'"),
        (dict(claims=[Claim("it does", "heavy", "errors", "lower")]), "names the metric 'errors'"),
        (dict(claims=[Claim("it does", "heavy", "error", "within")]), "'within' with a margin"),
        (dict(claims=[Claim("it does", "heavy", "error", "lower", margin=0.1)]), "'within' with a margin"),
        (dict(seeds=(0, 0)), "seeds of a suite are distinct"),
        (dict(seeds=()), "seeds of a suite are distinct"),
    ],
)
def test_a_suite_that_makes_no_sense_is_one_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        suites.check(suite(**fields))


def test_a_file_that_is_no_suite_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="there is no suite"):
        suites.load(str(tmp_path / "missing.py"))
    (tmp_path / "empty.py").write_text("SUITE = 3\n")
    with pytest.raises(ValueError, match="is not a suite"):
        suites.load(str(tmp_path / "empty.py"))


def finish(run):
    run.workdir.mkdir(parents=True)
    (run.workdir / "probes.json").write_text("{}")


def test_what_is_finished_is_not_trained_again(tmp_path):
    planned = suites.runs(suite(variants={"heavy": {"weights.sigreg": 100.0}}), tmp_path)
    finish(planned[1])
    apart = suites.jobs(planned, tmp_path, together=False)
    assert [(job.variant, job.runs[0].seed) for job in apart] == [("base", 0), ("heavy", 0), ("heavy", 1)]
    together = suites.jobs(planned, tmp_path, together=True)
    assert [[run.seed for run in job.runs] for job in together] == [[0], [0, 1]]
    for run in (planned[0], *planned[2:]):
        finish(run)
    assert suites.jobs(planned, tmp_path, together=True) == suites.jobs(planned, tmp_path, together=False) == []


def test_seeds_that_have_begun_together_go_on_together(tmp_path):
    planned = suites.runs(suite(variants={}), tmp_path)
    (job,) = suites.jobs(planned, tmp_path, together=True)
    job.folder.mkdir(parents=True)
    (job.folder / suites.MEMBERS).write_text(json.dumps([run.id for run in job.runs]))
    finish(planned[0])  # killed while the others were being evaluated
    (again,) = suites.jobs(planned, tmp_path, together=True)
    assert (again.id, again.folder, again.runs) == (job.id, job.folder, job.runs)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_every_suite_of_this_repository_can_be_run(path):
    loaded = suites.load(str(path))
    ids = set()
    for variant in suites.names(loaded):
        config = suites.resolve(loaded, variant, 0)
        config_checks.check(config)
        ids.add(suites.identity(config, "data"))
    assert len(ids) == len(suites.names(loaded))  # no two variants are the same
    assert len(loaded.seeds) >= 5 and loaded.claims

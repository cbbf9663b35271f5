"""What a suite says of runs whose figures are known."""

import json

import numpy as np
import pytest

from jepa import suite_report, suite_summary, suites
from jepa.metrics import jsonl
from jepa.suites import Claim, Metric, Suite

SUITE = Suite(
    question="Is b lower?",
    config="configs/lejepa.py:tiny",
    variants={"b": {"weights.sigreg": 1.0}, "same": {"weights.sigreg": 2.0}, "without": {"weights.sigreg": None}},
    metrics=[
        Metric("error", "val/prediction"),
        Metric("probe", "pooled: rule", source="probe", better="higher"),
        Metric("peak", "loss/sigreg", source="largest"),
        Metric("growth", "loss/sigreg", source="growth"),
        Metric("end", "loss/sigreg", source="last"),
    ],
    claims=[
        Claim("b has the lower error", "b", "error", "lower"),
        Claim("b has the higher error", "b", "error", "higher"),
        Claim("b has half the error", "b", "error", "within", threshold=0.5, margin=1.2, ratio=True),
        Claim("the same is the same", "same", "error", "within", margin=0.05),
        Claim("b is above 1", "b", "error", "higher", against=None, threshold=1.0),
        Claim("what is without has a peak", "without", "peak", "higher"),
        Claim("b knows more", "b", "probe", "higher"),
    ],
    curves=("loss/sigreg",),
)

FLOORS = {"chance": 0.125, "no_information": 0.25, "controls": {"tables": {"score": 0.375, "low": 0.3, "high": 0.4}}}


def finished(tmp_path, suite=SUITE, seeds=5):
    """Runs as they would have left their folders: errors about 2, 1, 2; probes that vary with the tasks."""
    rng, found = np.random.default_rng(0), []
    tasks = rng.normal(0, 0.05, size=200)  # of all runs alike
    for name in suites.names(suite):
        for seed in range(seeds):
            run = suites.Run(name, seed, suites.resolve(suite, name, seed), f"{name}{seed}", tmp_path / f"{name}{seed}")
            run.workdir.mkdir(parents=True)
            error = (1.0 if name == "b" else 2.0) + 0.02 * rng.normal()
            score = 0.3 + (0.1 if name == "b" else 0.0) + 0.005 * rng.normal()
            rows = [{"probe": "rule", "score": score} | FLOORS]
            probes = {"pooled": {"rows": rows, "resampled": {"rule": (score + tasks).tolist()}}}
            result = {"step": 20, "validation": {"val/prediction": error}, "probes": probes}
            (run.workdir / "probes.json").write_text(json.dumps(result))
            start = {name: None for name in ("python", "packages", "platform", "backend", "devices", "git")}
            (run.workdir / "environment.json").write_text(json.dumps({"starts": [start]}))
            record = jsonl(run.workdir / "metrics.jsonl")
            for step, value in ((2, 9.0), (5, 2.0), (10, 8.0), (20, 4.0)):  # the warm-up ends at 5
                record.write_scalars(
                    step, {"loss/total": value} | ({} if name == "without" else {"loss/sigreg": value})
                )
            record.close()
            found.append(run)
    return found


def test_verdicts_and_figures_of_known_runs(tmp_path):
    runs = finished(tmp_path)
    summary = suite_summary.summarise(SUITE, runs)
    verdicts = {each["claim"]: each["verdict"] for each in summary["claims"]}
    assert verdicts == {
        "b has the lower error": "confirmed",
        "b has the higher error": "refuted",
        "b has half the error": "confirmed",
        "the same is the same": "confirmed",
        "b is above 1": "undecided",
        "what is without has a peak": "undecided",
        "b knows more": "confirmed",
    }
    half = next(each for each in summary["claims"] if each["claim"] == "b has half the error")
    assert half["mean"] == pytest.approx(0.5, abs=0.02) and half["low"] < half["mean"] < half["high"]
    base = summary["variants"]["base"]
    assert [base[name]["mean"] for name in ("peak", "growth", "end")] == [9.0, 4.0, 4.0]
    assert "peak" not in summary["variants"]["without"] and "without" not in summary["differences"]["peak"]
    assert summary["floors"] == {"probe": {"chance": 0.125, "no information": 0.25, "tables": 0.375}}
    # A probe's interval covers tasks; a paired difference is free of what all runs share.
    assert base["probe"]["error"] > 0.045
    assert summary["differences"]["probe"]["b"]["error"] < 0.01
    assert summary["differences"]["error"]["same"]["p"] > 0.05 > summary["differences"]["error"]["b"]["p"]


def test_runs_that_are_missing_leave_their_variant_out(tmp_path):
    runs = finished(tmp_path)
    (runs[5].workdir / "probes.json").unlink()  # a seed of b
    summary = suite_summary.summarise(SUITE, runs)
    assert summary["missing"] == {"b": 1} and "b" not in summary["variants"]
    assert {each["verdict"] for each in summary["claims"] if "b " in each["claim"]} == {"undecided"}


def test_a_metric_that_no_run_has_is_one_sentence(tmp_path):
    runs = finished(tmp_path, seeds=2)
    typo = Suite("?", SUITE.config, SUITE.variants, [Metric("error", "val/predicton")], seeds=(0, 1))
    with pytest.raises(ValueError, match=r"'val/predicton' .*which no run has"):
        suite_summary.summarise(typo, runs)


def test_the_report_says_it_all_and_repeats_to_the_byte(tmp_path):
    runs = finished(tmp_path / "runs")
    for name in ("once", "again"):
        suite_report.write(SUITE, runs, tmp_path / name, ["python", "-m", "jepa.ablation"], {"c, seed 0": "it broke"})
    files = sorted(path.name for path in (tmp_path / "once").iterdir())
    assert files == ["environment.json", "loss_sigreg.svg", "report.json", "report.md"]
    for file in files:
        assert (tmp_path / "once" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    page = (tmp_path / "once" / "report.md").read_text()
    for said in (
        "# Is b lower?",
        "Confirmed: b has the lower error; b has half the error; the same is the same; b knows more.",
        "Refuted: b has the higher error.",
        "indistinguishable at 5 seeds",
        "| *no information* |  | 0.25 |  |  |  |",
        "| without | `weights.sigreg` none |",
        "- c, seed 0: it broke",
        "    python -m jepa.ablation",
    ):
        assert said in page

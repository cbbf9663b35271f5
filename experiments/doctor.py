"""Does the doctor name the fault that was planted, and leave healthy runs alone?

    python experiments/doctor.py      # 18 runs with a planted fault, 32 healthy ones, then the report

Small runs of a few hundred steps. Each kind of fault is one change of a config that works; a healthy run is a config as
it stands. The seeds are none of those that the thresholds of `jepa.findings_rules` were set on. Trains what is not
trained yet (an interrupted study resumes). Writes `experiments/reports/doctor/`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from pathlib import Path
from typing import Any, NamedTuple

import _seeds
import rich.progress
from ml_collections import ConfigDict
from scipy import stats

from jepa import backend, findings, run_folder, train
from jepa.main import load_config

SEEDS = (10, 11, 12)
HEALTHY_SEEDS = (10, 11, 12, 13)
FOLDER = Path("runs/doctor")


class Fault(NamedTuple):
    """A change of a config, and the findings of which each names it."""

    spec: str
    overrides: dict[str, Any]
    names: tuple[str, ...]


PLANTED = {
    "SIGReg on unit rows": Fault("configs/lejepa.py:tiny", {"objective.unit_sigreg": True}, ("sigreg-inert",)),
    "raw relations, weight 0.05": Fault(
        "configs/infonce.py:tiny",
        {"objective.relation_normalize": "none", "weights.relational": 0.05},
        ("relational-explosion",),
    ),
    "refresh below 1 % of assignments": Fault(
        "configs/lejepa_codes.py:vq_ema,tiny",
        {"quantizer.refresh": "documented", "quantizer.refresh_every": 50},
        ("codebook-discontinuity",),
    ),
    "neither SIGReg nor a teacher": Fault(
        "configs/lejepa.py:tiny", {"weights.sigreg": 0.0}, ("point-collapse", "dimensional-collapse")
    ),
    "temperature held at 0.5": Fault(
        "configs/infonce.py:tiny",
        {"objective.tau": 0.5, "objective.tau_min": 0.5, "objective.tau_max": 0.5},
        ("temperature-too-high",),
    ),
    "100 times the learning rate": Fault(
        "configs/lejepa.py:tiny",
        {"optimizer.learning_rate": 0.1},
        ("learning-rate-too-high", "non-finite-steps"),
    ),
}
HEALTHY = (
    "configs/lejepa.py:tiny",
    "configs/lejepa.py:tiny,teacher",
    "configs/lejepa.py:tiny,pooled",
    "configs/lejepa.py:tiny,mean",
    "configs/lejepa.py:tiny,views",
    "configs/infonce.py:tiny",
    "configs/infonce.py:tiny,tokens",
    "configs/lejepa_codes.py:tiny",
)


def small(spec: str, overrides: dict[str, Any], seed: int, platform: str) -> ConfigDict:
    """A tiny config of 300 steps that is looked at every 30."""
    config = load_config(spec)
    config.update_from_flattened_dict(overrides)
    config.seed, config.platform = seed, platform
    config.num_steps = config.checkpoint_every = 300
    config.eval_every = config.diagnose_every = 30
    config.eval_examples = config.final_examples = 64
    return config


def examined(config: ConfigDict, workdir: Path) -> list[findings.Finding]:
    """What the doctor says of the run, once it is trained, or has ended by itself."""
    with contextlib.suppress(FloatingPointError), contextlib.redirect_stdout(io.StringIO()):
        train.run(config, workdir)
    return findings.examine(findings.read(workdir))


def folder_of(title: str, seed: int) -> Path:
    return FOLDER / "".join(c if c.isalnum() else "_" for c in title) / f"seed{seed}"


def share(successes: int, trials: int) -> dict[str, float]:
    """A share with its exact 95 % interval (Clopper and Pearson, 1934)."""
    interval = stats.binomtest(successes, trials).proportion_ci(0.95, method="exact")
    return {"mean": successes / trials, "low": float(interval.low), "high": float(interval.high)}


def place(found: list[findings.Finding], names: tuple[str, ...]) -> int | None:
    """Where the first finding that names the fault stands, 1 first; None where none does."""
    return next((number for number, finding in enumerate(found, 1) if finding.name in names), None)


def summarise(planted: dict[str, list], healthy: dict[str, list]) -> dict[str, Any]:
    """Places of the planted faults, serious findings of healthy runs, and how often every finding was made."""
    kinds = {}
    for title, runs in planted.items():
        places = [place(found, PLANTED[title].names) for found in runs]
        named = share(sum(number is not None and number <= 2 for number in places), len(runs))
        kinds[title] = {"runs": len(runs), "places": places, "first_or_second": named, "found": counts(runs)}
    sound = {}
    for spec, runs in healthy.items():
        serious = [finding.name for found in runs for finding in found if finding.seriousness == "serious"]
        sound[spec] = {"runs": len(runs), "serious": serious, "found": counts(runs)}
    all_planted = [number for kind in kinds.values() for number in kind["places"]]
    with_serious = sum(
        any(finding.seriousness == "serious" for finding in found) for runs in healthy.values() for found in runs
    )
    return {
        "planted": kinds,
        "healthy": sound,
        "first_or_second": share(sum(number is not None and number <= 2 for number in all_planted), len(all_planted)),
        "kinds_on_every_seed": sum(kind["first_or_second"]["mean"] == 1 for kind in kinds.values()),
        "healthy_with_a_serious_finding": share(with_serious, sum(len(runs) for runs in healthy.values())),
        "serious_findings_of_healthy_runs": sum(len(row["serious"]) for row in sound.values()),
    }


def counts(runs: list[list[findings.Finding]]) -> dict[str, int]:
    """In how many runs each finding was made."""
    names = [finding.name for found in runs for finding in found]
    return {name: names.count(name) for name in sorted(set(names))}


def write(summary: dict[str, Any], environments: list[dict], platform: str) -> None:
    """report.json, what it ran on, and report.md."""
    kinds, sound = summary["planted"], summary["healthy"]
    columns = sorted({name for row in (*kinds.values(), *sound.values()) for name in row["found"]})
    matrix = [
        [title, str(row["runs"]), *(str(row["found"][name]) if name in row["found"] else "" for name in columns)]
        for title, row in (*kinds.items(), *sound.items())
    ]
    places = []
    for title, kind in kinds.items():
        by_seed = " ".join(str(number or "-") for number in kind["places"])
        places.append([title, ", ".join(PLANTED[title].names), by_seed, _seeds.cell(kind["first_or_second"])])
    findings_in_all = summary["serious_findings_of_healthy_runs"]
    report = [
        f"# {__doc__.splitlines()[0]}\n",
        f"The planted fault is the first or second finding in {_seeds.cell(summary['first_or_second'])} of the runs,",
        f"and in every seed of {summary['kinds_on_every_seed']} of {len(kinds)} kinds. Of the healthy runs,",
        f"{_seeds.cell(summary['healthy_with_a_serious_finding'])} have a serious finding",
        f"({findings_in_all} in all). Shares with exact 95 % intervals over runs.\n",
        "An object encoder of width 16, 300 steps of 16 examples, evaluated every 30 steps on 64 examples.",
        f"Seeds {', '.join(map(str, SEEDS))} for faults, {', '.join(map(str, HEALTHY_SEEDS))} for healthy runs,",
        "none of which the thresholds were set on.\n",
        "## Where the planted fault stands among the findings\n",
        _seeds.table(["planted", "named by", "place, by seed", "first or second"], places),
        "## Runs in which a finding was made\n",
        _seeds.table(["run", "runs", *columns], matrix),
        f"## Reproduce\n\n    python experiments/doctor.py --platform={platform}\n",
    ]
    folder = Path("experiments/reports/doctor")
    folder.mkdir(parents=True, exist_ok=True)
    run_folder.atomic_write_json(folder / "report.json", summary)
    run_folder.atomic_write_json(folder / "environment.json", environments)
    run_folder.atomic_write_text(folder / "report.md", "\n".join(report))
    print(f"wrote {folder / 'report.md'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--platform", default="cpu")
    options = parser.parse_args()
    backend.select_platform(options.platform)
    backend.use_compile_cache(load_config("configs/lejepa.py").cache_dir)
    jobs = [(title, fault.spec, fault.overrides, seed) for title, fault in PLANTED.items() for seed in SEEDS]
    jobs += [(spec, spec, {}, seed) for spec in HEALTHY for seed in HEALTHY_SEEDS]
    found: dict[str, list] = {}
    environments: list[dict] = []
    for title, spec, overrides, seed in rich.progress.track(jobs, description="runs"):
        workdir = folder_of(title, seed)
        found.setdefault(title, []).append(examined(small(spec, overrides, seed, options.platform), workdir))
        ran_on = _seeds.environment(workdir)
        environments += [ran_on] if ran_on not in environments else []
    planted, healthy = ({title: found[title] for title in titles} for titles in (PLANTED, HEALTHY))
    write(summarise(planted, healthy), environments, options.platform)


if __name__ == "__main__":
    main()

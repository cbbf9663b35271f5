"""What the reports of several seeds share: training them, means with intervals, tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy import stats

from jepa import run_folder, suite_statistics
from jepa.suite_report import table

SHAPE = ("std", "std_min", "std_max", "effective_rank", "effective_rank_expected", "rank_ratio")
CONTROLS = ("randnet", "tables", "histogram", "pixels")


def train(workdir: Path, *options: str) -> tuple[dict, dict]:
    """`probes.json` of a finished run, trained or resumed if it is not finished, and what it ran on."""
    subprocess.run([sys.executable, "-m", "jepa.main", f"--workdir={workdir}", *options], check=True)
    return json.loads((workdir / "probes.json").read_text()), environment(workdir)


def environment(workdir: Path) -> dict:
    """What the last start of a run ran on."""
    start = json.loads((workdir / "environment.json").read_text())["starts"][-1]
    kept = ("python", "packages", "backend", "devices", "git", "digest")
    return {name: start[name] for name in kept}


def over_seeds(values: list[float]) -> dict[str, float]:
    """Mean with its 95 % t interval over seeds; a single seed has none."""
    found = suite_statistics.estimate(values)
    return {"mean": found.mean} | ({} if found.low is None else {"low": found.low, "high": found.high})


def cell(value: dict[str, float]) -> str:
    interval = f" [{value['low']:.3f}, {value['high']:.3f}]" if "low" in value else ""
    return f"{value['mean']:.3f}{interval}"


def versus(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Difference of the means over seeds, with its 95 % Welch interval."""
    interval = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    return {"mean": float(np.mean(ours) - np.mean(theirs)), "low": float(interval.low), "high": float(interval.high)}


def signed(value: dict[str, float]) -> str:
    return f"{value['mean']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"


def summarise(results: list[dict], figures: tuple[str, ...]) -> dict:
    """All figures over seeds, JSON-able; `each` keeps what every seed said of itself."""
    validation = [result["validation"] for result in results]
    roles = [name.split("/")[1] for name in validation[0] if name.endswith("/effective_rank")]
    probes = {}
    for name in results[0]["probes"]:
        for rows in zip(*(result["probes"][name]["rows"] for result in results), strict=True):
            probes[f"{rows[0]['probe']} ({name})"] = {
                "trained": over_seeds([row["score"] for row in rows]),
                "untrained": over_seeds([row["untrained"]["score"] for row in rows]),
                "controls": {control: rows[0]["controls"][control] for control in CONTROLS},
                "chance": rows[0]["chance"],
                "no_information": rows[0]["no_information"],
                "baselines": {
                    key: over_seeds([row["baselines"][key]["score"] for row in rows]) for key in rows[0]["baselines"]
                },
                "over_best_control": [row["over_best_control"] for row in rows],
                "over_untrained": [row["over_untrained"] for row in rows],
            }
    return {
        "figures": {name: over_seeds([values[name] for values in validation]) for name in figures},
        "embeddings": {
            role: {name: over_seeds([values[f"diag/{role}/{name}"] for values in validation]) for name in SHAPE}
            for role in roles
        },
        "probes": probes,
        "each": validation,
    }


def shape_table(summary: dict) -> str:
    """Scale and rank of every set of embeddings."""
    shapes = [[role, *(cell(values[name]) for name in SHAPE)] for role, values in summary["embeddings"].items()]
    return (
        "`rank_ratio`: effective rank over its expectation under N(0, I) for as many embeddings and dimensions.\n\n"
        + table(["embeddings", *SHAPE], shapes)
    )


def probe_table(summary: dict) -> str:
    """Every probe beside its controls and baselines."""
    lines = []
    for name, row in summary["probes"].items():
        baselines = {key: value["mean"] for key, value in row["baselines"].items()}
        lines.append(
            [name, cell(row["trained"]), cell(row["untrained"])]
            + [f"{row['controls'][control]['score']:.3f}" for control in CONTROLS]
            + [", ".join(f"{key} {value:.3f}" for key, value in baselines.items())]
            + [f"{row['no_information']:.3f}", f"{row['chance']:.3f}"]
        )
    return table(["probe", "trained", "untrained", *CONTROLS, "baselines", "no information", "chance"], lines)


def paired_table(summary: dict, seeds: list[int]) -> str:
    """The paired difference of every probe to its best control, seed by seed."""
    lines = []
    for name, row in summary["probes"].items():
        gains = row["over_best_control"]
        differences = [f"{gain['difference']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]" for gain in gains]
        lines.append([name, gains[0]["control"], *differences])
    return table(["probe", "best control", *(f"seed {seed}" for seed in seeds)], lines)


def answer(summary: dict) -> str:
    """Which probes exceed their best control, with an interval above 0 in every seed."""
    rows = summary["probes"].items()
    beaten = [name for name, row in rows if all(gain["low"] > 0 for gain in row["over_best_control"])]
    counted = f"{len(beaten)} of {len(rows)} probes exceed their best control, with an interval above 0 in every seed"
    return f"{counted}{': ' + ', '.join(beaten) if beaten else ''}"


def write(folder: Path, summary: dict, environments: list[dict], seeds: list[int], report: str) -> None:
    """report.json, what it ran on, and report.md."""
    folder.mkdir(parents=True, exist_ok=True)
    run_folder.atomic_write_json(folder / "report.json", summary)
    run_folder.atomic_write_json(folder / "environment.json", dict(zip(map(str, seeds), environments, strict=True)))
    run_folder.atomic_write_text(folder / "report.md", report)
    print(f"wrote {folder / 'report.md'}")

"""Does the default LeJEPA on ARC train without collapse, use its demonstration, and beat its floors?

    python experiments/lejepa.py                       # three seeds one after the other, then the report
    python experiments/lejepa.py --seeds 0 --config=configs/lejepa.py:base --platform=gpu

Trains what is not trained yet (an interrupted run resumes), reads every `probes.json`, and writes report.md and
report.json to `experiments/reports/<config name>/`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy import stats

from jepa import run_folder
from jepa.main import default_workdir

FIGURES = (
    "val/prediction",
    "val/prediction/copy_ratio",
    "val/readout/std_min",
    "val/readout/std_max",
    "diag/demo_gain",
    "diag/demo_gain_low",
    "diag/demo_gain_high",
)
SHAPE = ("std", "std_min", "std_max", "effective_rank", "effective_rank_expected", "rank_ratio")
CONTROLS = ("randnet", "tables", "histogram", "pixels")


def train(config: str, seed: int, platform: str) -> tuple[dict, dict]:
    """`probes.json` of the finished run of one seed, trained or resumed if it is not finished; and what it ran on."""
    workdir = Path(f"{default_workdir(config)}-seed{seed}")
    command = [sys.executable, "-m", "jepa.main", f"--config={config}", f"--workdir={workdir}"]
    subprocess.run([*command, f"--config.seed={seed}", f"--config.platform={platform}"], check=True)
    start = json.loads((workdir / "environment.json").read_text())["starts"][-1]
    kept = ("python", "packages", "backend", "devices", "git", "digest")
    return json.loads((workdir / "probes.json").read_text()), {name: start[name] for name in kept}


def over_seeds(values: list[float]) -> dict[str, float]:
    """Mean with its 95 % t interval over seeds; a single seed has none."""
    mean = float(np.mean(values))
    if len(values) == 1:
        return {"mean": mean}
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def cell(value: dict[str, float]) -> str:
    interval = f" [{value['low']:.3f}, {value['high']:.3f}]" if "low" in value else ""
    return f"{value['mean']:.3f}{interval}"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def summarise(results: list[dict]) -> dict:
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
        "figures": {name: over_seeds([values[name] for values in validation]) for name in FIGURES},
        "embeddings": {
            role: {name: over_seeds([values[f"diag/{role}/{name}"] for values in validation]) for name in SHAPE}
            for role in roles
        },
        "probes": probes,
        "each": validation,
    }


def markdown(summary: dict, results: list[dict], config: str, seeds: list[int], command: str) -> str:
    """The question, what held, the tables, and how to reproduce them."""
    figures = [[name, cell(value)] for name, value in summary["figures"].items()]
    shapes = [[role, *(cell(values[name]) for name in SHAPE)] for role, values in summary["embeddings"].items()]
    probes, paired, beaten = [], [], []
    for name, row in summary["probes"].items():
        baselines = {key: value["mean"] for key, value in row["baselines"].items()}
        probes.append(
            [name, cell(row["trained"]), cell(row["untrained"])]
            + [f"{row['controls'][control]['score']:.3f}" for control in CONTROLS]
            + [", ".join(f"{key} {value:.3f}" for key, value in baselines.items())]
            + [f"{row['no_information']:.3f}", f"{row['chance']:.3f}"]
        )
        gains = row["over_best_control"]
        differences = [f"{gain['difference']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]" for gain in gains]
        paired.append([name, gains[0]["control"], *differences])
        if all(gain["low"] > 0 for gain in gains):
            beaten.append(name)
    answer = f"{len(beaten)} of {len(probes)} probes exceed their best control, with an interval above 0 in every seed"
    return "\n".join(
        [
            f"# {__doc__.splitlines()[0]}\n",
            f"{answer}{': ' + ', '.join(beaten) if beaten else ''}.\n",
            f"`{config}`, seeds {seeds}. Intervals are 95 % t intervals over seeds unless said otherwise.\n",
            "## Held-out prediction\n",
            f"{results[0]['final_examples']} analogies of held-out tasks under random symmetries; there are fewer",
            "distinct ones, so each is seen under several symmetries, and intervals are over tasks.\n",
            "`copy_ratio`: prediction error over that of predicting the last context grid. `demo_gain`: 1 - error with",
            "the task's own demonstration / error with another task's; `low`, `high` bound it over tasks in a seed.\n",
            table(["figure", "mean over seeds"], figures),
            "## Scale and rank\n",
            "`rank_ratio`: effective rank over its expectation under N(0, I) for as many embeddings and dimensions.\n",
            table(["embeddings", *SHAPE], shapes),
            "## Probes of frozen features\n",
            "Scorers are fitted on ARC-1 training tasks; the controls are fixed networks and raw features. What a",
            "retrieval probe leaves open (which pair asks, which metric) was chosen so that the two untrained controls",
            "agree with an earlier measurement of them on these tasks; trained encoders had no part in the choice.\n",
            table(["probe", "trained", "untrained", *CONTROLS, "baselines", "no information", "chance"], probes),
            "## Paired difference to the best control, per seed\n",
            "On the same questions, with a 95 % bootstrap interval over tasks.\n",
            table(["probe", "best control", *(f"seed {seed}" for seed in seeds)], paired),
            f"## Reproduce\n\n    {command}\n",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/lejepa.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--platform", default="cpu")
    options = parser.parse_args()
    results, environments = zip(*(train(options.config, seed, options.platform) for seed in options.seeds), strict=True)
    folder = Path("experiments/reports") / Path(default_workdir(options.config)).name
    folder.mkdir(parents=True, exist_ok=True)
    summary = summarise(results)
    run_folder.atomic_write_json(folder / "report.json", summary)
    run_folder.atomic_write_json(
        folder / "environment.json", dict(zip(map(str, options.seeds), environments, strict=True))
    )
    seeds = " ".join(map(str, options.seeds))
    command = f"python experiments/lejepa.py --config={options.config} --platform={options.platform} --seeds {seeds}"
    run_folder.atomic_write_text(
        folder / "report.md", markdown(summary, results, options.config, options.seeds, command)
    )
    print(f"wrote {folder / 'report.md'}")


if __name__ == "__main__":
    main()

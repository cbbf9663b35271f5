"""What does training on drawn programs teach, of families it met and of others, and does it help on real ARC?

    python experiments/programs.py                       # three seeds of each of four runs, then the report

The same model for as many steps on programs (`configs/lejepa_programs.py`), on ARC and programs by halves
(`:mixture`), and on ARC alone (`configs/lejepa.py`); and for twice as many on programs by contrast
(`configs/infonce_programs.py`). Trains what is not trained yet (an interrupted run resumes), reads
every `probes.json`, and writes `experiments/reports/programs/`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import _seeds
import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from jepa import metrics

RUNS = {
    "programs": ("configs/lejepa_programs.py",),
    "mixture": ("configs/lejepa_programs.py:mixture",),
    "contrastive": ("configs/infonce_programs.py",),
    "arc": ("configs/lejepa.py", "--config.num_steps=800", "--config.probes=('arc', 'programs')"),
}
LEARNERS = {"programs": "Trained on programs alone", "contrastive": "Trained on programs alone, by contrast"}
FOLDER = Path("experiments/reports/programs")
HELD_OUT = {  # by what is predicted: the metric in a run on programs, and in a mixture
    "analogies": ("val/", "val/analogies/"),
    "analogies of held-out families": ("val/families/", "val/analogies_families/"),
    "analogies of held-out compositions": ("val/compositions/", "val/analogies_compositions/"),
    "orbits": ("val/orbits/", "val/orbits/"),
    "orbits of held-out families": ("val/orbits_families/", "val/orbits_families/"),
}
# What a learned encoder has to exceed, beside its controls: the program probes' own bars.
BARS = {"family/all/pair": 0.43, "orbit/all/predictor_l2": 0.36, "first_step_3/all/nearest": 0.55}
SPACES = {"pooled": "ARC", "programs, pooled": "programs"}


def train(name: str, seed: int) -> tuple[dict, dict]:
    config, *options = RUNS[name]
    workdir = Path("runs") / f"programs_{name}-seed{seed}"
    result, environment = _seeds.train(workdir, f"--config={config}", f"--config.seed={seed}", *options)
    laps = metrics.read_record(workdir / "timing.jsonl")
    seconds = np.array([lap["time/step_seconds"] for lap in laps])
    waited = np.array([lap["time/input_share"] for lap in laps])
    return result | {"input_share": float(np.sum(seconds * waited) / np.sum(seconds))}, environment


def scores(results: list[dict], space: str) -> dict[str, list[dict]]:
    """By probe, the rows of all seeds; those of a predictor from the space that it predicts in."""
    found = {}
    for part in (space, space.replace("pooled", "projected")):
        for row in results[0]["probes"][part]["rows"] if part in results[0]["probes"] else ():
            if part == space or row["probe"].endswith("predictor_l2"):
                same = [each["probes"][part]["rows"] for each in results]
                found[row["probe"]] = [next(r for r in rows if r["probe"] == row["probe"]) for rows in same]
    return found


def held_out_figures(results: dict[str, list[dict]]) -> dict[str, dict[str, dict]]:
    """By run and by what is predicted, the prediction error over that of copying."""
    figures: dict[str, dict[str, dict]] = {name: {} for name in results}
    for name, runs in results.items():
        if name != "arc":
            place = int(name == "mixture")
            for what, prefix in HELD_OUT.items():
                values = [run["validation"][f"{prefix[place]}prediction/copy_ratio"] for run in runs]
                figures[name][what] = _seeds.over_seeds(values)
        if name in ("mixture", "arc"):
            values = [run["validation"]["val/prediction/copy_ratio"] for run in runs]
            figures[name]["ARC"] = _seeds.over_seeds(values)
    return figures


def summarise(results: dict[str, list[dict]]) -> dict:
    probes: dict[str, dict] = {}
    for space, kind in SPACES.items():
        per_run = {name: scores(runs, space) for name, runs in results.items()}
        for probe, rows in per_run["programs"].items():
            line = {
                "chance": rows[0]["chance"],
                "controls": {name: rows[0]["controls"][name]["score"] for name in _seeds.CONTROLS},
                "baselines": {
                    name: _seeds.over_seeds([row["baselines"][name]["score"] for row in rows])
                    for name in rows[0]["baselines"]
                },
                "over_best_control": {
                    name: [row["over_best_control"] for row in table[probe]]
                    for name, table in per_run.items()
                    if name in LEARNERS and probe in table
                },
                "untrained": {
                    name: _seeds.over_seeds([row["untrained"]["score"] for row in table[probe]])
                    for name, table in per_run.items()
                    if name in LEARNERS and probe in table
                },
            }
            for name, table in per_run.items():
                if probe in table:
                    line[name] = _seeds.over_seeds([row["score"] for row in table[probe]])
            for name in set(per_run) - {"arc"}:
                if "arc" in per_run and probe in per_run["arc"]:
                    ours, theirs = ([row["score"] for row in per_run[run][probe]] for run in (name, "arc"))
                    line[f"{name}_over_arc"] = _seeds.versus(ours, theirs)
            probes[f"{kind}: {probe}"] = line
    return {
        "figures": held_out_figures(results),
        "probes": probes,
        "input_share": {
            name: _seeds.over_seeds([run["input_share"] for run in runs]) for name, runs in results.items()
        },
    }


def answer(summary: dict) -> str:
    """What held, in sentences."""
    said = []
    for name in (name for name in LEARNERS if name in summary["figures"]):
        said += ["", f"{LEARNERS[name]}:\n"] if said else [f"{LEARNERS[name]}:\n"]
        for probe, bar in BARS.items():
            row = summary["probes"][f"programs: {probe}"]
            over = row["over_best_control"][name]
            beaten = all(gain["low"] > 0 for gain in over) and "low" in row[name] and row[name]["low"] > bar
            verdict, control = "beats" if beaten else "does not beat", over[0]["control"]
            said.append(f"- `{probe}`: {_seeds.cell(row[name])} {verdict} {bar} and its best control, {control}.")
    transfer = {"better": [], "worse": []}
    for name, row in summary["probes"].items():
        if name.startswith("ARC: ") and "mixture_over_arc" in row:
            difference = row["mixture_over_arc"]
            if difference["low"] > 0 or difference["high"] < 0:
                transfer["better" if difference["low"] > 0 else "worse"].append(name.removeprefix("ARC: "))
    lines = [f"- {verdict}: {', '.join(names) or 'none'}" for verdict, names in transfer.items()]
    if "mixture" not in summary["figures"] or "arc" not in summary["figures"]:
        return "\n".join([*said, ""])
    return "\n".join(
        [
            *said,
            "\nOn the real ARC probes, programs in place of half of the ARC rows are, by Welch intervals over seeds:\n",
            *lines,
            "",
        ]
    )


def picture(summary: dict, file: Path) -> None:
    """The program probes of the three runs beside their floors."""
    names = [name for name in summary["probes"] if name.startswith("programs: ") and "/all/" in name]
    with rc_context({"svg.hashsalt": "jepa", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(7.5, 0.42 * len(names) + 1.2), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(names))[::-1]
        for colour, run in enumerate(summary["figures"]):
            rows = [summary["probes"][name][run] for name in names]
            mean = np.array([row["mean"] for row in rows])
            high = np.array([row["high"] if "high" in row else row["mean"] for row in rows])
            shift = 0.15 * (1.5 - colour)
            axes.errorbar(
                mean, places + shift, xerr=high - mean, fmt="o", ms=4, capsize=2, color=f"C{colour}", label=run
            )
        for control, marker in (("tables", "|"), ("randnet", "x")):
            values = [summary["probes"][name]["controls"][control] for name in names]
            axes.plot(values, places, marker, ms=8, color="black", label=control)
        axes.plot([summary["probes"][name]["chance"] for name in names], places, ".", color="grey", label="chance")
        axes.set_yticks(places, [name.removeprefix("programs: ") for name in names])
        axes.set_xlabel("score: balanced accuracy, mean reciprocal rank, or accuracy")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.savefig(file, metadata={"Date": None})


def probe_table(summary: dict, kind: str) -> str:
    learners = [name for name in LEARNERS if name in summary["figures"]]
    untrained = [f"{name}, untrained" for name in learners]
    header = ["probe", *summary["figures"], *untrained, *_seeds.CONTROLS, "chance", "mixture over ARC alone"]
    lines = []
    for name, row in summary["probes"].items():
        if not name.startswith(f"{kind}: "):
            continue
        runs = [_seeds.cell(row[run]) if run in row else "" for run in summary["figures"]]
        controls = [f"{row['controls'][control]:.3f}" for control in _seeds.CONTROLS]
        over = _seeds.signed(row["mixture_over_arc"]) if "mixture_over_arc" in row else ""
        chance = f"{row['chance']:.3f}"
        before = [_seeds.cell(row["untrained"][run]) if run in row["untrained"] else "" for run in learners]
        lines.append([name.removeprefix(f"{kind}: "), *runs, *before, *controls, chance, over])
    return _seeds.table(header, lines)


def markdown(summary: dict, seeds: list[int]) -> str:
    figures = summary["figures"]
    command = f"python experiments/programs.py --runs {' '.join(figures)} --seeds {' '.join(map(str, seeds))}"
    predicted = [
        [what, *(_seeds.cell(figures[run][what]) if what in figures[run] else "" for run in figures)]
        for what in (*HELD_OUT, "ARC")
    ]
    paired = []
    for name, row in summary["probes"].items():
        for run, over in row["over_best_control"].items():
            if name.startswith("programs: "):
                gains = [f"{g['difference']:+.3f} [{g['low']:+.3f}, {g['high']:+.3f}]" for g in over]
                paired.append([name.removeprefix("programs: "), run, over[0]["control"], *gains])
    longer = ", 1600 by contrast" if "contrastive" in figures else ""
    waited = ", ".join(f"{name} {_seeds.cell(share)}" for name, share in summary["input_share"].items())
    return "\n".join(
        [
            f"# {__doc__.splitlines()[0]}\n",
            answer(summary),
            f"Seeds {seeds}, 800 steps of 128 rows each{longer}; means with 95 % t intervals over seeds.\n",
            "![program probes](probes.svg)\n",
            "## Prediction error over that of copying the last context grid, held out\n",
            _seeds.table(["", *figures], predicted),
            "## Probes about programs\n",
            "`held_in` and `held_out`: families that the run on programs has met and has not; `all`: both. Controls",
            "are fixed networks and raw features on the same questions.\n",
            probe_table(summary, "programs"),
            "Paired difference of the runs on programs to the best control, per seed, 95 % bootstrap interval over",
            "tasks:\n",
            _seeds.table(["probe", "run", "best control", *(f"seed {seed}" for seed in seeds)], paired),
            "## Probes on ARC\n",
            probe_table(summary, "ARC"),
            f"Share of the time spent waiting for data: {waited}.\n",
            f"## Reproduce\n\n    {command}\n",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), help="`programs`, and any others")
    options = parser.parse_args()
    results: dict[str, list[dict]] = {name: [] for name in options.runs}
    environments = []
    for seed in options.seeds:
        for name in options.runs:
            result, environment = train(name, seed)
            results[name].append(result)
        environments.append(environment)
    summary = summarise(results)
    FOLDER.mkdir(parents=True, exist_ok=True)
    picture(summary, FOLDER / "probes.svg")
    _seeds.write(FOLDER, summary, environments, options.seeds, markdown(summary, options.seeds))


if __name__ == "__main__":
    main()

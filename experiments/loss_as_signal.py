"""Does a loss, which needs no labels, order runs as probes do?

    python -m jepa.ablation --suite=experiments/sigreg.py --vmap_seeds      # trains the runs
    python experiments/loss_as_signal.py                                    # reads them

LeJEPA (arXiv:2511.08544) reports a rank correlation of about 0.85 between its loss and accuracy, and 0.99 after
division by lambda^0.4. Here over the runs of the suite `sigreg` that share data, architecture and number of steps: its
weights and its numbers of slices, all seeds. Writes `experiments/reports/loss_as_signal/`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import _seeds
import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from scipy import stats

from jepa import run_folder, suites

SUITE = "experiments/sigreg.py"
FOLDER = Path("experiments/reports/loss_as_signal")
PROBES = ("rule/arc1/edit/delta_cosine", "rule/arc1/edit/analogy_l2", "retrieval/delta", "facts/diagonal")
RESAMPLES = 2000
COLLAPSED = 0.5  # the standard deviation of embeddings, 1 under N(0, I), below which a setting counts as collapsed


def signals(run: suites.Run) -> dict[str, float]:
    """What each loss says of a run, the lower the better, and the standard deviation of its embeddings, `std`; lambda
    weighs T against prediction, as LeJEPA does."""
    result = json.loads((run.workdir / "probes.json").read_text())["validation"]
    prediction, over_n, size = result["val/prediction"], result["val/sigreg"], run.config.batch_size
    share = run.config.weights.sigreg / (run.config.weights.sigreg + size)
    loss = share * size * over_n + (1 - share) * prediction
    return {
        "std": result["diag/context/std"],
        "prediction error": prediction,
        "error / copy": result["val/prediction/copy_ratio"],
        "T / N": over_n,
        "loss": loss,
        "loss / lambda^0.4": loss / share**0.4,
    }


def scores(run: suites.Run) -> dict[str, float]:
    rows = json.loads((run.workdir / "probes.json").read_text())["probes"]["pooled"]["rows"]
    return {row["probe"]: row["score"] for row in rows if row["probe"] in PROBES}


def agreement(signal: np.ndarray, score: np.ndarray, variants: np.ndarray) -> dict[str, float]:
    """Spearman's correlation of a score and of how low a signal is, with a 95 % interval over resamples of whole
    variants: runs that differ in their seed alone are not independent."""
    rng, names = np.random.default_rng(0), np.unique(variants)
    found = []
    for _ in range(RESAMPLES):
        drawn = np.concatenate([np.flatnonzero(variants == name) for name in rng.choice(names, len(names))])
        if len(set(signal[drawn])) > 1:
            found.append(stats.spearmanr(-signal[drawn], score[drawn]).statistic)
    low, high = np.quantile(found, [0.025, 0.975])
    return {"mean": float(stats.spearmanr(-signal, score).statistic), "low": float(low), "high": float(high)}


def draw(runs: list[suites.Run], table: dict[str, np.ndarray], score: np.ndarray, probe: str) -> None:
    """Every signal against one probe, a point for each run, coloured by the weight of SIGReg."""
    with rc_context({"svg.hashsalt": "jepa", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(2.3 * len(table), 2.8), layout="constrained")
        weights = np.log10([run.config.weights.sigreg for run in runs])
        for axes, (name, values) in zip(figure.subplots(1, len(table), sharey=True), table.items(), strict=True):
            points = axes.scatter(values, score, c=weights, s=12, cmap="viridis")
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_locator(NullLocator())
            axes.tick_params(axis="x", labelrotation=60)
            axes.set_xlabel(name)
            axes.spines[["top", "right"]].set_visible(False)
        figure.axes[0].set_ylabel(probe)
        figure.colorbar(points, ax=figure.axes, label="log10 of the weight")
        figure.savefig(FOLDER / "signals.svg", metadata={"Date": None})


def correlations(table: dict[str, np.ndarray], probed: list[dict], variants: np.ndarray, kept: np.ndarray) -> dict:
    """By probe and signal, over the runs that are `kept`, bool."""
    return {
        probe: {
            name: agreement(values[kept], np.array([each[probe] for each in probed])[kept], variants[kept])
            for name, values in table.items()
        }
        for probe in PROBES
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("runs/ablation"), help="where the runs of the suite are")
    options = parser.parse_args()
    suite = suites.load(SUITE)
    kept = ["base", *(name for name in suite.variants if name.startswith("weight ") or name.endswith(" slices"))]
    runs = [run for run in suites.runs(suite, options.root) if run.variant in kept]
    missing = [f"{run.variant}, seed {run.seed}" for run in runs if not suites.is_finished(run)]
    if missing:
        raise SystemExit(f"not trained yet: {'; '.join(missing)}; python -m jepa.ablation --suite={SUITE} trains them")
    variants = np.array([run.variant for run in runs])
    said = [signals(run) for run in runs]
    spread = np.array([each.pop("std") for each in said])
    table = {name: np.array([each[name] for each in said]) for name in said[0]}
    probed = [scores(run) for run in runs]
    collapsed = [name for name in kept if spread[variants == name].mean() < COLLAPSED]
    found = {
        "all": correlations(table, probed, variants, np.full(len(runs), True)),
        "whole": correlations(table, probed, variants, ~np.isin(variants, collapsed)),
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    draw(runs, table, np.array([each[PROBES[0]] for each in probed]), PROBES[0])
    lines = {
        over: [[probe, *(_seeds.cell(row[name]) for name in table)] for probe, row in rows.items()]
        for over, rows in found.items()
    }
    left = len(kept) - len(collapsed)
    report = [
        f"# {__doc__.splitlines()[0]}\n",
        f"Over all settings: {tells(found['all'])} Without those that collapsed: {tells(found['whole'])}\n",
        f"Rank correlation of each probe with how low a loss is, over {len(runs)} runs of {len(kept)} settings, with",
        "95 % intervals over resamples of settings; LeJEPA reports about 0.85 for its loss and 0.99 after division.\n",
        _seeds.table(["probe", *table], lines["all"]),
        f"The same over the {left} settings whose embeddings keep a standard deviation of {COLLAPSED}. Those of",
        f"{', '.join(collapsed)} do not: embeddings that hardly differ are predicted with little error.\n",
        _seeds.table(["probe", *table], lines["whole"]),
        f"![losses against {PROBES[0]}](signals.svg)\n",
        "## Reproduce\n",
        f"    python -m jepa.ablation --suite={SUITE} --vmap_seeds",
        "    python experiments/loss_as_signal.py\n",
    ]
    result = {"runs": [run.id for run in runs], "collapsed": collapsed, "correlations": found}
    run_folder.atomic_write_json(FOLDER / "report.json", result)
    run_folder.atomic_write_text(FOLDER / "report.md", "\n".join(report))
    print(f"wrote {FOLDER / 'report.md'}")


def tells(found: dict) -> str:
    """In a sentence, the signals with a correlation above 0, its interval included."""
    ranked = [(probe, name, row[name]) for probe, row in found.items() for name in row if row[name]["low"] > 0]
    each = "; ".join(f"{name} for {probe} ({_seeds.cell(value)})" for probe, name, value in ranked)
    return (
        f"above 0, the interval included, are {each}." if each else "no correlation is above 0, its interval included."
    )


if __name__ == "__main__":
    main()

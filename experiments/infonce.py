"""Does contrastive prediction on ARC learn from its batch, stay whole, and know more than LeJEPA?

    python experiments/infonce.py                      # three seeds one after the other, then the report

Trains what is not trained yet (an interrupted run resumes) and writes `experiments/reports/infonce/`, beside the
numbers of `experiments/reports/lejepa/`. Chance is the log of how many candidates a row has, those that show the same
target left out. Negatives of the `same_task` are other outputs of the task, under the symmetry of the row; those of
the `palette_matched` are outputs of other tasks in the colours of the target, as often used in the same order.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import _seeds
import numpy as np
from scipy import stats

from jepa import metrics
from jepa.main import default_workdir

KINDS = ("same_task", "palette_matched")
FIGURES = (
    *("val/infonce", "val/infonce/chance", "val/infonce/gain", "val/infonce/queue_share"),
    *("val/infonce/in_batch", "val/infonce/in_batch_chance", "val/infonce/in_batch_accuracy"),
    *(f"val/{kind}/{name}" for kind in KINDS for name in ("infonce", "chance", "accuracy", "share")),
    *("val/prediction/copy_ratio", "diag/demo_gain", "diag/demo_gain_low", "diag/demo_gain_high"),
    *("val/infonce/tau", "val/infonce/tau_clamped"),
)
COURSE = (
    *("loss/infonce", "metric/infonce/in_batch", "loss/relational", "loss/sigreg", "metric/infonce/tau"),
    *("val/infonce/in_batch", "diag/context/effective_rank", "diag/target/effective_rank"),
    *("diag/context/std", "diag/context/norm_mean"),
)


def course(workdir: Path, warmup: int) -> dict:
    """What the record of a run says of its course: the relational term against the end of the warm-up, and columns."""
    rows = metrics.read_record(workdir / "metrics.jsonl")
    relational = {row["step"]: row["loss/relational"] for row in rows if "loss/relational" in row}
    start = float(np.mean([relational[step] for step in relational if warmup - 50 < step <= warmup]))
    later = {step: value for step, value in relational.items() if step > warmup}
    peak = max(later, key=later.get)
    steps = sorted({row["step"] for row in rows if "diag/context/effective_rank" in row})
    columns = {name: {row["step"]: row[name] for row in rows if name in row} for name in COURSE}
    return {
        "relational": {"at_warmup": start, "peak": later[peak], "peak_step": peak, "ratio": later[peak] / start},
        "columns": {name: [values[step] for step in steps] for name, values in columns.items()},
        "steps": steps,
    }


def versus(ours: dict[str, float], theirs: dict[str, float], num: int) -> tuple[float, float]:
    """Difference of two means over `num` seeds each, and half its 95 % interval (Welch), from their own intervals."""
    errors = [(value["high"] - value["low"]) / 2 / stats.t.ppf(0.975, num - 1) for value in (ours, theirs)]
    squares = np.square(errors)
    freedom = np.sum(squares) ** 2 / max(np.sum(squares**2) / (num - 1), 1e-30)
    half = stats.t.ppf(0.975, max(freedom, 1.0)) * np.sqrt(np.sum(squares))
    return ours["mean"] - theirs["mean"], float(half)


def compared(summary: dict, reference: dict, num: int) -> tuple[list[list[str]], dict[str, list[str]]]:
    """Rows of the probes beside LeJEPA's, and which are better, worse or not told apart."""
    lines, verdicts = [], {"better": [], "worse": [], "not told apart": []}
    for name, theirs in reference["probes"].items():
        for ours_name in (name, name.replace("(pooled)", "(projected)")):
            if ours_name not in summary["probes"]:
                continue
            ours = summary["probes"][ours_name]
            difference, half = versus(ours["trained"], theirs["trained"], num)
            verdict = "not told apart" if abs(difference) <= half else ("better" if difference > 0 else "worse")
            verdicts[verdict].append(ours_name)
            controls = [f"{ours['controls'][control]['score']:.3f}" for control in ("randnet", "tables")]
            interval = f"{difference:+.3f} [{difference - half:+.3f}, {difference + half:+.3f}]"
            lines.append([ours_name, *map(_seeds.cell, (ours["trained"], ours["untrained"], theirs["trained"]))])
            lines[-1] += [*controls, interval, verdict]
    return lines, verdicts


def markdown(summary: dict, reference: dict, seeds: list[int], command: str) -> str:
    """The question, what held, the tables, and how to reproduce them."""
    figure = summary["figures"]
    half_chance = figure["val/infonce/in_batch_chance"]["mean"] / 2
    below = "below" if figure["val/infonce/in_batch"]["high"] < half_chance else "not below"
    ratios = [run["relational"]["ratio"] for run in summary["course"]]
    bounded = "stays under" if max(ratios) < 2 else "exceeds"
    lines, verdicts = compared(summary, reference, len(seeds))
    verdict = "; ".join(f"{name}: {', '.join(probes) or 'none'}" for name, probes in verdicts.items())

    def over(kind: str) -> str:
        chance = figure[f"val/{kind}/chance"]["mean"]
        return f"{_seeds.cell(figure[f'val/{kind}/infonce'])} (chance {chance:.3f})"

    courses = []
    for seed, run in zip(seeds, summary["course"], strict=True):
        values = [[f"{column[i]:.3f}" for column in run["columns"].values()] for i in range(len(run["steps"]))]
        rows = [[str(step), *row] for step, row in zip(run["steps"], values, strict=True)]
        courses += [f"Seed {seed}:\n", _seeds.table(["step", *run["columns"]], rows)]
    relational = [
        [str(seed), *(f"{run['relational'][name]:.4g}" for name in ("at_warmup", "peak", "peak_step", "ratio"))]
        for seed, run in zip(seeds, summary["course"], strict=True)
    ]
    return "\n".join(
        [
            f"# {__doc__.splitlines()[0]}\n",
            f"In-batch InfoNCE on held-out tasks is {_seeds.cell(figure['val/infonce/in_batch'])}, {below} half of",
            f"its chance, {half_chance:.3f}. Over negatives in the colours of the target: {over('palette_matched')},",
            f"over the other outputs of the task {over('same_task')}. The scale-free relational term {bounded} twice",
            f"its value at the end of the warm-up. {_seeds.answer(summary)}.\n",
            f"Against LeJEPA, by a 95 % Welch interval over seeds: {verdict}.\n",
            f"`configs/infonce.py`, seeds {seeds}. Intervals are 95 % t intervals over seeds unless said otherwise.\n",
            "## Held-out contrast\n",
            "`share` is the share of rows that have such a negative; `queue_share` the share of the gain over chance",
            "that comes from rows of the queue, which are old and easy.\n",
            _seeds.table(["figure", "mean over seeds"], [[name, _seeds.cell(figure[name])] for name in FIGURES]),
            "## The relational term, unweighted, against the mean of the last 50 steps of the warm-up\n",
            _seeds.table(["seed", "at the end of the warm-up", "peak after it", "at step", "ratio"], relational),
            "## Scale and rank\n",
            _seeds.shape_table(summary),
            "## Course of the runs\n",
            *courses,
            "## Probes beside LeJEPA's\n",
            "`projected` is the unit sphere on which the loss lives; LeJEPA has no projector, so both are compared",
            "with its pooled embedding.\n",
            _seeds.table(
                [
                    "probe",
                    "InfoNCE",
                    "its encoder untrained",
                    "LeJEPA",
                    "randnet",
                    "tables",
                    "difference",
                    "InfoNCE is",
                ],
                lines,
            ),
            "## Probes beside their floors\n",
            _seeds.probe_table(summary),
            "## Paired difference to the best control, per seed\n",
            "On the same questions, with a 95 % bootstrap interval over tasks.\n",
            _seeds.paired_table(summary, seeds),
            f"## Reproduce\n\n    {command}\n",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--platform", default="cpu")
    options = parser.parse_args()
    config = "configs/infonce.py"
    runs = [_seeds.train(config, seed, options.platform) for seed in options.seeds]
    results, environments = map(list, zip(*runs, strict=True))
    summary = _seeds.summarise(results, FIGURES)
    workdirs = [Path(f"{default_workdir(config)}-seed{seed}") for seed in options.seeds]
    settings = [json.loads((workdir / "config.json").read_text()) for workdir in workdirs]
    summary["course"] = [
        course(workdir, setting["optimizer"]["warmup_steps"])
        for workdir, setting in zip(workdirs, settings, strict=True)
    ]
    reference = json.loads(Path("experiments/reports/lejepa/report.json").read_text())
    seeds = " ".join(map(str, options.seeds))
    command = f"python experiments/infonce.py --platform={options.platform} --seeds {seeds}"
    report = markdown(summary, reference, options.seeds, command)
    _seeds.write(Path("experiments/reports/infonce"), summary, environments, options.seeds, report)


if __name__ == "__main__":
    main()

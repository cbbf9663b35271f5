"""Does LeJEPA train through discrete codes without losing them, and what do they cost?

    python experiments/codes.py                        # three seeds, one after the other, then the report

Trains what is not trained yet (an interrupted run resumes): `configs/lejepa_codes.py`. The run without codes is that of
`experiments/lejepa.py`, of whose seeds its report holds what is needed. Writes `experiments/reports/codes/`.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import _codes
import _seeds

from jepa import checkpoint, diagnostics, encode, metrics
from jepa import codes as pages
from jepa.main import default_workdir

FIGURES = (
    *("val/prediction", "val/prediction/copy_ratio", "val/readout/std_min", "val/readout/std_max"),
    *("diag/demo_gain", "diag/demo_gain_low", "diag/demo_gain_high"),
)
OF_CODES = (
    *("codes/usage", "codes/perplexity", "codes/alive", "codes/dead", "codes/window"),
    *("val/codes/error", "val/codes/scale_min", "val/codes/scale_max", "val/codes/correlation"),
)
COURSE = ("codes/usage", "codes/perplexity", "codes/alive", "codes/churn", "diag/context/effective_rank")


def course(workdir: Path) -> list[list[str]]:
    """Evaluation by evaluation, and the largest jump and drift since the one before."""
    rows = metrics.read_record(workdir / "metrics.jsonl")
    lines, since = [], []
    for row in rows:
        since += [row] if "codes/jump" in row else []
        if "codes/usage" in row:
            values = [f"{row[name]:.3f}" if name in row else "" for name in COURSE]
            largest = [f"{max(each[name] for each in since):.3f}" for name in ("codes/jump", "codes/drift")]
            lines.append([str(row["step"]), *values, *largest])
            since = []
    return lines


def as_they_are(folder: Path) -> dict[str, float]:
    """Usage of the codes over the held-out grids without augmentation: one symmetry, palette and place of each."""
    model = encode.load(folder)
    held_out = checkpoint.read(folder).host["validation_ids"]
    grids = pages.collect(*pages.choose_tasks(model.config, held_out, pages.HELD_OUT))
    codes = model.describe(grids.grids, grids.backgrounds).codes
    usage = diagnostics.code_usage(codes[codes >= 0], math.prod(model.levels))
    return {name: float(value) for name, value in usage.items()}


def without_codes(seeds: list[int]) -> tuple[list[dict], dict[str, list[float]]]:
    """The final validation of every seed without codes, and its probes' scores: of a control, and the difference to it.

    Raises ValueError where the report is of other seeds.
    """
    folder = Path("experiments/reports/lejepa")
    report, ran_on = (json.loads((folder / name).read_text()) for name in ("report.json", "environment.json"))
    if list(ran_on) != list(map(str, seeds)):
        raise ValueError(f"{folder} is of the seeds {list(ran_on)}: make it of the seeds {seeds}, or give those")
    scores = {
        probe.removesuffix(" (pooled)"): [
            row["controls"][gain["control"]]["score"] + gain["difference"] for gain in row["over_best_control"]
        ]
        for probe, row in report["probes"].items()
    }
    return report["each"], scores


def price(results: list[dict], without: dict[str, list[float]]) -> dict[str, dict]:
    """Every probe with and without codes, and their difference with its 95 % Welch interval over seeds."""
    found = {}
    for rows in zip(*(result["probes"]["pooled"]["rows"] for result in results), strict=True):
        probe, values = rows[0]["probe"], [row["score"] for row in rows]
        difference = _seeds.versus(values, without[probe])
        low, high = difference["low"], difference["high"]
        found[probe] = {
            "with": _seeds.over_seeds(values),
            "without": _seeds.over_seeds(without[probe]),
            "difference": difference,
            "with codes is": "better" if low > 0 else "worse" if high < 0 else "not told apart",
        }
    return found


def answer(summary: dict) -> str:
    """What held, in sentences."""
    health, ratio, plain = summary["health"], summary["rank_ratio"], summary["as_they_are"]
    least, drop = min(health["usage_min"]), 100 * max(health["usage_drop"])
    drift = _seeds.cell(_seeds.over_seeds(health["drift"]))
    lines = [
        f"Usage of the codes, from the first tenth of training to the end, never falls below {least:.1%} in any seed",
        f"(to reach: 25 %, better 60 %), and by {drop:.1f} points at most between two evaluations (10). The largest",
        "jump, the squared change of quantised values by one step of the quantizer over their variance, is",
        f"{max(health['jump_max']):.3f} (below 0.1). By a whole step, with what the encoder learns, they change by",
        f"{max(health['drift_max']):.3f} at most and by {drift} on average, each the largest of ten steps.",
        "Those figures are of grids under random symmetries, palettes and places, as in training; held-out grids as",
        f"they are use a share of {_seeds.cell(plain['usage'])} of the codes, with a perplexity of",
        f"{_seeds.cell(plain['perplexity'])}.",
        f"The effective rank, read behind the codes, is {_seeds.cell(ratio['context'])} times that of the run without",
        f"codes for contexts and {_seeds.cell(ratio['target'])} times for targets (at least 0.8).\n",
        "By 95 % Welch intervals over seeds, the run with codes is\n",
    ]
    for verdict in ("better", "worse", "not told apart"):
        probes = [name for name, row in summary["price"].items() if row["with codes is"] == verdict]
        lines.append(f"- {verdict}: {', '.join(probes) or 'none'}")
    return "\n".join([*lines, "", f"{_seeds.answer(summary)}.\n"])


def both(results: list[dict], others: list[dict], name: str) -> list[str]:
    pair = [[result["validation"][name] for result in results], [validation[name] for validation in others]]
    cells = [_seeds.cell(_seeds.over_seeds(values)) for values in pair]
    return [name, *cells, _seeds.signed(_seeds.versus(*pair))]


def markdown(
    summary: dict, results: list[dict], others: list[dict], folders: list[Path], options: argparse.Namespace
) -> str:
    """What held, the tables, and how to reproduce them."""
    seeds = " ".join(map(str, options.seeds))
    lines = [f"# {__doc__.splitlines()[0]}\n", answer(summary)]
    lines += [f"`{options.config}`, seeds {options.seeds}. Intervals are 95 % t intervals over seeds.\n"]
    rows = [both(results, others, name) for name in FIGURES]
    rows += [[name, _seeds.cell(summary["figures"][name]), "", ""] for name in OF_CODES]
    lines += ["## Held out\n", _seeds.table(["figure", "with codes", "without", "difference"], rows)]
    plain = [[name, _seeds.cell(value)] for name, value in summary["as_they_are"].items()]
    lines += ["The codes of the same held-out grids as they are, without augmentation:\n"]
    lines += [_seeds.table(["figure", "mean over seeds"], plain), "## Codes over the run\n"]
    lines += ["Usage over 8192 held-out tokens; `jump` and `drift`: the largest since the line before.\n"]
    for seed, folder in zip(options.seeds, folders, strict=True):
        names = [name.removeprefix("codes/").removeprefix("diag/") for name in COURSE]
        lines += [f"Seed {seed}:\n", _seeds.table(["step", *names, "jump", "drift"], course(folder))]
    lines += ["## The price of discreteness: probes with and without codes\n"]
    cells = [
        [name, _seeds.cell(row["with"]), _seeds.cell(row["without"]), _seeds.signed(row["difference"])]
        for name, row in summary["price"].items()
    ]
    lines += [_seeds.table(["probe", "with codes", "without", "difference"], cells)]
    lines += ["## Scale and rank\n", _seeds.shape_table(summary), "## Probes beside their floors\n"]
    lines += [_seeds.probe_table(summary), "## Paired difference to the best control, per seed\n"]
    lines += ["On the same questions, with a 95 % bootstrap interval over tasks.\n"]
    lines += [_seeds.paired_table(summary, options.seeds)]
    command = f"python experiments/codes.py --config={options.config} --platform={options.platform} --seeds {seeds}"
    lines += [f"## Reproduce\n\n    {command}\n"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/lejepa_codes.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--platform", default="cpu")
    options = parser.parse_args()
    if len(options.seeds) < 2:
        parser.error("an interval over seeds needs at least two of them")

    others, scores = without_codes(options.seeds)
    folders = [Path(f"{default_workdir(options.config)}-seed{seed}") for seed in options.seeds]
    shared = (f"--config={options.config}", f"--config.platform={options.platform}")
    seeded = zip(folders, options.seeds, strict=True)
    runs = [_seeds.train(folder, *shared, f"--config.seed={seed}") for folder, seed in seeded]
    results, environments = map(list, zip(*runs, strict=True))
    summary = _seeds.summarise(results, FIGURES + OF_CODES)
    fared = [_codes.health(folder) for folder in folders]
    summary["health"] = {name: [run[name] for run in fared] for name in fared[0]}
    plain = [as_they_are(folder) for folder in folders]
    summary["as_they_are"] = {name: _seeds.over_seeds([usage[name] for usage in plain]) for name in plain[0]}
    summary["price"] = price(results, scores)
    summary["rank_ratio"] = {
        role: _seeds.over_seeds(
            [
                ours["validation"][f"diag/{role}/effective_rank"] / theirs[f"diag/{role}/effective_rank"]
                for ours, theirs in zip(results, others, strict=True)
            ]
        )
        for role in ("context", "target", "predicted")
    }
    report = markdown(summary, results, others, folders, options)
    _seeds.write(Path("experiments/reports/codes"), summary, environments, options.seeds, report)


if __name__ == "__main__":
    main()

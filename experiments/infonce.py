"""Does contrastive prediction on ARC learn from its batch, stay whole, and know more than LeJEPA?

    python experiments/infonce.py                      # three seeds of each, one after the other, then the report

Trains what is not trained yet (an interrupted run resumes): `configs/infonce.py`, and `configs/lejepa.py` with as many
encoder layers, so that the probes compare objectives and not depths. Writes `experiments/reports/infonce/`.

Chance is the log of how many candidates a row has, those that show the same target left out. Negatives of the
`same_task` are other outputs of the task, the demonstration's among them; those of the `palette_matched` are outputs of
other tasks, near in size, in the colours of the target in the same order of frequency.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import _seeds
import numpy as np

from jepa import metrics, tables
from jepa.main import load_config
from jepa.parts import build

CONFIG = "configs/infonce.py"
KINDS = ("same_task", "palette_matched")
FIGURES = (
    *("val/infonce", "val/infonce/chance", "val/infonce/gain"),
    *("val/infonce/in_batch", "val/infonce/in_batch_chance", "val/infonce/in_batch_gain"),
    "val/infonce/in_batch_accuracy",
    *(f"val/{kind}/{name}" for kind in KINDS for name in ("infonce", "chance", "accuracy", "share")),
    *("val/prediction/copy_ratio", "diag/demo_gain", "diag/demo_gain_low", "diag/demo_gain_high"),
    *("val/infonce/tau", "val/infonce/tau_clamped"),
)
COURSE = (
    *("loss/infonce", "metric/infonce/in_batch", "loss/relational", "loss/sigreg", "metric/infonce/tau"),
    *("val/infonce/in_batch", "diag/context/effective_rank", "diag/target/effective_rank"),
    *("diag/context/std", "diag/context/std_min", "diag/context/norm"),
)


def course(workdir: Path, warmup: int) -> dict:
    """A run over its steps: the relational term against the end of the warm-up, the rank, and columns of the record."""
    rows = metrics.read_record(workdir / "metrics.jsonl")
    relational = {row["step"]: row["loss/relational"] for row in rows if "loss/relational" in row}
    start = float(np.mean([relational[step] for step in relational if warmup - 50 < step <= warmup]))
    later = {step: value for step, value in relational.items() if step > warmup}
    peak = max(later, key=later.get)
    steps = sorted({row["step"] for row in rows if "diag/context/effective_rank" in row})
    columns = {name: {row["step"]: row[name] for row in rows if name in row} for name in COURSE}
    columns = {name: [values[step] for step in steps] for name, values in columns.items()}
    rank = columns["diag/context/effective_rank"]
    return {
        "relational": {"at_warmup": start, "peak": later[peak], "peak_step": peak, "ratio": later[peak] / start},
        "rank": {"first": rank[0], "last": rank[-1]},
        "columns": columns,
        "steps": steps,
    }


def nearest(value: np.ndarray, reference: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Distances [W, 1 + K] of candidates [W, 1 + K, F] to a reference [W, F]; infinite where there is none."""
    distance = np.abs(value - reference[:, None]).sum(-1).astype(float)
    distance[:, 1:][~real] = np.inf
    return distance


def trivial(config: str) -> dict[str, dict[str, float]]:
    """By kind of negatives, the accuracy of a guess, and of rules that read no embedding; ties share."""
    validation = build(load_config(config)).source.validation
    scores = {}
    for kind in KINDS:
        source = validation[f"arc_{kind}"]
        windows, negatives = np.asarray(source.tables["windows"]), source.tables["negatives"]
        real = np.asarray(negatives.ids) != np.asarray(source.tables["ids"])[:, None]
        some = real.any(axis=1)
        rows = {name: np.asarray(source.tables["rows"][name], float) for name in ("size", "histogram")}
        share = np.sort(rows["histogram"][:, 0], axis=-1) / np.prod(rows["size"], axis=-1, keepdims=True)
        features = {"size": rows["size"] / tables.CANVAS, "proportions": share}
        features["both"] = np.concatenate(list(features.values()), axis=-1)
        candidates = np.concatenate([windows[:, 3:], np.asarray(negatives.rows)], axis=1)
        count, copies = real.sum(axis=1), (np.asarray(negatives.rows) == windows[:, 1:2]) & real
        scores[kind] = {
            "a guess": float(np.mean(1 / (1 + count[some]))),
            "a guess among all but y_i": float(np.mean(1 / (1 + (count - copies.sum(axis=1))[some]))),
        }
        for name, value in features.items():
            for frame, column in (("y_i", 1), ("x_j", 2)):
                distance = nearest(value[candidates], value[windows[:, column]], real)
                best = distance <= distance.min(axis=1, keepdims=True) + 1e-9
                scores[kind][f"{name} nearest {frame}"] = float((best[:, 0] / best.sum(axis=1))[some].mean())
    return scores


def compare(ours: list[dict], theirs: list[dict]) -> dict[str, dict]:
    """Probe by probe: both embeddings of the contrastive runs against the pooled embedding of the others."""

    def scores(results: list[dict], embedding: str) -> dict[str, list[float]]:
        rows = zip(*(result["probes"][embedding]["rows"] for result in results), strict=True)
        return {row[0]["probe"]: [each["score"] for each in row] for row in rows}

    reference, compared = scores(theirs, "pooled"), {}
    for embedding in ("pooled", "projected"):
        for probe, values in scores(ours, embedding).items():
            difference = _seeds.versus(values, reference[probe])
            low, high = difference["low"], difference["high"]
            verdict = "better" if low > 0 else "worse" if high < 0 else "not told apart"
            lejepa = _seeds.over_seeds(reference[probe])
            compared[f"{probe} ({embedding})"] = {"lejepa": lejepa, "difference": difference, "infonce is": verdict}
    return compared


def answer(summary: dict) -> str:
    """What held, in sentences."""
    figure, course = summary["figures"], summary["course"]
    chance = figure["val/infonce/in_batch_chance"]["mean"]
    below = "below" if figure["val/infonce/in_batch"]["high"] < chance / 2 else "not below"
    bounded = "stays under" if max(run["relational"]["ratio"] for run in course) < 2 else "exceeds"
    ranks = ", ".join(f"{run['rank']['first']:.1f} to {run['rank']['last']:.1f}" for run in course)
    grows = "grows" if all(run["rank"]["last"] > run["rank"]["first"] for run in course) else "does not always grow"
    shape = summary["embeddings"]["context"]
    listed = {
        kind: f"{_seeds.cell(figure[f'val/{kind}/infonce'])} (chance {figure[f'val/{kind}/chance']['mean']:.3f})"
        for kind in KINDS
    }
    same_task, guess = figure["val/same_task/accuracy"], summary["trivial"]["same_task"]["a guess"]
    told = []
    for verdict in ("better", "worse", "not told apart"):
        probes = [name for name, row in summary["against_lejepa"].items() if row["infonce is"] == verdict]
        told.append(f"- {verdict}: {', '.join(probes) or 'none'}")
    return "\n".join(
        [
            f"In-batch InfoNCE on held-out tasks is {_seeds.cell(figure['val/infonce/in_batch'])}, {below} half of",
            f"its chance, {chance / 2:.3f}. Over negatives near the target in size and in its colours it is",
            f"{listed['palette_matched']}.",
            f"Over the other outputs of the task it is {listed['same_task']},",
            f"an accuracy of {_seeds.cell(same_task)} where a guess has {guess:.3f}.",
            f"The scale-free relational term {bounded} twice its value at the end of the warm-up, while the effective",
            f"rank of the context {grows} ({ranks}).",
            f"The smallest standard deviation of a dimension is {_seeds.cell(shape['std_min'])}, the mean",
            f"{_seeds.cell(shape['std'])}: no collapse. The temperature ends at a bound in",
            f"{figure['val/infonce/tau_clamped']['mean']:.0%} of the seeds.\n",
            "Against LeJEPA over an encoder of as many layers, by 95 % Welch intervals over seeds, it is\n",
            "\n".join(told),
            "",
            f"{_seeds.answer(summary)}.\n",
        ]
    )


def contrast_tables(summary: dict) -> list[str]:
    """The held-out contrast and what trivial rules score on the same candidates."""
    figure, rules = summary["figures"], summary["trivial"]
    share = 1 - figure["val/infonce/in_batch_gain"]["mean"] / figure["val/infonce/gain"]["mean"]
    lines = [[name, *(f"{rules[kind][name]:.3f}" for kind in KINDS)] for name in rules[KINDS[0]]]
    trained = ["the trained anchor", *(_seeds.cell(figure[f"val/{kind}/accuracy"]) for kind in KINDS)]
    return [
        "## Held-out contrast\n",
        f"`share` is the share of rows that have such a negative. {share:.0%} of the gain over chance comes from rows",
        "of the queue, which are old and easy.\n",
        _seeds.table(["figure", "mean over seeds"], [[name, _seeds.cell(figure[name])] for name in FIGURES]),
        "Accuracy on the listed candidates, beside rules that read no embedding: the candidate nearest to the",
        "demonstration's output y_i, or to the input x_j, in height and width, in the sorted shares of its colours, or",
        "in both.\n",
        _seeds.table(["choice", *KINDS], [trained, *lines]),
    ]


def course_tables(summary: dict, seeds: list[int]) -> list[str]:
    """The relational term and the course of every seed."""
    names = ("at_warmup", "peak", "peak_step", "ratio")
    runs = list(zip(map(str, seeds), summary["course"], strict=True))
    relational = [[seed, *(f"{run['relational'][name]:.4g}" for name in names)] for seed, run in runs]
    lines = [
        "## The relational term, unweighted, against the mean of the last 50 steps of the warm-up\n",
        _seeds.table(["seed", "at the end of the warm-up", "peak after it", "at step", "ratio"], relational),
        "## Course of the runs\n",
    ]
    for seed, run in runs:
        rows = zip(run["steps"], *run["columns"].values(), strict=True)
        cells = [[str(step), *(f"{value:.3f}" for value in values)] for step, *values in rows]
        lines += [f"Seed {seed}:\n", _seeds.table(["step", *run["columns"]], cells)]
    return lines


def probe_tables(summary: dict, seeds: list[int]) -> list[str]:
    """Probes beside LeJEPA's and beside their floors."""
    rows = []
    for name, row in summary["against_lejepa"].items():
        ours = summary["probes"][name]
        controls = [f"{ours['controls'][control]['score']:.3f}" for control in ("randnet", "tables")]
        cells = [_seeds.cell(value) for value in (ours["trained"], ours["untrained"], row["lejepa"])]
        rows.append([name, *cells, *controls, _seeds.signed(row["difference"]), row["infonce is"]])
    return [
        "## Probes beside LeJEPA's\n",
        "`projected` is the unit sphere on which the loss lives; LeJEPA has no projector, so both are compared with",
        "its pooled embedding. Predictors differ as the configs do: none here, a transformer over tokens there.\n",
        _seeds.table(
            ["probe", "InfoNCE", "untrained", "LeJEPA", "randnet", "tables", "difference", "InfoNCE is"], rows
        ),
        "## Probes beside their floors\n",
        _seeds.probe_table(summary),
        "## Paired difference to the best control, per seed\n",
        "On the same questions, with a 95 % bootstrap interval over tasks.\n",
        _seeds.paired_table(summary, seeds),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--platform", default="cpu")
    options = parser.parse_args()
    if len(options.seeds) < 2:
        parser.error("an interval over seeds needs at least two of them")
    config = load_config(CONFIG)
    depth = f"--config.encoder.depth={config.encoder.depth}"

    def trained(name: str, *more: str) -> list[tuple[dict, dict]]:
        shared = (*more, f"--config.platform={options.platform}")
        return [_seeds.train(Path(f"runs/{name}-seed{s}"), *shared, f"--config.seed={s}") for s in options.seeds]

    results, environments = map(list, zip(*trained("infonce", f"--config={CONFIG}"), strict=True))
    others = [result for result, _ in trained("lejepa-as-deep", "--config=configs/lejepa.py", depth)]
    summary = _seeds.summarise(results, FIGURES)
    warmup = config.optimizer.warmup_steps
    summary["course"] = [course(Path(f"runs/infonce-seed{seed}"), warmup) for seed in options.seeds]
    summary["against_lejepa"] = compare(results, others)
    summary["trivial"] = trivial(CONFIG)
    seeds = " ".join(map(str, options.seeds))
    report = [
        f"# {__doc__.splitlines()[0]}\n",
        answer(summary),
        f"`{CONFIG}`, seeds {options.seeds}. Intervals are 95 % t intervals over seeds unless said otherwise.\n",
        *contrast_tables(summary),
        *course_tables(summary, options.seeds),
        "## Scale and rank\n",
        _seeds.shape_table(summary),
        *probe_tables(summary, options.seeds),
        f"## Reproduce\n\n    python experiments/infonce.py --platform={options.platform} --seeds {seeds}\n",
    ]
    _seeds.write(Path("experiments/reports/infonce"), summary, environments, options.seeds, "\n".join(report))


if __name__ == "__main__":
    main()

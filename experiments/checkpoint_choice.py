"""Does the checkpoint chosen without labels agree with the one that probes would choose?

    python experiments/checkpoint_choice.py           # three seeds of two small runs, every checkpoint probed

A LeJEPA as it should be, and one whose SIGReg is too weak to hold its embeddings. Every evaluation keeps its
checkpoint; every checkpoint answers the probes. Trains what is not trained yet (an interrupted run resumes). Writes
`experiments/reports/checkpoint_choice/`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import _seeds
import jax
import numpy as np
import rich.progress
from ml_collections import ConfigDict
from scipy import stats

from jepa import backend, checkpoint, checkpoint_choice, findings, probe, run_folder, train
from jepa.bootstrap import score
from jepa.data import _objects, _probes
from jepa.main import load_config
from jepa.parts import build

WEIGHTS = {"SIGReg 10": 10.0, "SIGReg 0.03": 0.03}
PROBES = ("retrieval/delta", "rule/arc1/edit/delta_cosine", "facts/left-right")
RULES = ("chosen", "lowest error", "last", "first")


def small(weight: float, seed: int, platform: str) -> ConfigDict:
    """A config of a minute: an encoder of width 32 and one layer, 600 steps of 64, ten checkpoints."""
    config = load_config("configs/lejepa.py")
    config.seed, config.platform = seed, platform
    config.num_steps, config.batch_size = 600, 64
    config.eval_every = config.checkpoint_every = config.diagnose_every = 60
    config.keep_checkpoints = 10
    config.eval_examples = config.final_examples = 512
    config.optimizer.warmup_steps = 60
    config.probes = ()
    config.encoder.update(dim=32, depth=1, readout_dim=8)
    config.objective.update(predictor_dim=32, predictor_depth=1, num_slices=64)
    config.weights.sigreg = weight
    return config


def probed(config: ConfigDict, workdir: Path, questions: _probes.Questions, table: Any) -> dict[int, dict[str, float]]:
    """Scores of `PROBES` for every checkpoint of a run, by its step."""
    parts = build(config)
    reader = checkpoint.open_reader(workdir / "checkpoints")
    abstract, scores = jax.eval_shape(parts.init), {}
    for step in checkpoint.steps(reader):
        run = checkpoint.restore(reader, abstract, step).state
        answered = probe.answer(*parts.embedders(run)["pooled"], table, questions)
        scores[step] = {name: float(score(answered[name])[0]) for name in PROBES}
    return scores


def agreement(workdir: Path, scores: dict[int, dict[str, float]]) -> dict[str, Any]:
    """Correlation over checkpoints of the label-free places with each probe, and what each rule's choice scores."""
    record = findings.read(workdir)
    choice = checkpoint_choice.choose(record)
    steps = choice.steps.tolist()
    lowest = steps[int(np.argmin(record.series["val/prediction"].values))]
    chosen = {"chosen": choice.step, "lowest error": lowest, "last": steps[-1], "first": steps[0]}
    result: dict[str, Any] = {"steps": chosen, "places": choice.places.tolist(), "scores": scores, "probes": {}}
    for name in PROBES:
        values = [scores[step][name] for step in steps]
        result["probes"][name] = {
            "spearman": float(stats.spearmanr(-choice.places, values).statistic),
            "spearman_of_error": float(stats.spearmanr(-choice.figures["error"], values).statistic),
            "best": max(values),
            **{rule: scores[step][name] for rule, step in chosen.items()},
        }
    return result


def write(results: dict[str, list[dict]], environments: list[dict], options: argparse.Namespace) -> None:
    """report.json, what it ran on, and report.md."""
    columns = ("spearman", "spearman_of_error", "best", *RULES)
    rows, summary = [], {}
    for title, runs in results.items():
        summary[title] = {
            name: {column: _seeds.over_seeds([run["probes"][name][column] for run in runs]) for column in columns}
            for name in PROBES
        }
        rows += [
            [title, name, *(_seeds.cell(row[column]) for column in columns)] for name, row in summary[title].items()
        ]
    steps = [
        [title, *(" ".join(str(run["steps"][rule]) for run in runs) for rule in RULES)]
        for title, runs in results.items()
    ]
    report = [
        f"# {__doc__.splitlines()[0]}\n",
        answer(summary),
        "`python -m jepa.doctor` chooses by the mean place among all evaluations of held-out prediction error over",
        "copying, distance of the targets' standard deviation from 1, and effective rank over its expectation. Small",
        f"runs of 600 steps with ten checkpoints, seeds {options.seeds}; means with 95 % t intervals over seeds.\n",
        "`spearman`: rank correlation over the ten checkpoints between the label-free order and the probe; `of_error`:",
        "of the order by prediction error alone. `best`: the highest score of any checkpoint. Then what the checkpoint",
        "of each rule scores: chosen without labels, of the lowest `val/prediction`, the last, the first.\n",
        _seeds.table(["run", "probe", *columns], rows),
        "## Steps that each rule chooses, by seed\n",
        _seeds.table(["run", *RULES], steps),
        f"## Reproduce\n\n    python experiments/checkpoint_choice.py --platform={options.platform}\n",
    ]
    folder = Path("experiments/reports/checkpoint_choice")
    folder.mkdir(parents=True, exist_ok=True)
    run_folder.atomic_write_json(folder / "report.json", {"summary": summary, "each": results})
    run_folder.atomic_write_json(folder / "environment.json", environments)
    run_folder.atomic_write_text(folder / "report.md", "\n".join(report))
    print(f"wrote {folder / 'report.md'}")


def answer(summary: dict[str, dict]) -> str:
    """Where the correlation is told apart from none, and the other way round."""
    lines = []
    for title, probes in summary.items():
        for name, row in probes.items():
            value = row["spearman"]
            word = "not told apart from no agreement"
            if "low" in value and value["low"] > 0:
                word = "agrees"
            elif "high" in value and value["high"] < 0:
                word = "disagrees"
            lines.append(f"{title}, {name}: {word} (rank correlation {_seeds.cell(value)}).")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--platform", default="cpu")
    options = parser.parse_args()
    backend.select_platform(options.platform)
    cache_dir = load_config("configs/lejepa.py").cache_dir
    backend.use_compile_cache(cache_dir)
    training, collections = probe.load_tasks()
    questions = _probes.build(training, {"arc1": collections["arc1"]})
    table = _objects.tokenise_cached(questions.grids, questions.backgrounds, cache_dir)
    results: dict[str, list[dict]] = {title: [] for title in WEIGHTS}
    environments: list[dict] = []
    jobs = [(title, seed) for title in WEIGHTS for seed in options.seeds]
    for title, seed in rich.progress.track(jobs, description="runs"):
        config = small(WEIGHTS[title], seed, options.platform)
        workdir = Path("runs/checkpoint_choice") / title.replace(" ", "_") / f"seed{seed}"
        train.run(config, workdir)
        results[title].append(agreement(workdir, probed(config, workdir, questions, table)))
        ran_on = _seeds.environment(workdir)
        environments += [ran_on] if ran_on not in environments else []
    write(results, environments, options)


if __name__ == "__main__":
    main()

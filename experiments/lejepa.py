"""Does the default LeJEPA on ARC train without collapse, use its demonstration, and beat its floors?

    python experiments/lejepa.py                       # three seeds one after the other, then the report
    python experiments/lejepa.py --seeds 0 --config=configs/lejepa.py:base --platform=gpu

Trains what is not trained yet (an interrupted run resumes), reads every `probes.json`, and writes report.md and
report.json to `experiments/reports/<config name>/`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import _seeds

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


def markdown(summary: dict, results: list[dict], config: str, seeds: list[int], command: str) -> str:
    """The question, what held, the tables, and how to reproduce them."""
    figures = [[name, _seeds.cell(value)] for name, value in summary["figures"].items()]
    answer = _seeds.answer(summary)
    return "\n".join(
        [
            f"# {__doc__.splitlines()[0]}\n",
            f"{answer}.\n",
            f"`{config}`, seeds {seeds}. Intervals are 95 % t intervals over seeds unless said otherwise.\n",
            "## Held-out prediction\n",
            f"{results[0]['final_examples']} analogies of held-out tasks under random symmetries; there are fewer",
            "distinct ones, so each is seen under several symmetries, and intervals are over tasks.\n",
            "`copy_ratio`: prediction error over that of predicting the last context grid. `demo_gain`: 1 - error with",
            "the task's own demonstration / error with another task's; `low`, `high` bound it over tasks in a seed.\n",
            _seeds.table(["figure", "mean over seeds"], figures),
            "## Scale and rank\n",
            _seeds.shape_table(summary),
            "## Probes of frozen features\n",
            "Scorers are fitted on ARC-1 training tasks; the controls are fixed networks and raw features. What a",
            "retrieval probe leaves open (which pair asks, which metric) was chosen so that the two untrained controls",
            "agree with an earlier measurement of them on these tasks; trained encoders had no part in the choice.\n",
            _seeds.probe_table(summary),
            "## Paired difference to the best control, per seed\n",
            "On the same questions, with a 95 % bootstrap interval over tasks.\n",
            _seeds.paired_table(summary, seeds),
            f"## Reproduce\n\n    {command}\n",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/lejepa.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--platform", default="cpu")
    options = parser.parse_args()
    name = default_workdir(options.config)
    shared = (f"--config={options.config}", f"--config.platform={options.platform}")
    runs = [_seeds.train(Path(f"{name}-seed{seed}"), *shared, f"--config.seed={seed}") for seed in options.seeds]
    results, environments = map(list, zip(*runs, strict=True))
    summary = _seeds.summarise(results, FIGURES)
    seeds = " ".join(map(str, options.seeds))
    command = f"python experiments/lejepa.py --config={options.config} --platform={options.platform} --seeds {seeds}"
    report = markdown(summary, results, options.config, options.seeds, command)
    folder = Path("experiments/reports") / Path(name).name
    _seeds.write(folder, summary, environments, options.seeds, report)


if __name__ == "__main__":
    main()

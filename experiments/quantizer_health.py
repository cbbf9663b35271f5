"""Which quantizers stay alive on the latents of a JEPA, and what kills the others?

    python experiments/quantizer_health.py            # three seeds of every recipe at a small size, then the report

The same small LeJEPA on ARC grids with one recipe after another between its tokens and their pooling, everything else
equal. Trains what is not trained yet (an interrupted run resumes). Writes `experiments/reports/quantizer_health/`, for
another number of steps a folder with that number at its end.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import _codes
import _seeds
import jax
import numpy as np

from jepa import backend, registry, run_folder, train
from jepa.main import load_config
from jepa.parts import build, keywords

DOCUMENTED = {"initialise": "documented", "smoothing": 1e-5}
NUM_STEPS = 200

# Recipe: variant of configs/lejepa_codes.py, and what differs from it.
RECIPES = {
    "documented start, no refresh": ("vq_ema", DOCUMENTED | {"refresh": "none"}),
    "documented start and rule": ("vq_ema", DOCUMENTED | {"refresh": "documented"}),
    "data, no refresh": ("vq_ema", {"refresh": "none"}),
    "data, documented rule": ("vq_ema", {"refresh": "documented"}),
    "data, absolute threshold": ("vq_ema", {"refresh": "absolute"}),
    "data, relative and capped, reseed": ("vq_ema", {"refresh": "reseed"}),
    "data, relative and capped, split": ("vq_ema", {}),
    "the same, cosine": ("vq_ema", {"distance": "cosine"}),
    "the same, rotation trick": ("vq_ema", {"rotation": True}),
    "gradient VQ": ("vq_gradient", {}),
    "gradient VQ, SimVQ": ("vq_gradient", {"simvq": True}),
    "Gumbel": ("gumbel", {}),
    "FSQ": ("fsq", {}),
    "FSQ without its loss": ("fsq", {"weight": 0.0}),
    "FSQ and a teacher": ("fsq", {"teacher": 0.99}),
    "data, relative and capped, split, and a teacher": ("vq_ema", {"teacher": 0.99}),
}
COLUMNS = {
    "usage": "usage, end",
    "usage_min": "usage, least",
    "usage_drop": "largest drop",
    "perplexity": "perplexity, end",
    "alive": "alive, end",
    "jump_max": "largest jump",
    "jump": "mean jump",
    "drift": "mean drift",
    "churn": "churn, end",
    "error": "error, end",
    "rank": "rank",
    "copy_ratio": "error / copy",
    "agreement": "agreement",
}


def small(recipe: str, seed: int, num_steps: int = NUM_STEPS):
    """A config of a minute: an encoder of width 32 and one layer, 200 steps of 64."""
    variant, options = RECIPES[recipe]
    config = load_config(f"configs/lejepa_codes.py:{variant}")
    config.seed = seed
    config.num_steps = num_steps
    config.batch_size = 64
    config.init_batches = 4
    config.eval_every = config.checkpoint_every = config.diagnose_every = num_steps // 10
    config.eval_examples = config.final_examples = 320
    config.optimizer.warmup_steps = 20
    config.probes = ()
    config.encoder.update(dim=32, depth=1, readout_dim=8)
    config.objective.update(predictor_dim=32, predictor_depth=1, num_slices=64)
    if variant == "gumbel":
        config.quantizer.tau_steps = 4 * num_steps // 5
    options = dict(options)
    if "weight" in options:
        config.weights.quantizer = options.pop("weight")
    if "teacher" in options:
        config.target_ema = options.pop("teacher")
    config.quantizer.update(options)
    if variant == "vq_ema" and config.quantizer.refresh == "documented":
        config.quantizer.refresh_every = num_steps // 4  # as many a run as every 3,000 of 12,000 steps
    return config


def two_codebooks(seed: int, num_steps: int = NUM_STEPS) -> float:
    """Share of equal token vectors that two codebooks give equal codes, once each has followed tokens of its own.

    Both start as one and see the tokens of an untrained encoder: one those of contexts, the other those of targets,
    as where a teacher keeps a codebook to itself.
    """
    config = small("data, relative and capped, split", seed)
    parts = build(config)
    run = parts.init()
    encoder = registry.build("encoders", config.encoder.name, **keywords(config.encoder))
    quantizer = registry.build("quantizers", config.quantizer.name, **keywords(config.quantizer))

    @jax.jit
    def codes(state, tokens, mask):
        return quantizer.apply({}, state, tokens, mask, key=None, train=False).codes

    @jax.jit
    def follow(states, rows, key):
        batch = parts.source.gather(parts.source.tables, rows, key, True)
        seen = [encoder.embed(run.params["trunk"]["encoder"], part) for part in (batch.context, batch.target)]
        pairs = zip(states, seen, strict=True)
        states = [quantizer.update({}, state, *part, codes(state, *part), key=key) for state, part in pairs]
        return states, seen[1]

    states = [run.objective_state["quantizer"]] * 2
    for step in range(num_steps):
        states, target = follow(states, parts.source.indices(step), jax.random.fold_in(jax.random.key(seed), step))
    online, teacher = (np.asarray(codes(state, *target))[np.asarray(target[1])] for state in states)
    return float(np.mean(online == teacher))


def answer(summary: dict) -> str:
    """Which recipes hold, in sentences."""
    rows = summary["recipes"]

    def names(chosen: list[str]) -> str:
        return "; ".join(chosen) or "none"

    alive = [name for name, row in rows.items() if row["usage_min"]["mean"] > 0.25]
    calm = [name for name in alive if max(rows[name]["each"]["jump_max"]) < 0.1]
    return "\n".join(
        [
            "Usage stays above 25 % from the first tenth of training to the end, in the mean over seeds, for:",
            f"{names(alive)}.",
            f"Of these, no step of the quantizer changed its values by 0.1 of their variance for: {names(calm)}.",
            "Two codebooks that start as one and follow contexts and targets apart give equal vectors equal codes in",
            f"{_seeds.cell(summary['two_codebooks'])} of the cases; one codebook does in all of them.\n",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), metavar="RECIPE")
    parser.add_argument("--num_steps", type=int, default=NUM_STEPS)
    parser.add_argument("--platform", default="cpu")
    options = parser.parse_args()
    backend.select_platform(options.platform)
    backend.use_compile_cache(load_config("configs/lejepa_codes.py").cache_dir)
    recipes, environments = {}, []
    for recipe in options.recipes:
        found = []
        for seed in options.seeds:
            config = small(recipe, seed, options.num_steps)
            config.platform = options.platform
            workdir = (
                Path("runs")
                / folder_name(options.num_steps)
                / recipe.replace(" ", "_").replace(",", "")
                / f"seed{seed}"
            )
            train.run(config, workdir)
            found.append(_codes.health(workdir))
            ran_on = _seeds.environment(workdir)
            environments += [ran_on] if ran_on not in environments else []
        each = {name: [run[name] for run in found] for name in found[0]}
        recipes[recipe] = {name: _seeds.over_seeds(values) for name, values in each.items()} | {"each": each}
    summary = {"recipes": recipes, "two_codebooks": _seeds.over_seeds([two_codebooks(seed) for seed in options.seeds])}
    write(summary, environments, options)


def folder_name(num_steps: int) -> str:
    return "quantizer_health" if num_steps == NUM_STEPS else f"quantizer_health_{num_steps}"


def write(summary: dict, environments: list[dict], options: argparse.Namespace) -> None:
    rows = [
        [name, *(_seeds.cell(row[column]) if column in row else "" for column in COLUMNS)]
        for name, row in summary["recipes"].items()
    ]
    command = (
        f"--platform={options.platform} --num_steps={options.num_steps} --seeds {' '.join(map(str, options.seeds))}"
    )
    if options.recipes != list(RECIPES):
        command += " --recipes " + " ".join(map(repr, options.recipes))
    report = [
        f"# {__doc__.splitlines()[0]}\n",
        answer(summary),
        "768 codes (FSQ: 1000), an encoder of width 32 and one layer,",
        f"{options.num_steps} steps of 64, learning rate 1e-3; mean over seeds {options.seeds} with 95 % t intervals.",
        "Figures count from the first tenth of the steps.\n",
        _seeds.table(["recipe", *COLUMNS.values()], rows),
        "`usage`, `perplexity` and `alive` (codes more frequent than a tenth of the mean) are over 8192 held-out",
        "tokens. `drop`: fall of usage between two evaluations, a tenth of the run apart. `jump`: squared change of",
        "quantised values on 64 fixed grids by one step of the quantizer alone, over their variance; `drift`: by the",
        "whole step,",
        "the encoder's part included; each is the largest of ten steps. `churn`: share of held-out tokens whose code",
        "is another one than at the evaluation before. `error`: squared quantisation error over the variance of what",
        "is quantised, which is the bounded scalars in FSQ. `rank`: effective rank of the pooled context embeddings.",
        "`error / copy`: prediction error over that of copying the last grid of the context. `agreement`: share of",
        "tokens of the same target grid to which the online encoder and its teacher give the same code.\n",
        f"## Reproduce\n\n    python experiments/quantizer_health.py {command}\n",
    ]
    folder = Path("experiments/reports") / folder_name(options.num_steps)
    folder.mkdir(parents=True, exist_ok=True)
    run_folder.atomic_write_json(folder / "report.json", summary)
    run_folder.atomic_write_json(folder / "environment.json", environments)
    run_folder.atomic_write_text(folder / "report.md", "\n".join(report))
    print(f"wrote {folder / 'report.md'}")


if __name__ == "__main__":
    main()

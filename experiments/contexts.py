"""How many grids of an orbit does a prediction need, and which aggregation of them knows their order?

    python experiments/contexts.py            # three seeds of every recipe at a small size, then the report

A primitive applied again and again: g, P g, P P g, ... The last W grids of seven predict the eighth. Candidates are all
eight grids of the orbit, so that everything but the order of the context is known to all of them. Trains what is not
trained yet (an interrupted run resumes). Writes `experiments/reports/contexts/`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import _seeds
import jax
import matplotlib
import numpy as np

from jepa import backend, checkpoint, run_folder, train
from jepa.context import KINDS
from jepa.data import programs
from jepa.main import load_config
from jepa.parts import build

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NUM_STEPS = 400
LENGTH = 8  # grids of an orbit that is asked about
FAMILIES = "rotate+wrap+palette"  # orbits of eight grids; `reflect` has them, but goes back and forth
WINDOWS = (1, 3, 5, 7)
# Recipe: how the context is aggregated, or read token by token, and its window.
RECIPES = {f"{kind}, 3 grids": (kind, 3) for kind in KINDS}
RECIPES |= {f"transformer, {window} grids": ("transformer", window) for window in WINDOWS if window != 3}
RECIPES["tokens, 3 grids"] = ("tokens", 3)
COLUMNS = {
    "mrr": "MRR of the next grid",
    "mrr_shuffled": "the same, frames shuffled",
    "order": "what the order is worth, paired",
    "mrr_untrained": "untrained",
    "mrr_copy": "copy of the last grid",
    "error_shuffled": "error when shuffled / in order",
}


def small(recipe: str, seed: int):
    """A config of a minute: an encoder of width 32 and one layer, 400 steps of 64 orbits."""
    kind, window = RECIPES[recipe]
    config = load_config("configs/lejepa_programs.py:orbits")
    config.seed = seed
    config.num_steps = NUM_STEPS
    config.batch_size = 64
    config.eval_every = config.checkpoint_every = config.diagnose_every = NUM_STEPS // 4
    config.eval_examples = config.final_examples = 512
    config.optimizer.warmup_steps = NUM_STEPS // 10
    config.probes = ()
    config.encoder.update(dim=32, depth=1, readout_dim=8)
    config.objective.update(predictor_dim=64, predictor_depth=2, num_slices=64)
    config.objective.predictor = "tokens" if kind == "tokens" else "pooled"
    config.objective.context = "attention" if kind == "tokens" else kind
    config.data.sources.orbits.update(families=FAMILIES, held_out_families=(), context_window=window)
    return config


def asked() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Orbits that no run trains on, leaves [Q, 8, ...], and bool [Q, 8]: grids other than the last, and the last."""
    options = dict(stream="orbit", families=FAMILIES, held_out_families=(), context_window=LENGTH - 1, num_workers=0)
    source = programs.build(seed=0, batch_size=512, cache_dir="", **options)
    grids = source.validation["programs"].indices(0)["grids"]
    same = [(leaf == leaf[:, -1:]).reshape(*leaf.shape[:2], -1).all(axis=2) for leaf in grids.values()]
    candidates = ~np.all(same, axis=0)
    candidates[:, -1] = True
    return grids, candidates


def reciprocal_ranks(z_hat: np.ndarray, z: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """[Q]: one over the place of z[:, -1] among the candidates z [Q, 8, D] by distance; ties count half."""
    distance = np.where(candidates, np.sum((z - z_hat[:, None]) ** 2, axis=-1), np.inf)
    own = distance[:, -1:]
    return 1 / (1 + (distance < own).sum(1) + 0.5 * ((distance == own).sum(1) - 1))


def answers(embedders: dict, window: int, grids: dict[str, np.ndarray], candidates: np.ndarray) -> dict[str, float]:
    """How the next grid is found, with the context in order and shuffled."""
    embed, predict = next(iter(embedders.values()))
    z = np.asarray(embed(grids))  # [Q, 8, D]
    rng = np.random.default_rng(0)
    order = np.stack([rng.permutation(window) for _ in z])
    context = jax.tree.map(lambda leaf: leaf[:, LENGTH - 1 - window : LENGTH - 1], grids)
    shuffled = jax.tree.map(lambda leaf: leaf[np.arange(len(leaf))[:, None], order], context)
    found = {"": np.asarray(predict(context)), "_shuffled": np.asarray(predict(shuffled)), "_copy": z[:, -2]}
    figures = {f"mrr{name}": float(reciprocal_ranks(z_hat, z, candidates).mean()) for name, z_hat in found.items()}
    error = {name: np.mean((z_hat - z[:, -1]) ** 2) for name, z_hat in found.items()}
    return figures | {
        "order": figures["mrr"] - figures["mrr_shuffled"],
        "error_shuffled": float(error["_shuffled"] / error[""]),
    }


def measure(workdir: Path, config, grids: dict[str, np.ndarray], candidates: np.ndarray) -> dict[str, float]:
    """The answers of a finished run, and of its network at the start."""
    _, window = RECIPES[workdir.parent.name.replace("_", " ")]
    saved = checkpoint.read(workdir)
    parts = build(config)
    start = parts.init()
    run = start.replace(params=saved.state["params"])
    trained = answers(parts.embedders(run), window, grids, candidates)
    untrained = answers(parts.embedders(start), window, grids, candidates)
    parts.source.close()
    return trained | {"mrr_untrained": untrained["mrr"]}


def draw(rows: dict[str, dict], chance: float, path: Path) -> None:
    """MRR in order and shuffled, recipe by recipe, with intervals over seeds."""
    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    places = np.arange(len(rows))[::-1]
    for shift, name, label in ((0.12, "mrr", "frames in order"), (-0.12, "mrr_shuffled", "frames shuffled")):
        mean = np.array([row[name]["mean"] for row in rows.values()])
        high = np.array([row[name]["high"] if "high" in row[name] else row[name]["mean"] for row in rows.values()])
        axes.errorbar(mean, places + shift, xerr=high - mean, fmt="o", capsize=2, label=label)
    axes.axvline(chance, color="grey", linestyle="--", linewidth=1, label="chance")
    axes.set_yticks(places, list(rows))
    axes.set_xlabel("mean reciprocal rank of the next grid among the grids of its orbit")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def answer(rows: dict[str, dict]) -> str:
    """Which recipes use the order, in sentences."""

    def names(chosen: list[str]) -> str:
        return "; ".join(chosen) or "none"

    ordered = [name for name, row in rows.items() if "low" in row["order"] and row["order"]["low"] > 0]
    best = max(rows, key=lambda name: rows[name]["mrr"]["mean"])
    return (
        f"The order of the context is worth something, with an interval over seeds above 0, for: {names(ordered)}. "
        f"The best is {best}, with {_seeds.cell(rows[best]['mrr'])}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), metavar="RECIPE")
    parser.add_argument("--platform", default="cpu")
    options = parser.parse_args()
    backend.select_platform(options.platform)
    backend.use_compile_cache(load_config("configs/lejepa_programs.py").cache_dir)
    grids, candidates = asked()
    rows, environments = {}, []
    for recipe in options.recipes:
        found = []
        for seed in options.seeds:
            config = small(recipe, seed)
            config.platform = options.platform
            workdir = Path("runs/contexts") / recipe.replace(" ", "_") / f"seed{seed}"
            train.run(config, workdir)
            found.append(measure(workdir, config, grids, candidates))
            ran_on = _seeds.environment(workdir)
            environments += [ran_on] if ran_on not in environments else []
        each = {name: [run[name] for run in found] for name in found[0]}
        rows[recipe] = {name: _seeds.over_seeds(values) for name, values in each.items()} | {"each": each}
    counts = candidates.sum(1)
    chance = float(np.mean([np.mean(1 / np.arange(1, count + 1)) for count in counts]))
    write(rows, chance, len(counts), environments, options)


def write(rows: dict[str, dict], chance: float, questions: int, environments: list[dict], options) -> None:
    folder = Path("experiments/reports/contexts")
    folder.mkdir(parents=True, exist_ok=True)
    table = [[name, *(_seeds.cell(row[column]) for column in COLUMNS)] for name, row in rows.items()]
    report = [
        f"# {__doc__.splitlines()[0]}\n",
        f"{answer(rows)}\n",
        "![MRR by recipe](contexts.png)\n",
        _seeds.table(["recipe", *COLUMNS.values()], table),
        f"{questions} orbits of {FAMILIES.replace('+', ', ')} that no run trains on. The context are the last grids of",
        "seven, the candidates all eight grids of the orbit, but for grids equal to the next one; chance is",
        f"{chance:.3f}. An encoder of width 32 and one layer, {NUM_STEPS} steps of 64; `tokens` reads tokens of all",
        f"frames, the others pooled frames. Means over seeds {options.seeds} with 95 % t intervals.\n",
        f"## Reproduce\n\n    python experiments/contexts.py --seeds {' '.join(map(str, options.seeds))}\n",
    ]
    draw(rows, chance, folder / "contexts.png")
    run_folder.atomic_write_json(folder / "report.json", {"recipes": rows, "chance": chance})
    run_folder.atomic_write_json(folder / "environment.json", environments)
    run_folder.atomic_write_text(folder / "report.md", "\n".join(report))
    print(f"wrote {folder / 'report.md'}")


if __name__ == "__main__":
    main()

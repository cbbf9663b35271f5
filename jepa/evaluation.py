"""Held-out figures of a state: prediction against copying, what the demonstration is worth, scale and rank."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jepa import moments
from jepa.bootstrap import resamples
from jepa.diagnostics import code_usage, finish
from jepa.pair_diagnostics import Groups, add_groups, finish_lidar, start_groups, target_drift
from jepa.representation import teacher_params
from jepa.state import TrainState
from jepa.train_step import reported
from jepa.types import Array, Objective, Source

FOREIGN = "_foreign_demo"
LISTED = "listed/"
CODE_WINDOW = 8192  # codes; how many a sample shows depends on its size, so usage is always over as many


class Evaluation(NamedTuple):
    """Held-out figures by path, and the codes of the first `CODE_WINDOW` held-out tokens, None without a quantizer."""

    metrics: dict[str, float]
    codes: np.ndarray | None


Evaluate = Callable[[TrainState, int], Evaluation]
Diagnosis = dict[str, tuple[moments.Moments, Groups | None]]  # what is kept on the device of the embeddings, by role


def start_diagnosis(embeddings: Mapping[str, Array], key: Array) -> Diagnosis:
    """The diagnosis of none of the embeddings [N, D] or [B, V, D]; the key draws the directions of their T."""
    return {
        role: (moments.start(key, z.shape[-1]), start_groups(z.shape[-1]) if z.ndim == 3 else None)
        for role, z in embeddings.items()
    }


def add_to_diagnosis(diagnosis: Diagnosis, embeddings: Mapping[str, Array]) -> Diagnosis:
    """The diagnosis of what was seen before and of one more batch."""
    new = {}
    for role, (seen, groups) in diagnosis.items():
        z = embeddings[role]
        together = None if groups is None else add_groups(groups, z)
        new[role] = (moments.add(seen, z.reshape(-1, z.shape[-1])), together)
    return new


def finish_diagnosis(diagnosis: Diagnosis, state: TrainState) -> dict[str, Array]:
    """`diag/<role>/...`: `jepa.diagnostics.finish`, and `lidar` of views; `diag/target_drift` if there is a teacher."""
    metrics = {}
    for role, (seen, groups) in diagnosis.items():
        metrics |= {f"diag/{role}/{name}": value for name, value in finish(seen).items()}
        if groups is not None:
            metrics[f"diag/{role}/lidar"] = finish_lidar(groups)
    if state.target_params is not None:
        metrics["diag/target_drift"] = target_drift(teacher_params(state.params), state.target_params)
    return metrics


def make_evaluate(objective: Objective, source: Source, weights: Mapping[str, float | None], *, seed: int) -> Evaluate:
    """A function (state, num_examples) -> `Evaluation` over the validation sources of `source`.

    Every call sees the same examples under the same augmentation draws, so that checkpoints compare in pairs.
    `val/prediction` is the mean prediction error, and every term that `weights` has on is `val/<term>`. Over the mean
    error of copying the last context embedding it is `copy_ratio`; so is the distance between the two predictions, in
    the same error, as `moved_ratio`: 0 for a predictor that copies.
    `diag/demo_gain` is 1 - error given the task's own demonstration / error given another task's under the same
    augmentation, with a 95 % interval over tasks. A source `<first>_<kind>` that lists negatives gives
    `val/<kind>/...`: what the objective says of telling the target from them, over the rows that have any.
    `codes/...` is what `jepa.diagnostics.code_usage` says of the first `CODE_WINDOW` codes, or of as many as there are.
    """
    own_name = next(iter(source.validation))
    key = jax.random.fold_in(jax.random.key(seed), 2**31)  # no stream of the training: those are split from the root

    def forward(
        gather: Callable, state: TrainState, tables: Any, rows: jax.Array, key: jax.Array
    ) -> tuple[dict, Mapping]:
        key_data, key = jax.random.split(key)
        batch = gather(tables, rows, key_data, True)
        fixed = (state.target_params, state.objective_state)
        arguments = dict(key=key, step=state.step, train=False)
        latents, objective_state = objective.trunk(state.params, *fixed, batch, **arguments)
        out = objective.loss(state.params, fixed[0], objective_state, latents, batch, **arguments)
        scalars = reported(dict(out.terms) | dict(out.metrics), weights)
        kept = {"examples": out.examples, "codes": out.codes, "groups": batch.groups, "scalars": scalars}
        return kept, out.embeddings

    compiled = {
        name: jax.jit(functools.partial(forward, held_out.gather)) for name, held_out in source.validation.items()
    }
    add, finished = jax.jit(add_to_diagnosis), jax.jit(finish_diagnosis)

    def collect(name: str, state: TrainState, num_examples: int) -> dict[str, Any]:
        """Examples, groups and codes of a source on the host, means of its scalars; the embeddings stay behind."""
        held_out, outputs, count, diagnosis = source.validation[name], [], 0, None
        while count < num_examples:
            rows = held_out.indices(len(outputs))
            fold = jax.random.fold_in(key, len(outputs))
            kept, embeddings = compiled[name](state, held_out.tables, rows, fold)
            outputs.append(kept)
            count += len(rows)
            if name == own_name:
                diagnosis = add(diagnosis or start_diagnosis(embeddings, key), embeddings)
        scalars = [out.pop("scalars") for out in outputs]
        means = {name: np.mean([values[name] for values in scalars]) for name in scalars[0]}
        collected = jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)
        return collected | {"scalars": means, "diagnosis": diagnosis}

    def evaluate(state: TrainState, num_examples: int) -> Evaluation:
        own = collect(own_name, state, num_examples)
        metrics = {f"val/{name}": float(value) for name, value in own["scalars"].items()}
        examples = own["examples"]
        metrics["val/prediction"] = float(np.mean(examples["prediction"]))
        if "copy" in examples:
            copy = np.mean(examples["copy"])
            metrics["val/prediction/copy_ratio"] = float(metrics["val/prediction"] / copy)
            metrics["val/prediction/moved_ratio"] = float(np.mean(examples["moved"]) / copy)
        metrics["diag/alignment"] = float(np.mean(examples["alignment"]))
        if own_name + FOREIGN in source.validation:
            foreign = collect(own_name + FOREIGN, state, num_examples)["examples"]["prediction"]
            metrics |= demo_gain(examples["prediction"], foreign, own["groups"])
        for name in source.validation:
            if name not in (own_name, own_name + FOREIGN):
                kind = name.removeprefix(f"{own_name}_")
                metrics |= listed(collect(name, state, num_examples), kind)
        metrics |= jax.tree.map(float, jax.device_get(finished(own["diagnosis"], state)))
        if own["codes"] is None:
            return Evaluation(metrics, None)
        codes = own["codes"][own["codes"] >= 0][:CODE_WINDOW]
        usage = jax.device_get(code_usage(codes, math.prod(objective.levels)))
        return Evaluation(metrics | {f"codes/{name}": float(value) for name, value in usage.items()}, codes)

    return evaluate


def listed(collected: Mapping[str, Any], kind: str) -> dict[str, float]:
    """Means by `val/<kind>/...` of the examples named `listed/...`, over the rows that list a negative at all.

    Raises ValueError where there are none.
    """
    examples = {name: values for name, values in collected["examples"].items() if name.startswith(LISTED)}
    if not examples:
        raise ValueError("the objective does not look at listed negatives: leave config.data.num_negatives at 0")
    some = examples[f"{LISTED}chance"] > 0
    if not some.any():
        return {f"val/{kind}/share": 0.0}
    means = {name.removeprefix(LISTED): float(np.mean(values[some])) for name, values in examples.items()}
    return {f"val/{kind}/{name}": value for name, value in means.items()} | {f"val/{kind}/share": float(np.mean(some))}


def demo_gain(own: np.ndarray, foreign: np.ndarray, groups: np.ndarray, *, num: int = 2000) -> dict[str, float]:
    """1 - mean error [B] with the own demonstration / with a foreign one; 95 % interval of `num` resamples of tasks."""
    weights = resamples(groups, num=num)
    low, high = np.quantile(1 - (weights @ own) / (weights @ foreign), [0.025, 0.975])
    gain = 1 - np.sum(own) / np.sum(foreign)
    return {"diag/demo_gain": float(gain), "diag/demo_gain_low": float(low), "diag/demo_gain_high": float(high)}


def embedders(
    objective: Objective, run: TrainState, *, window: int | None = None
) -> dict[str, tuple[Callable, Callable | None]]:
    """What probes ask of a state, compiled: by name, embed(table) -> [n, D] and predict(context) in the same space.

    window: the frames the predictor was trained on; a longer context is cut to its last ones, unless None, and a
    shorter one is taken as one whose first frames are absent. `pooled` is the encoder's embedding. Where a projector
    carries the losses, the prediction lives behind it, so `projected` has it and `pooled` has none.
    """

    @jax.jit
    def embed(table: Any) -> jax.Array:
        return objective.encode(run.params, run.objective_state, table).pooled

    @jax.jit
    def embed_projected(table: Any) -> jax.Array:
        return objective.project(run.params, embed(table))

    @jax.jit
    def predict(context: Any) -> jax.Array:
        if window is not None:
            context = jax.tree.map(lambda leaf: leaf[:, -window:], context)
        return objective.predict(run.params, run.objective_state, context)

    heads = run.params["heads"]
    predict_or_none = predict if "predictor" in heads else None
    if "projector" not in heads:
        return {"pooled": (embed, predict_or_none)}
    return {"pooled": (embed, None), "projected": (embed_projected, predict_or_none)}


def extent(source: Source) -> str:
    """How much there is to validate on, such as `972 from 63 tasks`."""
    held_out = next(iter(source.validation.values()))
    return f"{held_out.num_examples} from {len(held_out.ids)} tasks"


def summary(metrics: Mapping[str, float]) -> list[dict[str, float | str]]:
    """Rows for a person: the headline figures, then scale and rank of every set of embeddings."""
    shown = ("std", "std_min", "std_max", "effective_rank", "rank_ratio", "sigreg_T_over_N")
    roles = [name.split("/")[1] for name in metrics if name.endswith("/effective_rank")]
    described = tuple(f"diag/{role}/" for role in roles)
    rows = [{"figure": name, "value": value} for name, value in metrics.items() if not name.startswith(described)]
    for role, prefix in zip(roles, described, strict=True):
        rows.append({"figure": role} | {name: metrics[prefix + name] for name in shown})
    return rows

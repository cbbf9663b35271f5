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
from jepa.types import Array, Objective, PyTree, Source

FOREIGN = "_foreign_demo"
LEVEL = "_level"
LISTED = "listed/"
ROLLOUT = "rollout/"
CODE_WINDOW = 8192  # codes; how many a sample shows depends on its size, so usage is always over as many


class Evaluation(NamedTuple):
    """Held-out figures by path, and the codes of the first `CODE_WINDOW` held-out tokens, None without a quantizer."""

    metrics: dict[str, float]
    codes: np.ndarray | None


Evaluate = Callable[..., Evaluation]
Forwards = Mapping[str, Callable]  # by validation source
Embedders = dict[str, tuple[Callable, Callable | None]]  # by name, embed(table) and predict(context)
Diagnosis = dict[str, tuple[moments.Moments, Groups | None]]  # what is kept on the device of the embeddings, by role


def start_diagnosis(embeddings: Mapping[str, Array], key: Array) -> Diagnosis:
    """The diagnosis of none of the embeddings [N, D] or [B, V, D]; the key draws the directions of their T."""
    return {
        role: (moments.start(key, z.shape[-1]), start_groups(z.shape[-1]) if z.ndim == 3 else None)
        for role, z in embeddings.items()
    }


@jax.jit
def add_to_diagnosis(diagnosis: Diagnosis, embeddings: Mapping[str, Array]) -> Diagnosis:
    """The diagnosis of what was seen before and of one more batch."""
    new = {}
    for role, (seen, groups) in diagnosis.items():
        z = embeddings[role]
        together = None if groups is None else add_groups(groups, z)
        new[role] = (moments.add(seen, z.reshape(-1, z.shape[-1])), together)
    return new


@jax.jit
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


def compile_forwards(objective: Objective, source: Source, weights: Mapping[str, float | None]) -> Forwards:
    """What `make_evaluate` asks of a state, compiled for every validation source: one for all seeds of a run."""

    def forward(
        gather: Callable, state: TrainState, tables: Any, rows: jax.Array, key: jax.Array
    ) -> tuple[dict, Mapping]:
        key_data, key = jax.random.split(key)
        batch = gather(tables, rows, key_data, True)
        fixed = (state.target_params, state.objective_state)
        arguments = dict(key=key, step=state.step, train=False)
        latents, objective_state = objective.trunk(state.params, *fixed, batch, **arguments)
        out = objective.loss(state.params, fixed[0], objective_state, latents, batch, **arguments)
        if batch.negatives is not None and not any(name.startswith(LISTED) for name in out.examples):
            raise ValueError("the objective does not look at listed negatives: leave config.data.num_negatives at 0")
        scalars = reported(dict(out.terms) | dict(out.metrics), weights)
        kept = {"examples": out.examples, "codes": out.codes, "groups": batch.groups, "scalars": scalars}
        return kept, out.embeddings

    return {name: jax.jit(functools.partial(forward, held_out.gather)) for name, held_out in source.validation.items()}


def make_evaluate(objective: Objective, source: Source, forwards: Forwards, *, seed: int) -> Evaluate:
    """A function (state, num_examples, level=0) -> `Evaluation` over the validation sources of `source`.

    Every call sees the same examples under the same augmentation draws, so that checkpoints compare in pairs.
    `val/prediction` is the mean prediction error, and every term that is on is `val/<term>`. Over the mean
    error of copying the last context embedding it is `copy_ratio`; so is the distance between the two predictions, in
    the same error, as `moved_ratio`: 0 for a predictor that copies.
    `diag/demo_gain` is 1 - error given the task's own demonstration / error given another task's under the same
    augmentation, with a 95 % interval over tasks. Another source, `<first>_<kind>`, gives `val/<kind>/prediction` and
    so on; one that lists negatives, what the objective says of telling the target from them, over rows that have any.
    `codes/...` is what `jepa.diagnostics.code_usage` says of the first `CODE_WINDOW` codes, or of as many as there are.
    """
    own_name = next(iter(source.validation))
    key = jax.random.fold_in(jax.random.key(seed), 2**31)  # no stream of the training: those are split from the root
    kinds = {name: kind(source, name) for name in source.validation if name != own_name and not name.endswith(FOREIGN)}

    def collect(name: str, state: TrainState, num_examples: int, level: int) -> dict[str, Any]:
        """Examples, groups and codes of a source on the host, means of its scalars; the embeddings stay behind."""
        held_out, outputs, count, diagnosis = source.validation[name], [], 0, None
        while count < num_examples:
            rows = held_out.indices(len(outputs), level)
            fold = jax.random.fold_in(key, len(outputs))
            kept, embeddings = forwards[name](state, held_out.tables, rows, fold)
            outputs.append(kept)
            count += len(kept["groups"])
            if name == own_name:
                diagnosis = add_to_diagnosis(diagnosis or start_diagnosis(embeddings, key), embeddings)
        scalars = [out.pop("scalars") for out in outputs]
        means = {name: np.mean([values[name] for values in scalars]) for name in scalars[0]}
        collected = jax.tree.map(lambda *parts: np.concatenate(parts)[:num_examples], *outputs)
        return collected | {"scalars": means, "diagnosis": diagnosis}

    def with_foreign(
        name: str, own: Mapping[str, Any], state: TrainState, num_examples: int, level: int
    ) -> dict[str, float]:
        """`demo_gain...` of a source; nothing where no source shows it foreign demonstrations."""
        if name + FOREIGN not in source.validation:
            return {}
        foreign = collect(name + FOREIGN, state, num_examples, level)["examples"]["prediction"]
        return demo_gain(own["examples"]["prediction"], foreign, own["groups"])

    def evaluate(state: TrainState, num_examples: int, level: int = 0) -> Evaluation:
        own = collect(own_name, state, num_examples, level)
        metrics = {f"val/{name}": float(value) for name, value in own["scalars"].items()}
        metrics |= {f"val/{name}": value for name, value in errors(own["examples"]).items()}
        metrics["diag/alignment"] = float(np.mean(own["examples"]["alignment"]))
        gain = with_foreign(own_name, own, state, num_examples, level)
        metrics |= {f"diag/{name}": value for name, value in gain.items()}
        for name, kind in kinds.items():
            seen = collect(name, state, num_examples, level)
            is_listed = any(example.startswith(LISTED) for example in seen["examples"])
            figures = listed(seen) if is_listed else errors(seen["examples"])
            figures |= with_foreign(name, seen, state, num_examples, level)
            metrics |= {f"val/{kind}/{figure}": value for figure, value in figures.items()}
        metrics |= jax.tree.map(float, jax.device_get(finish_diagnosis(own["diagnosis"], state)))
        if own["codes"] is None:
            return Evaluation(metrics, None)
        codes = own["codes"][own["codes"] >= 0][:CODE_WINDOW]
        usage = jax.device_get(code_usage(codes, math.prod(objective.levels)))
        return Evaluation(metrics | {f"codes/{name}": float(value) for name, value in usage.items()}, codes)

    return evaluate


def kind(source: Source, name: str) -> str:
    """What a held-out source beside the first is called in metrics: its name without that of the first."""
    return name.removeprefix(f"{next(iter(source.validation))}_")


def level_errors(source: Source) -> list[str]:
    """The metrics that measure the current level of the data."""
    return [f"val/{kind(source, name)}/prediction" for name in source.validation if name.endswith(LEVEL)]


def errors(examples: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The mean prediction error, and with it over that of copying, as far as there is a last embedding to copy; with
    labels, the accuracy of an online probe; with decoded rollouts, how many are right."""
    error = np.mean(examples["prediction"])
    figures = {"prediction": error}
    figures |= {name: np.mean(values) for name, values in examples.items() if name.startswith(ROLLOUT)}
    if "online_accuracy" in examples:
        figures["online_accuracy"] = np.mean(examples["online_accuracy"])
    if "copy" in examples:
        copy = np.mean(examples["copy"])
        figures |= {"prediction/copy_ratio": error / copy, "prediction/moved_ratio": np.mean(examples["moved"]) / copy}
    return {name: float(value) for name, value in figures.items()}


def listed(collected: Mapping[str, Any]) -> dict[str, float]:
    """Means of the examples named `listed/...`, over the rows that list a negative at all."""
    examples = {name: values for name, values in collected["examples"].items() if name.startswith(LISTED)}
    some = examples[f"{LISTED}chance"] > 0
    if not some.any():
        return {"share": 0.0}
    means = {name.removeprefix(LISTED): float(np.mean(values[some])) for name, values in examples.items()}
    return means | {"share": float(np.mean(some))}


def demo_gain(own: np.ndarray, foreign: np.ndarray, groups: np.ndarray, *, num: int = 2000) -> dict[str, float]:
    """1 - mean error [B] with the own demonstration / with a foreign one; 95 % interval of `num` resamples of tasks."""
    weights = resamples(groups, num=num)
    low, high = np.quantile(1 - (weights @ own) / (weights @ foreign), [0.025, 0.975])
    gain = 1 - np.sum(own) / np.sum(foreign)
    return {"demo_gain": float(gain), "demo_gain_low": float(low), "demo_gain_high": float(high)}


def make_embedders(objective: Objective, *, window: int | None = None) -> Callable[[TrainState], Embedders]:
    """What probes ask of a state: by name, embed(table) -> [n, D] and predict(context) in the same space; compiled
    once for all states.

    window: the frames the predictor was trained on; a longer context is cut to its last ones, unless None, and a
    shorter one is taken as one whose first frames are absent. `pooled` is the encoder's embedding. Where a projector
    carries the losses, the prediction lives behind it, so `projected` has it and `pooled` has none.
    """

    @jax.jit
    def embed(params: PyTree, state: PyTree, table: Any) -> jax.Array:
        return objective.encode(params, state, table).pooled

    @jax.jit
    def embed_projected(params: PyTree, state: PyTree, table: Any) -> jax.Array:
        return objective.project(params, state, objective.encode(params, state, table).pooled)

    @jax.jit
    def predict(params: PyTree, state: PyTree, context: Any) -> jax.Array:
        if window is not None:
            context = jax.tree.map(lambda leaf: leaf[:, -window:], context)
        return objective.predict(params, state, context)

    def of(run: TrainState) -> Embedders:
        def bound(function: Callable) -> Callable:
            return functools.partial(function, run.params, run.objective_state)

        heads = run.params["heads"]
        predict_or_none = bound(predict) if "predictor" in heads else None
        if "projector" not in heads:
            return {"pooled": (bound(embed), predict_or_none)}
        return {"pooled": (bound(embed), None), "projected": (bound(embed_projected), predict_or_none)}

    return of


def extent(source: Source) -> str:
    """What there is to validate on, such as `972 from 63 tasks`."""
    held_out = next(iter(source.validation.values()))
    if not held_out.num_examples:
        return f"{len(held_out.ids)} families, drawn anew"
    if not held_out.ids:
        return f"{held_out.num_examples} images"
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

"""A training run from a config: builds every part in order, then the loop. Read this first.

The loop dispatches `steps_per_call` compiled steps at a time and leaves the device only to log, evaluate and save.
Data, randomness and evaluation are functions of the step, so a run that was stopped, or killed, continues from its
last checkpoint to the same bits as one that was not.
"""

from __future__ import annotations

import functools
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jepa import (
    checkpoint,
    config_checks,
    diagnostics,
    evaluation,
    metrics,
    optimizer,
    paths,
    probe,
    registry,
    representation,
    run_folder,
    state,
    train_step,
)
from jepa.types import Array, Objective, PyTree, Source


class Parts(NamedTuple):
    """Everything a command needs to read or continue a run, built from its config alone."""

    source: Source
    objective: Objective
    tx: optax.GradientTransformation
    weights: dict[str, float | None]
    init: Callable[..., state.TrainState]  # a fresh state, of another build of the objective if one is given; jitted
    evaluate: evaluation.Evaluate  # held-out figures; compiled once for the whole run


def keywords(config: ConfigDict) -> dict[str, Any]:
    """A sub-config as the keyword list of one `build`, without the `name` that chose it."""
    return {key: value for key, value in config.items() if key != "name"}


def build_objective(config: ConfigDict, encoder_params: PyTree = None) -> Objective:
    """Encoder, quantizer and the objective over both: all that a command needs to embed, without the data.

    encoder_params: what the encoder starts from, in place of its own initialisation.
    """
    dtype = dict(compute_dtype=config.compute_dtype)
    encoder = registry.build("encoders", config.encoder.name, **keywords(config.encoder), **dtype)
    if encoder_params is not None:
        encoder = encoder._replace(init=lambda key, observation: encoder_params)
    quantizer = registry.build("quantizers", config.quantizer.name, **keywords(config.quantizer))
    represent = representation.build(encoder, quantizer)
    return registry.build("objectives", config.objective.name, represent, **keywords(config.objective), **dtype)


def build(config: ConfigDict) -> Parts:
    """Builds the parts of a run. Raises ValueError naming the key that does not fit."""
    config_checks.check(config)
    source = registry.build(
        "data",
        config.data.name,
        seed=config.seed,
        batch_size=config.batch_size,
        cache_dir=config.cache_dir,
        **keywords(config.data),
    )
    objective = build_objective(config)
    weights = dict(config.weights)
    train_step.check_weights(weights, objective)
    config_checks.check_best_metric(config.best_metric, train_step.on_terms(weights))
    tx = optimizer.build(num_steps=config.num_steps, freeze=config.freeze, **config.optimizer)

    def create(objective: Objective, tables: PyTree, rows: Array) -> state.TrainState:
        keys = jax.random.split(jax.random.key(config.seed), len(rows))
        batches = jax.vmap(source.gather, (None, 0, 0, None))(tables, rows, keys, True)
        together = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), batches)
        run = state.create(objective, tx, together, config.seed, teacher=config.target_ema is not None)
        batch = jax.tree.map(lambda leaf: leaf[0], batches)
        fixed = (run.params, run.target_params, run.objective_state)
        # Traced and not computed: what cannot work on a batch is said before there is a run.
        jax.eval_shape(lambda key: objective.trunk(*fixed, batch, key=key, step=0, train=True), keys[0])
        return run

    first = np.stack([source.indices(step) for step in range(config.init_batches)])  # [S, B]: codebooks start from them

    usual = jax.jit(functools.partial(create, objective))

    def init(other: Objective | None = None) -> state.TrainState:
        compiled = usual if other is None else jax.jit(functools.partial(create, other))
        return compiled(source.tables, first)

    evaluate = evaluation.make_evaluate(objective, source, weights, seed=config.seed)
    return Parts(source, objective, tx, weights, init, evaluate)


def quantised_probe(parts: Parts, num: int = 64) -> Callable[[PyTree, PyTree], tuple[Array, Array]]:
    """A function of parameters and objective state: quantised tokens [n, N, D] of `num` held-out grids, always the
    same, and their mask."""
    held_out = next(iter(parts.source.validation.values()))
    batch = held_out.gather(held_out.tables, held_out.indices(0)[:num], jax.random.key(0), False)
    observation = batch.target if batch.views is None else batch.views

    def probe(params: PyTree, objective_state: PyTree) -> tuple[Array, Array]:
        encoded = parts.objective.encode(params, objective_state, observation)
        return encoded.tokens, encoded.mask

    return probe


def make_train_call(config: ConfigDict, parts: Parts) -> Callable[..., tuple[state.TrainState, dict[str, Array]]]:
    """The compiled dispatch: (state, tables, rows [k, B]) -> (state after k steps, metrics of the last one).

    With a quantizer, `codes/drift` is the largest change of quantised tokens (`jepa.diagnostics.change`) by any of the
    k steps, and `codes/jump` the largest that the quantizer alone made, its parameters and state moved and the encoder
    held: an encoder always learns, a codebook should not leap.
    """
    step = train_step.make_train_step(
        parts.objective,
        parts.weights,
        max_grad_norm=config.max_grad_norm,
        target_ema=optimizer.target_decay(config.target_ema, config.target_ema_final, config.num_steps),
        freeze=tuple(config.freeze),
    )

    probe = quantised_probe(parts) if parts.objective.levels else None

    def body(tables: PyTree, carry: tuple, rows: Array):
        run, before = carry
        after, measured = step(run, parts.source.gather(tables, rows, state.step_keys(run).data, True))
        if probe is None:
            return (after, None), measured
        held = after.params | {"trunk": representation.teacher_trunk(run.params, after.params)}
        moved, mask = probe(after.params, after.objective_state)
        by_quantizer = diagnostics.change(before, probe(held, after.objective_state)[0], mask)
        changes = {"codes/drift": diagnostics.change(before, moved, mask), "codes/jump": by_quantizer}
        return (after, moved), (measured, changes)

    @functools.partial(jax.jit, donate_argnums=0)
    def train_call(run: state.TrainState, tables: PyTree, rows: Array):
        before = None if probe is None else probe(run.params, run.objective_state)[0]
        (run, _), history = jax.lax.scan(functools.partial(body, tables), (run, before), rows)
        if probe is None:
            return run, jax.tree.map(lambda values: values[-1], history)
        measured, changes = history
        return run, jax.tree.map(lambda values: values[-1], measured) | jax.tree.map(jnp.max, changes)

    return train_call


def start_from(config: ConfigDict, parts: Parts) -> tuple[state.TrainState, list[str]]:
    """A fresh state with the parts `config.init_parts` of another run's latest weights, and the tasks it has seen.

    A quantizer that is taken over brings its state; any other starts from the tokens of the encoder that is.
    """
    other = checkpoint.read(Path(config.init_from).expanduser())
    saved = paths.by_path(other.state["params"])

    def covered(name: str) -> list[str]:
        return [part for part in config.init_parts if optimizer.under(name, part)]

    def pick(path: tuple, fresh: Array) -> Array:
        name = paths.path_name(path)
        if not covered(name):
            return fresh
        if name not in saved or saved[name].shape != fresh.shape:
            there = saved[name].shape if name in saved else "missing"
            raise ValueError(f"config.init_from {config.init_from}: {name} is {there} there and {fresh.shape} here")
        return jnp.asarray(saved[name], fresh.dtype)

    shapes = jax.eval_shape(parts.init).params
    jax.tree.map_with_path(pick, shapes)  # a part that does not fit is said before anything is computed with it
    matched = {part for path, _ in jax.tree.leaves_with_path(shapes) for part in covered(paths.path_name(path))}
    if unmatched := sorted(set(config.init_parts) - matched):
        raise ValueError(f"config.init_parts names {unmatched}, which match no parameter of this run")

    encoder_params = other.state["params"]["trunk"]["encoder"] if covered("trunk/encoder") else None
    run = parts.init(build_objective(config, encoder_params)).replace(apply_fn=parts.objective.encode)
    params, objective_state = jax.tree.map_with_path(pick, run.params), run.objective_state
    if covered(f"trunk/{representation.SHARED}") and representation.SHARED in objective_state:
        objective_state |= {representation.SHARED: other.state["objective_state"][representation.SHARED]}
    target_params = run.target_params
    if target_params is not None:
        target_params = jax.tree.map(jnp.copy, representation.teacher_params(params))
    run = run.replace(params=params, target_params=target_params, objective_state=objective_state)
    return run, other.host["seen_ids"]


class Interrupted(Exception):
    """A signal asked the run to stop; everything up to the current step is saved."""

    def __init__(self, name: str, step: int):
        super().__init__(f"{name}: saved step {step}; the same command resumes")
        self.signal = signal.Signals[name].value


def run(config: ConfigDict, workdir: Path, *, profile: str | None = None) -> None:
    """Trains to `config.num_steps` in `workdir`, or continues there, then evaluates.

    Raises ValueError for a mistake in the config or the workdir, FloatingPointError when a loss stays non-finite,
    Interrupted after a signal.
    """
    traced = parse_profile(profile, config.num_steps)
    run_folder.check_writable(workdir)
    with run_folder.lock(workdir):
        checkpoints = checkpoint.open_manager(workdir / "checkpoints", best_metric=config.best_metric)
        if checkpoint.steps(checkpoints):
            config_checks.check_same_run(config, workdir)
        parts = build(config)
        train_state, step, record = restore_or_start(config, parts, checkpoints)
        if is_finished(config, step, workdir):
            print(f"{workdir} is finished at step {step}; --config.num_steps={2 * step} would extend it")
            return
        if traced and traced[0] < step:
            raise ValueError(f"--profile starts at step {traced[0]}, but this run is at step {step} already")
        if config.probe:
            probe.check(record["seen_ids"])
        run_folder.write_config(workdir, config_checks.as_json(config))
        run_folder.write_environment(workdir, {"from_step": step, **{name: record[name] for name in OF_THE_DATA}})
        print(
            "data: " + ", ".join(f"{value:.4g} {name.replace('_', ' ')}" for name, value in parts.source.stats.items())
        )
        with run_folder.graceful_stop() as stop_requested:
            train_state = loop(config, parts, checkpoints, train_state, step, workdir, record, traced, stop_requested)
        best = checkpoint.best_step(checkpoints)
        print(
            f"{config.best_metric} was never finite" if best is None else f"lowest {config.best_metric} at step {best}"
        )
        checkpoint.close(checkpoints)
        finish(config, parts, train_state, workdir, record["seen_ids"])


def is_finished(config: ConfigDict, step: int, workdir: Path) -> bool:
    """Whether the last step is trained and evaluated as the config asks."""
    if step < config.num_steps or not (workdir / "probes.json").is_file():
        return False
    result = json.loads((workdir / "probes.json").read_text())
    same = result["step"] == step and result["final_examples"] == config.final_examples
    return same and ("probes" in result or not config.probe)


OF_THE_DATA = ("digest", "train_ids", "seen_ids", "validation_ids")


def host_record(parts: Parts, inherited: list[str]) -> dict[str, Any]:
    """What a run remembers in every checkpoint: of its data, which its folder has too, and of its last evaluation.

    `seen_ids` are the tasks its weights were trained on, here or in the run it started from. `codes` are those of the
    last evaluation, against which the next one counts changes.
    """
    held_out = sorted({task for source in parts.source.validation.values() for task in source.ids})
    train_ids = list(parts.source.ids)
    seen = sorted({*train_ids, *inherited})
    of_the_data = (parts.source.digest, train_ids, seen, held_out)
    return dict(zip(OF_THE_DATA, of_the_data, strict=True)) | {"codes": []}


def restore_or_start(
    config: ConfigDict, parts: Parts, checkpoints: checkpoint.Checkpoints
) -> tuple[state.TrainState, int, dict[str, Any]]:
    """The state of the latest readable checkpoint, or a fresh one (from `init_from`, if given), its step and data."""
    restored = checkpoint.restore(checkpoints, jax.eval_shape(parts.init))
    if restored is None:
        if config.init_from:
            train_state, inherited = start_from(config, parts)
            return train_state, 0, host_record(parts, inherited)
        return parts.init(), 0, host_record(parts, [])
    for notice in restored.notices:
        print(notice)
    if restored.host["digest"] != parts.source.digest:
        raise ValueError("the data is not what this run was trained on: its content changed; restore it, or start anew")
    if restored.step % config.steps_per_call:
        raise ValueError(
            f"the run stopped at step {restored.step}: config.steps_per_call {config.steps_per_call} must divide it"
        )
    print(f"resuming at step {restored.step}")
    return restored.state, restored.step, restored.host


def loop(
    config: ConfigDict,
    parts: Parts,
    checkpoints: checkpoint.Checkpoints,
    train_state: state.TrainState,
    step: int,
    workdir: Path,
    record: dict[str, Any],
    traced: tuple[int, int] | None,
    stop_requested: Callable[[], str | None],
) -> state.TrainState:
    """Trains from `step` to the end; returns the last state. A line is recorded before the checkpoint of its step."""
    files = metrics.multi(metrics.jsonl(workdir / "metrics.jsonl", step), metrics.tensorboard(workdir, step))
    console = metrics.console(total_steps=config.num_steps, examples_per_step=config.batch_size, start_step=step)
    writer = metrics.multi(files, console)
    writer.write_hparams(config_checks.as_json(config))
    train_call = make_train_call(config, parts)
    trace(traced, step, config.steps_per_call, workdir, train_state)
    try:
        while step < config.num_steps:
            rows = np.stack([parts.source.indices(step + i) for i in range(config.steps_per_call)])
            train_state, last = train_call(train_state, parts.source.tables, rows)
            step += config.steps_per_call
            trace(traced, step, config.steps_per_call, workdir, train_state)
            held_out: dict[str, float] = {}
            if step % config.log_every == 0:
                writer.write_scalars(step, jax.device_get(last))
                check_health(train_state, config, parts)
            if step % config.eval_every == 0 or step == config.num_steps:
                held_out, codes = parts.evaluate(train_state, config.eval_examples)
                if codes is not None:
                    if len(record["codes"]) == len(codes):
                        held_out["codes/churn"] = float(np.mean(np.array(record["codes"]) != codes))
                    record = record | {"codes": codes.tolist()}
                config_checks.check_measured(config.best_metric, held_out)
                writer.write_scalars(step, held_out)
            signal_name = stop_requested()
            if step % config.checkpoint_every == 0 or step == config.num_steps or signal_name:
                checkpoint.save(checkpoints, step, train_state, record, held_out)
            if signal_name:
                raise Interrupted(signal_name, step)
    finally:
        writer.close()
    return train_state


def check_health(train_state: state.TrainState, config: ConfigDict, parts: Parts) -> None:
    """Raises FloatingPointError naming the term once `max_bad_steps` steps in a row were not finite."""
    health = jax.device_get(train_state.health)
    if health.consecutive >= config.max_bad_steps:
        term = train_step.bad_term_name(health, parts.weights)
        raise FloatingPointError(
            f"{health.consecutive} steps in a row were not finite, the last one in {term!r}, up to step "
            f"{int(train_state.step)}; the checkpoints before them are kept: start a new --workdir from them with "
            "config.init_from, and a lower optimizer.learning_rate or weight"
        )


def parse_profile(profile: str | None, num_steps: int) -> tuple[int, int] | None:
    """`10:20` -> (10, 20). Raises ValueError for anything but two steps of the run in order."""
    if profile is None:
        return None
    first, _, last = profile.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last) <= num_steps):
        raise ValueError(f"--profile is {profile!r}; it must be first:last, two steps up to {num_steps}, such as 10:20")
    return int(first), int(last)


def trace(traced: tuple[int, int] | None, step: int, steps_per_call: int, workdir: Path, pending: PyTree) -> None:
    """Called between dispatches: starts and stops the profiler around those that hold the steps to trace.

    `pending` is what the last dispatch returns: it has to be there before the trace begins or ends.
    """
    if traced is None:
        return
    first, last = traced[0] // steps_per_call * steps_per_call, -(-traced[1] // steps_per_call) * steps_per_call
    if step in (first, last):
        jax.block_until_ready(pending)
    if step == first:
        jax.profiler.start_trace(str(workdir / "profile"))
    if step == last:
        jax.profiler.stop_trace()
        print(f"traced steps {first} to {last} into {workdir / 'profile'}")


def finish(config: ConfigDict, parts: Parts, train_state: state.TrainState, workdir: Path, seen_ids: list[str]) -> None:
    """The final validation on `final_examples` and the probes of the last state: `probes.json` and tables."""
    final = parts.evaluate(train_state, config.final_examples).metrics
    title = (
        f"validation: {config.final_examples} examples under random symmetries, of {evaluation.extent(parts.source)}"
    )
    metrics.print_table(evaluation.summary(final), title=title)
    result = {"step": int(train_state.step), "final_examples": config.final_examples, "validation": final}
    if config.probe:
        trained, untrained = (evaluation.embedders(parts.objective, run) for run in (train_state, parts.init()))
        result["probes"] = {}
        for name, (embed, predict) in trained.items():
            scored = probe.evaluate(
                embed, predict, untrained=untrained[name], trained_ids=seen_ids, cache_dir=config.cache_dir
            )
            result["probes"][name] = scored
            print(f"probes of the {name} embedding", *probe.rows(scored), sep="\n")
    run_folder.atomic_write_json(workdir / "probes.json", result)
    print(f"done: {workdir}")

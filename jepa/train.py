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
import numpy as np
import optax
from ml_collections import ConfigDict

from jepa import checkpoint, evaluation, metrics, optimizer, probe, registry, run_folder, state, train_step
from jepa.types import Array, Objective, PyTree, Source

# Keys that a resumed run may give anew: how far to go, how often to look, where the cache is.
MAY_CHANGE = (
    "num_steps",
    "steps_per_call",
    "log_every",
    "eval_every",
    "eval_examples",
    "final_examples",
    "checkpoint_every",
    "max_bad_steps",
    "probe",
    "cache_dir",
    "platform",
)
READ_ONCE = (  # with MAY_CHANGE, every key of a config; one that is neither would be read by nothing
    *("seed", "compute_dtype", "batch_size", "max_grad_norm", "target_ema", "init_from", "init_parts", "freeze"),
    *("data", "encoder", "objective", "weights", "optimizer"),
)


class Parts(NamedTuple):
    """Everything a command needs to read or continue a run, built from its config alone."""

    source: Source
    objective: Objective
    tx: optax.GradientTransformation
    weights: dict[str, float | None]
    init: Callable[[], state.TrainState]  # a fresh state; jitted


def keywords(config: ConfigDict) -> dict[str, Any]:
    """A sub-config as the keyword list of one `build`, without the `name` that chose it."""
    return {key: value for key, value in config.items() if key != "name"}


def build(config: ConfigDict) -> Parts:
    """Builds the parts of a run. Raises ValueError naming the key that does not fit."""
    check_keys(config)
    check_cadences(config)
    source = registry.build(
        "data",
        config.data.name,
        seed=config.seed,
        batch_size=config.batch_size,
        cache_dir=config.cache_dir,
        **keywords(config.data),
    )
    dtype = dict(compute_dtype=config.compute_dtype)
    encoder = registry.build("encoders", config.encoder.name, **keywords(config.encoder), **dtype)
    objective = registry.build("objectives", config.objective.name, encoder, **keywords(config.objective), **dtype)
    weights = dict(config.weights)
    train_step.check_weights(weights, objective)
    tx = optimizer.build(num_steps=config.num_steps, freeze=config.freeze, **config.optimizer)

    @jax.jit
    def init(tables: PyTree, rows: Array) -> state.TrainState:
        batch = source.gather(tables, rows, jax.random.key(config.seed), True)
        return state.create(objective, tx, batch, config.seed, teacher=config.target_ema is not None)

    return Parts(source, objective, tx, weights, lambda: init(source.tables, source.indices(0)))


def check_keys(config: ConfigDict) -> None:
    """Raises ValueError for a key of the config that nothing reads, and for one that is missing."""
    known = (*READ_ONCE, *MAY_CHANGE)
    for key in config:
        if key not in known:
            raise ValueError(f"config.{key} is read by nothing: {registry.nearest(key, known)}")
    missing = sorted(set(known) - set(config))
    if missing:
        raise ValueError(f"the config lacks {missing}; configs/base.py has every key")


def check_cadences(config: ConfigDict) -> None:
    """Every cadence is in steps; each must be reached at the end of a dispatch of `steps_per_call` steps."""
    for name in ("steps_per_call", "log_every", "eval_every", "checkpoint_every", "num_steps", "max_bad_steps"):
        if config[name] < 1:
            raise ValueError(f"config.{name} is {config[name]}; it must be at least 1")
    for name in ("log_every", "eval_every", "num_steps"):
        if config[name] % config.steps_per_call:
            raise ValueError(
                f"config.{name} {config[name]} must be a multiple of steps_per_call {config.steps_per_call}"
            )
    if config.checkpoint_every % config.eval_every:
        raise ValueError(
            f"config.checkpoint_every {config.checkpoint_every} must be a multiple of eval_every {config.eval_every}, "
            "so that every checkpoint has a validation error to be the best by"
        )


def make_train_call(config: ConfigDict, parts: Parts) -> Callable[..., tuple[state.TrainState, dict[str, Array]]]:
    """The compiled dispatch: (state, tables, rows [k, B]) -> (state after k steps, metrics of the last one)."""
    step = train_step.make_train_step(
        parts.objective,
        parts.weights,
        max_grad_norm=config.max_grad_norm,
        target_ema=config.target_ema,
        freeze=tuple(config.freeze),
    )

    @functools.partial(jax.jit, donate_argnums=0)
    def train_call(run: state.TrainState, tables: PyTree, rows: Array):
        def body(run, rows):
            # Augmentation has a stream of its own: the objective's randomness must not depend on the data's.
            key = jax.random.fold_in(jax.random.fold_in(run.key, run.step), 1)
            return step(run, parts.source.gather(tables, rows, key, True))

        run, history = jax.lax.scan(body, run, rows)
        return run, jax.tree.map(lambda values: values[-1], history)

    return train_call


def start_from(run: state.TrainState, config: ConfigDict) -> state.TrainState:
    """`run` with the parts `config.init_parts` of the weights of the best checkpoint of `config.init_from`."""
    nested = checkpoint.restore_params(Path(config.init_from))
    saved = {optimizer.path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(nested)}
    unmatched = set(config.init_parts)

    def pick(path: tuple, fresh: Array) -> Array:
        name = optimizer.path_name(path)
        parts = [part for part in config.init_parts if optimizer.under(name, part)]
        unmatched.difference_update(parts)
        if not parts:
            return fresh
        if name not in saved or saved[name].shape != fresh.shape:
            there = saved[name].shape if name in saved else "missing"
            raise ValueError(f"config.init_from {config.init_from}: {name} is {there} there and {fresh.shape} here")
        return jax.numpy.asarray(saved[name], fresh.dtype)

    params = jax.tree.map_with_path(pick, run.params)
    if unmatched:
        raise ValueError(f"config.init_parts names {sorted(unmatched)}, which match no parameter of this run")
    target_params = None if run.target_params is None else jax.tree.map(jax.numpy.copy, params)
    return run.replace(params=params, target_params=target_params)


class Interrupted(Exception):
    """A signal asked the run to stop; everything up to the current step is saved."""

    def __init__(self, name: str, step: int):
        super().__init__(f"{name}: saved step {step}; the same command resumes")
        self.signal = signal.Signals[name].value


def run(config: ConfigDict, workdir: Path, *, profile: str | None = None) -> None:
    """Trains to `config.num_steps` in `workdir`, or continues there, then evaluates. Raises ValueError for a mistake
    in the config or the workdir, FloatingPointError when a loss stays non-finite, Interrupted after a signal."""
    traced = parse_profile(profile)
    run_folder.check_writable(workdir)
    with run_folder.lock(workdir), run_folder.graceful_stop() as stop_requested:
        check_config(config, workdir)
        parts = build(config)
        checkpoints = checkpoint.open_manager(workdir / "checkpoints", best_metric="val/prediction")
        train_state, step = restore_or_start(config, parts, checkpoints)
        if step >= config.num_steps and (workdir / "probes.json").is_file():
            print(f"{workdir} is finished at step {step}; --config.num_steps={2 * step} would extend it")
            return
        run_folder.write_config(workdir, json.loads(config.to_json()))
        run_folder.write_environment(workdir, {"from_step": step, **data_record(parts)})
        train_state = loop(config, parts, checkpoints, train_state, step, workdir, traced, stop_requested)
        checkpoint.close(checkpoints)
        finish(config, parts, train_state, workdir)


def check_config(config: ConfigDict, workdir: Path) -> None:
    """Raises ValueError listing the keys in which the run in `workdir`, if there is one, has another config."""
    if not (workdir / "config.json").is_file():
        return
    current = json.loads(config.to_json())
    changed = run_folder.config_differences(run_folder.read_config(workdir), current, MAY_CHANGE)
    if changed:
        raise ValueError(
            f"{workdir} holds a run of another config: {'; '.join(changed)}. Use those values, or another --workdir"
        )


def data_record(parts: Parts) -> dict[str, Any]:
    """What a run remembers of its data: kept in its folder and in every checkpoint."""
    held_out = sorted({task for source in parts.source.validation.values() for task in source.ids})
    return {"digest": parts.source.digest, "train_ids": list(parts.source.ids), "validation_ids": held_out}


def restore_or_start(
    config: ConfigDict, parts: Parts, checkpoints: checkpoint.Checkpoints
) -> tuple[state.TrainState, int]:
    """The state of the latest readable checkpoint, or a fresh one (from `init_from`, where given), and its step."""
    restored = checkpoint.restore(checkpoints, jax.eval_shape(parts.init))
    if restored is None:
        train_state = parts.init()
        return (start_from(train_state, config) if config.init_from else train_state), 0
    for notice in restored.notices:
        print(notice)
    if restored.host["digest"] != parts.source.digest:
        raise ValueError("the data is not what this run was trained on: its content changed; restore it, or start anew")
    if restored.step % config.steps_per_call:
        raise ValueError(
            f"the run stopped at step {restored.step}: config.steps_per_call {config.steps_per_call} must divide it"
        )
    print(f"resuming at step {restored.step}")
    return restored.state, restored.step


def loop(
    config: ConfigDict,
    parts: Parts,
    checkpoints: checkpoint.Checkpoints,
    train_state: state.TrainState,
    step: int,
    workdir: Path,
    traced: tuple[int, int] | None,
    stop_requested: Callable[[], str | None],
) -> state.TrainState:
    """Trains from `step` to the end; returns the last state. A line is recorded before the checkpoint of its step."""
    record = metrics.multi(metrics.jsonl(workdir / "metrics.jsonl", step), metrics.tensorboard(workdir, step))
    console = metrics.console(total_steps=config.num_steps, examples_per_step=config.batch_size, start_step=step)
    writer = metrics.multi(record, console)
    evaluate = evaluation.make_evaluate(parts.objective, parts.source, seed=config.seed)
    train_call = make_train_call(config, parts)
    host = data_record(parts)
    try:
        while step < config.num_steps:
            trace(traced, step, config.steps_per_call, workdir)
            rows = np.stack([parts.source.indices(step + i) for i in range(config.steps_per_call)])
            train_state, last = train_call(train_state, parts.source.tables, rows)
            step += config.steps_per_call
            held_out: dict[str, float] = {}
            if step % config.log_every == 0:
                writer.write_scalars(step, jax.device_get(last))
                check_health(train_state, config, parts)
            if step % config.eval_every == 0 or step == config.num_steps:
                held_out = evaluate(train_state, config.eval_examples)
                writer.write_scalars(step, held_out)
            if step % config.checkpoint_every == 0 or step == config.num_steps:
                checkpoint.save(checkpoints, step, train_state, host, held_out)
            if stop_requested():
                checkpoint.save(checkpoints, step, train_state, host, held_out)
                raise Interrupted(stop_requested(), step)
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
            f"{int(train_state.step)}; the state before them is kept, lower optimizer.learning_rate or the weight"
        )


def parse_profile(profile: str | None) -> tuple[int, int] | None:
    """`10:20` -> (10, 20)."""
    if profile is None:
        return None
    first, _, last = profile.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise ValueError(f"--profile is {profile!r}; it must be first:last, two steps such as 10:20")
    return int(first), int(last)


def trace(traced: tuple[int, int] | None, step: int, steps_per_call: int, workdir: Path) -> None:
    """Starts and stops the profiler at the dispatches that hold the first and the last step to trace."""
    if traced is None:
        return
    first, last = (bound // steps_per_call * steps_per_call for bound in traced)
    if step == first:
        jax.profiler.start_trace(str(workdir / "profile"))
    if step == max(last, first + steps_per_call):
        jax.profiler.stop_trace()
        print(f"traced steps {first} to {step} into {workdir / 'profile'}")


def finish(config: ConfigDict, parts: Parts, train_state: state.TrainState, workdir: Path) -> None:
    """The final validation on `final_examples`, the probes, `probes.json` and the table."""
    evaluate = evaluation.make_evaluate(parts.objective, parts.source, seed=config.seed)
    final = evaluate(train_state, config.final_examples)
    metrics.print_table(evaluation.summary(final), title=f"validation, {config.final_examples} examples")
    result: dict[str, Any] = {"step": int(train_state.step), "validation": final}
    if config.probe:
        trained, untrained = (evaluation.embedders(parts.objective, run) for run in (train_state, parts.init()))
        result["probes"] = {}
        for name, (embed, predict) in trained.items():
            scored = probe.evaluate(
                embed, predict, untrained=untrained[name], trained_ids=parts.source.ids, cache_dir=config.cache_dir
            )
            result["probes"][name] = scored
            print(f"probes of the {name} embedding", *probe.rows(scored), sep="\n")
    run_folder.atomic_write_json(workdir / "probes.json", result)
    print(f"done: {workdir}")

"""A training run: its parts (`jepa.parts`), where it starts (`jepa.start`), then the loop. Read this first.

The loop dispatches `steps_per_call` compiled steps at a time and leaves the device only to log, evaluate and save.
Data, randomness and evaluation are functions of the step, so a run that was stopped, or killed, continues from its
last checkpoint to the same bits as one that was not.
"""

from __future__ import annotations

import contextlib
import functools
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jepa import (
    checkpoint,
    config_checks,
    curriculum,
    diagnostics,
    early_stopping,
    evaluation,
    findings,
    flight_recorder,
    history,
    image_probe,
    metrics,
    optimizer,
    probe,
    probes,
    profiling,
    representation,
    run_folder,
    state,
    stopwatch,
    train_step,
)
from jepa.parts import Parts, build
from jepa.start import OF_THE_DATA, how_to_extend, is_finished, is_over, restore_or_start
from jepa.types import Array, PyTree


def quantised_probe(parts: Parts, num: int = 64) -> Callable[[PyTree, PyTree], tuple[Array, Array]]:
    """A function of parameters and objective state: quantised tokens [n, N, D] of `num` held-out grids, always the
    same, and their mask."""
    held_out = next(iter(parts.source.validation.values()))
    rows = jax.tree.map(lambda leaf: leaf[:num], held_out.indices(0))
    batch = held_out.gather(held_out.tables, rows, jax.random.key(0), False)
    observation = batch.target if batch.views is None else batch.views

    def probe(params: PyTree, objective_state: PyTree) -> tuple[Array, Array]:
        encoded = parts.objective.encode(params, objective_state, observation)
        return encoded.tokens, encoded.mask

    return probe


def make_dispatch(config: ConfigDict, parts: Parts) -> Callable[..., tuple[state.TrainState, dict[str, Array]]]:
    """A function (state, tables, rows, leaves [k, B, ...]) -> (state after k steps, metrics [k] of each).

    With a quantizer, `codes/drift` is the change of quantised tokens (`jepa.diagnostics.change`) by a step, and
    `codes/jump` what the quantizer alone made of it, its parameters and state moved and the encoder held: an encoder
    always learns, a codebook should not leap.
    """
    step = train_step.make_train_step(
        parts.objective,
        parts.weights,
        max_grad_norm=config.max_grad_norm,
        target_ema=optimizer.target_decay(config.target_ema, config.target_ema_final, config.num_steps),
        freeze=tuple(config.freeze),
    )

    probe = quantised_probe(parts) if parts.objective.levels else None

    def body(tables: PyTree, carry: tuple, rows: PyTree):
        run, before = carry
        after, measured = step(run, parts.source.gather(tables, rows, state.step_keys(run).data, True))
        if probe is None:
            return (after, None), measured
        held = after.params | {"trunk": representation.teacher_trunk(run.params, after.params)}
        moved, mask = probe(after.params, after.objective_state)
        by_quantizer = diagnostics.change(before, probe(held, after.objective_state)[0], mask)
        changes = {"codes/drift": diagnostics.change(before, moved, mask), "codes/jump": by_quantizer}
        return (after, moved), measured | changes

    def dispatch(run: state.TrainState, tables: PyTree, rows: PyTree):
        before = None if probe is None else probe(run.params, run.objective_state)[0]
        (run, _), history = jax.lax.scan(functools.partial(body, tables), (run, before), rows)
        return run, history

    return dispatch


def make_train_call(config: ConfigDict, parts: Parts) -> Callable[..., tuple[state.TrainState, dict[str, Array]]]:
    """`make_dispatch`, compiled; the state it is given becomes the one it returns."""
    return jax.jit(make_dispatch(config, parts), donate_argnums=0)


class Interrupted(Exception):
    """A signal asked the run to stop; everything up to the current step is saved."""

    def __init__(self, name: str, step: int):
        super().__init__(f"{name}: saved step {step}; the same command resumes")
        self.signal = signal.Signals[name].value


def run(config: ConfigDict, workdir: Path, *, profile: str | None = None) -> None:
    """Trains to `config.num_steps` in `workdir`, or continues there, then evaluates.

    Raises ValueError for a mistake in the config or the workdir, FloatingPointError when a loss stays non-finite,
    Aborted when a condition of `config.abort` holds, Interrupted after a signal.
    """
    traced = profiling.parse(profile, config.num_steps)
    run_folder.check_writable(workdir)
    with run_folder.lock(workdir):
        checkpoints = checkpoint.open_manager(
            workdir / "checkpoints",
            best_metric=config.best_metric,
            keep_latest=config.keep_checkpoints,
            pinned=flight_recorder.pinned(workdir),
        )
        if checkpoint.steps(checkpoints):
            config_checks.check_same_run(config, workdir)
        parts = build(config)
        train_state, step, record = restore_or_start(config, parts, checkpoints)
        if is_finished(config, step, record, workdir):
            print(f"{workdir} is finished at step {step}; {how_to_extend(config, step)}")
            return
        if traced and traced[0] < step:
            raise ValueError(f"--profile starts at step {traced[0]}, but this run is at step {step} already")
        if set(config.probes) & set(probes.NAMES):
            probe.check(record["seen_ids"])
        run_folder.write_config(workdir, config_checks.as_json(config))
        run_folder.write_environment(workdir, {"from_step": step, **{name: record[name] for name in OF_THE_DATA}})
        facts = (f"{value:.4g} {name.replace('_', ' ')}" for name, value in parts.source.stats.items())
        print("data: " + ", ".join(facts), *config_checks.in_published_units(config), sep="\n")
        with run_folder.graceful_stop() as stop_requested:
            train_state = loop(config, parts, checkpoints, train_state, step, workdir, record, traced, stop_requested)
        if int(train_state.step) < config.num_steps:
            print(f"ended at step {int(train_state.step)}: {early_stopping.ended(config.early_stopping.metric)}")
        best = checkpoint.best_step(checkpoints)
        print(
            f"{config.best_metric} was never finite" if best is None else f"lowest {config.best_metric} at step {best}"
        )
        checkpoint.close(checkpoints)
        finish(config, parts, train_state, workdir, record["seen_ids"])


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
    """Trains from `step` until the last one, or until patience ends; returns the last state.

    A line is recorded before the checkpoint of its step, so that a killed run finds its record as its state is.
    """
    files = metrics.multi(metrics.jsonl(workdir / "metrics.jsonl", step), metrics.tensorboard(workdir, step))
    console = metrics.console(total_steps=config.num_steps, examples_per_step=config.batch_size, start_step=step)
    writer, timing = metrics.multi(files, console), metrics.jsonl(workdir / "timing.jsonl", step)
    writer.write_hparams(config_checks.as_json(config))
    train_call, watch = make_train_call(config, parts), stopwatch.start(step)
    unseen, line = history.from_json(record["unseen"]), {}  # metrics of the steps since the last line, and that line
    over = is_over(config, step, record)
    profiling.trace(traced, step, config.steps_per_call, workdir, train_state)
    try:
        while not over:
            # What the host prepares while the device computes costs nothing: it waits where the last dispatch is done.
            with watch.part("input") if train_state.step.is_ready() else contextlib.nullcontext():
                rows = curriculum.rows(parts.source, step, config.steps_per_call, record["curriculum"].starts)
            train_state, measured = train_call(train_state, parts.source.tables, rows)
            unseen.append(measured)
            step += config.steps_per_call
            profiling.trace(traced, step, config.steps_per_call, workdir, train_state)
            held_out: dict[str, float] = {}
            if step % config.log_every == 0:
                seen, unseen = history.join(jax.device_get(unseen)), []
                line = log_line(config, parts, step, seen)
                writer.write_scalars(step, line)
                recent = record_events(config, workdir, train_state, seen, record, parts, checkpoints)
                record = record | {"recent": recent}
                check_health(train_state, config, parts)
                timing.write_scalars(step, watch.lap(step))
            if step % config.diagnose_every == 0:
                with watch.part("diagnosis", after=train_state):
                    coming = parts.source.indices(step, curriculum.level(record["curriculum"].starts, step))
                    writer.write_scalars(step, jax.device_get(parts.diagnose(train_state, coming)))
            if step % config.eval_every == 0 or step == config.num_steps:
                with watch.part("evaluation", after=train_state):
                    held_out, record = evaluate(config, parts, train_state, step, record)
                    writer.write_scalars(step, held_out)
                    record = record | {"findings": report_findings(workdir, record["findings"])}
            over = is_over(config, step, record)
            broken = early_stopping.broken(config.abort, held_out, step)
            signal_name = stop_requested()
            if step % config.checkpoint_every == 0 or over or broken or signal_name:
                kept = record | {"unseen": history.as_json(jax.device_get(unseen)), "aborted": broken}
                checkpoint.save(checkpoints, step, train_state, kept, held_out)
            if broken:
                reason = early_stopping.broken_because(broken, held_out, step)
                measured = line | held_out
                starts = record["curriculum"].starts
                event = flight_recorder.abort(reason, train_state, measured, config.num_steps, starts)
                keep_event(workdir, event, checkpoints)
                raise early_stopping.Aborted(reason)
            if signal_name:
                raise Interrupted(signal_name, step)
        if line:
            shares = ", ".join(f"{name} {share:.2%}" for name, share in watch.whole().items())
            print(f"time: {shares}, the rest training")
    finally:
        profiling.close(traced, step, config.steps_per_call)
        parts.source.close()
        writer.close()
        timing.close()
    return train_state


def log_line(config: ConfigDict, parts: Parts, step: int, seen: history.History) -> dict[str, Any]:
    """The line of the record after `step`; the learning rate is that of the last step, which counts applied ones."""
    line = history.line(seen, max_grad_norm=config.max_grad_norm)
    return line | {"optimizer/learning_rate": parts.rate(step - 1 - line["health/skipped"])}


def record_events(
    config: ConfigDict,
    workdir: Path,
    train_state: state.TrainState,
    seen: history.History,
    record: dict[str, Any],
    parts: Parts,
    checkpoints: checkpoint.Checkpoints,
) -> list[float]:
    """Writes what went wrong in the steps `seen` that led to this state; returns the recent losses from now on."""
    first = int(train_state.step) - len(seen["loss/total"]) + 1
    found, recent = flight_recorder.find(first, seen, record["recent"], train_step.bad_terms(parts.weights))
    for index, kind, reason in found:
        saved = checkpoint.steps(checkpoints)
        event = flight_recorder.event(
            index,
            kind,
            reason,
            first_step=first,
            seen=seen,
            starts=record["curriculum"].starts,
            key=train_state.key,
            saved=saved,
            num_steps=config.num_steps,
        )
        keep_event(workdir, event, checkpoints)
    return recent


def keep_event(workdir: Path, event: flight_recorder.Event, checkpoints: checkpoint.Checkpoints) -> None:
    """Writes an event and pins the checkpoint it is replayed from."""
    if flight_recorder.write(workdir, event):
        checkpoints.pinned.update(flight_recorder.pins([event]))
        print(f"{event.reason}: kept as event {event.step}-{event.kind}")


def evaluate(
    config: ConfigDict, parts: Parts, train_state: state.TrainState, step: int, record: dict[str, Any]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Held-out figures, and the record with the codes, the patience and the curriculum that they leave behind."""
    level = curriculum.level(record["curriculum"].starts, step - 1)
    held_out, codes = parts.evaluate(train_state, config.eval_examples, level)
    record = record | {"curriculum": next_level(config, parts, held_out, step, record["curriculum"])}
    if codes is not None:
        if len(record["codes"]) == len(codes):
            held_out["codes/churn"] = float(np.mean(np.array(record["codes"]) != codes))
        record = record | {"codes": codes.tolist()}
    config_checks.check_measured(config, held_out)
    patience = early_stopping.watch(
        record["patience"],
        step,
        held_out[config.early_stopping.metric],
        min_delta=config.early_stopping.min_delta,
        mode=config.early_stopping.mode,
        warmup_steps=config.early_stopping.warmup_steps,
    )
    return held_out, record | {"patience": patience}


def next_level(
    config: ConfigDict, parts: Parts, held_out: dict[str, float], step: int, now: curriculum.Curriculum
) -> curriculum.Curriculum:
    """The curriculum after an evaluation; with several levels, `curriculum/level` joins the held-out figures."""
    if parts.source.num_levels == 1:
        return now
    held_out["curriculum/level"] = float(curriculum.level(now.starts, step - 1))
    error = float(np.mean([held_out[name] for name in evaluation.level_errors(parts.source)]))
    options = dict(patience=config.curriculum.patience, min_delta=config.curriculum.min_delta)
    after = curriculum.watch(now, step, error, **options, num_levels=parts.source.num_levels)
    if len(after.starts) > len(now.starts):
        print(f"level {len(after.starts) - 1} begins at step {step}: the error of the one before has stopped falling")
    return after


def report_findings(workdir: Path, printed: list[str]) -> list[str]:
    """Prints what the doctor finds in the record so far and has not said before; returns all that has been said."""
    new = findings.new_findings(findings.examine(findings.read(workdir)), printed)
    for finding in new:
        print(findings.as_text(finding))
    return [*printed, *(finding.name for finding in new)]


def check_health(train_state: state.TrainState, config: ConfigDict, parts: Parts) -> None:
    """Raises FloatingPointError naming the term once `max_bad_steps` steps in a row were not finite."""
    health = jax.device_get(train_state.health)
    if health.consecutive >= config.max_bad_steps:
        term = train_step.bad_terms(parts.weights)[health.bad_term]
        raise FloatingPointError(
            f"{health.consecutive} steps in a row were not finite, the last one in {term!r}, up to step "
            f"{int(train_state.step)}; the checkpoints before them are kept: start a new --workdir from them with "
            "config.init_from, and a lower optimizer.learning_rate or weight"
        )


def finish(config: ConfigDict, parts: Parts, train_state: state.TrainState, workdir: Path, seen_ids: list[str]) -> None:
    """The final validation on `final_examples` and the probes of the last state: `probes.json` and tables."""
    final = parts.evaluate(train_state, config.final_examples, parts.source.num_levels - 1).metrics
    title = (
        f"validation: {config.final_examples} examples under random symmetries, of {evaluation.extent(parts.source)}"
    )
    metrics.print_table(evaluation.summary(final), title=title)
    result = {"step": int(train_state.step), "final_examples": config.final_examples, "validation": final}
    result["asked"] = list(config.probes)
    if set(config.probes) - {probes.PLANNING}:
        trained, untrained = parts.embedders(train_state), parts.embedders(parts.init())
    if set(config.probes) & set(probes.NAMES):
        given = dict(seen_ids=seen_ids, cache_dir=config.cache_dir)
        result["probes"] = probes.ask(config.probes, trained, untrained, **given)
    if probes.PLANNING in config.probes:
        asked = result["probes"] if "probes" in result else {}
        result["probes"] = asked | probes.plan(config, parts, train_state)
    if "images" in config.probes:
        result["image_probes"] = image_probe.evaluate(parts.source, trained["pooled"][0], untrained["pooled"][0])
        title = f"accuracy on {result['image_probes']['num_held_out']} held-out images"
        metrics.print_table(image_probe.rows(result["image_probes"]), title=title)
    run_folder.atomic_write_json(workdir / "probes.json", result)
    print(f"done: {workdir}")

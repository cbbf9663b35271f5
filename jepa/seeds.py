"""Seeds as an axis: several runs that differ in their seed alone, trained as one program.

A run is a pure function of one pytree, so `vmap` over training states and batches trains all of them at once, compiled
once, each as it would be by itself up to float32 rounding. Their states are checkpointed together until the last step;
then every seed has the folder of a run of its own, with its record, its last checkpoint and its probes.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jepa import checkpoint, config_checks, curriculum, history, metrics, probe, probes, run_folder, start, state, train
from jepa.metrics import Writer
from jepa.parts import Parts, of_seeds
from jepa.types import PyTree, Source


class Member(NamedTuple):
    """One run among those that are trained together."""

    config: ConfigDict
    parts: Parts
    workdir: Path


class Progress(NamedTuple):
    """What a joint checkpoint holds beside the states: by member, what it remembers, and its last held-out figures."""

    records: list[dict[str, Any]]
    held_out: list[dict[str, float]]


def run(configs: Sequence[ConfigDict], workdirs: Sequence[Path], folder: Path) -> None:
    """Trains a run per config in its workdir, or continues, then evaluates each; `folder` has what is not finished.

    Raises ValueError for configs that differ in more than their seed or ask for what only one run can do, and
    FloatingPointError at the end, naming the seeds whose loss stayed non-finite; Interrupted after a signal.
    """
    check(configs)
    with contextlib.ExitStack() as held:
        for place in (folder, *workdirs):
            run_folder.check_writable(place)
            held.enter_context(run_folder.lock(place))
        members = [Member(*each) for each in zip(configs, of_seeds(configs), workdirs, strict=True)]
        held.callback(lambda: [member.parts.source.close() for member in members])
        check_same_data([member.parts.source for member in members])
        checkpoints = checkpoint.open_manager(
            folder / "checkpoints", best_metric=configs[0].best_metric, keep_latest=1, pinned=()
        )
        held.callback(checkpoint.close, checkpoints)
        states, step, progress = restore_or_start(members, checkpoints)
        for member, record in zip(members, progress.records, strict=True):
            if set(member.config.probes) & set(probes.NAMES):
                probe.check(record["seen_ids"])
            run_folder.write_config(member.workdir, config_checks.as_json(member.config))
            of_the_data = {name: record[name] for name in start.OF_THE_DATA}
            run_folder.write_environment(member.workdir, {"from_step": step, **of_the_data})
        with run_folder.graceful_stop() as stop_requested:
            states, progress = loop(members, checkpoints, states, step, progress, stop_requested)
        failed = finish(members, states, progress)
    if failed:
        raise FloatingPointError("; ".join(failed))
    shutil.rmtree(folder)


def check(configs: Sequence[ConfigDict]) -> None:
    """Raises ValueError where the configs cannot be trained as one program."""
    first, *others = configs
    config_checks.check(first)
    for config in others:
        saved, now = config_checks.as_json(first), config_checks.as_json(config)
        if differences := run_folder.config_differences(saved, now, may_change=("seed",)):
            raise ValueError(f"runs trained together differ in their seed alone, and not in {'; '.join(differences)}")
    seeds = [config.seed for config in configs]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"runs trained together have different seeds, and not {seeds}")
    if first.early_stopping.patience is not None or first.abort:
        raise ValueError(
            "config.early_stopping.patience and config.abort end one run before another: train these seeds one by one"
        )


def check_same_data(sources: Sequence[Source]) -> None:
    """Raises ValueError where the seeds do not share what lies on the device."""
    first, *others = sources
    for source in others:
        same = jax.tree.map(lambda a, b: np.array_equal(a, b), first.tables, source.tables)
        if source.digest != first.digest or not jax.tree.all(same):
            raise ValueError("the data of one seed are not those of another: train these seeds one by one")


def stack(states: Sequence[state.TrainState]) -> state.TrainState:
    """One state, its leaves [S, ...] those of S states."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


@jax.jit
def unstack(states: state.TrainState) -> list[state.TrainState]:
    return [of_member(states, number) for number in range(len(states.step))]


def of_member(tree: PyTree, number: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[number], tree)


def restore_or_start(
    members: Sequence[Member], checkpoints: checkpoint.Checkpoints
) -> tuple[state.TrainState, int, Progress]:
    """The states at their last checkpoint, or fresh ones, their step and what the runs remember."""
    abstract = jax.eval_shape(lambda: stack([member.parts.init() for member in members]))
    restored = checkpoint.restore(checkpoints, abstract)
    if restored is None:
        begun = [start.fresh(member.config, member.parts) for member in members]
        return stack([run for run, _ in begun]), 0, Progress([record for _, record in begun], [{} for _ in begun])
    for notice in restored.notices:
        print(notice)
    print(f"resuming at step {restored.step}")
    saved = zip(members, restored.host["records"], strict=True)
    records = [start.record_of(member.config, member.parts, host, restored.step) for member, host in saved]
    return restored.state, restored.step, Progress(records, restored.host["held_out"])


def loop(
    members: Sequence[Member],
    checkpoints: checkpoint.Checkpoints,
    states: state.TrainState,
    step: int,
    progress: Progress,
    stop_requested: Callable[[], str | None],
) -> tuple[state.TrainState, Progress]:
    """Trains all members from `step` to the last one; cadences, and the lines of the record, are those of `train.loop`,
    but no doctor looks on and no event is kept.

    A member whose loss stays non-finite stands still, since its steps are not applied, and the others go on.
    """
    config, parts, _ = members[0]
    train_call = jax.jit(jax.vmap(train.make_dispatch(config, parts), (0, None, 0)), donate_argnums=0)
    writers = [metrics.jsonl(member.workdir / "metrics.jsonl", step) for member in members]
    examples = config.batch_size * len(members)
    console = metrics.console(total_steps=config.num_steps, examples_per_step=examples, start_step=step)
    unseen = [history.from_json(record["unseen"]) for record in progress.records]
    try:
        while step < config.num_steps:
            states, measured = train_call(states, parts.source.tables, rows_of(members, progress, step))
            measured = jax.device_get(measured)
            step += config.steps_per_call
            for number, seen in enumerate(unseen):
                seen.append(of_member(measured, number))
            if step % config.log_every == 0:
                lines = [train.log_line(config, parts, step, history.join(seen)) for seen in unseen]
                unseen = [[] for _ in members]
                for writer, line in zip(writers, lines, strict=True):
                    writer.write_scalars(step, line)
                console.write_scalars(step, {name: np.mean([line[name] for line in lines]) for name in lines[0]})
            if step % config.diagnose_every == 0:
                diagnose(members, states, step, progress, writers)
            if step % config.eval_every == 0 or step == config.num_steps:
                progress = evaluate(members, states, step, progress, writers)
            signal_name = stop_requested()
            if step % config.checkpoint_every == 0 or step == config.num_steps or signal_name:
                pending = [{"unseen": history.as_json(seen)} for seen in unseen]
                records = [record | extra for record, extra in zip(progress.records, pending, strict=True)]
                checkpoint.save(checkpoints, step, states, progress._replace(records=records)._asdict(), {})
            if signal_name:
                raise train.Interrupted(signal_name, step)
    finally:
        for writer in (*writers, console):
            writer.close()
    return states, progress


def rows_of(members: Sequence[Member], progress: Progress, step: int) -> PyTree:
    """The rows of the coming dispatch, leaves [S, k, B, ...]."""
    config = members[0].config
    rows = [
        curriculum.rows(member.parts.source, step, config.steps_per_call, record["curriculum"].starts)
        for member, record in zip(members, progress.records, strict=True)
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def diagnose(
    members: Sequence[Member], states: state.TrainState, step: int, progress: Progress, writers: Sequence[Writer]
) -> None:
    """Writes what the terms do to the gradient of each member."""
    for member, run, record, writer in zip(members, unstack(states), progress.records, writers, strict=True):
        coming = member.parts.source.indices(step, curriculum.level(record["curriculum"].starts, step))
        writer.write_scalars(step, jax.device_get(member.parts.diagnose(run, coming)))


def evaluate(
    members: Sequence[Member], states: state.TrainState, step: int, progress: Progress, writers: Sequence[Writer]
) -> Progress:
    """Writes the held-out figures of each member."""
    records, held_out = [], []
    for member, run, record, writer in zip(members, unstack(states), progress.records, writers, strict=True):
        figures, record = train.evaluate(member.config, member.parts, run, step, record)
        writer.write_scalars(step, figures)
        records.append(record)
        held_out.append(figures)
    return Progress(records, held_out)


def finish(members: Sequence[Member], states: state.TrainState, progress: Progress) -> list[str]:
    """Gives every member its own checkpoint and evaluates it; returns a sentence for each that cannot be."""
    failed = []
    for member, run, record, held_out in zip(members, unstack(states), *progress, strict=True):
        config, parts, workdir = member
        if start.is_finished(config, int(run.step), record, workdir):
            continue
        try:
            train.check_health(run, config, parts)
        except FloatingPointError as error:
            failed.append(f"seed {config.seed}: {error}")
            continue
        own = checkpoint.open_manager(
            workdir / "checkpoints", best_metric=config.best_metric, keep_latest=config.keep_checkpoints, pinned=()
        )
        checkpoint.save(own, int(run.step), run, record, held_out)
        checkpoint.close(own)
        train.finish(config, parts, run, workdir, record["seen_ids"])
    return failed

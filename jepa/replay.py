"""A step that went wrong, taken again: `python -m jepa.doctor runs/x --replay 1234-nonfinite`.

The newest checkpoint before it is restored and stepped forward. Data and randomness are functions of the step, so the
step is the same to the bit, which is checked against what the flight recorder kept. Then its parts are looked at one by
one: the batch, the parameters, the latents, the terms, the gradients of every term.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.progress
from jax.experimental import checkify
from ml_collections import ConfigDict

from jepa import (
    backend,
    checkpoint,
    curriculum,
    flight_recorder,
    history,
    metrics,
    paths,
    run_folder,
    state,
    train,
    train_step,
)
from jepa.flight_recorder import Event
from jepa.parts import Parts, build
from jepa.start import start_from
from jepa.types import Array, Batch, PyTree


class Stage(NamedTuple):
    """A part of a step, how many of its numbers are not finite, and how many there are."""

    name: str
    bad: int
    size: int


def print_replay(workdir: Path, name: str) -> None:
    """Replays the event and prints what it was made of. Raises ValueError where there is no such event or data."""
    event = flight_recorder.read(workdir, name)
    print(event.reason)
    config = ConfigDict(run_folder.read_config(workdir))
    config.num_steps = event.num_steps  # a run that was extended since had other schedules then
    backend.select_platform(config.platform)
    backend.use_compile_cache(config.cache_dir)
    parts = build(config)
    run = state_before(config, parts, workdir, event)
    first = event.step if event.kind == "abort" else event.step - 1  # steps before it
    rows = parts.source.indices(first, curriculum.level(event.starts, first))
    batch = jax.jit(parts.source.gather, static_argnums=3)(parts.source.tables, rows, state.step_keys(run).data, True)
    terms = functools.partial(weighted_terms, parts, tuple(config.freeze))
    stages, nan = list(look(terms, run, batch)), first_nan(terms, run, batch)
    gradients = jax.device_get(parts.diagnose(run, rows))
    if event.kind != "abort":  # taking the step gives its state away
        print(compare(event, step_again(config, parts, run, rows)))
    metrics.print_table(terms_table(parts, event, gradients), title=f"step {event.step}")
    print(verdict(stages, nan))


def state_before(config: ConfigDict, parts: Parts, workdir: Path, event: Event) -> state.TrainState:
    """The state that the step of the event was taken from; of an abort, the state it ended with."""
    if event.checkpoint is None:
        run, step = (start_from(config, parts)[0] if config.init_from else parts.init()), 0
    else:
        reader = checkpoint.open_reader(workdir / "checkpoints")
        restored = checkpoint.restore(reader, jax.eval_shape(parts.init), event.checkpoint)
        if restored.host["digest"] != parts.source.digest:
            raise ValueError("the data is not what this run was trained on: its content changed; restore it to replay")
        run, step = restored.state, restored.step
    last = event.step if event.kind == "abort" else event.step - 1
    call = train.make_train_call(config, parts)
    whole, rest = divmod(last - step, config.steps_per_call)
    sizes = [config.steps_per_call] * whole + [1] * rest
    for size in rich.progress.track(sizes, description=f"steps {step} to {last}", disable=not sizes):
        run, _ = call(run, parts.source.tables, curriculum.rows(parts.source, step, size, event.starts))
        step += size
    return run


def step_again(config: ConfigDict, parts: Parts, run: state.TrainState, rows: PyTree) -> dict[str, Any]:
    """The metrics of one step from `run`, which it consumes, as the record writes numbers."""
    rows = jax.tree.map(lambda leaf: leaf[None], rows)
    _, measured = train.make_train_call(config, parts)(run, parts.source.tables, rows)
    return {name: metrics.json_number(values[-1]) for name, values in history.join([jax.device_get(measured)]).items()}


def compare(event: Event, again: dict[str, Any]) -> str:
    """Whether the replay gave what was recorded."""
    different = [name for name in ("loss/total", "grad/norm") if event.ledger[name] != again[name]]
    if not different:
        return f"replayed exactly: loss {again['loss/total']}, gradient norm {again['grad/norm']}, as recorded"
    figures = "; ".join(f"{name} {again[name]}, recorded {event.ledger[name]}" for name in different)
    return f"replayed, not to the bit (another machine or version?): {figures}"


def terms_table(parts: Parts, event: Event, gradients: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each trained term: its value at the event, and the norm of its gradient on the trunk."""
    rows = []
    for name in train_step.trained_terms(parts.weights):
        there = {column: event.ledger[f"{column}/{name}"] for column in ("loss", "weighted") if event.kind != "abort"}
        norms = {"gradient on the trunk": float(gradients[f"grad/{name}"])}
        rows.append({"term": name} | there | norms | {"share": float(gradients[f"grad_share/{name}"])})
    return rows


def weighted_terms(parts: Parts, freeze: tuple[str, ...], run: state.TrainState, batch: Batch, params: PyTree) -> tuple:
    """Weighted terms by name, and the latents they are made of, as the training step computes them."""
    latents, out = train_step.forward(parts.objective, run, batch, params, freeze)
    return {name: parts.weights[name] * out.terms[name] for name in train_step.trained_terms(parts.weights)}, latents


def look(terms: Callable, run: state.TrainState, batch: Batch) -> Iterator[Stage]:
    """The parts of the step in the order in which they are computed, each array of them by name.

    terms(run, batch, params) -> weighted terms by name, latents.
    """
    values, latents = jax.jit(terms)(run, batch, run.params)
    before = {"batch": batch, "parameters": run.params, "teacher": run.target_params, "state": run.objective_state}
    for part, tree in (*before.items(), ("latents", latents), ("term", values)):
        yield from _stages(part, tree)

    @jax.jit
    def gradient(run: state.TrainState, batch: Batch, one: PyTree) -> PyTree:
        _, pull_back, _ = jax.vjp(lambda params: terms(run, batch, params), run.params, has_aux=True)
        return pull_back(one)[0]

    for name in values:
        one = {other: jnp.float32(other == name) for other in values}
        yield from _stages(f"gradient of {name}", gradient(run, batch, one))


def _stages(part: str, tree: PyTree) -> Iterator[Stage]:
    for path, leaf in paths.by_path(tree).items():
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            yield Stage(f"{part}: {path}", int(np.sum(~np.isfinite(leaf))), leaf.size)


def first_nan(terms: Callable, run: state.TrainState, batch: Batch) -> str | None:
    """The operation that makes the first NaN of the loss or its gradient, with its line; None where none does."""

    def total(params: PyTree, run: state.TrainState, batch: Batch) -> Array:
        return sum(terms(run, batch, params)[0].values())

    checked = checkify.checkify(jax.value_and_grad(total), errors=checkify.nan_checks)
    error, _ = jax.jit(checked)(run.params, run, batch)
    if (exception := error.get_exception()) is None:
        return None
    frames = traceback.extract_tb(exception.traceback_info.as_python_traceback())
    package = Path(__file__).parent
    ours = [f for f in frames if package in Path(f.filename).parents and f.filename != __file__]
    lines = [f"{Path(f.filename).relative_to(package.parent)}:{f.lineno} in {f.name}: {f.line}" for f in ours[-3:]]
    return "\n  ".join([str(error.get()), *lines])


def verdict(stages: list[Stage], nan: str | None) -> str:
    """Where the first value that is not finite arises, or that there is none."""
    first = next((stage for stage in stages if stage.bad), None)
    if first is None:
        return "every value of the step is finite, up to the gradients of its terms"
    where = f"first not finite: {first.name} ({first.bad} of {first.size} numbers)"
    return f"{where}\n{nan}" if nan else f"{where}; it is infinite, and no operation makes a NaN"

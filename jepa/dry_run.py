"""What a run would be, before it is one: parameters, shapes, memory and time per step. Makes no run folder."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
from clu import parameter_overview
from ml_collections import ConfigDict

from jepa import curriculum, metrics, paths, train
from jepa.parts import Parts, build
from jepa.types import PyTree

MIB = 2**20


def run(config: ConfigDict) -> None:
    """Prints the overview; memory is what the compiler reports, time is that of real steps after a warm-up."""
    parts = build(config)
    train_state = parts.init()
    print(parameter_overview.get_parameter_overview(train_state.params, include_stats=False))
    rows = curriculum.rows(parts.source, 0, config.steps_per_call)
    key = jax.random.key(config.seed)
    first = parts.source.indices(0)
    batch = jax.eval_shape(lambda rows: parts.source.gather(parts.source.tables, rows, key, True), first)
    shapes = [
        {"batch": paths.path_name(path), "shape": str(leaf.shape), "dtype": str(leaf.dtype)}
        for path, leaf in jax.tree.leaves_with_path(batch)
    ]
    metrics.print_table(shapes)
    compiled = train.make_train_call(config, parts).lower(train_state, parts.source.tables, rows).compile()
    memory = compiled.memory_analysis()
    seconds = seconds_of(compiled, parts, rows) / config.steps_per_call
    state_mib, temporary_mib = memory.argument_size_in_bytes / MIB, memory.temp_size_in_bytes / MIB
    print(f"data and state {state_mib:,.0f} MiB, temporaries {temporary_mib:,.0f} MiB")
    minutes = seconds * config.num_steps / 60
    print(f"{seconds * 1e3:,.0f} ms per step of {config.batch_size} examples: {minutes:,.0f} minutes for the run")


def step_seconds(config: ConfigDict, parts: Parts) -> float:
    """Seconds per training step, by itself and compiled."""
    rows = curriculum.rows(parts.source, 0, config.steps_per_call)
    return seconds_of(train.make_train_call(config, parts), parts, rows) / config.steps_per_call


def seconds_of(train_call: Callable, parts: Parts, rows: PyTree) -> float:
    """Seconds of the quickest of five dispatches, after one that warms up."""
    time_of_call(train_call, parts, rows)
    return min(time_of_call(train_call, parts, rows) for _ in range(5))


def time_of_call(compiled: Callable, parts: Parts, rows: PyTree) -> float:
    """Seconds of one dispatch; the state is donated to it, so every call gets a fresh one."""
    train_state = jax.block_until_ready(parts.init())
    began = time.perf_counter()
    jax.block_until_ready(compiled(train_state, parts.source.tables, rows))
    return time.perf_counter() - began

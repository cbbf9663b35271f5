"""The parts of a run, built from its config alone: what trains it, and what every command that reads it starts from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax
from ml_collections import ConfigDict

from jepa import (
    config_checks,
    curriculum,
    evaluation,
    gradients,
    optimizer,
    registry,
    representation,
    state,
    train_step,
)
from jepa.types import Array, Objective, PyTree, Source


class Parts(NamedTuple):
    """Everything a command needs to read or continue a run, built from its config alone."""

    source: Source
    objective: Objective
    tx: optax.GradientTransformation
    rate: optax.Schedule  # the learning rate, by applied steps
    weights: dict[str, float | None]
    init: Callable[..., state.TrainState]  # a fresh state, of another build of the objective if one is given; jitted
    evaluate: evaluation.Evaluate  # held-out figures; compiled once for the whole run
    diagnose: Callable[..., dict[str, Array]]  # of a state and the rows of its next batch; jitted
    embedders: Callable[[state.TrainState], evaluation.Embedders]  # what probes ask of a state


def keywords(config: ConfigDict) -> dict[str, Any]:
    """A sub-config as the keyword list of one `build`, without the `name` that chose it; its parts as plain dicts."""
    return {key: value for key, value in config.to_dict().items() if key != "name"}


def context_window(config: ConfigDict) -> int | None:
    """How many frames a run predicts from, at most; None where its data does not say."""
    data = config.data
    if "sources" in data:  # a mixture, of which all have the same window
        data = data.sources[data.shares.partition(":")[0]]
    return data.context_window if "context_window" in data else None


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


class Compiled(NamedTuple):
    """What a config comes to, whatever its seed; each function is compiled once."""

    objective: Objective
    tx: optax.GradientTransformation
    rate: optax.Schedule
    weights: dict[str, float | None]
    create: Callable[..., state.TrainState]  # (tables, rows [n, B, ...], seed, another objective=None)
    forwards: evaluation.Forwards
    embedders: Callable[[state.TrainState], evaluation.Embedders]
    diagnose: Callable[..., dict[str, Array]]  # (state, tables, rows)


def build_source(config: ConfigDict) -> Source:
    """The data, checked against what the rest of the config asks of it."""
    source = registry.build(
        "data",
        config.data.name,
        seed=config.seed,
        batch_size=config.batch_size,
        cache_dir=config.cache_dir,
        **keywords(config.data),
    )
    curriculum.check(**config.curriculum, num_levels=source.num_levels)
    config_checks.check_labels(config, source.stats)
    return source


def compile_for(config: ConfigDict, source: Source) -> Compiled:
    """Raises ValueError naming the key that does not fit."""
    objective = build_objective(config)
    weights = dict(config.weights)
    train_step.check_weights(weights, objective)
    config_checks.check_best_metric(config.best_metric, train_step.on_terms(weights))
    tx, rate = optimizer.build(num_steps=config.num_steps, freeze=config.freeze, **config.optimizer)

    def create(objective: Objective, tables: PyTree, rows: PyTree, seed: Array) -> state.TrainState:
        keys = jax.random.split(jax.random.key(seed), config.init_batches)
        batches = jax.vmap(source.gather, (None, 0, 0, None))(tables, rows, keys, True)
        together = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), batches)
        run = state.create(objective, tx, together, seed, teacher=config.target_ema is not None)
        batch = jax.tree.map(lambda leaf: leaf[0], batches)
        fixed = (run.params, run.target_params, run.objective_state)
        # Traced and not computed: what cannot work on a batch is said before there is a run.
        jax.eval_shape(lambda key: objective.trunk(*fixed, batch, key=key, step=0, train=True), keys[0])
        return run

    usual = jax.jit(functools.partial(create, objective))

    def create_of(tables: PyTree, rows: PyTree, seed: int, other: Objective | None = None) -> state.TrainState:
        compiled = usual if other is None else jax.jit(functools.partial(create, other))
        return compiled(tables, rows, seed)

    diagnosis = gradients.make_diagnose(
        objective, weights, max_grad_norm=config.max_grad_norm, freeze=tuple(config.freeze)
    )

    @jax.jit
    def diagnose(run: state.TrainState, tables: PyTree, rows: PyTree) -> dict[str, Array]:
        return diagnosis(run, source.gather(tables, rows, state.step_keys(run).data, True))

    return Compiled(
        objective,
        tx,
        rate,
        weights,
        create_of,
        evaluation.compile_forwards(objective, source, weights),
        evaluation.make_embedders(objective, window=context_window(config)),
        diagnose,
    )


def assemble(config: ConfigDict, source: Source, compiled: Compiled) -> Parts:
    """The parts of the run with this seed and its data."""
    objective = compiled.objective
    first = functools.cache(lambda: curriculum.rows(source, 0, config.init_batches))  # codebooks start from them

    def init(other: Objective | None = None) -> state.TrainState:
        return compiled.create(source.tables, first(), config.seed, other)

    def diagnose(run: state.TrainState, rows: PyTree) -> dict[str, Array]:
        return compiled.diagnose(run, source.tables, rows)

    evaluate = evaluation.make_evaluate(objective, source, compiled.forwards, seed=config.seed)
    return Parts(
        source, objective, compiled.tx, compiled.rate, compiled.weights, init, evaluate, diagnose, compiled.embedders
    )


def build(config: ConfigDict) -> Parts:
    """Builds the parts of a run. Raises ValueError naming the key that does not fit."""
    config_checks.check(config)
    source = build_source(config)
    return assemble(config, source, compile_for(config, source))


def of_seeds(configs: Sequence[ConfigDict]) -> list[Parts]:
    """The parts of runs that differ in their seed alone: each with its own data, all with the same functions."""
    sources = [build_source(config) for config in configs]
    compiled = compile_for(configs[0], sources[0])
    return [assemble(config, source, compiled) for config, source in zip(configs, sources, strict=True)]

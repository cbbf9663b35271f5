"""Where a run stands when it starts: at its last checkpoint, at the weights of another run, or at the beginning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jepa import checkpoint, config_checks, curriculum, early_stopping, optimizer, paths, representation, state
from jepa.parts import Parts, build_objective
from jepa.types import Array


def start_from(config: ConfigDict, parts: Parts) -> tuple[state.TrainState, list[str]]:
    """A fresh state with the parts `config.init_parts` of another run's latest weights, and the tasks it has seen.

    A quantizer that is taken over brings its state; any other starts from the tokens of the encoder that is.
    """
    other = checkpoint.read(Path(config.init_from).expanduser())
    config_checks.check_latent_norm(config, other.host, config.init_from)
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


def is_over(config: ConfigDict, step: int, record: dict[str, Any]) -> bool:
    """Whether the last step is trained, or patience has ended."""
    return step >= config.num_steps or early_stopping.is_over(record["patience"], config.early_stopping.patience)


def is_finished(config: ConfigDict, step: int, record: dict[str, Any], workdir: Path) -> bool:
    """Whether the last step is trained, or patience has ended, and the state is evaluated as the config asks."""
    if not is_over(config, step, record) or not (workdir / "probes.json").is_file():
        return False
    result = json.loads((workdir / "probes.json").read_text())
    same = result["step"] == step and result["final_examples"] == config.final_examples
    return same and "asked" in result and set(config.probes) <= set(result["asked"])


def how_to_extend(config: ConfigDict, step: int) -> str:
    """What would let a finished run go on."""
    if step < config.num_steps:
        return (
            f"{early_stopping.ended(config.early_stopping.metric)}; a larger --config.early_stopping.patience goes on"
        )
    return f"--config.num_steps={2 * step} would extend it"


OF_THE_DATA = ("digest", "train_ids", "seen_ids", "validation_ids")


def host_record(config: ConfigDict, parts: Parts, inherited: list[str]) -> dict[str, Any]:
    """What a run remembers on the host, in every checkpoint: of its data, which its folder has too, and of its past.

    `seen_ids` are the tasks its weights were trained on, here or in the run it started from. `latent_norm` is the
    policy of a world model's z and its target norm, None of any other run. `codes` are those of the last evaluation,
    against which the next one counts changes. `unseen` are metrics of steps that no line of the record shows yet,
    `recent` the losses that a spike is measured against, `findings` the names of those that were printed, `aborted` the
    condition of `config.abort` that ended the run.
    """
    held_out = sorted({task for source in parts.source.validation.values() for task in source.ids})
    train_ids = list(parts.source.ids)
    seen = sorted({*train_ids, *inherited})
    of_the_data = (parts.source.digest, train_ids, seen, held_out)
    return dict(zip(OF_THE_DATA, of_the_data, strict=True)) | {
        "latent_norm": config_checks.latent_norm_of(config),
        "codes": [],
        "patience": early_stopping.Patience(),
        "curriculum": curriculum.begin(config.curriculum.starts),
        "unseen": {},
        "recent": [],
        "findings": [],
        "aborted": None,
    }


def fresh(config: ConfigDict, parts: Parts) -> tuple[state.TrainState, dict[str, Any]]:
    """A state at step 0, from `init_from` if that is given, and what the run remembers then."""
    train_state, inherited = start_from(config, parts) if config.init_from else (parts.init(), [])
    return train_state, host_record(config, parts, inherited)


def record_of(config: ConfigDict, parts: Parts, host: dict[str, Any], step: int) -> dict[str, Any]:
    """The record as a checkpoint holds it. Raises ValueError where this run cannot go on from there."""
    if host["digest"] != parts.source.digest:
        raise ValueError("the data is not what this run was trained on: its content changed; restore it, or start anew")
    config_checks.check_latent_norm(config, host, "this run")
    if step % config.steps_per_call:
        raise ValueError(
            f"the run stopped at step {step}: config.steps_per_call {config.steps_per_call} must divide it"
        )
    record = host_record(config, parts, []) | host  # a run of an earlier version remembers less
    return record | {
        "patience": early_stopping.Patience(*record["patience"]),
        "curriculum": curriculum.Curriculum(*record["curriculum"]),
    }


def restore_or_start(
    config: ConfigDict, parts: Parts, checkpoints: checkpoint.Checkpoints
) -> tuple[state.TrainState, int, dict[str, Any]]:
    """The state of the latest readable checkpoint, or a fresh one (from `init_from`, if given), its step and data."""
    restored = checkpoint.restore(checkpoints, jax.eval_shape(parts.init))
    if restored is None:
        train_state, record = fresh(config, parts)
        return train_state, 0, record
    for notice in restored.notices:
        print(notice)
    record = record_of(config, parts, restored.host, restored.step)
    if record["aborted"] in config.abort:
        raise ValueError(
            f"config.abort ended this run at step {restored.step}: {record['aborted']!r} held; without it in "
            "config.abort the run goes on"
        )
    print(f"resuming at step {restored.step}")
    return restored.state, restored.step, record

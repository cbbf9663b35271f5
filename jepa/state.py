"""The training state: everything that changes on the device, in one pytree."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.training import train_state

from jepa.representation import teacher_params
from jepa.types import Array, Batch, Objective, PyTree


class Health(NamedTuple):
    """Counters of steps that were not applied because a loss or gradient was not finite; int32 [] each."""

    skipped: Array  # in all
    consecutive: Array  # in a row, up to now
    bad_term: Array  # of the last one, by index into the trained terms sorted by name; their number is the gradient


class TrainState(train_state.TrainState):
    """Flax's TrainState with the EMA target tree (None without one), the objective's state, health and the key.

    `step` counts batches seen, so the data and the randomness advance even when a step is skipped.
    """

    target_params: PyTree
    objective_state: PyTree
    health: Health
    key: Array


class StepKeys(NamedTuple):
    """The independent streams of one step: what is drawn for the data, by the trunk and by the losses."""

    data: Array
    trunk: Array
    loss: Array


def step_keys(state: TrainState) -> StepKeys:
    """Keys for the coming step, a function of the state's key and step alone."""
    return StepKeys(*jax.random.split(jax.random.fold_in(state.key, state.step), 3))


def create(
    objective: Objective, tx: optax.GradientTransformation, batch: Batch, seed: int | Array, *, teacher: bool
) -> TrainState:
    """A fresh state for `batch`'s shapes; reproducible from `seed`. Meant to be jitted."""
    key_init, key_train = jax.random.split(jax.random.key(seed))
    params, objective_state = objective.init(key_init, batch)
    return TrainState(
        step=jnp.int32(0),
        apply_fn=objective.encode,
        params=params,
        tx=tx,
        opt_state=tx.init(params),
        # Copied: a leaf aliased by two fields could not be donated.
        target_params=jax.tree.map(jnp.copy, teacher_params(params)) if teacher else None,
        objective_state=objective_state,
        health=Health(jnp.int32(0), jnp.int32(0), jnp.int32(-1)),
        key=key_train,
    )

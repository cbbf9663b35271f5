"""One training step for every objective: state, batch -> state, metrics; and the loss ledger.

The ledger: an objective returns unweighted terms, `weights` names exactly the same terms, and the total is their
weighted sum. A weight None removes a term from the compiled step; 0.0 reports it without training on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from jepa.optimizer import stop_frozen
from jepa.representation import teacher_params
from jepa.state import Health, TrainState, step_keys
from jepa.types import Array, Batch, LossOutput, Objective, PyTree

StepFunction = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]


def check_weights(weights: Mapping[str, float | None], objective: Objective) -> None:
    """Raises ValueError unless `weights` names exactly the terms of the objective."""
    if set(weights) != set(objective.terms):
        raise ValueError(
            f"config.weights names {sorted(weights)}; the terms of the objective are {sorted(objective.terms)}"
        )
    if all(weight is None for weight in weights.values()):
        raise ValueError(f"config.weights turns off every term; give at least one of {sorted(weights)} a weight")


def ledger(terms: Mapping[str, Array], weights: Mapping[str, float | None]) -> tuple[Array, dict[str, Array]]:
    """The total and, by path, each term raw (`loss/`), weighted (`weighted/`) and as a share of it (`share/`)."""
    on = on_terms(weights)
    weighted = {name: weights[name] * terms[name] for name in on}
    # A weight of 0 reports a term; were it summed, a NaN in it would still be one in the total.
    total = sum((weighted[name] for name in trained_terms(weights)), jnp.float32(0.0))
    scale = sum(jnp.abs(value) for value in weighted.values())
    metrics = {"loss/total": total}
    for name in on:
        metrics[f"loss/{name}"] = terms[name]
        metrics[f"weighted/{name}"] = weighted[name]
        metrics[f"share/{name}"] = jnp.abs(weighted[name]) / jnp.maximum(scale, jnp.finfo(scale.dtype).tiny)
    return total, metrics


def forward(
    objective: Objective, state: TrainState, batch: Batch, params: PyTree, freeze: tuple[str, ...]
) -> tuple[PyTree, LossOutput]:
    """The latents and losses of the step that `state` would take on this batch, as functions of `params`."""
    keys, moment = step_keys(state), dict(step=state.step, train=True)
    params = stop_frozen(params, freeze)
    fixed = (state.target_params, state.objective_state)
    latents, objective_state = objective.trunk(params, *fixed, batch, key=keys.trunk, **moment)
    return latents, objective.loss(params, fixed[0], objective_state, latents, batch, key=keys.loss, **moment)


def make_train_step(
    objective: Objective,
    weights: Mapping[str, float | None],
    *,
    max_grad_norm: float,
    target_ema: optax.ScalarOrSchedule | None = None,
    freeze: tuple[str, ...] = (),
) -> StepFunction:
    """The step function; pure, and not yet jitted. Gradients are clipped by their global norm to `max_grad_norm`.

    target_ema: decay of the EMA target tree per step, or a schedule of it, for a state that carries one.
    freeze: parameter paths that get no gradient, and so do not count in its norm.
    """
    check_weights(weights, objective)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        def total_loss(params):
            _, out = forward(objective, state, batch, params, freeze)
            total, metrics = ledger(out.terms, weights)
            # Of parameters that no term reads, so that one backward pass gives each its own gradient.
            return total + sum(jax.tree.leaves(out.detached)), (total, out, metrics)

        grads, (total, out, metrics) = jax.grad(total_loss, has_aux=True)(state.params)
        updates, opt_state, grad_norm = clipped_update(state, grads, max_grad_norm)
        params = optax.apply_updates(state.params, updates)
        target_params = state.target_params
        if target_params is not None:
            decay = target_ema(state.step) if callable(target_ema) else target_ema
            target_params = optax.incremental_update(teacher_params(params), target_params, 1.0 - decay)
            metrics["target_ema"] = jnp.float32(decay)

        ok = jnp.isfinite(total) & jnp.isfinite(optax.tree.norm((grad_norm, split_monitor(grads)[0])))
        proposed = state.replace(
            params=params, opt_state=opt_state, target_params=target_params, objective_state=out.state
        )
        # Selected, never multiplied: 0 * NaN is NaN. Only the step (and with it data and randomness) moves on.
        new_state = jax.tree.map(lambda new, old: jnp.where(ok, new, old), proposed, state)
        new_state = new_state.replace(step=state.step + 1, health=update_health(state.health, ok, out, weights))
        metrics |= {f"metric/{name}": value for name, value in reported(out.metrics, weights).items()}
        metrics |= {f"detached/{name}": value for name, value in (out.detached or {}).items()}
        metrics |= {
            "grad/norm": grad_norm,
            "grad/norm_clipped": jnp.minimum(grad_norm, max_grad_norm),
            "health/skipped": new_state.health.skipped,
            "health/consecutive": new_state.health.consecutive,
            "health/bad_term": new_state.health.bad_term,
        }
        return new_state, metrics

    return train_step


def clipped_update(state: TrainState, grads: PyTree, max_grad_norm: float) -> tuple[PyTree, PyTree, Array]:
    """Updates and optimizer state of a gradient clipped to `max_grad_norm`, and its norm before that.

    The heads that watch belong neither to the norm nor to what is clipped.
    """
    watching, grads = split_monitor(grads)
    grad_norm = optax.tree.norm(grads)
    clip = jnp.minimum(1.0, max_grad_norm / jnp.maximum(grad_norm, jnp.finfo(jnp.float32).tiny))
    clipped = jax.tree.map(lambda g: g * clip, grads) | watching
    return *state.tx.update(clipped, state.opt_state, state.params), grad_norm


def split_monitor(tree: PyTree) -> tuple[PyTree, PyTree]:
    """The group `monitor` of parameters or their gradients, empty where there is none, and all the others."""
    watching = {name: part for name, part in tree.items() if name == "monitor"}
    return watching, {name: part for name, part in tree.items() if name != "monitor"}


def reported(values: Mapping[str, Array], weights: Mapping[str, float | None]) -> dict[str, Array]:
    """`values` by path without those of a term that is off: to report them would compile the term after all."""
    off = {name for name, weight in weights.items() if weight is None}
    return {path: value for path, value in values.items() if path.split("/")[0] not in off}


def on_terms(weights: Mapping[str, float | None]) -> list[str]:
    """The terms that are computed, trained on or only reported, by name."""
    return [name for name, weight in sorted(weights.items()) if weight is not None]


def trained_terms(weights: Mapping[str, float | None]) -> list[str]:
    """The terms that the total is made of, by name."""
    return [name for name, weight in sorted(weights.items()) if weight]


def update_health(health: Health, ok: Array, out: LossOutput, weights: Mapping[str, float | None]) -> Health:
    """Counts a bad step and remembers the first term, by name, that was not finite."""
    on = trained_terms(weights)
    finite = jnp.stack([jnp.isfinite(out.terms[name]) for name in on] + [jnp.array(False)])
    return Health(
        skipped=health.skipped + jnp.int32(~ok),
        consecutive=jnp.where(ok, 0, health.consecutive + 1),
        bad_term=jnp.where(ok, health.bad_term, jnp.argmin(finite).astype(jnp.int32)),
    )


def bad_terms(weights: Mapping[str, float | None]) -> list[str]:
    """What `Health.bad_term` indexes: the trained terms, and "gradient" where each of them was finite."""
    return [*trained_terms(weights), "gradient"]

"""What each term does to the gradient: the half of the loss ledger that the training step cannot afford every time.

Compiled apart from the step and called every `config.diagnose_every` steps. One forward pass, and one backward pass for
each trained term: a term may be a tenth of the loss and nothing of the gradient.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from jepa.paths import path_name
from jepa.state import TrainState
from jepa.train_step import clipped_update, forward, split_monitor, trained_terms
from jepa.types import Array, Batch, Objective, PyTree

Diagnose = Callable[[TrainState, Batch], dict[str, Array]]


def by_module(tree: PyTree) -> dict[str, list[Array]]:
    """The leaves of a tree of parameters by module: the first two names of their path, such as `trunk/encoder`."""
    modules: dict[str, list[Array]] = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        modules.setdefault("/".join(path_name(path).split("/")[:2]), []).append(leaf)
    return modules


def gramian(leaves: list[Array]) -> Array:
    """Inner products [n, n] of n gradients, each leaf stacked as [n, ...]."""
    rows = [leaf.reshape(len(leaf), -1) for leaf in leaves]
    precise = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    return functools.reduce(jnp.add, [precise(row, row.T) for row in rows])


def make_diagnose(
    objective: Objective, weights: Mapping[str, float | None], *, max_grad_norm: float, freeze: tuple[str, ...] = ()
) -> Diagnose:
    """A function (state, batch) -> figures of the step that this state would take on the batch, [] each; not jitted.

    grad/<term>                 norm of the weighted term's gradient on the shared trunk
    grad/<term>/<module>        the same on one module, such as `trunk/encoder` or `heads/predictor`
    grad_share/<term>           of the sum of these norms on the trunk
    grad_cosine/<a>/<b>         of the angle between two terms' gradients on the trunk; 0 where one of them is zero
    update_ratio[/<module>]     norm of the optimizer's update over that of the parameters, of all and of a module
    """
    names = trained_terms(weights)

    def weighted_terms(state: TrainState, batch: Batch, params: PyTree) -> Array:
        _, out = forward(objective, state, batch, params, freeze)
        return jnp.stack([weights[name] * out.terms[name] for name in names])

    def diagnose(state: TrainState, batch: Batch) -> dict[str, Array]:
        _, pull_back = jax.vjp(functools.partial(weighted_terms, state, batch), state.params)
        # One after another: under vmap, as in jacrev, JAX 0.10.2 compiles the gradient of rsqrt wrongly for a CPU.
        gradients = jax.lax.map(lambda unit: pull_back(unit)[0], jnp.eye(len(names)))  # every leaf [n, ...]
        products = {module: gramian(leaves) for module, leaves in by_module(split_monitor(gradients)[1]).items()}
        trunk = sum(product for module, product in products.items() if module.startswith("trunk/"))
        return (
            shares(names, trunk)
            | {
                f"grad/{name}/{module}": jnp.sqrt(product[i, i])
                for module, product in products.items()
                for i, name in enumerate(names)
            }
            | update_ratios(state, jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), gradients), max_grad_norm)
        )

    return diagnose


def shares(names: list[str], products: Array) -> dict[str, Array]:
    """Norms, shares and cosines from the inner products [n, n] of the terms' gradients."""
    norms = jnp.sqrt(jnp.diagonal(products))
    tiny = jnp.finfo(jnp.float32).tiny
    total = jnp.maximum(jnp.sum(norms), tiny)
    figures = {f"grad/{name}": norms[i] for i, name in enumerate(names)}
    figures |= {f"grad_share/{name}": norms[i] / total for i, name in enumerate(names)}
    for (i, first), (j, second) in itertools.combinations(enumerate(names), 2):
        either_zero = (norms[i] == 0) | (norms[j] == 0)
        cosine = products[i, j] / jnp.where(either_zero, 1.0, norms[i] * norms[j])
        figures[f"grad_cosine/{first}/{second}"] = jnp.where(either_zero, 0.0, cosine)
    return figures


def update_ratios(state: TrainState, gradient: PyTree, max_grad_norm: float) -> dict[str, Array]:
    """||update|| / ||parameters|| of the clipped gradient's step, for all parameters and for every module."""
    tiny = jnp.finfo(jnp.float32).tiny
    updates, _, _ = clipped_update(state, gradient, max_grad_norm)
    (_, updates), (_, trained) = split_monitor(updates), split_monitor(state.params)
    changed, there = by_module(updates), by_module(trained)
    ratios = {
        module: optax.tree.norm(changed[module]) / jnp.maximum(optax.tree.norm(there[module]), tiny) for module in there
    }
    whole = optax.tree.norm(updates) / jnp.maximum(optax.tree.norm(trained), tiny)
    return {"update_ratio": whole} | {f"update_ratio/{module}": ratio for module, ratio in ratios.items()}

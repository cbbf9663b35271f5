"""AdamW under a warm-up and cosine schedule, with weight decay on matrices other than codebooks; frozen parts stay."""

from __future__ import annotations

import jax
import optax

from jepa.paths import path_name
from jepa.types import PyTree


def under(path: str, part: str) -> bool:
    """True where the parameter `path` is `part` or lies below it."""
    return path == part or path.startswith(part + "/")


def stop_frozen(params: PyTree, freeze: tuple[str, ...]) -> PyTree:
    """`params` with no gradient through the leaves at or below the paths in `freeze`."""
    return jax.tree.map_with_path(
        lambda path, x: jax.lax.stop_gradient(x) if any(under(path_name(path), part) for part in freeze) else x, params
    )


def target_decay(start: float | None, final: float | None, num_steps: int) -> optax.ScalarOrSchedule | None:
    """Decay of the EMA target: constant, or rising from `start` to `final` on a cosine (BYOL, arXiv:2006.07733)."""
    if start is None or final is None:
        return start
    fall = optax.cosine_decay_schedule(1.0, num_steps)
    return lambda step: final - (final - start) * fall(step)


def decayed(params: PyTree) -> PyTree:
    """Which parameters decay: matrices, except codebooks, whose rows lie where the tokens are and not near 0, and
    the heads that only watch."""

    def of(path: tuple, x: jax.Array) -> bool:
        name = path_name(path)
        return x.ndim > 1 and not name.rpartition("/")[2].startswith("codebook") and not under(name, "monitor")

    return jax.tree.map_with_path(of, params)


def build(
    *,
    num_steps: int,
    learning_rate: float,
    warmup_steps: int,
    final_rate: float,
    weight_decay: float,
    b1: float,
    b2: float,
    freeze: tuple[str, ...] = (),
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer, and its learning rate by applied steps: up on a line over `warmup_steps`, then down on a cosine to
    `final_rate` of its peak.

    freeze: parameter paths, such as "trunk/encoder", below which nothing changes.
    """
    if not 0 <= warmup_steps < num_steps:
        raise ValueError(
            f"optimizer.warmup_steps is {warmup_steps}; it must be at least 0 and below num_steps {num_steps}"
        )
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, warmup_steps, num_steps, final_rate * learning_rate
    )
    adamw = optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=decayed)
    if not freeze:
        return adamw, schedule

    def label(params: PyTree) -> PyTree:
        paths = [path_name(path) for path, _ in jax.tree.leaves_with_path(params)]
        unmatched = [part for part in freeze if not any(under(path, part) for path in paths)]
        if unmatched:
            raise ValueError(f"config.freeze names {unmatched}, which match no parameter; the first is {paths[0]!r}")
        return jax.tree.map_with_path(
            lambda path, _: "frozen" if any(under(path_name(path), part) for part in freeze) else "trained", params
        )

    return optax.multi_transform({"trained": adamw, "frozen": optax.set_to_zero()}, label), schedule

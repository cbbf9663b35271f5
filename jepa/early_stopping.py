"""When a run ends before its last step: patience with a held-out figure, and conditions that no run should outlive.

The state is a few numbers, kept in every checkpoint, so that a resumed run is as patient as one that was not stopped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

CONDITION = re.compile(r"\s*(?P<metric>[\w/]+)\s*(?P<sign>[<>])\s*(?P<limit>[^\s]+)(?:\s+after\s+(?P<after>\d+))?\s*")


class Aborted(Exception):
    """A condition of `config.abort` holds; everything up to the current step is saved."""


class Patience(NamedTuple):
    """The best value so far and its step (None and 0 before the first), and how many evaluations brought no better."""

    best: float | None = None
    best_step: int = 0
    waited: int = 0


class Condition(NamedTuple):
    """`metric` below (`<`) or above (`>`) `limit`, from step `after` on."""

    metric: str
    sign: str
    limit: float
    after: int


def check(*, metric: str, patience: int | None, min_delta: float, mode: str, warmup_steps: int) -> None:
    """Raises ValueError naming the key of `config.early_stopping` that is out of its range."""
    if patience is not None and patience < 1:
        raise ValueError(
            f"early_stopping.patience is {patience}; it must be at least 1 evaluation, or none to never stop"
        )
    if not min_delta >= 0:
        raise ValueError(f"early_stopping.min_delta is {min_delta}; it must be at least 0")
    if mode not in ("min", "max"):
        raise ValueError(f"early_stopping.mode is {mode!r}; it must be 'min' or 'max'")
    if warmup_steps < 0:
        raise ValueError(f"early_stopping.warmup_steps is {warmup_steps}; it must be at least 0")


def watch(state: Patience, step: int, value: float, *, min_delta: float, mode: str, warmup_steps: int) -> Patience:
    """The state after the evaluation at `step`. Better is by more than `min_delta`; a NaN never is.

    Evaluations before `warmup_steps` do not count.
    """
    if step < warmup_steps:
        return state
    sign = 1.0 if mode == "min" else -1.0
    better = math.isfinite(value) and (state.best is None or sign * (state.best - value) > min_delta)
    return Patience(float(value), step, 0) if better else state._replace(waited=state.waited + 1)


def is_over(state: Patience, patience: int | None) -> bool:
    """Whether as many evaluations as `patience` have passed without a better one; never without a patience."""
    return patience is not None and state.waited >= patience


def ended(metric: str) -> str:
    """Why a run that is over by patience is."""
    return f"{metric} had not become better for as many evaluations as config.early_stopping.patience"


def conditions(texts: Iterable[str]) -> list[Condition]:
    """The conditions of `config.abort`, such as `codes/usage < 0.08 after 1000`. Raises ValueError for another form."""
    return [_condition(text) for text in texts]


def _condition(text: Any) -> Condition:
    matched = CONDITION.fullmatch(text) if isinstance(text, str) else None
    try:
        fields = matched.groupdict("0")
        limit = float(fields["limit"])
    except (AttributeError, ValueError) as error:
        raise ValueError(
            f"config.abort has {text!r}; it has to read '<metric> < <number>' or '>', and may end in 'after <step>', "
            "such as 'codes/usage < 0.08 after 1000'"
        ) from error
    return Condition(fields["metric"], fields["sign"], limit, int(fields["after"]))


def broken(texts: Iterable[str], held_out: Mapping[str, float], step: int) -> str | None:
    """The first condition that holds of the figures just measured, none if there are none. A NaN is on neither side."""
    for text in texts if held_out else ():
        metric, sign, limit, after = _condition(text)
        if step >= after and (held_out[metric] < limit if sign == "<" else held_out[metric] > limit):
            return text
    return None


def broken_because(text: str, held_out: Mapping[str, float], step: int) -> str:
    """A condition that holds, with the value that it holds of."""
    metric = _condition(text).metric
    return f"{metric} is {held_out[metric]:.4g} at step {step}, and config.abort has {text!r}"

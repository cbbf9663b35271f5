"""What the runs of a suite say: means over seeds, paired differences, and claims held against them.

Runs of one seed are a pair: they share their data and their draws. A figure of probes varies between tasks as well, and
all runs answer the same questions, so that variance does not shrink with seeds and is added to theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.05
ENOUGH = 5  # paired seeds for a verdict; fewer are a screening


class Estimate(NamedTuple):
    """A mean over `n` seeds with its 95 % t interval, None with a single one, and the standard error behind it."""

    mean: float
    low: float | None
    high: float | None
    error: float
    n: int


def estimate(values: Sequence[float], task_variance: float = 0.0) -> Estimate:
    """The mean of a figure over seeds. task_variance: of the mean, from the tasks that all seeds are asked about."""
    values = np.asarray(values, float)
    n, mean = len(values), float(np.mean(values))
    if n < 2 or not np.isfinite(values).all():
        return Estimate(mean, None, None, math.nan, n)
    error = math.sqrt(np.var(values, ddof=1) / n + task_variance)
    half = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * error
    return Estimate(mean, mean - half, mean + half, error, n)


def p_above(found: Estimate, threshold: float = 0.0) -> float:
    """One-sided p of the hypothesis that the mean is at most `threshold`; 1 where there is no spread to judge by."""
    if found.low is None:
        return 1.0
    if found.error == 0.0:
        return 0.0 if found.mean > threshold else 1.0
    return float(stats.t.sf((found.mean - threshold) / found.error, found.n - 1))


def p_below(found: Estimate, threshold: float = 0.0) -> float:
    """One-sided p of the hypothesis that the mean is at least `threshold`."""
    return p_above(found._replace(mean=-found.mean), -threshold)


def p_different(found: Estimate) -> float:
    """Two-sided p of the hypothesis that the mean is 0."""
    return min(1.0, 2 * min(p_above(found), p_below(found)))


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p of a family of tests (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    adjusted, largest = [1.0] * len(p), 0.0
    for rank, index in enumerate(np.argsort(p, kind="stable")):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted


class Evidence(NamedTuple):
    """For and against a claim: one-sided p of its contrary, and of the claim itself."""

    found: Estimate  # the figure, or the difference, that the claim is about, less its threshold
    p_for: float
    p_against: float


def evidence(found: Estimate, expects: str, margin: float | None) -> Evidence:
    """expects: "lower" or "higher" than 0, or "within" `margin` of it, which takes two one-sided tests."""
    if expects == "within":
        inside = max(p_above(found, -margin), p_below(found, margin))
        return Evidence(found, inside, min(1.0, 2 * min(p_above(found, margin), p_below(found, -margin))))
    below, above = p_below(found), p_above(found)
    return Evidence(found, below, above) if expects == "lower" else Evidence(found, above, below)


def verdicts(found: Sequence[Evidence]) -> list[tuple[str, float]]:
    """`confirmed`, `refuted` or `undecided` for each claim of a suite, with its Holm-adjusted two-sided p."""
    adjusted = holm([min(1.0, 2 * min(each.p_for, each.p_against)) for each in found])
    said = []
    for each, p in zip(found, adjusted, strict=True):
        decided = each.found.n >= ENOUGH and p < LEVEL
        said.append((("confirmed" if each.p_for < each.p_against else "refuted") if decided else "undecided", p))
    return said

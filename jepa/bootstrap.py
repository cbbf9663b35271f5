"""Scores and their uncertainty over tasks: resamples draw whole groups, whose rows are not independent.

Weights are [B, n]: how often each of n rows occurs in each of B resamples. Two encoders under the same weights are
compared in pairs.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np


class Outcome(NamedTuple):
    """The answers of one encoder to one probe: a score per question, or a decision value beside its label."""

    values: np.ndarray  # [n]
    groups: np.ndarray  # [n]: the task of each, over which intervals are taken
    labels: np.ndarray | None = None  # bool [n]: then the score is the area under the ROC curve


def resamples(groups: np.ndarray, *, num: int = 1000, seed: int = 0) -> np.ndarray:
    """Weights [num, n] of a bootstrap that draws whole groups (tasks) with replacement."""
    _, member = np.unique(groups, return_inverse=True)
    return _drawn(int(member.max()) + 1, num, seed)[:, member]


@functools.lru_cache(maxsize=8)  # every encoder is asked under the same ones
def _drawn(count: int, num: int, seed: int) -> np.ndarray:
    """How often each of `count` groups occurs in each of `num` draws of as many, [num, count]."""
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=num)
    return drawn.astype(np.float32)


def score(outcome: Outcome, weights: np.ndarray | None = None) -> np.ndarray:
    """The mean of the values, or the area under the ROC curve where there are labels; [B] under weights [B, n]."""
    weights = np.ones((1, len(outcome.values))) if weights is None else weights
    if outcome.labels is None:
        return weights @ outcome.values / weights.sum(1)
    return auc(outcome.values, outcome.labels, weights)


def resampled(outcome: Outcome, *, num: int = 200) -> list[float]:
    """The score under each of `num` resamples of the tasks, alike for every encoder: what two of them kept gives
    the variance of their difference over tasks."""
    return score(outcome, resamples(outcome.groups)[:num]).tolist()


def auc(values: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """P(a positive ranks above a negative), ties counting half, for each row of weights [B, n] -> [B]."""
    order = np.argsort(values, kind="stable")
    values, labels, weights = values[order], labels[order], weights[:, order]
    negatives = np.zeros((len(weights), len(values) + 1), np.float32)  # counts: exact
    np.cumsum(np.where(labels, np.float32(0), weights), axis=1, out=negatives[:, 1:])
    below, upto = (np.searchsorted(values, values[labels], side=side) for side in ("left", "right"))
    positive = weights[:, labels]
    wins = np.sum(positive * (negatives[:, below] + negatives[:, upto]), axis=1, dtype=np.float64) / 2
    return wins / np.maximum(positive.sum(1, dtype=np.float64) * negatives[:, -1], 1e-12)


class Scored(NamedTuple):
    """An outcome with its score, of all questions and under the resamples: what intervals and differences are from."""

    outcome: Outcome
    score: float
    resampled: np.ndarray  # [B]


def scored(outcome: Outcome, weights: np.ndarray) -> Scored:
    return Scored(outcome, float(score(outcome)[0]), score(outcome, weights))


def interval(of: Scored) -> dict[str, float]:
    """A score with its 95 % percentile interval over the resamples."""
    low, high = np.quantile(of.resampled, [0.025, 0.975])
    return {"score": of.score, "low": float(low), "high": float(high)}


def paired_difference(a: Scored, b: Scored) -> dict[str, float]:
    """Score of a less score of b on the same questions, with its 95 % interval: both are resampled alike.

    Raises ValueError where the two do not answer the same questions.
    """
    same = np.array_equal(a.outcome.groups, b.outcome.groups) and np.array_equal(a.outcome.labels, b.outcome.labels)
    if not same:
        raise ValueError("a paired difference needs two encoders' answers to the same questions, in the same order")
    low, high = np.quantile(a.resampled - b.resampled, [0.025, 0.975])
    return {"difference": a.score - b.score, "low": float(low), "high": float(high)}

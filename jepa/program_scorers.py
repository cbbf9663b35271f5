"""The probes about programs as functions of embeddings; questions are those of `jepa.data._program_probes`.

Embeddings come as a function z(rows int [...]) -> float32 [..., D], so that the 9000 numbers of a grid's pixels need
not all be in memory. What is fitted is a ridge in closed form.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jepa import scorers
from jepa.bootstrap import Outcome
from jepa.data._program_probes import Episodes, Pairs
from jepa.data._program_rankings import Ranking

Embeddings = Callable[[np.ndarray], np.ndarray]
BLOCK = 32  # questions at a time


def reciprocal_rank(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Expected 1 / rank of the best right candidate when ties are broken at random, [Q]; scores and right [Q, C].

    Scores within 1e-5 of the largest magnitude in their row are a tie, as in `scorers.expected_top1`.
    """
    tolerance = 1e-5 * np.abs(scores).max(1, keepdims=True)
    best = np.where(right, scores, -np.inf).max(1, keepdims=True)
    above = np.sum(~right & (scores > best + tolerance), axis=1)
    tied = np.abs(scores - best) <= tolerance
    wrong, good = np.sum(tied & ~right, axis=1), np.sum(tied & right, axis=1)
    expected, pending = np.zeros(len(scores)), np.ones(len(scores))
    for k in range(scores.shape[1]):  # the first right one of those that tie has k wrong ones before it
        left = np.maximum(good + wrong - k, 1)
        expected += pending * good / left / (1 + above + k)
        pending *= np.maximum(wrong - k, 0) / left
    return expected


def chance(right: np.ndarray) -> float:
    """The mean reciprocal rank when nothing is known."""
    return float(np.mean(reciprocal_rank(np.zeros(right.shape), right)))


def families(z: Embeddings, training: Pairs, test: Pairs, *, penalty: float = 0.3) -> dict[str, Outcome]:
    """Which family made y of x? 1 where a linear probe (ridge on one-hot families) says it.

    `pair` reads [z_x, z_y, z_y - z_x], `delta` z_y - z_x alone, and `input_only`, the control, z_x alone.
    """
    known = np.unique(training.families)
    targets = (training.families[:, None] == known).astype(np.float32)
    outcomes = {}
    for form, features in FORMS.items():
        decide = scorers.ridge(features(z, training.rows), targets, penalty=penalty)
        said = [
            decide(features(z, test.rows[start : start + 8 * BLOCK])).argmax(1)
            for start in range(0, len(test.rows), 8 * BLOCK)
        ]
        outcomes[form] = Outcome((known[np.concatenate(said)] == test.families).astype(float), test.groups)
    return outcomes


def _delta(z: Embeddings, rows: np.ndarray) -> np.ndarray:
    return z(rows[:, 1]) - z(rows[:, 0])


def _pair(z: Embeddings, rows: np.ndarray) -> np.ndarray:
    return np.concatenate([z(rows[:, 0]), z(rows[:, 1]), _delta(z, rows)], axis=1)


FORMS = {"pair": _pair, "delta": _delta, "input_only": lambda z, rows: z(rows[:, 0])}


def orbits(z: Embeddings, q: Ranking) -> dict[str, Outcome]:
    """What comes after z_1, z_2, z_3? Near z_3 + (z_3 - z_2), or in the direction of z_3 - z_2; `copy`: near z_3."""
    scored = {name: [] for name in ("extrapolation", "delta_cosine", "copy")}
    for block in _blocks(q):
        (_, z_2, z_3), c = z(q.shown[block]).swapaxes(0, 1), z(q.candidates[block])
        scored["extrapolation"].append(scorers.nearest(c, 2 * z_3 - z_2))
        scored["delta_cosine"].append(scorers.delta_cosine(c, z_3, z_3 - z_2))
        scored["copy"].append(scorers.nearest(c, z_3))
    return _ranked(scored, q)


def first_steps(z: Embeddings, q: Ranking) -> dict[str, Outcome]:
    """Which step leads from x towards y? What it makes of x is near z_y; `copy`: near z_x, whatever y is."""
    scored = {"nearest": [], "copy": []}
    for block in _blocks(q):
        (z_x, z_y), c = z(q.shown[block]).swapaxes(0, 1), z(q.candidates[block])
        scored["nearest"].append(scorers.nearest(c, z_y))
        scored["copy"].append(scorers.nearest(c, z_x))
    return _ranked(scored, q)


def predicted(z: Embeddings, z_hat: np.ndarray, q: Ranking) -> Outcome:
    """The candidates by their distance from predictions [Q, D] in the space of z."""
    scores = [scorers.nearest(z(q.candidates[block]), z_hat[block]) for block in _blocks(q)]
    return _ranked({"": scores}, q)[""]


def _blocks(q: Ranking) -> list[slice]:
    return [slice(start, start + BLOCK) for start in range(0, len(q.groups), BLOCK)]


def _ranked(scored: dict[str, list[np.ndarray]], q: Ranking) -> dict[str, Outcome]:
    return {name: Outcome(reciprocal_rank(np.concatenate(s), q.right), q.groups) for name, s in scored.items()}


def few_shot(z: Embeddings, pairs: Pairs, episodes: Episodes, *, shots: int) -> dict[str, Outcome]:
    """Which of N families made y of x, after `shots` examples of each? The nearest mean example (Snell et al.,
    Prototypical networks, arXiv:1703.05175), of unit vectors; the share of an episode's queries that are told right.

    `delta` compares z_y - z_x and `input_only`, the control, z_x. A query as near to two means counts half.
    """
    outcomes = {}
    for form in ("delta", "input_only"):
        x = FORMS[form](z, pairs.rows)
        x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        shares = []
        for support, query in zip(episodes.support[..., :shots], episodes.queries, strict=True):
            prototypes = x[support].mean(1)  # [N, D]
            answers = x[query].reshape(-1, x.shape[1])  # [N * q, D], family by family
            scores = 2 * answers @ prototypes.T - np.sum(prototypes**2, axis=1)[None]
            best = scores >= scores.max(1, keepdims=True) - 1e-5
            own = np.repeat(np.arange(len(query)), query.shape[1])
            shares.append(np.mean(best[np.arange(len(own)), own] / best.sum(1)))
        outcomes[form] = Outcome(np.array(shares), np.arange(len(shares)))
    return outcomes

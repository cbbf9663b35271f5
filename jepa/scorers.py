"""The probes as functions of embeddings: rule matching, same-task retrieval and facts about single grids.

None of them trains the encoder. Each takes the embeddings z [n, D] of all grids and questions that name their rows
(`jepa.data._probes`), and returns an `Outcome` for every way to score. What is fitted, a ridge or a covariance, is
fitted on training tasks and has a closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from jepa import tables as object_tables
from jepa.bootstrap import Outcome
from jepa.data import _probes

CHUNK = 256
FACTS = ("repeated-shape", *_probes.SYMMETRIES)
Table = Mapping[str, np.ndarray]


# Embedding in chunks of one size.


def in_chunks(function: Callable, table: Table, rows: np.ndarray, *, chunk: int = CHUNK) -> np.ndarray:
    """`function` of the chosen rows of a table, [n, ...] -> [n, D] float32, `chunk` at a time so that it compiles once.

    rows int32 [n], or [n, T] for contexts of T grids; the last chunk is filled up with copies of its last row.
    Raises ValueError where the embedding is not [n, D] or not finite.
    """
    parts = []
    for start in range(0, len(rows), chunk):
        taken = rows[np.minimum(np.arange(start, start + chunk), len(rows) - 1)]
        parts.append(np.asarray(function({key: leaf[taken] for key, leaf in table.items()}), np.float32))
    z = np.concatenate(parts)[: len(rows)]
    if z.ndim != 2 or not np.isfinite(z).all():
        raise ValueError(f"an embedding must be [n, D] and finite; got shape {z.shape}, finite: {np.isfinite(z).all()}")
    return z


def moments(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per dimension, [D] each; a constant dimension has deviation 1."""
    std = z.std(0)
    return z.mean(0), np.where(std > 1e-4 * max(std.max(), 1e-30), std, 1.0).astype(np.float32)


# Rule matching: scores of candidates, [Q, C].


def mean_delta(z: np.ndarray, demos: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The rule as a vector: the mean of phi(y_i) - phi(x_i) over demonstrations, [Q, D]."""
    return _masked_mean(z[demos[..., 1]] - z[demos[..., 0]], mask)


def delta_cosine(candidates: np.ndarray, x: np.ndarray, rule: np.ndarray) -> np.ndarray:
    """cos(phi(c) - phi(x), rule); 0 where either is zero, as it is for the input itself.

    candidates phi(c) [Q, C, D], x phi(x) and rule [Q, D].
    """
    delta = candidates - x[:, None]
    norm = np.linalg.norm(delta, axis=-1) * np.linalg.norm(rule, axis=-1)[:, None]
    return np.einsum("qcd,qd->qc", delta, rule) / np.where(norm > 0, norm, 1.0)


def nearest(candidates: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """-||prediction - phi(c)||^2; candidates phi(c) [Q, C, D], prediction [Q, D]."""
    return -np.sum((candidates - prediction[:, None]) ** 2, axis=-1)


def expected_top1(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Probability that column 0 is ranked first when ties are broken at random, [Q]: two tied best count half.

    Scores within 1e-5 of the largest magnitude in their row are a tie: sums over objects differ by their rounding.
    """
    scores = np.where(mask, scores, -np.inf)
    tolerance = 1e-5 * np.max(np.where(mask, np.abs(scores), 0.0), axis=1)
    best = scores >= (scores.max(1) - tolerance)[:, None]
    return best[:, 0] / best.sum(1)


def rule_matching(z: np.ndarray, q: _probes.RuleQueries) -> dict[str, Outcome]:
    """Top-1 of every scorer that needs an embedding only; `copy` ignores the demos and `prototype` the input."""
    own, foreign = mean_delta(z, q.demos, q.demo_mask), mean_delta(z, q.demos[q.foreign], q.demo_mask[q.foreign])
    c, x, outputs = z[q.candidates], z[q.inputs], _masked_mean(z[q.demos[..., 1]], q.demo_mask)
    scores = {
        "delta_cosine": delta_cosine(c, x, own),
        "delta_cosine_foreign": delta_cosine(c, x, foreign),
        "analogy_l2": nearest(c, x + own),
        "analogy_l2_foreign": nearest(c, x + foreign),
        "copy": nearest(c, x),
        "prototype": nearest(c, outputs),
    }
    return {name: Outcome(expected_top1(s, q.candidate_mask), q.groups) for name, s in scores.items()}


def demo_free(z: np.ndarray, train: _probes.RuleQueries, *, penalty: float = 1.0) -> Callable:
    """A ridge on candidate and input alone, fitted on training tasks: what can be guessed without the rule.

    Returns the function of other queries to the Outcome. It sees the edit families it is asked about, on purpose:
    a trained scorer counts only above what the edits give away.
    """

    def pairs(q):
        c = z[q.candidates]
        x = np.broadcast_to(z[q.inputs][:, None], c.shape)
        return np.concatenate([c, c - x, np.abs(c - x)], axis=-1)

    truth = np.zeros(train.candidates.shape, np.float32)
    truth[:, 0] = 1.0
    decide = ridge(pairs(train)[train.candidate_mask], truth[train.candidate_mask], penalty=penalty)
    return lambda q: Outcome(expected_top1(decide(pairs(q)), q.candidate_mask), q.groups)


def predictions(predict: Callable, table: Table, q: _probes.RuleQueries, *, foreign: bool = False) -> np.ndarray:
    """z_hat [Q, D]: the mean over demonstrations i of the embedding predicted from (x_i, y_i, x)."""
    demos, mask = (q.demos[q.foreign], q.demo_mask[q.foreign]) if foreign else (q.demos, q.demo_mask)
    query, slot = np.nonzero(mask)
    rows = np.concatenate([demos[query, slot], q.inputs[query, None]], axis=1)  # [n, 3]
    z_hat = in_chunks(predict, table, rows)
    padded = np.zeros((*mask.shape, z_hat.shape[-1]), np.float32)
    padded[query, slot] = z_hat
    return _masked_mean(padded, mask)


def _masked_mean(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """[Q, M, D] -> [Q, D]"""
    return np.einsum("qmd,qm->qd", x, mask / mask.sum(1, keepdims=True)).astype(np.float32)


# Same-task retrieval and grid facts.


def retrieval(z: np.ndarray, train: _probes.RetrievalQueries, q: _probes.RetrievalQueries) -> dict[str, Outcome]:
    """R@1 over all tasks by cosine: of the change a pair makes against the mean change shown, and of inputs alone.

    The cosine is taken in the inverse of the within-task covariance on the training tasks, so that what varies between
    the pairs of one task counts less (within-class covariance normalisation; Hatch et al., Interspeech 2006).
    """
    forms = {"delta": lambda pairs: z[pairs[..., 1]] - z[pairs[..., 0]], "input_only": lambda pairs: z[pairs[..., 0]]}
    task, slot = np.nonzero(train.demo_mask)
    outcomes = {}
    for name, form in forms.items():
        shown = form(train.demos[task, slot])
        centre, precise = shown.mean(0), within_task_precision(shown, task)
        query, gallery = form(q.query) - centre, _masked_mean(form(q.demos), q.demo_mask) - centre
        similarity = query @ precise(gallery).T
        similarity /= np.sqrt(np.maximum(np.sum(gallery * precise(gallery), axis=1), 1e-12))[None]
        similarity /= np.sqrt(np.maximum(np.sum(query * precise(query), axis=1), 1e-12))[:, None]
        best = similarity >= similarity.max(1, keepdims=True) - 1e-5
        outcomes[name] = Outcome(np.diagonal(best) / best.sum(1), q.groups)
    outcomes["gain"] = Outcome(outcomes["delta"].values - outcomes["input_only"].values, q.groups)
    return outcomes


def within_task_precision(x: np.ndarray, groups: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Rows times (W + shrinkage I)^-1, W the covariance of x [n, D] around the means of its groups.

    The shrinkage is W's mean eigenvalue: there are about as many dimensions as examples.
    """
    counts = np.bincount(groups)[:, None]
    means = np.zeros((len(counts), x.shape[1]), np.float32)
    np.add.at(means, groups, x)
    residual = x - (means / np.maximum(counts, 1))[groups]
    shrinkage = np.float32(max(np.mean(np.sum(residual**2, axis=1)) / x.shape[1], 1e-12))
    r = residual / np.sqrt(np.float32(len(x)))
    if r.shape[1] <= r.shape[0]:
        return lambda new: np.linalg.solve(_shrunk_gram(r.T, shrinkage), new.T).T
    # Woodbury: with more dimensions than examples the smaller system is the one between examples.
    inner = np.linalg.inv(_shrunk_gram(r, shrinkage))
    return lambda new: (new - new @ r.T @ inner @ r) / shrinkage


def fact_labels(table: Table, facts: _probes.GridFacts) -> np.ndarray:
    """bool [R, 4], in the order of FACTS; a repeated shape is two objects of two cells or more with the same mask."""
    same_shape = np.asarray(table["edges"])[facts.rows] & (1 << object_tables.EDGE_NAMES.index("same_shape")) > 0
    extended = np.asarray(table["shape"])[facts.rows, :, 0] > 1
    repeated = (same_shape & extended[:, None] & extended[:, :, None]).any((-2, -1))
    return np.concatenate([repeated[:, None], facts.symmetry], axis=1)


def grid_facts(
    z: np.ndarray, table: Table, train: _probes.GridFacts, test: _probes.GridFacts, *, penalty: float = 0.01
) -> dict[str, Outcome]:
    """Linear (ridge) probes of the facts of a grid, fitted on the grids of `train`, decision values on `test`."""
    decide = ridge(z[train.rows], fact_labels(table, train).astype(np.float32), penalty=penalty)
    values, labels = decide(z[test.rows]), fact_labels(table, test)
    return {name: Outcome(values[:, k], test.groups, labels[:, k]) for k, name in enumerate(FACTS)}


def ridge(x: np.ndarray, y: np.ndarray, *, penalty: float) -> Callable[[np.ndarray], np.ndarray]:
    """Ridge regression of y [n] or [n, K] on x [n, D], standardised here; `penalty` is per example and dimension."""
    mean, std = moments(x)
    a = ((x - mean) / std).astype(np.float32)
    centred, scale = y - y.mean(0), np.float32(penalty * len(x))
    if len(x) < x.shape[1]:
        w = a.T @ np.linalg.solve(_shrunk_gram(a, scale), centred)
    else:
        w = np.linalg.solve(_shrunk_gram(a.T, scale), a.T @ centred)
    w = w / std.reshape(-1, *[1] * (y.ndim - 1))
    return lambda new: new @ w + (y.mean(0) - mean @ w)


def _shrunk_gram(x: np.ndarray, shrinkage: float) -> np.ndarray:
    """x x^T + shrinkage I, [n, n]."""
    gram = x @ x.T
    gram[np.diag_indices(len(x))] += shrinkage
    return gram

"""What a frozen embedding knows about ARC, beside controls that learned nothing.

Three probes, none of which trains the encoder: rule matching (which candidate follows the demonstrated rule?),
same-task retrieval under a random symmetry and palette, and facts about single grids. An encoder is a function
`embed(table) -> [n, D]`; every encoder answers the same questions (`jepa.data._probes`), standardised per dimension
on ARC-1 training grids. A score means something only beside the level of no information, the controls (`CONTROLS`)
and an interval over tasks, so they always come together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jepa import tables as object_tables
from jepa.data import _collections, _objects, _probes

CHUNK = 256
Table = Mapping[str, np.ndarray]
Embed = Callable[[Table], np.ndarray]


class Outcome(NamedTuple):
    """The answers of one encoder to one probe: a score per question, or a decision value beside its label."""

    values: np.ndarray  # [n]
    groups: np.ndarray  # [n]: the task of each, over which intervals are taken
    labels: np.ndarray | None = None  # bool [n]: then the score is the area under the ROC curve


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


# Controls: fixed functions of the same tables (or grids).


def randnet(table: Table, *, width: int = 256, seed: int = 0) -> jax.Array:
    """A random ReLU network on each object (F-256-256, He initialisation): mean, max and sum over objects, [n, 768]."""
    x, mask = _objects_of(table)
    keys = jax.random.split(jax.random.key(seed), 2)
    for key in keys:
        w = jax.random.normal(key, (x.shape[-1], width)) * jnp.sqrt(2.0 / x.shape[-1])
        x = jax.nn.relu(x @ w)
    return _pool(x, mask)


def raw_tables(table: Table) -> jax.Array:
    """Mean, max and sum of the raw object features, the grid's histogram and its size, [n, 3 F + 12]."""
    return jnp.concatenate([_pool(*_objects_of(table)), object_tables.grid_features(table)], axis=-1)


def histogram(table: Table) -> jax.Array:
    """The grid's share of each colour, [n, 10]."""
    return object_tables.grid_features(table)[..., :10]


def one_hot_pixels(grids: list[np.ndarray]) -> np.ndarray:
    """Each cell's colour at the top left of a 30x30 canvas, zero outside the grid, [n, 9000]."""
    canvas = np.zeros((len(grids), 30, 30, 10), np.float32)
    for image, grid in zip(canvas, grids, strict=True):
        image[: grid.shape[0], : grid.shape[1]] = np.eye(10, dtype=np.float32)[grid]
    return canvas.reshape(len(grids), -1)


def _objects_of(table: Table) -> tuple[jax.Array, jax.Array]:
    rows = slice(1, 1 + object_tables.NUM_OBJECTS)
    return object_tables.features(table)[..., rows, :], jnp.asarray(table["mask"])[..., rows]


def _pool(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean, max and sum over the objects that exist; zero where there is none. [n, N, D] -> [n, 3 D]."""
    real = mask[..., None]
    count = jnp.maximum(jnp.sum(real, -2), 1)
    total = jnp.sum(jnp.where(real, x, 0.0), -2)
    largest = jnp.where(jnp.any(real, -2), jnp.max(jnp.where(real, x, -jnp.inf), -2), 0.0)
    return jnp.concatenate([total / count, largest, total], axis=-1)


CONTROLS = {"randnet": randnet, "tables": raw_tables, "histogram": histogram}


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


def _shrunk_gram(x: np.ndarray, shrinkage: float) -> np.ndarray:
    """x x^T + shrinkage I, [n, n]."""
    gram = x @ x.T
    gram[np.diag_indices(len(x))] += shrinkage
    return gram


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


FACTS = ("repeated-shape", *_probes.SYMMETRIES)


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


# Scores and their uncertainty. Weights are [B, n]: how often each row occurs in each resample.


def score(outcome: Outcome, weights: np.ndarray | None = None) -> np.ndarray:
    """The mean of the values, or the area under the ROC curve where there are labels; [B] under weights [B, n]."""
    weights = np.ones((1, len(outcome.values))) if weights is None else weights
    if outcome.labels is None:
        return weights @ outcome.values / weights.sum(1)
    return auc(outcome.values, outcome.labels, weights)


def auc(values: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """P(a positive ranks above a negative), ties counting half, for each row of weights [B, n] -> [B]."""
    order = np.argsort(values, kind="stable")
    values, labels, weights = values[order], labels[order], weights[:, order]
    negatives = np.cumsum(np.where(labels[None], 0.0, weights), axis=1)
    negatives = np.concatenate([np.zeros((len(weights), 1)), negatives], axis=1)
    below, upto = (np.searchsorted(values, values[labels], side=side) for side in ("left", "right"))
    positive = weights[:, labels]
    wins = np.sum(positive * (negatives[:, below] + negatives[:, upto]), axis=1) / 2
    return wins / np.maximum(positive.sum(1) * negatives[:, -1], 1e-12)


def resamples(groups: np.ndarray, *, num: int = 1000, seed: int = 0) -> np.ndarray:
    """Weights [num, n] of a bootstrap that draws whole groups (tasks) with replacement."""
    _, member = np.unique(groups, return_inverse=True)
    count = member.max() + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=num)
    return drawn.astype(np.float32)[:, member]


def interval(outcome: Outcome, weights: np.ndarray) -> dict[str, float]:
    """A score with its 95 % percentile interval over the resamples, [num, n]."""
    low, high = np.quantile(score(outcome, weights), [0.025, 0.975])
    return {"score": float(score(outcome)[0]), "low": float(low), "high": float(high)}


def paired_difference(a: Outcome, b: Outcome, weights: np.ndarray) -> dict[str, float]:
    """Score of a less score of b on the same questions, with its 95 % interval: both are resampled alike.

    Raises ValueError where the two do not answer the same questions.
    """
    if not np.array_equal(a.groups, b.groups) or not np.array_equal(a.labels, b.labels):
        raise ValueError("a paired difference needs two encoders' answers to the same questions, in the same order")
    low, high = np.quantile(score(a, weights) - score(b, weights), [0.025, 0.975])
    return {"difference": float((score(a) - score(b))[0]), "low": float(low), "high": float(high)}


# The whole evaluation.

COLLECTIONS = ("arc1", "arc2")
SCORERS = ("delta_cosine", "analogy_l2", "predictor_l2")
BASELINES = ("copy", "prototype", "demo_free")  # of the same encoder, and each scorer under foreign demonstrations


def load_tasks() -> tuple[list, dict[str, list]]:
    """ARC-1 training without near twins, to fit on; ARC-1 evaluation and what ARC-2 evaluation adds to it."""
    evaluation = {name: _collections.load(f"{name}-eval") for name in COLLECTIONS}
    shared = {task.id for task in evaluation["arc1"]}
    evaluation["arc2"] = [task for task in evaluation["arc2"] if task.id not in shared]
    return _collections.load("arc1-clean"), evaluation


def evaluate(
    embed: Embed,
    predict: Callable | None,
    *,
    trained_ids: Iterable[str],
    cache_dir: str,
    untrained: tuple[Embed, Callable | None] | None = None,
    tasks: tuple[list, dict[str, list]] | None = None,
    seed: int = 0,
) -> dict:
    """Every probe of one encoder beside its controls, as JSON-able rows; `rows` makes them readable.

    embed: table of CHUNK grids -> [CHUNK, D]; predict: contexts (x_i, y_i, x), leaves [CHUNK, 3, ...] -> the embedding
    of the output, [CHUNK, D], or None where nothing predicts in this space. `untrained` is the same pair at
    initialisation. `tasks` (those to fit on, those to evaluate by collection) are `load_tasks` unless given. Raises
    ValueError where a task of `trained_ids` would be evaluated.
    """
    training, evaluation = load_tasks() if tasks is None else tasks
    trained_ids = set(trained_ids)
    for name, collection in evaluation.items():
        _collections.check_no_overlap(trained_ids, [task.id for task in collection], f"the probes on {name} evaluation")
    questions = _probes.build(training, evaluation, seed=seed)
    table = _objects.tokenise_cached(questions.grids, questions.backgrounds, cache_dir)
    answered = {}
    for name, encoder in {"trained": (embed, predict), "untrained": untrained}.items():
        if encoder is not None:
            answered[name] = answer(*encoder, table, questions)
    for name, control in CONTROLS.items():
        answered[name] = answer(jax.jit(control), None, table, questions)
    answered["pixels"] = answers(one_hot_pixels(questions.grids), table, questions)
    noise = np.random.default_rng(seed).normal(size=(len(questions.grids), 256)).astype(np.float32)
    answered["no_information"] = answers(noise, table, questions)
    return {
        "seed": seed,
        "num_tasks": {name: len(collection) for name, collection in evaluation.items()},
        "rows": [
            _row(name, chance, answered) for name, chance in chances(questions).items() if name in answered["trained"]
        ],
    }


def rows(result: dict) -> list[str]:
    """`evaluate`'s result for a person: the lines of a table with a row for each probe."""
    lines = [_readable(row) for row in result["rows"]]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    empty = dict.fromkeys(columns, "")
    cells = [columns, *[list((empty | line).values()) for line in lines]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _readable(row: dict) -> dict[str, str]:
    """Every column beside the score, as text; `over` is the paired difference to the best control."""
    estimates = {"trained": row} | ({"untrained": row["untrained"]} if "untrained" in row else {}) | row["controls"]
    for name, baseline in row["baselines"].items():
        estimates["foreign demos" if name.endswith("_foreign") else name.replace("_", " ")] = baseline
    line = {"probe": row["probe"]} | {name: f"{estimate['score']:.3f}" for name, estimate in estimates.items()}
    line |= {"no information": f"{row['no_information']:.3f}", "chance": f"{row['chance']:.4f}"}
    over = row["over_best_control"]
    line["trained 95 %"] = f"[{row['low']:.3f}, {row['high']:.3f}]"
    line["over"] = f"{over['control']} {over['difference']:+.3f} [{over['low']:+.3f}, {over['high']:+.3f}]"
    return line


def answer(embed: Embed, predict: Callable | None, table: Table, questions: _probes.Questions) -> dict[str, Outcome]:
    """The outcomes of an encoder: its predictor's in the metric it was trained in, all others standardised."""
    raw = in_chunks(embed, table, np.arange(len(table["size"])))
    mean, std = moments(raw[questions.facts["training"].rows])
    z = (raw - mean) / std
    outcomes, guess = answers(z, table, questions), demo_free(z, questions.rule["training/edit"])
    for name, q in _evaluated(questions):
        outcomes[f"rule/{name}/demo_free"] = guess(q)
        for suffix in ("", "_foreign") if predict is not None else ():
            z_hat = predictions(predict, table, q, foreign=bool(suffix))
            top1 = expected_top1(nearest(raw[q.candidates], z_hat), q.candidate_mask)
            outcomes[f"rule/{name}/predictor_l2{suffix}"] = Outcome(top1, q.groups)
    return outcomes


def answers(z: np.ndarray, table: Table, questions: _probes.Questions) -> dict[str, Outcome]:
    """The outcomes that need nothing but embeddings, [n, D]; retrieval and facts of the first collection."""
    outcomes = {}
    for name, q in _evaluated(questions):
        outcomes |= {f"rule/{name}/{scorer}": outcome for scorer, outcome in rule_matching(z, q).items()}
    train, test = list(questions.facts)[:2]
    found = retrieval(z, questions.retrieval[train], questions.retrieval[test])
    facts = grid_facts(z, table, questions.facts[train], questions.facts[test])
    outcomes |= {f"retrieval/{form}": outcome for form, outcome in found.items()}
    return outcomes | {f"facts/{name}": outcome for name, outcome in facts.items()}


def chances(questions: _probes.Questions) -> dict[str, float]:
    """The probes in the order they are printed, with what a blind guess scores."""
    chance = {}
    for name, q in _evaluated(questions):
        for scorer in SCORERS:
            chance[f"rule/{name}/{scorer}"] = float(np.mean(1 / q.candidate_mask.sum(1)))
    blind = 1 / len(list(questions.retrieval.values())[1].groups)
    chance |= {"retrieval/delta": blind, "retrieval/input_only": blind, "retrieval/gain": 0.0}
    return chance | {f"facts/{name}": 0.5 for name in FACTS}


def _evaluated(questions: _probes.Questions) -> list[tuple[str, _probes.RuleQueries]]:
    return [(name, q) for name, q in questions.rule.items() if not name.startswith("training/")]


def _row(name: str, chance: float, answered: dict[str, dict[str, Outcome]]) -> dict:
    """One probe: the encoder, the controls on the same questions and the paired difference to the best of them."""
    path, scorer = name.rsplit("/", 1)
    control_name = f"{path}/analogy_l2" if scorer == "predictor_l2" else name  # a control has no predictor
    own = answered["trained"]
    weights = resamples(own[name].groups)
    controls = {control: answered[control][control_name] for control in (*CONTROLS, "pixels")}
    best = max(controls, key=lambda control: score(controls[control])[0])
    baselines = (f"{scorer}_foreign", *BASELINES) if path.startswith("rule/") else ()
    row = {"probe": name, **interval(own[name], weights), "chance": chance}
    row |= {"n": len(own[name].groups), "num_tasks": len(np.unique(own[name].groups))}
    row["no_information"] = float(score(answered["no_information"][control_name])[0])
    row["controls"] = {control: interval(outcome, weights) for control, outcome in controls.items()}
    row["baselines"] = {key: interval(own[f"{path}/{key}"], weights) for key in baselines}
    row["over_best_control"] = {"control": best, **paired_difference(own[name], controls[best], weights)}
    row["over_baselines"] = {key: paired_difference(own[name], own[f"{path}/{key}"], weights) for key in baselines}
    if "untrained" in answered and name in answered["untrained"]:
        row["untrained"] = interval(answered["untrained"][name], weights)
        row["over_untrained"] = paired_difference(own[name], answered["untrained"][name], weights)
    return row

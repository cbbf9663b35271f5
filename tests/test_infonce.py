"""Laws of InfoNCE, its queue and its temperature; agreement with a queue-based reference (golden/infonce.npz)."""

from __future__ import annotations

from collections import deque
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa.losses.infonce import QueueState, infonce, infonce_candidates, queue_init, queue_push, temperature
from jepa.losses.prediction import unit

# A PyTorch InfoNCE with a ring buffer. Its logits are cast to float32 before the cross-entropy, so that its gradients
# are exact to a few units of 2^-24 of the softmax only; its losses were recomputed in float64.
GOLDEN = dict(np.load(Path(__file__).parent / "golden" / "infonce.npz"))
BOUNDS = dict(low=0.05, high=0.2)
# name: (number of batches pushed, log tau before the clamp); the golden tau is clamped to BOUNDS
CASES = {
    "empty_queue": (0, np.log(0.07)),
    "single_row": (0, np.log(0.07)),
    "after0": (1, np.log(0.07)),
    "after1": (2, np.log(0.07)),
    "after2": (3, np.log(0.07)),
    "after3": (4, np.log(0.07)),
    "tau_low": (4, np.log(0.01)),
    "tau_high": (4, np.log(0.9)),
}

evaluate = jax.jit(infonce, static_argnames="symmetric")
push = jax.jit(queue_push)


@partial(jax.jit, static_argnames="symmetric")
def gradients(anchors, positives, ids, queue, log_tau, symmetric=False):
    """Gradients of mean(loss) with respect to anchors, positives and log tau, without any clamp."""

    def mean_loss(anchors, positives, log_tau):
        return jnp.mean(infonce(anchors, positives, ids, queue, tau=jnp.exp(log_tau), symmetric=symmetric)[0])

    return jax.grad(mean_loss, (0, 1, 2))(anchors, positives, log_tau)


def reference(anchors, positives, ids, queue_rows, queue_ids, tau):
    """One row at a time, over the list of what may be compared with it, in float64: what is dropped is never seen.

    Per row: the loss, the number of candidates and whether the positive wins; and the gradients of the mean loss.
    """
    anchors, positives, queue_rows = (np.asarray(x, np.float64) for x in (anchors, positives, queue_rows))
    loss, count, hit = [], [], []
    d_anchors, d_positives, d_log_tau = np.zeros_like(anchors), np.zeros_like(positives), 0.0
    num = len(anchors)
    for i in range(num):
        others = [j for j in range(num) if j != i and ids[j] != ids[i]]
        kept = [k for k in range(len(queue_rows)) if queue_ids[k] != ids[i]]
        candidates = np.concatenate([positives[[i]], positives[others], queue_rows[kept]])
        logits = candidates @ anchors[i] / tau
        probability = np.exp(logits - logits.max())
        probability /= probability.sum()
        loss.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[0])
        count.append(len(candidates))
        hit.append((logits[0] >= logits).all() / (logits == logits[0]).sum())
        d_logits = probability.copy()
        d_logits[0] -= 1.0
        d_anchors[i] += d_logits @ candidates / tau / num
        for slot, j in enumerate([i, *others]):
            d_positives[j] += d_logits[slot] * anchors[i] / tau / num
        d_log_tau -= d_logits @ logits / num
    return np.array(loss), np.array(count), np.array(hit), (d_anchors, d_positives, d_log_tau)


def both_directions(anchors, positives, ids, queue_rows, queue_ids, tau):
    """The symmetric loss: the mean of every result of `reference` in the two directions."""
    forward = reference(anchors, positives, ids, queue_rows, queue_ids, tau)
    loss, count, hit, (d_positives, d_anchors, d_log_tau) = reference(
        positives, anchors, ids, queue_rows[:0], queue_ids[:0], tau
    )
    backward = loss, count, hit, (d_anchors, d_positives, d_log_tau)
    return jax.tree.map(lambda x, y: 0.5 * (x + y), forward, backward)


def rng(seed=0):
    return np.random.default_rng(seed)


def unit_rows(*shape, seed=0):
    """Unit rows around a common mean, so that they are neither orthogonal nor symmetric."""
    x = rng(seed).normal(size=shape) + np.linspace(0.0, 1.0, shape[-1])
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def queue_of(rows, ids, num_rows, garbage=1e6):
    """A queue that holds the given rows, and garbage where it is not filled."""
    stored = np.full((num_rows, rows.shape[1]), garbage)
    stored[: len(rows)] = rows
    stored_ids = np.zeros(num_rows, np.int32)
    stored_ids[: len(rows)] = ids
    size, cursor = np.int32(len(rows)), np.int32(len(rows) % num_rows)
    return QueueState(jnp.asarray(stored, jnp.float32), jnp.asarray(stored_ids), jnp.asarray(size), jnp.asarray(cursor))


def problem(num=7, num_stored=5, num_rows=8, dim=6, distinct=True):
    """anchors, positives, ids, and what the queue holds. Without `distinct`, ids recur in the batch and the queue."""
    anchors, positives = (unit_rows(num, dim, seed=seed).astype(np.float32) for seed in (1, 2))
    positives = np.asarray(unit(anchors + positives))
    stored = unit_rows(num_stored, dim, seed=3).astype(np.float32)
    if distinct:
        ids, stored_ids = np.arange(num), 100 + np.arange(num_stored)
    else:
        ids, stored_ids = rng(4).integers(0, 4, num), rng(5).integers(0, 4, num_stored)
    ids, stored_ids = ids.astype(np.int32), stored_ids.astype(np.int32)
    return anchors, positives, ids, stored, stored_ids, queue_of(stored, stored_ids, num_rows)


def assert_gradient(actual, expected, tolerance=1e-5):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


def golden_problem(case, dtype):
    num_pushed, log_tau = CASES[case]
    num = 1 if case == "single_row" else None
    anchors, positives = (jnp.asarray(GOLDEN[key][:num], dtype) for key in ("context_proj", "target_proj"))
    queue = queue_init(8, 6)
    if num_pushed:
        state = (GOLDEN[f"{key}_after{num_pushed - 1}"] for key in ("queue", "filled", "ptr"))
        stored, size, cursor = (jnp.asarray(x) for x in state)
        queue = QueueState(stored.astype(dtype), 100 + jnp.arange(8), size[0], cursor[0])
    return anchors, positives, jnp.arange(len(anchors)), queue, jnp.asarray(log_tau, dtype)


# ---------------------------------------------------------------- agreement with the reference implementation


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_match_the_reference(case, precision):
    value_tolerance, gradient_tolerance = (1e-9, 1e-9) if precision == "float64" else (2e-6, 1e-5)
    with jax.enable_x64(precision == "float64"):
        anchors, positives, ids, queue, log_tau = golden_problem(case, jnp.dtype(precision))
        tau = temperature(log_tau, **BOUNDS)
        loss, metrics = evaluate(anchors, positives, ids, queue, tau=tau)
        found = gradients(anchors, positives, ids, queue, jnp.log(tau))
        assert loss.dtype == jnp.dtype(precision)
        np.testing.assert_allclose(jnp.mean(loss), GOLDEN[f"{case}_loss_f64"], rtol=value_tolerance, atol=1e-15)
        # To the precision of the float32 softmax behind the reference's gradients.
        unit_of_softmax = 2.0**-22 / (float(tau) * len(anchors))
        for side, gradient in zip(("context", "target"), found, strict=False):
            expected = GOLDEN[f"{case}_grad_{side}"]
            np.testing.assert_allclose(gradient, expected, rtol=0, atol=unit_of_softmax)
        if not case.startswith("tau_"):
            expected = GOLDEN[f"{case}_grad_log_tau"]
            np.testing.assert_allclose(found[2], expected, rtol=1e-5)
            np.testing.assert_allclose(metrics["tau_gradient"], expected, rtol=1e-5)
    # To full precision, against the definition.
    filled = slice(int(queue.size))
    stored, stored_ids = (np.asarray(x)[filled] for x in queue[:2])
    value, count, _, expected = reference(anchors, positives, np.asarray(ids), stored, stored_ids, float(tau))
    np.testing.assert_allclose(loss, value, rtol=value_tolerance, atol=1e-15)
    np.testing.assert_allclose(metrics["chance"], np.log(count).mean(), rtol=1e-6)
    for actual, wanted in zip(found, expected, strict=True):
        assert_gradient(actual, wanted, gradient_tolerance)


@pytest.mark.parametrize("case", ["tau_low", "tau_high"])
def test_a_clamped_temperature_stays_or_returns(case):
    assert GOLDEN[f"{case}_grad_log_tau"] == 0.0  # the reference's clip can only stay
    anchors, positives, ids, queue, log_tau = golden_problem(case, jnp.float32)

    def loss(log_tau):
        return jnp.mean(infonce(anchors, positives, ids, queue, tau=temperature(log_tau, **BOUNDS))[0])

    descent = -jax.jit(jax.grad(loss))(log_tau)
    wanted = -evaluate(anchors, positives, ids, queue, tau=temperature(log_tau, **BOUNDS))[1]["tau_gradient"]
    inwards = 1.0 if case == "tau_low" else -1.0
    np.testing.assert_allclose(descent, wanted if wanted * inwards > 0 else 0.0, rtol=1e-5)


def test_queue_matches_the_reference():
    queue = queue_init(8, 6)
    for n in range(4):
        rows = jnp.asarray(GOLDEN[f"enqueue{n}"])
        queue = push(queue, rows, jnp.arange(len(rows)))
        np.testing.assert_allclose(queue.embeddings, GOLDEN[f"queue_after{n}"], rtol=2e-6, atol=1e-7)
        assert queue.cursor == GOLDEN[f"ptr_after{n}"][0]
        assert queue.size == GOLDEN[f"filled_after{n}"][0]


# ---------------------------------------------------------------- queue


@st.composite
def pushes(draw):
    num_rows = draw(st.sampled_from([1, 2, 5]))
    return num_rows, draw(st.lists(st.integers(1, 2 * num_rows + 3), max_size=7))


@pytest.mark.parametrize("function", [queue_push, push], ids=["eager", "jit"])
@settings(max_examples=40)
@given(pushes())
def test_queue_is_a_deque(function, sequence):
    num_rows, sizes = sequence
    queue, expected = queue_init(num_rows, 3), deque(maxlen=num_rows)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), queue)
    for step, size in enumerate(sizes):
        rows = rng(step).normal(size=(size, 3)).astype(np.float32)
        ids = (1000 * step + np.arange(size)).astype(np.int32)
        queue = function(queue, jnp.asarray(rows), jnp.asarray(ids))
        expected.extend(zip(rows / np.linalg.norm(rows, axis=1, keepdims=True), ids, strict=True))
        assert jax.tree.map(lambda x: (x.shape, x.dtype), queue) == shapes

        held, cursor = int(queue.size), int(queue.cursor)
        assert held == len(expected)
        assert 0 <= cursor < num_rows
        oldest = cursor if held == num_rows else 0
        assert held == num_rows or cursor == held
        order = (oldest + np.arange(held)) % num_rows
        np.testing.assert_array_equal(np.asarray(queue.ids)[order], [id_ for _, id_ in expected])
        np.testing.assert_allclose(np.asarray(queue.embeddings)[order], [row for row, _ in expected], atol=3e-7)


def test_push_stops_the_gradient_and_keeps_its_argument():
    queue = push(queue_init(4, 3), jnp.ones((2, 3)), jnp.arange(2))
    rows = jnp.asarray(unit_rows(3, 3), jnp.float32)
    gradient = jax.grad(lambda rows: jnp.sum(queue_push(queue, rows, jnp.arange(3)).embeddings))(rows)
    np.testing.assert_array_equal(gradient, 0.0)
    assert queue.size == 2
    np.testing.assert_array_equal(queue.ids, [0, 1, -1, -1])


def test_a_zero_row_can_be_pushed():
    queue = push(queue_init(2, 3), jnp.zeros((1, 3)), jnp.zeros(1, jnp.int32))
    np.testing.assert_array_equal(queue.embeddings, 0.0)


@pytest.mark.parametrize("num_rows", [0, -3])
def test_a_queue_needs_a_row(num_rows):
    with pytest.raises(ValueError, match="at least 1 row"):
        queue_init(num_rows, 4)


@pytest.mark.parametrize(("rows", "ids"), [((2, 5), (2,)), ((2, 4), (3,)), ((4,), (4,)), ((2, 4), (2, 1))])
def test_push_refuses_other_shapes(rows, ids):
    with pytest.raises(ValueError, match="a queue of width 4"):
        queue_push(queue_init(3, 4), jnp.zeros(rows), jnp.zeros(ids, jnp.int32))


# ---------------------------------------------------------------- temperature


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("log_tau", np.log([1e-6, 0.01, 0.0499, 0.0501, 0.07, 0.1999, 0.2001, 0.9, 1e6]))
@pytest.mark.parametrize("slope", [-2.5, 0.75])
def test_temperature_and_its_gradient(log_tau, slope, jit):
    def loss(log_tau):
        return slope * temperature(log_tau, **BOUNDS)

    value, gradient = (jax.jit if jit else lambda f: f)(jax.value_and_grad(loss))(jnp.float32(log_tau))
    tau = np.clip(np.exp(log_tau), 0.05, 0.2)
    np.testing.assert_allclose(value, slope * tau, rtol=1e-6)
    blocked = (np.exp(log_tau) > 0.2 and slope < 0) or (np.exp(log_tau) < 0.05 and slope > 0)
    np.testing.assert_allclose(gradient, 0.0 if blocked else slope * tau, rtol=1e-6)


@pytest.mark.parametrize(
    ("start", "best", "end"), [(5.0, 0.1, 0.1), (1e-3, 0.1, 0.1), (0.1, 9.0, 0.2), (0.1, 0.01, 0.05)]
)
def test_descent_leaves_the_clamp_but_does_not_run_away(start, best, end):
    """Gradient descent on (log tau - log best)^2, from outside the bounds and towards an optimum outside."""

    @jax.jit
    def step(log_tau):
        return log_tau - 0.1 * jax.grad(lambda x: (jnp.log(temperature(x, **BOUNDS)) - np.log(best)) ** 2)(log_tau)

    log_tau = jnp.float32(np.log(start))
    for _ in range(100):
        log_tau = step(log_tau)
    np.testing.assert_allclose(temperature(log_tau, **BOUNDS), end, rtol=1e-5)
    assert abs(log_tau - np.log(end)) < 1.0  # at most the one step that crossed the bound


def test_temperature_keeps_its_precision():
    assert temperature(jnp.bfloat16(-2.0), **BOUNDS).dtype == jnp.float32
    assert temperature(-2.0, **BOUNDS).shape == ()
    with jax.enable_x64(True):
        assert temperature(jnp.float64(-2.0), **BOUNDS) == np.exp(-2.0)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (0.2, 0.1)])
def test_temperature_refuses_empty_bounds(low, high):
    with pytest.raises(ValueError, match="0 < low <= high"):
        temperature(jnp.float32(0.0), low=low, high=high)


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("distinct", [True, False])
@pytest.mark.parametrize("num_stored", [0, 5, 8])
def test_equals_the_definition(num_stored, distinct, symmetric):
    anchors, positives, ids, stored, stored_ids, queue = problem(num_stored=num_stored, distinct=distinct)
    definition = both_directions if symmetric else reference
    for tau in (0.05, 0.2):
        loss, count, _, expected = definition(anchors, positives, ids, stored, stored_ids, tau)
        found, metrics = evaluate(anchors, positives, ids, queue, tau=tau, symmetric=symmetric)
        np.testing.assert_allclose(found, loss, rtol=2e-6, atol=1e-7)
        found = gradients(anchors, positives, ids, queue, jnp.log(tau), symmetric=symmetric)
        for actual, wanted in zip(found, expected, strict=True):
            assert_gradient(actual, wanted)
        np.testing.assert_allclose(metrics["tau_gradient"], expected[2], rtol=2e-5)
        np.testing.assert_allclose(metrics["tau_gradient"], found[2], rtol=2e-5)
        if not symmetric:  # the mean of two logarithms is no logarithm of a mean count
            np.testing.assert_allclose(metrics["chance"], np.log(count).mean(), rtol=1e-6)


def test_float64_passes_through():
    anchors, positives, ids, stored, stored_ids, queue = problem(distinct=False)
    value, _, _, expected = reference(anchors, positives, ids, stored, stored_ids, 0.1)
    with jax.enable_x64(True):
        wide = [jnp.asarray(x, jnp.float64) for x in (anchors, positives)]
        loss, _ = evaluate(*wide, ids, queue, tau=jnp.float64(0.1))
        found = gradients(*wide, ids, queue, jnp.log(jnp.float64(0.1)))
        assert loss.dtype == jnp.float64
        np.testing.assert_allclose(loss, value, rtol=1e-9)
        for actual, wanted in zip(found, expected, strict=True):
            assert_gradient(actual, wanted, 1e-9)


def test_bfloat16_is_computed_in_float32():
    anchors, positives, ids, stored, stored_ids, queue = problem()
    narrow = [jnp.asarray(x, jnp.bfloat16) for x in (anchors, positives)]
    loss, metrics = evaluate(*narrow, ids, queue, tau=jnp.float32(0.1))
    rounded = [np.asarray(x, np.float64) for x in narrow]
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, reference(*rounded, ids, stored, stored_ids, 0.1)[0], rtol=2e-6)
    assert {(x.shape, x.dtype) for x in metrics.values()} == {((), jnp.dtype("float32"))}


def test_a_small_loss_keeps_its_digits():
    anchors = np.eye(3, dtype=np.float32)
    loss, _ = evaluate(anchors, anchors, jnp.arange(3), None, tau=0.05)
    np.testing.assert_allclose(loss, np.log1p(2 * np.exp(-20.0)), rtol=2e-6)


def test_metrics_equal_their_definition():
    anchors, positives, ids, stored, stored_ids, queue = problem(num=9, distinct=False)
    anchors = np.concatenate([anchors[1::-1], anchors[2:]])  # the first two positives are not found
    loss, count, _, _ = reference(anchors, positives, ids, stored, stored_ids, 0.1)
    in_batch, in_batch_count, hit, _ = reference(anchors, positives, ids, stored[:0], stored_ids[:0], 0.1)
    others = len(ids) - 1 + len(stored)
    gain, in_batch_gain = np.log(count).mean() - loss.mean(), np.log(in_batch_count).mean() - in_batch.mean()
    expected = {
        "in_batch": in_batch.mean(),
        "in_batch_chance": np.log(in_batch_count).mean(),
        "in_batch_accuracy": hit.mean(),
        "in_batch_gain": in_batch_gain,
        "chance": np.log(count).mean(),
        "gain": gain,
        "queue_share": 1 - in_batch_gain / gain,
        "masked": 1 - (count - 1).mean() / others,
        "queue_filled": len(stored),
        "tau": 0.1,
    }
    _, metrics = evaluate(anchors, positives, ids, queue, tau=0.1)
    assert 0 < expected["in_batch_accuracy"] < 1 and 0 < expected["masked"] < 1 and gain > 0.1
    assert metrics.keys() == expected.keys() | {"tau_gradient"}
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("symmetric", [False, True])
def test_in_batch_metrics_are_the_loss_without_a_queue(symmetric):
    anchors, positives, ids, _, _, queue = problem(distinct=False)
    _, metrics = evaluate(anchors, positives, ids, queue, tau=0.1, symmetric=symmetric)
    loss, alone = evaluate(anchors, positives, ids, None, tau=0.1, symmetric=symmetric)
    np.testing.assert_allclose(metrics["in_batch"], jnp.mean(loss), rtol=1e-6)
    for name in ("in_batch", "in_batch_chance", "in_batch_gain", "in_batch_accuracy"):
        np.testing.assert_allclose(metrics[name], alone[name], rtol=1e-6)
    for name in ("chance", "gain"):
        np.testing.assert_allclose(alone[name], alone[f"in_batch_{name}"], rtol=1e-6)
    assert alone.keys() == metrics.keys()
    assert alone["queue_filled"] == 0 and alone["queue_share"] == 0
    empty, _ = evaluate(anchors, positives, ids, queue_init(8, 6), tau=0.1, symmetric=symmetric)
    np.testing.assert_allclose(empty, loss, rtol=1e-6)


def test_stale_rows_alone_make_a_gain():
    """Collapse: in the batch nothing can be told apart, but rows of an older encoder are told from all of it."""
    row = unit_rows(1, 6)
    batch, stale = jnp.asarray(np.tile(row, (4, 1))), queue_of(np.tile(-row, (8, 1)), np.arange(8), 8)
    loss, metrics = evaluate(batch, batch, 100 + jnp.arange(4), stale, tau=0.1)
    np.testing.assert_allclose(loss, np.log(4), rtol=1e-6)
    np.testing.assert_allclose(metrics["gain"], np.log(12) - np.log(4), rtol=1e-6)
    np.testing.assert_allclose(metrics["queue_share"], 1.0, rtol=1e-6)
    np.testing.assert_allclose(metrics["in_batch_accuracy"], 1 / 4)
    # Matched worse than by guessing within the batch: more than all of the gain is the queue's.
    anchors = jnp.asarray(unit(batch + 0.02 * rng().normal(size=batch.shape)))
    _, metrics = evaluate(anchors, jnp.roll(anchors, 1, axis=0), 100 + jnp.arange(4), stale, tau=0.01)
    assert metrics["gain"] > 0 > metrics["in_batch_gain"]
    assert metrics["queue_share"] > 1


@pytest.mark.parametrize("num_stored", [0, 3, 8])
@pytest.mark.parametrize("num", [1, 2, 7])
@pytest.mark.parametrize("symmetric", [False, True])
def test_identical_embeddings_score_chance(num, num_stored, symmetric):
    row = unit_rows(1, 33).astype(np.float32)
    batch = jnp.asarray(np.tile(row, (num, 1)))
    queue = queue_of(np.tile(row, (num_stored, 1)), 100 + np.arange(num_stored), 8)
    loss, metrics = evaluate(batch, batch, jnp.arange(num), queue, tau=0.07, symmetric=symmetric)
    chance = np.log(num + num_stored)
    chance = (chance + np.log(num)) / 2 if symmetric else chance
    np.testing.assert_allclose(metrics["chance"], chance, rtol=1e-6)
    np.testing.assert_allclose(loss, chance, atol=1e-5)  # the dot products of equal rows agree to 2^-24 / tau only
    np.testing.assert_allclose(metrics["in_batch_accuracy"], 1 / num, rtol=1e-6)


def test_the_order_of_negatives_is_irrelevant():
    anchors, positives, ids, _, _, queue = problem(num_stored=8, distinct=False)
    order = rng().permutation(8)
    shuffled = queue._replace(embeddings=queue.embeddings[order], ids=queue.ids[order])
    results = [evaluate(anchors, positives, ids, x, tau=0.1) for x in (queue, shuffled)]
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6)
    for name, value in results[0][1].items():
        np.testing.assert_allclose(value, results[1][1][name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("symmetric", [False, True])
def test_permuting_the_batch_permutes_the_loss(symmetric):
    anchors, positives, ids, _, _, queue = problem(distinct=False)
    order = rng().permutation(len(ids))
    loss, metrics = evaluate(anchors, positives, ids, queue, tau=0.1, symmetric=symmetric)
    moved, moved_metrics = evaluate(anchors[order], positives[order], ids[order], queue, tau=0.1, symmetric=symmetric)
    np.testing.assert_allclose(moved, loss[order], rtol=2e-6)
    assert np.ptp(loss) > 0.1
    for name, value in metrics.items():
        np.testing.assert_allclose(value, moved_metrics[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("garbage", [1e6, -1e30, np.inf, np.nan])
@pytest.mark.parametrize("num_stored", [0, 5])
def test_what_unfilled_rows_hold_is_irrelevant(num_stored, garbage):
    anchors, positives, ids, stored, stored_ids, _ = problem(num_stored=num_stored)
    clean, dirty = (queue_of(stored, stored_ids, 8, garbage=value) for value in (0.0, garbage))
    for function, tau in ((partial(evaluate, tau=0.1), ()), (gradients, (jnp.log(0.1),))):
        expected, found = (function(anchors, positives, ids, queue, *tau) for queue in (clean, dirty))
        jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("symmetric", [False, True])
def test_without_any_negative_there_is_nothing_to_lose(symmetric):
    anchors, positives, _, stored, stored_ids, _ = problem()
    ids, queue = jnp.zeros(len(anchors), jnp.int32), queue_of(stored, 0 * stored_ids, 8)
    loss, metrics = evaluate(anchors, positives, ids, queue, tau=0.1, symmetric=symmetric)
    np.testing.assert_array_equal(loss, 0.0)
    np.testing.assert_allclose(metrics["masked"], 1.0)
    assert metrics["in_batch_accuracy"] == 1
    for name in ("chance", "gain", "in_batch", "in_batch_chance", "queue_share", "tau_gradient"):
        assert metrics[name] == 0, name
    for gradient in gradients(anchors, positives, ids, queue, jnp.log(0.1), symmetric=symmetric):
        np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("num", [1, 5])
@pytest.mark.parametrize("queue", [None, queue_init(4, 6)], ids=["no queue", "empty queue"])
def test_gradients_are_finite_at_zero_rows(num, queue, symmetric):
    def loss(x, y):
        return jnp.mean(infonce(unit(x), unit(y), jnp.arange(num), queue, tau=0.05, symmetric=symmetric)[0])

    nothing = jnp.zeros((num, 6))
    for x, y in ((nothing, nothing), (nothing, jnp.ones((num, 6)))):
        for gradient in jax.jit(jax.grad(loss, (0, 1)))(x, y):
            assert np.isfinite(gradient).all()


def test_metrics_have_no_gradient():
    anchors, positives, ids, _, _, queue = problem()

    def total(anchors, tau):
        return sum(infonce(anchors, positives, ids, queue, tau=tau)[1].values())

    for gradient in jax.jit(jax.grad(total, (0, 1)))(jnp.asarray(anchors), jnp.float32(0.1)):
        np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"anchors": (7, 5)}, "one shape"),
        ({"anchors": (6,), "positives": (6,)}, "one shape"),
        ({"ids": (6,)}, "one shape"),
        ({"anchors": (7, 5), "positives": (7, 5)}, "as wide as the anchors, 5"),
        ({"tau": (7,)}, "one number"),
    ],
)
def test_infonce_refuses_other_shapes(change, message):
    shapes = {"anchors": (7, 6), "positives": (7, 6), "ids": (7,), "tau": ()} | change
    anchors, positives, ids, tau = (jnp.ones(shape) for shape in shapes.values())
    with pytest.raises(ValueError, match=message):
        infonce(anchors, positives, ids, queue_init(3, 6), tau=tau)


# ---------------------------------------------------------------- a given list of negatives

evaluate_candidates = jax.jit(infonce_candidates)


@pytest.mark.parametrize("garbage", [0.0, 1e6, np.nan])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_candidates_equal_the_definition(garbage, precision):
    anchors, positives, negatives = (unit_rows(*shape, seed=i) for i, shape in enumerate([(9, 6), (9, 6), (9, 4, 6)]))
    real = rng().random((9, 4)) < 0.5
    real[0], real[1] = False, True
    negatives[2, 1], real[2] = positives[2], [False, True, False, False]  # the one negative ties with the positive
    negatives[~real] = garbage
    expected = []
    for anchor, positive, rows, exists in zip(anchors, positives, negatives, real, strict=True):
        logits = np.concatenate([[positive @ anchor], [row @ anchor for row in rows[exists]]]) / 0.1
        hit = (logits <= logits[0]).all() / (np.abs(logits - logits[0]) < 1e-12).sum()
        expected.append((np.log(np.exp(logits).sum()) - logits[0], np.log(len(logits)), hit))
    loss, chance, hit = np.transpose(expected)
    assert hit[0] == 1 and loss[0] == 0 and hit[2] == 0.5 and {0, 0.5, 1} <= set(hit)

    with jax.enable_x64(precision == "float64"):
        arguments = [jnp.asarray(x, precision) for x in (anchors, positives, negatives)]
        found = evaluate_candidates(*arguments, real, tau=0.1)

        def total(*rows):
            return jnp.sum(infonce_candidates(*rows, real, tau=0.1)[0])

        slopes = jax.jit(jax.grad(total, (0, 1, 2)))(*arguments)
        assert {x.dtype for x in (*found, *slopes)} == {jnp.dtype(precision)}
    np.testing.assert_allclose(found[0], loss, rtol=1e-9 if precision == "float64" else 2e-6, atol=1e-12)
    np.testing.assert_allclose(found[1], chance, rtol=1e-6)
    np.testing.assert_array_equal(found[2], hit)
    assert all(np.isfinite(slope).all() for slope in slopes)
    np.testing.assert_array_equal(slopes[2][~real], 0.0)
    assert (np.abs(slopes[2][real]).max(axis=-1) > 0).all()


def test_the_batch_as_a_list_of_candidates():
    anchors, positives, ids, stored, stored_ids, queue = problem(distinct=False)
    pool, pool_ids = np.concatenate([positives, stored]), np.concatenate([ids, stored_ids])
    negatives = np.broadcast_to(pool[None], (len(ids), *pool.shape))
    found = evaluate_candidates(anchors, positives, negatives, ids[:, None] != pool_ids[None], tau=0.1)
    loss, metrics = evaluate(anchors, positives, ids, queue, tau=0.1)
    np.testing.assert_allclose(found[0], loss, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(jnp.mean(found[1]), metrics["chance"], rtol=1e-6)


@pytest.mark.parametrize("num_ties", [0, 1, 3])
def test_ties_are_shared(num_ties):
    row = unit_rows(1, 33).astype(np.float32)
    negatives = np.concatenate([np.tile(row, (num_ties, 1)), np.tile(-row, (5 - num_ties, 1))])[None]
    real = jnp.ones((1, 5), bool)
    np.testing.assert_allclose(evaluate_candidates(row, row, negatives, real, tau=0.1)[2], 1 / (1 + num_ties))
    # A better negative beats the positive, however many tie with it.
    assert evaluate_candidates(row, -row, negatives, real, tau=0.1)[2] == (num_ties == 0) / 6


def test_an_empty_list_of_candidates():
    anchors, positives = (jnp.asarray(unit_rows(3, 4, seed=seed)) for seed in (0, 1))
    loss, chance, hit = evaluate_candidates(anchors, positives, jnp.zeros((3, 0, 4)), jnp.zeros((3, 0), bool), tau=0.1)
    np.testing.assert_array_equal([loss, chance, hit], [[0.0] * 3, [0.0] * 3, [1.0] * 3])


@pytest.mark.parametrize("change", [{"positives": (3, 5)}, {"negatives": (4, 2, 4)}, {"real": (3, 3)}])
def test_candidates_refuse_other_shapes(change):
    shapes = {"anchors": (3, 4), "positives": (3, 4), "negatives": (3, 2, 4), "real": (3, 2)} | change
    with pytest.raises(ValueError, match="candidates need"):
        infonce_candidates(*(jnp.ones(shape) for shape in shapes.values()), tau=0.1)

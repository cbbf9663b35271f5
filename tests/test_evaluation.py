"""Held-out figures: the same examples every time, and a demonstration is worth nothing to who does not read it."""

import functools

import jax
import numpy as np
import pytest

from jepa import diagnostics, evaluation, main, pair_diagnostics
from jepa.parts import build


@functools.cache
def evaluated(config="configs/lejepa.py:tiny", num_sources=None, **objective):
    config = main.load_config(config)
    config.objective.update(objective)
    parts = build(config)
    source = parts.source._replace(validation=dict(list(parts.source.validation.items())[:num_sources]))
    forwards = evaluation.compile_forwards(parts.objective, source, parts.weights)
    evaluate = evaluation.make_evaluate(parts.objective, source, forwards, seed=0)
    return parts, parts.init(), evaluate


def test_two_evaluations_of_one_state_agree_and_see_what_was_asked_for():
    _, state, evaluate = evaluated()
    one, again = (evaluate(state, 48).metrics for _ in range(2))
    assert one == again
    assert one["diag/target/sigreg_T"] == pytest.approx(48 * one["diag/target/sigreg_T_over_N"])
    assert one["diag/context/sigreg_T"] == pytest.approx(3 * 48 * one["diag/context/sigreg_T_over_N"])
    assert {"val/prediction", "val/sigreg", "val/prediction/copy_ratio", "diag/demo_gain"} <= one.keys()


def held_out_batches(parts, num):
    """The batches of an evaluation of `num` batches, drawn by hand."""
    own = next(iter(parts.source.validation.values()))
    key = jax.random.fold_in(jax.random.key(0), 2**31)
    for step in range(num):
        key_data, _ = jax.random.split(jax.random.fold_in(key, step))
        yield own.gather(own.tables, own.indices(step), key_data, True)


def test_embeddings_are_described_over_all_batches_together():
    parts, state, evaluate = evaluated()
    metrics = evaluate(state, 48).metrics
    pooled = [
        jax.jit(parts.objective.encode)(state.params, {}, batch.context).pooled for batch in held_out_batches(parts, 3)
    ]
    context = np.concatenate(pooled).reshape(-1, pooled[0].shape[-1])
    found = jax.jit(diagnostics.describe)(context, jax.random.fold_in(jax.random.key(0), 2**31))
    for name, value in found.items():
        rtol = 1e-2 if name == "condition" else 1e-4
        np.testing.assert_allclose(metrics[f"diag/context/{name}"], value, rtol=rtol, err_msg=name)
    assert 0 < metrics["diag/alignment"] < 4 and metrics["val/prediction/moved_ratio"] > 0
    assert "diag/target_drift" not in metrics  # there is no teacher


@pytest.mark.slow
def test_a_predictor_that_copies_has_not_moved_and_a_fresh_teacher_has_not_drifted():
    _, state, evaluate = evaluated("configs/infonce.py:tiny", 1, context="last")  # the last embedding is all it says
    metrics = evaluate(state, 16).metrics
    assert metrics["val/prediction/moved_ratio"] == 0 and metrics["val/prediction/copy_ratio"] == 1
    assert metrics["diag/alignment"] == pytest.approx(metrics["val/prediction"], rel=1e-6)
    assert metrics["diag/target_drift"] == 0
    trunk = state.params["trunk"]
    later = state.replace(params=state.params | {"trunk": jax.tree.map(lambda leaf: 1.5 * leaf, trunk)})
    assert 0.3 < evaluate(later, 16).metrics["diag/target_drift"] < 1 / 3 + 1e-6  # 0.5 / 1.5 of most parameters


@pytest.mark.slow
def test_views_of_one_example_are_told_from_those_of_others():
    parts, state, evaluate = evaluated("configs/lejepa.py:tiny,views")
    metrics = evaluate(state, 32).metrics
    views = [
        jax.jit(parts.objective.encode)(state.params, {}, batch.views).pooled for batch in held_out_batches(parts, 2)
    ]
    views = np.concatenate(views)  # [B, V, D]
    np.testing.assert_allclose(metrics["diag/views/lidar"], pair_diagnostics.lidar(views), rtol=1e-4)
    np.testing.assert_allclose(metrics["diag/alignment"], np.mean(pair_diagnostics.alignment(views)), rtol=1e-4)
    assert metrics["diag/views/sigreg_T"] == pytest.approx(
        views.shape[0] * views.shape[1] * metrics["diag/views/sigreg_T_over_N"]
    )


@pytest.mark.slow
def test_a_predictor_that_reads_only_the_query_gains_nothing_from_the_demonstration():
    _, state, evaluate = evaluated(predictor="pooled", context="last")
    metrics = evaluate(state, 32).metrics
    assert metrics["diag/demo_gain"] == metrics["diag/demo_gain_low"] == metrics["diag/demo_gain_high"] == 0.0


def test_demo_gain_is_one_less_the_ratio_of_mean_errors_with_whole_tasks_resampled():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 5)
    foreign = rng.uniform(1, 2, 200)
    own = foreign * np.repeat(rng.uniform(0.2, 0.6, 40), 5)
    gain = evaluation.demo_gain(own, foreign, groups)
    assert gain["demo_gain"] == pytest.approx(1 - own.mean() / foreign.mean())
    assert gain["demo_gain_low"] < gain["demo_gain"] < gain["demo_gain_high"]
    # 40 tasks of equal ratios leave only the noise of their weights; 200 independent rows would look the same.
    equal = evaluation.demo_gain(0.5 * foreign, foreign, groups)
    assert equal["demo_gain_low"] == pytest.approx(0.5) and equal["demo_gain_high"] == pytest.approx(0.5)
    # A task that is copied ten times is still one task: the interval does not shrink.
    copied = evaluation.demo_gain(np.tile(own, 10), np.tile(foreign, 10), np.tile(groups, 10))
    width, width_copied = (g["demo_gain_high"] - g["demo_gain_low"] for g in (gain, copied))
    assert width_copied == pytest.approx(width, rel=1e-6)


@pytest.mark.slow
def test_probes_are_given_the_space_in_which_the_prediction_lives():
    parts, state, _ = evaluated()
    embed, predict = evaluation.make_embedders(parts.objective)(state)["pooled"]
    batch = parts.source.gather(parts.source.tables, parts.source.indices(0), jax.random.key(0), True)
    assert embed(batch.target).shape == predict(batch.context).shape == (16, 16)

    parts, state, _ = evaluated(projector_dim=6)
    both = evaluation.make_embedders(parts.objective)(state)
    assert both["pooled"][1] is None and both["pooled"][0](batch.target).shape == (16, 16)
    embed, predict = both["projected"]
    assert embed(batch.target).shape == predict(batch.context).shape == (16, 6)


@pytest.mark.slow
def test_a_predictor_is_given_the_last_frames_of_a_context_longer_than_those_it_was_trained_on():
    parts, state, _ = evaluated(predictor="pooled", context="mean")
    batch = parts.source.gather(parts.source.tables, parts.source.indices(0), jax.random.key(0), True)
    last = jax.tree.map(lambda leaf: leaf[:, -1:], batch.context)
    cut = evaluation.make_embedders(parts.objective, window=1)(state)["pooled"][1]
    whole = evaluation.make_embedders(parts.objective)(state)["pooled"][1]
    np.testing.assert_array_equal(cut(batch.context), cut(last))
    np.testing.assert_allclose(cut(batch.context), whole(last), rtol=1e-5)
    assert np.abs(whole(batch.context) - cut(batch.context)).max() > 1e-3


def test_the_summary_has_a_row_for_every_figure_and_every_set_of_embeddings():
    _, state, evaluate = evaluated()
    rows = {row["figure"]: row for row in evaluation.summary(evaluate(state, 16).metrics)}
    assert {"val/prediction", "diag/demo_gain", "context", "target", "predicted"} <= rows.keys()
    assert rows["context"]["rank_ratio"] > 0 and "diag/context/std" not in rows

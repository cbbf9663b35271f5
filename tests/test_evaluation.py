"""Held-out figures: the same examples every time, and a demonstration is worth nothing to who does not read it."""

import functools

import jax
import numpy as np
import pytest

from jepa import evaluation, main
from jepa.parts import build


@functools.cache
def evaluated(**objective):
    config = main.load_config("configs/lejepa.py:tiny")
    config.objective.update(objective)
    parts = build(config)
    evaluate = evaluation.make_evaluate(parts.objective, parts.source, parts.weights, seed=0)
    return parts, parts.init(), evaluate


def test_two_evaluations_of_one_state_agree_and_see_what_was_asked_for():
    _, state, evaluate = evaluated()
    one, again = (evaluate(state, 48).metrics for _ in range(2))
    assert one == again
    assert one["diag/target/sigreg_T"] == pytest.approx(48 * one["diag/target/sigreg_T_over_N"])
    assert one["diag/context/sigreg_T"] == pytest.approx(3 * 48 * one["diag/context/sigreg_T_over_N"])
    assert {"val/prediction", "val/sigreg", "val/prediction/copy_ratio", "diag/demo_gain"} <= one.keys()


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
    assert gain["diag/demo_gain"] == pytest.approx(1 - own.mean() / foreign.mean())
    assert gain["diag/demo_gain_low"] < gain["diag/demo_gain"] < gain["diag/demo_gain_high"]
    # 40 tasks of equal ratios leave only the noise of their weights; 200 independent rows would look the same.
    equal = evaluation.demo_gain(0.5 * foreign, foreign, groups)
    assert equal["diag/demo_gain_low"] == pytest.approx(0.5) and equal["diag/demo_gain_high"] == pytest.approx(0.5)
    # A task that is copied ten times is still one task: the interval does not shrink.
    copied = evaluation.demo_gain(np.tile(own, 10), np.tile(foreign, 10), np.tile(groups, 10))
    width, width_copied = (g["diag/demo_gain_high"] - g["diag/demo_gain_low"] for g in (gain, copied))
    assert width_copied == pytest.approx(width, rel=1e-6)


def test_probes_are_given_the_space_in_which_the_prediction_lives():
    parts, state, _ = evaluated()
    embed, predict = evaluation.embedders(parts.objective, state)["pooled"]
    batch = parts.source.gather(parts.source.tables, parts.source.indices(0), jax.random.key(0), True)
    assert embed(batch.target).shape == predict(batch.context).shape == (16, 16)

    parts, state, _ = evaluated(projector_dim=6)
    both = evaluation.embedders(parts.objective, state)
    assert both["pooled"][1] is None and both["pooled"][0](batch.target).shape == (16, 16)
    embed, predict = both["projected"]
    assert embed(batch.target).shape == predict(batch.context).shape == (16, 6)


def test_the_summary_has_a_row_for_every_figure_and_every_set_of_embeddings():
    _, state, evaluate = evaluated()
    rows = {row["figure"]: row for row in evaluation.summary(evaluate(state, 16).metrics)}
    assert {"val/prediction", "diag/demo_gain", "context", "target", "predicted"} <= rows.keys()
    assert rows["context"]["rank_ratio"] > 0 and "diag/context/std" not in rows

"""Patience and the conditions that end a run."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jepa.early_stopping import Patience, broken, broken_because, check, conditions, is_over, watch

OPTIONS = dict(min_delta=0.0, mode="min", warmup_steps=0)
VALUES = st.lists(st.floats(-10, 10) | st.just(math.nan), min_size=1, max_size=20)


def after(values, **options):
    state = Patience()
    for step, value in enumerate(values):
        state = watch(state, step, value, **OPTIONS | options)
    return state


@given(VALUES)
def test_the_best_is_the_first_lowest_and_the_wait_is_what_came_after(values):
    state = after(values)
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        assert state == Patience(None, 0, len(values))
        return
    first = values.index(min(finite))
    assert state == Patience(min(finite), first, len(values) - 1 - first)


@given(VALUES)
def test_the_largest_is_the_smallest_of_the_negatives(values):
    low, high = after([-value for value in values]), after(values, mode="max")
    assert (low.best_step, low.waited) == (high.best_step, high.waited)


@given(VALUES, st.integers(0, 25))
def test_evaluations_before_the_warm_up_do_not_count(values, warmup):
    late = after(values, warmup_steps=warmup)
    assert late.waited <= max(len(values) - warmup, 0)
    assert late.best is None or late.best_step >= warmup


def test_better_is_by_more_than_the_minimum():
    assert after([1.0, 0.95, 0.91], min_delta=0.1).best == 1.0
    assert after([1.0, 0.95, 0.89], min_delta=0.1).best == 0.89


def test_it_is_over_after_as_many_evaluations_as_patience_and_never_without_one():
    state = after([1.0, 2.0, 3.0])
    assert (is_over(state, 2), is_over(state, 3), is_over(state, None)) == (True, False, False)


def test_the_state_survives_json():
    state = after([1.0, 0.5, 0.7])
    assert Patience(*json.loads(json.dumps(state))) == state


def test_conditions_hold_from_their_step_on():
    wanted = ["codes/usage < 0.08 after 100", "val/infonce > 9"]
    fine = {"codes/usage": 0.5, "val/infonce": 1.0}
    low = fine | {"codes/usage": 0.01}
    assert broken(wanted, fine, 100) is None
    assert broken(wanted, low, 99) is None
    assert broken(wanted, low, 100) == wanted[0]
    assert broken(wanted, fine | {"val/infonce": 9.5}, 1) == wanted[1]
    assert broken(wanted, dict.fromkeys(fine, math.nan), 200) is None
    assert broken(wanted, {}, 200) is None  # between evaluations nothing is known
    said = broken_because(wanted[0], low, 100)
    assert said == "codes/usage is 0.01 at step 100, and config.abort has 'codes/usage < 0.08 after 100'"


@pytest.mark.parametrize("text", ["usage", "usage <", "usage < low", "usage <= 1", "usage < 1 after x", "", 3])
def test_what_is_no_condition_is_named(text):
    with pytest.raises(ValueError, match=r"config.abort has .*it has to read"):
        conditions([text])


@pytest.mark.parametrize("fault", [{"patience": 0}, {"min_delta": -1.0}, {"mode": "low"}, {"warmup_steps": -1}])
def test_an_option_out_of_its_range_is_named(fault):
    with pytest.raises(ValueError, match=f"early_stopping.{next(iter(fault))} is"):
        check(**dict(metric="val/prediction", patience=3) | OPTIONS | fault)

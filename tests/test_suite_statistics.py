"""Means over seeds, Holm's correction, and claims: what decides and what does not."""

import numpy as np
import pytest
from scipy import stats

from jepa import suite_statistics as s


def test_an_estimate_is_the_t_interval_and_its_p_values_are_those_of_the_t_test():
    values = np.random.default_rng(0).normal(0.3, 1.0, size=8)
    found, reference = s.estimate(values), stats.ttest_1samp(values, 0.0)
    interval = reference.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert s.p_different(found) == pytest.approx(reference.pvalue)
    above = stats.ttest_1samp(values, 0.2, alternative="greater").pvalue
    assert s.p_above(found, 0.2) == pytest.approx(above)
    assert s.p_below(found, 0.2) == pytest.approx(1 - above)


def test_variance_over_tasks_does_not_shrink_with_seeds():
    few, many = (s.estimate(np.tile([0.9, 1.1], n), task_variance=0.04) for n in (2, 200))
    assert few.error == pytest.approx(np.hypot(0.1 / np.sqrt(3), 0.2))
    assert many.error == pytest.approx(0.2, abs=0.01)


def test_one_seed_has_no_interval_and_decides_nothing():
    found = s.estimate([0.5])
    assert (found.low, found.high) == (None, None) and s.p_different(found) == 1.0


def test_a_mean_that_is_not_a_number_decides_nothing():
    found = s.estimate([0.5, np.nan, 0.4, 0.5, 0.6])
    assert found.low is None and s.p_above(found) == s.p_below(found) == 1.0


def test_without_any_spread_the_sign_decides():
    assert s.p_above(s.estimate([1.0] * 5)) == 0.0 and s.p_above(s.estimate([0.0] * 5)) == 1.0


def test_holm_on_a_published_form():
    # Step down: 4 * .005, then 3 * .01, then 2 * .03 and 1 * .04, which may not fall.
    assert s.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert s.holm([]) == [] and s.holm([0.9, 0.8]) == [1.0, 1.0]


def test_holm_keeps_the_family_wise_error():
    p = np.random.default_rng(1).uniform(size=(4000, 10))
    rejected = np.mean([min(s.holm(row)) < 0.05 for row in p])
    assert rejected == pytest.approx(0.05, abs=0.012)


@pytest.mark.parametrize("expects, verdict", [("higher", "confirmed"), ("lower", "refuted")])
def test_a_claim_is_confirmed_on_its_side_and_refuted_on_the_other(expects, verdict):
    found = s.estimate([1.0, 1.1, 0.9, 1.05, 0.95])
    ((said, p),) = s.verdicts([s.evidence(found, expects, None)])
    assert said == verdict and p < 0.001


def test_four_seeds_are_a_screening_however_clear():
    found = s.estimate([1.0, 1.001, 0.999, 1.0005])
    ((said, p),) = s.verdicts([s.evidence(found, "higher", None)])
    assert said == "undecided" and p < 0.001


def test_within_a_margin_takes_both_sides():
    values = np.array([0.01, -0.02, 0.015, 0.0, -0.01])
    narrow, wide, far = (
        s.evidence(s.estimate(values + shift), "within", m) for shift, m in ((0, 0.001), (0, 0.1), (1, 0.1))
    )
    assert [said for said, _ in s.verdicts([narrow])] == ["undecided"]
    assert [said for said, _ in s.verdicts([wide])] == ["confirmed"]
    assert [said for said, _ in s.verdicts([far])] == ["refuted"]


def test_many_claims_need_more_than_one_would():
    found = s.estimate([0.1, 0.5, 0.2, 0.6, 0.15])
    each = s.evidence(found, "higher", None)
    assert s.verdicts([each])[0][0] == "confirmed"
    nothing = s.evidence(s.estimate([1.0, -1.0, 0.5, -0.5, 0.1]), "higher", None)
    assert s.verdicts([each, *[nothing] * 9])[0][0] == "undecided"

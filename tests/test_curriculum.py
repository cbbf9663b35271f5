"""Levels of difficulty: when each begins decides every batch, and nothing else does."""

from __future__ import annotations

import numpy as np
import pytest

from jepa import config_checks, curriculum, main, run_folder
from jepa.curriculum import Curriculum
from jepa.types import Source


def test_a_level_begins_at_its_step():
    starts = (0, 4, 10)
    assert [curriculum.level(starts, step) for step in (0, 3, 4, 9, 10, 99)] == [0, 0, 1, 1, 2, 2]


def test_the_next_level_begins_once_the_error_has_stopped_falling():
    options = dict(patience=2, min_delta=0.1, num_levels=3)
    now = curriculum.begin(())
    for step, error in ((10, 1.0), (20, 0.8), (30, 0.75)):  # the last is lower by less than a tenth
        now = curriculum.watch(now, step, error, **options)
    assert now == Curriculum([0], 0.8, 1)
    assert curriculum.watch(now, 40, 0.7, **options) == Curriculum([0], 0.7, 0)
    advanced = curriculum.watch(now, 40, 0.79, **options)
    assert advanced == Curriculum([0, 40], None, 0)
    # A new level has an error of its own, and after the last one there is none to begin.
    assert curriculum.watch(advanced, 50, 5.0, **options) == Curriculum([0, 40], 5.0, 0)
    last = Curriculum([0, 40, 60], 1.0, 1)
    assert curriculum.watch(last, 70, 9.0, **options) == last


def test_an_error_that_is_not_finite_is_none_that_fell():
    now = Curriculum([0], 1.0, 0)
    assert curriculum.watch(now, 10, float("nan"), patience=2, min_delta=0.0, num_levels=2) == Curriculum([0], 1.0, 1)


def test_a_schedule_stays_as_it_is():
    now = curriculum.begin((0, 5))
    assert curriculum.watch(now, 10, 0.1, patience=None, min_delta=0.0, num_levels=2) == now


def test_rows_are_those_of_the_level_of_their_step():
    source = Source(*[None] * 8)._replace(
        indices=lambda step, level=0: {"step": np.full(2, step), "level": np.full(2, level)}
    )
    rows = curriculum.rows(source, 3, 4, (0, 5))
    np.testing.assert_array_equal(rows["step"], [[3, 3], [4, 4], [5, 5], [6, 6]])
    np.testing.assert_array_equal(rows["level"], [[0, 0], [0, 0], [1, 1], [1, 1]])


@pytest.mark.parametrize(
    ("starts", "patience", "min_delta", "num_levels", "message"),
    [
        ((0, 5), None, 0.01, 1, "the data has one"),
        ((), None, 0.01, 2, "give config.curriculum.starts"),
        ((0, 5), 2, 0.01, 2, "not both"),
        ((0, 5), None, 0.01, 3, "begin at as many rising steps"),
        ((5, 0), None, 0.01, 2, "the first one 0"),
        ((), 0, 0.01, 2, "must be at least 1"),
        ((), 1, 1.0, 2, "a share of the error"),
    ],
)
def test_a_curriculum_that_does_not_fit_is_named(starts, patience, min_delta, num_levels, message):
    with pytest.raises(ValueError, match=message):
        curriculum.check(starts, patience, min_delta, num_levels)


def test_how_data_come_about_may_change_when_a_run_goes_on_and_which_may_not(tmp_path):
    spec = "configs/lejepa_programs.py:tiny,curriculum"
    run_folder.write_config(tmp_path, config_checks.as_json(main.load_config(spec)))
    config = main.load_config(spec)
    config.eval_every = config.checkpoint_every = 20
    config.data.sources.orbits.num_workers = 1
    assert config.data.sources.orbits.level_every == 20
    config_checks.check_same_run(config, tmp_path)
    config.data.sources.orbits.batches_per_block = 7
    with pytest.raises(ValueError, match=r"data\.sources\.orbits\.batches_per_block: 10 in the run, 7 now\. Use"):
        config_checks.check_same_run(config, tmp_path)

"""The label-free choice of a checkpoint."""

import numpy as np

from jepa.checkpoint_choice import as_text, choose
from jepa.findings_record import record_of


def record(error, std, rank, sigreg=10.0, role="target"):
    names = ("val/prediction/copy_ratio" if role == "target" else "val/prediction", f"diag/{role}/std")
    rows = [
        {"step": 10 * (i + 1), names[0]: e, names[1]: s, f"diag/{role}/rank_ratio": r}
        for i, (e, s, r) in enumerate(zip(error, std, rank, strict=True))
    ]
    return record_of(rows, {"num_steps": 100, "weights": {"sigreg": sigreg}})


def test_what_is_best_in_everything_is_chosen_whatever_the_order():
    error, std, rank = [0.9, 0.4, 0.6], [0.5, 0.95, 0.8], [0.1, 0.3, 0.2]
    assert choose(record(error, std, rank)).step == 20
    shuffled = [2, 0, 1]
    assert choose(record(*([x[i] for i in shuffled] for x in (error, std, rank)))).step == 30


def test_a_low_error_that_collapse_bought_is_not_chosen():
    collapsing = choose(record([0.9, 0.5, 0.1, 0.05], [0.9, 0.95, 0.1, 0.01], [0.3, 0.35, 0.1, 0.02]))
    assert collapsing.step == 20


def test_the_scale_is_held_against_one_only_where_a_term_holds_it_there():
    figures = ([0.5, 0.5], [3.0, 1.0], [0.2, 0.2])
    assert choose(record(*figures)).step == 20
    assert choose(record(*figures, sigreg=0.0)).step == 10  # against that of the first evaluation


def test_equals_go_to_the_latest_and_a_nan_is_never_best():
    assert choose(record([0.5, 0.5], [1.0, 1.0], [0.2, 0.2])).step == 20
    assert choose(record([0.5, np.nan], [1.0, 1.0], [0.2, 0.2])).step == 10


def test_views_have_their_own_figures_and_a_missing_one_is_no_choice():
    choice = choose(record([0.5, 0.4], [1.0, 1.0], [0.2, 0.3], role="views"))
    assert choice.step == 20
    assert "step 20 of 2 evaluations (error 0.4, scale 1, rank 0.3)" in as_text(choice)
    assert choose(record_of([{"step": 1, "val/prediction/copy_ratio": 1.0}], {"num_steps": 1})) is None


def test_it_is_chosen_among_those_that_are_kept():
    figures = ([0.9, 0.3, 0.4], [0.5, 1.0, 0.9], [0.1, 0.3, 0.2])
    choice = choose(record(*figures), kept=[10, 30])
    assert (choice.step, choice.best) == (30, 20)
    assert "take is step 30" in as_text(choice) and "step 20 was better and is not kept" in as_text(choice)
    assert choose(record(*figures), kept=[]) is None

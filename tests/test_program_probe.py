"""Laws of the probes about programs: what perfect, absent and partial knowledge scores, and what questions ask."""

from __future__ import annotations

import functools
import itertools
import json

import jax
import numpy as np
import pytest

from jepa import bootstrap, controls, probe, probe_rows, probes, program_probe, program_scorers
from jepa.bootstrap import interval, resamples, scored
from jepa.data import _collections, _grids, _objects, _program_probes, _program_rankings, _programs, _real_grids
from jepa.data._primitives import FAMILIES, numbers
from jepa.data._program_probes import Pairs
from jepa.data._program_rankings import Ranking

SMALL = dict(num_fitted=4, num_pairs=16, num_orbits=36, num_programs=26)
HELD_OUT = ("wrap", "hollow", "gravity", "crop", "outline", "sort")


def mean_of(outcome):
    return bootstrap.score(outcome)[0]


def some_tasks():
    return _collections.load("arc1-clean")[:40], _collections.load("arc1-eval")[:60]


@pytest.fixture(scope="module")
def questions():
    return _program_probes.build(*some_tasks(), **SMALL)


def shown_grid(questions, row):
    """A grid as primitives know it, with its background as colour 0."""
    return _real_grids.exchanged(questions.grids[row], questions.backgrounds[row])


# Scorers.


@pytest.mark.parametrize(
    ("scores", "right", "expected"),
    [
        ([3, 2, 1], [1, 0, 0], 1),
        ([1, 2, 3], [1, 0, 0], 1 / 3),
        ([2, 2, 1], [1, 0, 0], (1 + 1 / 2) / 2),  # a tie counts half
        ([0, 0, 0], [1, 0, 0], (1 + 1 / 2 + 1 / 3) / 3),
        ([1, 2, 3], [1, 1, 0], 1 / 2),  # the best right one counts
        ([1, 3, 3], [0, 1, 0], (1 + 1 / 2) / 2),
    ],
)
def test_the_reciprocal_rank_of_small_cases(scores, right, expected):
    found = program_scorers.reciprocal_rank(np.array([scores], float), np.array([right], bool))
    np.testing.assert_allclose(found, [expected])


def test_ties_are_broken_at_random():
    """Against the mean over every order of the candidates, in which the first of equals wins."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, right = rng.integers(0, 3, 5).astype(float), np.append(True, rng.random(4) < 0.4)
        ranks = []
        for order in itertools.permutations(range(5)):
            ranked = sorted(order, key=lambda i: -scores[i])
            ranks.append(1 / (1 + next(place for place, i in enumerate(ranked) if right[i])))
        found = program_scorers.reciprocal_rank(scores[None], right[None])
        np.testing.assert_allclose(found, [np.mean(ranks)])
    assert program_scorers.chance(np.eye(1, 32) > 0) == pytest.approx(np.mean(1 / np.arange(1, 33)))


def pairs_of_their_own(num, num_families=26, start=0):
    """Pairs whose rows no other pair shares."""
    rows = start + np.arange(2 * num).reshape(num, 2)
    return Pairs(np.arange(num), rows, numbers(_real_grids.CLASSIFIED)[np.arange(num) % num_families])


def noise(num, width=48, seed=0):
    return np.random.default_rng(seed).normal(size=(num, width)).astype(np.float32)


def test_an_embedding_that_holds_the_family_names_it_and_its_input_does_not():
    training, test = pairs_of_their_own(520), pairs_of_their_own(520, start=1040)
    z = noise(2080)
    for pairs in (training, test):
        z[pairs.rows[:, 1]] = z[pairs.rows[:, 0]] + 5 * np.eye(48, dtype=np.float32)[pairs.families % 48]
    found = program_scorers.families(z.__getitem__, training, test, penalty=0.01)
    assert mean_of(found["delta"]) == 1.0 and mean_of(found["pair"]) > 0.95
    assert mean_of(found["input_only"]) < 0.1
    blind = program_scorers.families(noise(2080, seed=1).__getitem__, training, test)
    assert all(mean_of(outcome) < 0.1 for outcome in blind.values())


def ranking_of_its_own(num=200, shown=3, candidates=32):
    rows = np.arange(num * (shown + candidates)).reshape(num, -1)
    right = np.zeros((num, candidates), bool)
    right[:, 0] = True
    return Ranking(np.arange(num), np.zeros((num, 2), int), rows[:, :shown], rows[:, shown:], right)


def test_an_orbit_that_is_a_line_is_extrapolated():
    q = ranking_of_its_own()
    z, step = noise(q.candidates.max() + 1), noise(200, seed=1)
    z[q.shown[:, 1]], z[q.shown[:, 2]] = z[q.shown[:, 0]] + step, z[q.shown[:, 0]] + 2 * step
    z[q.candidates[:, 0]] = z[q.shown[:, 0]] + 3 * step
    z[q.candidates[:, 1]] = z[q.shown[:, 2]]
    z[q.candidates[:, 2]] = z[q.shown[:, 0]] + 4 * step
    found = program_scorers.orbits(z.__getitem__, q)
    assert mean_of(found["extrapolation"]) == 1.0
    assert mean_of(found["delta_cosine"]) == pytest.approx(0.75)  # one step too many lies in the same direction
    assert mean_of(found["copy"]) <= 0.5
    assert mean_of(program_scorers.predicted(z.__getitem__, z[q.candidates[:, 0]], q)) == 1.0
    assert mean_of(program_scorers.predicted(z.__getitem__, z[q.candidates[:, 1]], q)) <= 0.5


def test_the_first_step_that_comes_nearest_to_the_result_wins():
    q = ranking_of_its_own(shown=2, candidates=35)
    z = noise(q.candidates.max() + 1)
    blind = program_scorers.first_steps(z.__getitem__, q)
    chance = program_scorers.chance(q.right)
    for outcome in blind.values():
        assert abs(mean_of(outcome) - chance) < 4 * np.std(outcome.values) / np.sqrt(len(outcome.values))
    z[q.candidates[:, 0]] = z[q.shown[:, 1]] + 0.1 * noise(200, seed=2)
    found = program_scorers.first_steps(z.__getitem__, q)
    assert mean_of(found["nearest"]) == 1.0 and mean_of(found["copy"]) < 0.3


def test_prototypes_of_the_right_deltas_tell_families_apart():
    pairs = pairs_of_their_own(400, num_families=8)
    pairs = pairs._replace(groups=np.arange(400))
    asked = _program_probes.episodes(pairs, _real_grids.CLASSIFIED[:8], number=60)
    assert asked.support.shape == (60, 5, 5) and asked.queries.shape == (60, 5, 3)
    z = noise(800)
    z[pairs.rows[:, 1]] = z[pairs.rows[:, 0]] + np.eye(48, dtype=np.float32)[pairs.families % 48]
    for shots in (1, 5):
        found = program_scorers.few_shot(z.__getitem__, pairs, asked, shots=shots)
        assert mean_of(found["delta"]) == 1.0
        assert abs(mean_of(found["input_only"]) - 0.2) < 0.06
        collapsed = program_scorers.few_shot(np.ones((800, 4)).__getitem__, pairs, asked, shots=shots)
        np.testing.assert_allclose(collapsed["delta"].values, 0.2)


def test_episodes_keep_examples_and_queries_apart(questions):
    asked = _program_probes.episodes(questions.evaluation, HELD_OUT, number=50, shots=3, queries=2)
    known = questions.evaluation
    for support, queries in zip(asked.support, asked.queries, strict=True):
        together = np.concatenate([support, queries], axis=1)
        assert (known.families[together] == known.families[together[:, :1]]).all()
        assert len(np.unique(known.families[together[:, 0]])) == 5
        assert all(len(np.unique(known.groups[row])) == 5 for row in together)
    again = _program_probes.episodes(known, HELD_OUT, number=50, shots=3, queries=2)
    np.testing.assert_array_equal(asked.support, again.support)


def test_a_family_of_too_few_tasks_makes_no_episode():
    pairs = pairs_of_their_own(26 * 4)
    with pytest.raises(ValueError, match="'rotate' has pairs of 4 tasks; an episode takes 8"):
        _program_probes.episodes(pairs, ("rotate", "wrap"))


# Questions.


def test_there_are_26_families_to_tell_apart():
    assert len(_real_grids.CLASSIFIED) == 26 and set(_real_grids.APPLICABLE) <= set(FAMILIES)
    assert len(set(_real_grids.APPLICABLE)) == len(_real_grids.APPLICABLE)


def test_every_family_has_as_many_pairs_and_changes_its_input(questions):
    for pairs, names, each in (
        (questions.training, _real_grids.CLASSIFIED, 4),
        (questions.evaluation, _real_grids.APPLICABLE, 16),
    ):
        families, counts = np.unique(pairs.families, return_counts=True)
        assert sorted(families) == sorted(numbers(names)) and (counts == each).all()
        assert (pairs.rows[:, 0] != pairs.rows[:, 1]).all()
        assert (questions.backgrounds[pairs.rows[:, 0]] == questions.backgrounds[pairs.rows[:, 1]]).all()


def test_a_background_of_another_colour_changes_nothing_but_the_colour():
    """Tasks on colour 0 and the same with colours 0 and 7 exchanged have the same pairs, so exchanged."""
    tasks = [
        task for task in some_tasks()[0] if _objects.background([grid for pair in task.demos for grid in pair]) == 0
    ]
    other = [
        task._replace(
            **{
                part: [tuple(_real_grids.exchanged(grid, 7) for grid in pair) for pair in getattr(task, part)]
                for part in ("demos", "tests")
            }
        )
        for task in tasks
    ]
    rows, others = {}, {}
    for found, given in ((rows, tasks), (others, other)):
        _program_probes.pairs(found, _real_grids.inputs(given), ("wrap", "hollow"), 6, np.random.default_rng(0))
    assert len(rows) > 12 and {background for *_, background in others} == {7}
    for (shape, content, _), (other_shape, other_content, _) in zip(rows, others, strict=True):
        grid, exchanged = np.frombuffer(content, np.uint8), np.frombuffer(other_content, np.uint8)
        assert shape == other_shape
        np.testing.assert_array_equal(_real_grids.exchanged(grid, 7), exchanged)


def test_candidates_are_distinct_and_the_truth_is_column_zero(questions):
    rankings = {"orbit": questions.orbits, **questions.first_steps}
    for name, q in rankings.items():
        assert len(q.groups) > 20
        assert q.candidates.shape[1] == (_program_rankings.NUM_NEXT if name == "orbit" else _program_rankings.NUM_FIRST)
        assert all(len(set(row)) == len(row) for row in q.candidates)
        assert q.right[:, 0].all() and not q.right.all(axis=1).any()


def test_the_truth_of_an_orbit_is_not_in_its_context_and_the_context_is_among_the_candidates(questions):
    q = questions.orbits
    np.testing.assert_array_equal(q.candidates[:, 1:4], q.shown)
    assert (q.right.sum(1) == 1).all() and (q.candidates[:, :1] != q.shown).all()
    assert set(np.unique(q.programs)) <= set(numbers(_program_rankings.ORBITING))
    single = q.programs[:, 0] == q.programs[:, 1]
    assert 0 < single.sum() < len(single)


def test_quarter_turns_return_only_after_four(questions):
    q = questions.orbits
    turning = np.flatnonzero((q.programs == FAMILIES.index("rotate")).all(axis=1))
    assert len(turning)
    for k in turning:
        first, second, third = (questions.grids[row] for row in q.shown[k])
        turn = next(t for t in (1, 3) if np.array_equal(np.rot90(first, t), second))
        np.testing.assert_array_equal(np.rot90(second, turn), third)
        np.testing.assert_array_equal(np.rot90(third, turn), questions.grids[q.candidates[k, 0]])


def test_neither_the_input_nor_the_result_is_a_first_step(questions):
    for length, q in questions.first_steps.items():
        assert q.programs.shape[1] == length and q.shown.shape[1] == 2
        assert not (q.candidates[:, :, None] == q.shown[:, None]).any()
        assert (q.right.sum(1) < length).all() if length == 2 else (q.right.sum(1) <= length).all()
        first, counts = np.unique(q.programs[:, 0], return_counts=True)
        assert len(first) > 20 and counts.max() == 1


def test_the_first_step_is_one_of_its_family(questions):
    """Where the family has few parameters, one of them makes the right candidate of the input."""
    q, checked = questions.first_steps[2], 0
    for k, family in enumerate(FAMILIES[number] for number in q.programs[:, 0]):
        if family in ("rotate", "reflect", "gravity", "fall", "half", "grow", "erode", "hollow", "denoise"):
            x, truth = (shown_grid(questions, row) for row in (q.shown[k, 0], q.candidates[k, 0]))
            program = np.full((64, 1), FAMILIES.index(family))
            drawn = _programs.draw_parameters(np.random.default_rng(0), program, False)
            after, _ = _programs.apply(_grids.stack([x] * 64), program[:, 0], drawn[:, 0])
            assert any(np.array_equal(grid, truth) for grid in _grids.unstack(after)), family
            checked += 1
    assert checked >= 5


def test_steps_that_may_change_places_are_both_right():
    x = np.zeros((9, 9), np.uint8)
    x[1:5, 2:7], x[7, 1] = 3, 5
    programs = numbers([["hollow", "recolour"], ["half", "hollow"]])
    parameters = np.zeros((2, 2, 10), np.int64)
    parameters[0, 1, :2] = 5, 8  # hollowing the rectangle and recolouring the dot commute
    parameters[1, 0, 0] = _grids.UP  # the half that cuts through the rectangle: what is hollowed first stays open
    given = _grids.stack([x, x])
    steps, good = _real_grids.applied(given, programs, parameters)
    _, possible, right = _program_rankings._own_first_steps(given, steps[-1], programs, parameters)
    assert good.all() and possible.all()
    assert right.tolist() == [[True, True], [True, False]]


def test_the_same_seed_asks_the_same(questions):
    again, other = (_program_probes.build(*some_tasks(), **SMALL, seed=seed) for seed in (0, 1))
    for a, b in zip(jax.tree.leaves(tuple(questions)), jax.tree.leaves(tuple(again)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(questions.orbits.programs, other.orbits.programs)


# The whole table.


@pytest.fixture(scope="module")
def result(questions, tmp_path_factory):
    embed = jax.jit(controls.raw_tables)
    return program_probe.evaluate(
        embed,
        jax.jit(lambda context: controls.raw_tables({key: leaf[:, 2] for key, leaf in context.items()})),
        untrained=(jax.jit(controls.histogram), None),
        seen_ids=[f"programs:{name}" for name in FAMILIES if name not in HELD_OUT],
        cache_dir=str(tmp_path_factory.mktemp("cache")),
        questions=questions,
    )


def test_an_encoder_that_is_a_control_does_not_differ_from_it(result):
    for row in result["rows"]:
        if not row["probe"].endswith("predictor_l2"):
            assert row["score"] == pytest.approx(row["controls"]["tables"]["score"], abs=1e-6)
            assert row["untrained"]["score"] == pytest.approx(row["controls"]["histogram"]["score"], abs=1e-6)
            assert row["over_controls"]["tables"]["difference"] == pytest.approx(0, abs=1e-6)


def test_a_prediction_that_is_the_last_grid_copies(questions, result):
    (row,) = [row for row in result["rows"] if row["probe"] == "orbit/all/predictor_l2"]
    assert row["score"] <= 0.5  # a copy of the last grid is among the candidates
    assert "untrained" not in row


def test_the_table_has_every_probe_with_held_in_and_held_out_rows(result):
    names = [row["probe"] for row in result["rows"]]
    assert result["held_out"] == sorted(HELD_OUT)
    for probe_name in ("family", "orbit", "first_step_2", "first_step_3", "few_shot_1", "few_shot_5"):
        parts = {name.split("/")[1] for name in names if name.startswith(f"{probe_name}/")}
        assert {"held_in", "held_out"} <= parts, probe_name
    for row in result["rows"]:
        assert row["low"] <= row["score"] <= row["high"] and 0 < row["chance"] < 1
    lines = probe_rows.lines(json.loads(json.dumps(result)))
    assert len(lines) == 2 * (len(names) + 1) + 1


def test_held_in_and_held_out_questions_make_up_the_whole(questions, result):
    masks = program_probe._masks(questions, set(HELD_OUT))
    for name, parts in masks.items():
        assert (parts["held_in"] ^ parts["held_out"]).all() and parts["all"].all(), name
    programs = questions.orbits.programs[masks["orbit"]["held_out"]]
    assert np.isin(programs, numbers(HELD_OUT)).any(axis=1).all()


def test_without_programs_in_the_training_all_families_are_one(questions):
    assert all(set(parts) <= {"all", "one_primitive"} for parts in program_probe._masks(questions, set()).values())
    assert list(program_probe._episodes(questions, set(), 0)) == ["all"]


def test_a_family_counts_as_much_as_another_however_many_pairs_it_has(questions):
    """Of a balanced accuracy, not of the plain one: half of the pairs of one family are left out."""
    families = questions.evaluation.families
    keep = np.flatnonzero((families != FAMILIES.index("rotate")) | (np.arange(len(families)) % 2 == 0))
    fewer = questions._replace(evaluation=Pairs(*(field[keep] for field in questions.evaluation)))
    z = noise(len(questions.grids), seed=3).__getitem__
    found = program_probe.answers(z, fewer, program_probe._masks(fewer, set()), {})["family/all/pair"]
    test = program_probe._classified(fewer.evaluation)
    plain = program_scorers.families(z, fewer.training, test)["pair"].values
    expected = np.mean([plain[test.families == family].mean() for family in np.unique(test.families)])
    assert mean_of(found) == pytest.approx(expected)


def test_a_task_that_was_trained_on_is_not_asked_about(tmp_path):
    trained = [_collections.load("arc1-eval")[0].id]
    with pytest.raises(ValueError, match="the probes about programs: 1 of the 400 tasks were trained on"):
        program_probe.evaluate(None, None, untrained=None, seen_ids=trained, cache_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--probes=arcs"], "--probes names 'arcs': did you mean 'arc'?"),
        (["--held_out=warp"], "--held_out names 'warp': did you mean 'wrap'?"),
        ([], "no-run"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        probes.main([str(tmp_path / "no-run"), *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


@pytest.mark.slow
def test_a_run_is_asked_by_its_folder(tmp_path, monkeypatch, questions, capsys):
    from jepa import main, train

    config = main.load_config("configs/lejepa.py:tiny")
    train.run(config, tmp_path / "run")
    monkeypatch.setattr(_program_probes, "build", lambda *_, seed: questions)
    probes.main(
        [str(tmp_path / "run"), "--probes=programs", "--held_out=wrap,hollow", f"--output={tmp_path / 'p.json'}"]
    )
    found = json.loads((tmp_path / "p.json").read_text())
    assert found["step"] == config.num_steps and list(found["probes"]) == ["programs, pooled"]
    assert found["probes"]["programs, pooled"]["held_out"] == ["hollow", "wrap"]
    assert "orbit/all/predictor_l2" in capsys.readouterr().out


# Scores of (randnet, tables, pixels) that were measured before, with another generator and other questions of the same
# kind, and what half a 95 % interval of ours is. Pixels are compared by their Hamming distance there.
MEASURED = {
    "family/all/pair": (0.314, 0.386, None),
    "family/all/delta": (None, 0.400, None),
    "orbit/all/extrapolation": (0.263, 0.329, None),
    "first_step_3/all/nearest": (0.449, 0.473, 0.493),
}


@pytest.mark.slow
def test_controls_score_what_they_scored_before(tmp_path):
    """Within half the width of a 95 % interval and the half digit; randnet is the mean of two networks."""
    training, evaluation = probe.load_tasks()
    questions = _program_probes.build(training, evaluation["arc1"])
    table = _objects.tokenise_cached(questions.grids, questions.backgrounds, str(tmp_path))
    masks = program_probe._masks(questions, set())
    encoders = [[functools.partial(controls.randnet, seed=seed) for seed in range(2)], [controls.raw_tables]]
    answered = [
        [program_probe.answer(jax.jit(e), None, table, questions, masks, {}) for e in some] for some in encoders
    ]
    answered.append([program_probe.answers(program_probe._pixels(questions.grids), questions, masks, {})])
    for name, measured in MEASURED.items():
        for outcomes, expected in zip(answered, measured, strict=True):
            if expected is not None:
                spread = interval(scored(outcomes[0][name], resamples(outcomes[0][name].groups)))
                tolerance = (spread["high"] - spread["low"]) / 2 + 0.0005
                assert np.mean([mean_of(each[name]) for each in outcomes]) == pytest.approx(expected, abs=tolerance)

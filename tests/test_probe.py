"""Laws of the probes: what perfect, absent and partial information score, and that no question leaks its answer."""

from __future__ import annotations

import functools
import json

import jax
import numpy as np
import pytest

from jepa import bootstrap, controls, probe, probe_rows, scorers
from jepa.bootstrap import Outcome, interval, resamples, scored
from jepa.data import _objects, _probes
from jepa.data._collections import Task


def make_tasks(prefix: str, count: int, *, demos: int = 3) -> list[Task]:
    """Random grids whose rule is to shift every colour of the input by the task's own number."""
    tasks = []
    for number in range(count):
        rng = np.random.default_rng([count, number, *prefix.encode()])
        pairs = []
        for _ in range(demos + 1):
            x = rng.integers(0, 4, size=rng.integers(4, 8, size=2)).astype(np.uint8)
            pairs.append((x, ((x + 1 + number % 5) % 10).astype(np.uint8)))
        tasks.append(Task(f"{prefix}{number}", pairs[:demos], pairs[demos:]))
    return tasks


@pytest.fixture(scope="module")
def tasks():
    return make_tasks("t", 12), {"one": make_tasks("a", 20), "two": make_tasks("b", 10)}


@pytest.fixture(scope="module")
def questions(tasks):
    return _probes.build(*tasks, seed=0)


def gaussian(questions, width=64, seed=0):
    return np.random.default_rng(seed).normal(size=(len(questions.grids), width)).astype(np.float32)


def synthetic_queries(num=400, num_candidates=8, num_demos=3, seed=0):
    """Rows of their own for everything, [x, demos, candidates] per query; the input is candidate 1."""
    size = 1 + 2 * num_demos + num_candidates
    base = np.arange(num)[:, None] * size
    candidates = base + 1 + 2 * num_demos + np.arange(num_candidates)
    candidates[:, 1] = base[:, 0]
    groups = np.arange(num)
    return _probes.RuleQueries(
        groups=groups,
        inputs=base[:, 0],
        demos=(base + 1 + np.arange(2 * num_demos)).reshape(num, num_demos, 2),
        demo_mask=np.ones((num, num_demos), bool),
        candidates=candidates,
        candidate_mask=np.ones((num, num_candidates), bool),
        foreign=(groups + num // 2) % num,
    ), num * size


def oracle(q, num_rows, width=16):
    """Embeddings in which every pair of a query, and only they, differ by the query's own vector."""
    rng = np.random.default_rng(1)
    z = rng.normal(size=(num_rows, width)).astype(np.float32)
    rule = rng.normal(size=(len(q.inputs), width)).astype(np.float32)
    z[q.demos[..., 1]] = z[q.demos[..., 0]] + rule[:, None]
    z[q.candidates[:, 0]] = z[q.inputs] + rule
    return z


def mean_of(outcome):
    return bootstrap.score(outcome)[0]


# Rule matching.


def test_an_embedding_that_holds_the_rule_solves_it_and_only_with_its_own_demonstrations():
    q, num_rows = synthetic_queries()
    outcomes = scorers.rule_matching(oracle(q, num_rows), q)
    for scorer in ("delta_cosine", "analogy_l2"):
        assert mean_of(outcomes[scorer]) == 1.0
        assert mean_of(outcomes[f"{scorer}_foreign"]) < 0.25
    assert mean_of(outcomes["copy"]) == 0.0


def test_the_prototype_is_the_mean_output_of_the_demonstrations():
    q, num_rows = synthetic_queries()
    z = np.random.default_rng(0).normal(size=(num_rows, 16)).astype(np.float32)
    assert mean_of(scorers.rule_matching(z, q)["prototype"]) < 0.25
    z[q.candidates[:, 0]] = z[q.demos[..., 1]].mean(1)
    assert mean_of(scorers.rule_matching(z, q)["prototype"]) == 1.0


def test_no_information_scores_a_little_over_chance_by_cosine_and_nothing_by_distance():
    q, num_rows = synthetic_queries(num=4000)
    z = np.random.default_rng(0).normal(size=(num_rows, 64)).astype(np.float32)
    outcomes = scorers.rule_matching(z, q)
    # The input has cosine 0, so one of seven others wins, unless all seven are negative.
    expected = (1 - 0.5**7) / 7
    assert abs(mean_of(outcomes["delta_cosine"]) - expected) < 4 * np.sqrt(expected * (1 - expected) / 4000)
    assert mean_of(outcomes["analogy_l2"]) < 0.01


def test_scores_are_those_of_a_plain_loop(questions):
    z, q = gaussian(questions), questions.rule["one/hard"]
    outcomes = scorers.rule_matching(z, q)
    for k in range(len(q.inputs)):
        kept = q.demos[k][q.demo_mask[k]]
        rule = np.mean([z[y] - z[x] for x, y in kept], axis=0)
        cosine, distance = [], []
        for c in q.candidates[k][q.candidate_mask[k]]:
            delta = z[c] - z[q.inputs[k]]
            cosine.append(delta @ rule / (np.linalg.norm(delta) * np.linalg.norm(rule)) if delta.any() else 0.0)
            distance.append(np.sum((delta - rule) ** 2))
        assert outcomes["delta_cosine"].values[k] == (np.argmax(cosine) == 0)
        assert outcomes["analogy_l2"].values[k] == (np.argmin(distance) == 0)


def test_the_order_of_the_other_candidates_changes_nothing(questions):
    z, q = gaussian(questions), questions.rule["one/hard"]
    order = np.concatenate([[0], 1 + np.random.default_rng(3).permutation(q.candidates.shape[1] - 1)])
    shuffled = q._replace(candidates=q.candidates[:, order], candidate_mask=q.candidate_mask[:, order])
    for name, outcome in scorers.rule_matching(z, q).items():
        np.testing.assert_array_equal(outcome.values, scorers.rule_matching(z, shuffled)[name].values)


def test_ties_share_the_point_and_absent_candidates_take_no_part():
    scores = np.array([[1.0, 1.0, 0.0], [2.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0], [1.0, 5.0, 0.0]])
    mask = np.array([[True, True, True]] * 4 + [[True, False, True]])
    np.testing.assert_allclose(scorers.expected_top1(scores, mask), [1 / 2, 1, 1 / 3, 0, 1])


def test_a_collapsed_embedding_scores_chance(questions):
    z, q = np.ones((len(questions.grids), 8), np.float32), questions.rule["one/edit"]
    for outcome in scorers.rule_matching(z, q).values():
        np.testing.assert_allclose(outcome.values, 1 / 8)


def test_predictions_average_over_the_demonstrations_that_count(tasks, questions):
    q = questions.rule["one/hard"]
    values = np.random.default_rng(0).normal(size=(len(questions.grids), 5)).astype(np.float32)

    def predict(context):  # [n, 3, 5] -> [n, 5]: x + (y_i - x_i)
        return context["size"][:, 2] + context["size"][:, 1] - context["size"][:, 0]

    for foreign in (False, True):
        z_hat = scorers.predictions(predict, {"size": values}, q, foreign=foreign)
        lender = q.foreign if foreign else np.arange(len(q.inputs))
        for k in range(len(q.inputs)):
            kept = q.demos[lender[k]][q.demo_mask[lender[k]]]
            expected = values[q.inputs[k]] + np.mean([values[y] - values[x] for x, y in kept], axis=0)
            np.testing.assert_allclose(z_hat[k], expected, atol=1e-5)


def test_the_demo_free_control_learns_what_the_edits_give_away():
    train, num_rows = synthetic_queries(num=200)
    z = np.random.default_rng(0).normal(size=(num_rows, 8)).astype(np.float32)
    blind = mean_of(scorers.demo_free(z, train)(train._replace(groups=train.groups + 1)))
    z[train.candidates[:, 0]] += 3.0
    assert mean_of(scorers.demo_free(z, train)(train)) > 0.9 > 0.5 > blind


# Construction of the questions.


def test_edits_never_equal_the_truth_the_input_or_one_another():
    rng = np.random.default_rng(0)
    symmetric = np.zeros((5, 5), np.uint8)
    symmetric[2, 2] = 3
    grids = [symmetric, np.full((3, 3), 7, np.uint8), np.array([[4]], np.uint8), np.array([[1, 2]], np.uint8)]
    grids += [rng.integers(0, 10, size=(6, 9)).astype(np.uint8) for _ in range(20)]
    for truth in grids:
        for x in (truth[::-1, ::-1], symmetric):
            found = _probes.edits(truth, x, _objects.background([truth]), rng)
            shown = [truth, x, *found] if not np.array_equal(x, truth) else [truth, *found]
            assert len(found) == len(_probes.EDITS)
            assert len({(grid.shape, grid.tobytes()) for grid in shown}) == len(shown)
            assert all(grid.max() <= 9 for grid in found)


@pytest.mark.parametrize("edit", _probes.EDITS)
def test_an_edit_leaves_the_true_output_alone_and_keeps_its_size(edit):
    grid = np.random.default_rng(0).integers(0, 3, size=(5, 7)).astype(np.uint8)
    before = grid.copy()
    edited = edit(grid, 0, np.random.default_rng(1))
    np.testing.assert_array_equal(grid, before)
    assert edited.shape == grid.shape and edited.dtype == np.uint8 and not np.array_equal(edited, grid)


def test_an_object_edit_changes_one_connected_object_of_one_colour():
    grid = np.zeros((6, 8), np.uint8)
    grid[0, :2], grid[3:5, 4], grid[5, 5], grid[0, 7] = 2, 2, 2, 5
    pieces = [{(0, 0), (0, 1)}, {(3, 4), (4, 4), (5, 5)}, {(0, 7)}]
    found = set()
    for seed in range(40):
        edited = _probes.edit_object(grid, 0, np.random.default_rng(seed))
        changed = {tuple(cell) for cell in np.argwhere(edited != grid).tolist()}
        assert changed in pieces and len({int(edited[cell]) for cell in changed}) == 1
        found.add(pieces.index(changed))
    assert found == {0, 1, 2}


def test_the_truth_is_column_zero_and_the_input_column_one(tasks, questions):
    for name, collection in tasks[1].items():
        q = questions.rule[f"{name}/edit"]
        pairs = [pair for task in collection for pair in task.tests]
        assert q.candidates.shape == (len(pairs), 8) and q.candidate_mask.all()
        for k, (x, y) in enumerate(pairs):
            np.testing.assert_array_equal(questions.grids[q.candidates[k, 0]], y)
            np.testing.assert_array_equal(questions.grids[q.candidates[k, 1]], x)
            assert q.inputs[k] == q.candidates[k, 1]
            assert len(set(q.candidates[k])) == 8
            assert len({int(questions.backgrounds[row]) for row in q.candidates[k]}) == 1


def test_the_demonstration_among_the_candidates_is_left_out_of_the_rule(questions):
    edit, hard = questions.rule["one/edit"], questions.rule["one/hard"]
    np.testing.assert_array_equal(hard.candidates[:, :8], edit.candidates)
    assert hard.candidate_mask.all() and (hard.demo_mask.sum(1) == edit.demo_mask.sum(1) - 1).all()
    for k, candidate in enumerate(hard.candidates[:, 8]):
        assert candidate in hard.demos[k, ~hard.demo_mask[k], 1]
        assert candidate not in hard.demos[k, hard.demo_mask[k], 1]


def test_an_absent_candidate_changes_the_chance():
    x = np.arange(9, dtype=np.uint8).reshape(3, 3)
    demos = [(x.T.copy(), x[::-1].copy())]
    task = Task("identity", demos, [(x, x.copy())])
    other = Task("other", demos, [(x, (x + 1).astype(np.uint8))])
    built = _probes.build([task, other], {"one": [task, other]})
    hard = built.rule["one/hard"]
    # The input is the answer, and leaving out the only demonstration would leave no rule.
    np.testing.assert_array_equal(hard.candidate_mask[0, [1, 8]], [False, False])
    assert hard.demo_mask.all()
    assert probe.chances(built)["rule/one/edit/delta_cosine"] == pytest.approx((1 / 7 + 1 / 8) / 2)


def test_demonstrations_are_lent_by_another_task(questions):
    for q in questions.rule.values():
        assert (q.groups[q.foreign] != q.groups).all()


def test_conjugation_is_one_action_on_both_grids():
    rng = np.random.default_rng(0)
    x, y = (rng.integers(0, 10, size=size).astype(np.uint8) for size in ((4, 6), (7, 5)))
    for seed in range(30):
        images, palette = _probes.conjugate((x, y), np.random.default_rng(seed))
        assert palette[0] == 0 and sorted(palette) == list(range(10))
        assert not (np.array_equal(images[0], x) and np.array_equal(images[1], y))
        actions = [
            {d4 for d4 in range(8) if np.array_equal(_objects.transform_grid(grid, d4, palette), image)}
            for grid, image in zip((x, y), images, strict=True)
        ]
        assert len(actions[0] & actions[1]) == 1


def test_questions_depend_on_the_seed_and_each_task_alone(tasks, questions):
    training, evaluation = tasks
    again = _probes.build(training, evaluation, seed=0)
    assert all(np.array_equal(a, b) for a, b in zip(again.grids, questions.grids, strict=True))
    subset = _probes.build(training[:3], {"one": evaluation["one"][5:7]}, seed=0)
    for mine, theirs in ((0, 5), (1, 6)):
        for a, b in zip(
            subset.rule["one/edit"].candidates[mine], questions.rule["one/edit"].candidates[theirs], strict=True
        ):
            np.testing.assert_array_equal(subset.grids[a], questions.grids[b])
    other = _probes.build(training, evaluation, seed=1)
    assert any(not np.array_equal(a, b) for a, b in zip(other.grids, questions.grids, strict=False))


# Retrieval and facts.


def test_retrieval_finds_the_task_by_what_its_pairs_change():
    rng = np.random.default_rng(0)
    num, width = 50, 24

    def queries(start):
        rows = start + np.arange(num * 8).reshape(num, 4, 2)
        return _probes.RetrievalQueries(np.arange(num), rows[:, 0], rows[:, 1:], np.ones((num, 3), bool))

    train, test = queries(0), queries(num * 8)
    z = rng.normal(size=(num * 16, width)).astype(np.float32)
    for q in (train, test):
        rule = 2 * rng.normal(size=(num, width)).astype(np.float32)
        pairs = np.concatenate([q.query[:, None], q.demos], axis=1)
        z[pairs[..., 1]] = z[pairs[..., 0]] + rule[:, None] + 0.05 * rng.normal(size=(num, 4, width)).astype(np.float32)
    found = scorers.retrieval(z, train, test)
    assert mean_of(found["delta"]) == 1.0
    assert mean_of(found["input_only"]) < 0.2
    assert mean_of(found["gain"]) == pytest.approx(mean_of(found["delta"]) - mean_of(found["input_only"]))


@pytest.mark.parametrize("width", [5, 60])
def test_the_within_task_precision_is_the_inverse_of_the_shrunk_covariance(width):
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(10), 3)
    scale = np.linspace(0.5, 3, width).astype(np.float32)
    x = rng.normal(size=(30, width)).astype(np.float32) * scale + 10 * rng.normal(size=(10, width))[groups]
    residual = np.concatenate([x[groups == g] - x[groups == g].mean(0) for g in range(10)]).astype(np.float64)
    w = residual.T @ residual / 30
    expected = np.linalg.inv(w + np.trace(w) / width * np.eye(width))
    np.testing.assert_allclose(
        scorers.within_task_precision(x.astype(np.float32), groups)(np.eye(width)), expected, atol=2e-4
    )


@pytest.mark.parametrize("width", [6, 80])
def test_ridge_is_the_closed_form_of_standardised_features(width):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, width)) * 3 + 5, rng.normal(size=40)
    a = (x - x.mean(0)) / x.std(0)
    w = np.linalg.solve(a.T @ a + 0.1 * 40 * np.eye(width), a.T @ (y - y.mean()))
    predict = scorers.ridge(x.astype(np.float32), y.astype(np.float32), penalty=0.1)
    np.testing.assert_allclose(predict(x.astype(np.float32)), a @ w + y.mean(), atol=1e-3)


def test_a_repeated_shape_is_of_two_cells_or_more():
    grids = [np.zeros((6, 6), np.uint8) for _ in range(3)]
    grids[0][0, 0] = grids[0][3, 3] = 1  # two single cells
    grids[1][0, :2], grids[1][4, 3:5] = 1, 2  # two dominoes
    grids[2][0, :2], grids[2][3:5, 4] = 1, 2  # a domino and a standing one
    table = _objects.tokenise(grids, [0, 0, 0])
    facts = _probes.GridFacts(np.arange(3), np.arange(3), np.zeros((3, 3), bool))
    np.testing.assert_array_equal(scorers.fact_labels(table, facts)[:, 0], [False, True, False])


def test_grid_facts_hold_the_symmetries_of_grids_with_two_colours(tasks, questions):
    for name, facts in questions.facts.items():
        assert len(facts.rows) == len(facts.symmetry) > 0, name
        for row, (left_right, half_turn, diagonal) in zip(facts.rows, facts.symmetry, strict=True):
            grid = questions.grids[row]
            assert len(np.unique(grid)) > 1
            assert left_right == np.array_equal(grid, np.fliplr(grid))
            assert half_turn == np.array_equal(grid, np.rot90(grid, 2))
            assert diagonal == np.array_equal(grid, grid.T)


# Uncertainty.


def test_auc_counts_ties_half_and_weights_as_repetitions():
    rng = np.random.default_rng(0)
    values, labels = rng.integers(0, 5, size=40).astype(np.float32), rng.random(40) < 0.4
    weights = rng.integers(0, 3, size=(6, 40))
    for row, found in zip(weights, bootstrap.auc(values, labels, weights.astype(np.float32)), strict=True):
        v, y = np.repeat(values, row), np.repeat(labels, row)
        wins = (v[y][:, None] > v[~y][None]) + 0.5 * (v[y][:, None] == v[~y][None])
        assert found == pytest.approx(wins.mean(), abs=1e-6)


def test_resamples_draw_whole_groups():
    groups = np.array([3, 3, 7, 7, 7, 9])
    weights = resamples(groups, num=50)
    assert all(len(np.unique(weights[:, groups == g], axis=1)[0]) == 1 for g in (3, 7, 9))
    first = [int(np.flatnonzero(groups == g)[0]) for g in (3, 7, 9)]
    np.testing.assert_array_equal(weights[:, first].sum(1), 3)


def test_the_interval_over_tasks_covers_the_truth_where_rows_of_a_task_agree():
    rng = np.random.default_rng(0)
    groups, covered, naive = np.repeat(np.arange(60), 4), [], []
    for trial in range(200):
        values = np.repeat(rng.random(60) < 0.3, 4).astype(np.float64)
        by_task = interval(scored(Outcome(values, groups), resamples(groups, num=300, seed=trial)))
        by_row = interval(scored(Outcome(values, groups), resamples(np.arange(240), num=300, seed=trial)))
        covered.append(by_task["low"] <= 0.3 <= by_task["high"])
        naive.append(by_row["low"] <= 0.3 <= by_row["high"])
    assert 0.89 < np.mean(covered) < 0.985
    assert np.mean(naive) < 0.75


def test_a_paired_difference_is_narrower_than_its_parts_and_exact_for_a_constant_shift():
    rng = np.random.default_rng(0)
    groups = np.arange(100)
    values = rng.random(100)
    weights = resamples(groups)
    a, b = scored(Outcome(values + 0.1, groups), weights), scored(Outcome(values, groups), weights)
    found = bootstrap.paired_difference(a, b)
    assert found == pytest.approx({"difference": 0.1, "low": 0.1, "high": 0.1}, abs=1e-6)
    with pytest.raises(ValueError, match="the same questions"):
        bootstrap.paired_difference(a, scored(Outcome(values, groups[::-1]), weights))


# Embedding and the whole evaluation.


def test_chunks_have_one_size_and_the_padding_leaves_no_trace():
    table, sizes = {"size": np.arange(22, dtype=np.float32).reshape(11, 2)}, []

    def embed(part):
        sizes.append(len(part["size"]))
        return part["size"] * 2

    np.testing.assert_array_equal(scorers.in_chunks(embed, table, np.arange(11), chunk=4), table["size"] * 2)
    assert sizes == [4, 4, 4]
    with pytest.raises(ValueError, match="finite"):
        scorers.in_chunks(lambda part: part["size"] * np.nan, table, np.arange(11))


@pytest.mark.parametrize("name", controls.CONTROLS)
def test_controls_read_objects_as_a_set(name):
    rng = np.random.default_rng(0)
    grids = [rng.integers(0, 4, size=(9, 9)).astype(np.uint8) for _ in range(4)] + [np.zeros((3, 3), np.uint8)]
    table = _objects.tokenise(grids, [0] * 5)
    order = np.concatenate([[0], 1 + rng.permutation(32), [33]])
    shuffled = {key: leaf[:, order] if key not in ("size", "offset", "edges") else leaf for key, leaf in table.items()}
    z = np.asarray(controls.CONTROLS[name](table))
    assert np.isfinite(z).all() and len(np.unique(z.round(4), axis=0)) == 5
    np.testing.assert_allclose(controls.CONTROLS[name](shuffled), z, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def result(tasks, tmp_path_factory):
    embed = jax.jit(controls.raw_tables)

    def predict(context):
        x_i, y_i, x = ({key: leaf[:, i] for key, leaf in context.items()} for i in range(3))
        return embed(x) + embed(y_i) - embed(x_i)

    untrained = (jax.jit(controls.histogram), None)
    ids = (f"u{number}" for number in range(5))  # an iterable that can be read only once
    return probe.evaluate(
        embed,
        predict,
        untrained=untrained,
        trained_ids=ids,
        cache_dir=str(tmp_path_factory.mktemp("cache")),
        tasks=tasks,
    )


def test_every_row_stands_beside_its_controls(result):
    assert json.loads(json.dumps(result)) == result
    names = [row["probe"] for row in result["rows"]]
    assert len(set(names)) == len(names) == 2 * 2 * 3 + 3 + 4
    for row in result["rows"]:
        assert set(row["controls"]) == {"randnet", "tables", "histogram", "pixels"}
        assert row["low"] <= row["score"] <= row["high"]
        best = row["over_best_control"]["control"]
        assert row["controls"][best]["score"] == max(control["score"] for control in row["controls"].values())
        expected = row["score"] - row["controls"][best]["score"]
        assert row["over_best_control"]["difference"] == pytest.approx(expected, abs=1e-6)
        if row["probe"].startswith("rule/"):
            scorer = row["probe"].rsplit("/", 1)[1]
            assert set(row["baselines"]) == {f"{scorer}_foreign", "copy", "prototype", "demo_free"}
            assert row["baselines"]["copy"]["score"] == 0.0  # the input is a candidate, at distance zero
        assert ("untrained" in row) != row["probe"].endswith("predictor_l2")  # the untrained pair has no predictor
    lines = probe_rows.lines(result)
    middle = len(lines) // 2
    for table in (lines[:middle], lines[middle + 1 :]):
        assert table[0].startswith("probe ") and len(table) == 1 + len(names)
        assert all(line.startswith(name) for name, line in zip(names, table[1:], strict=True))
    assert lines[middle] == "" and max(map(len, lines)) <= 140


def test_an_encoder_that_is_a_control_does_not_differ_from_it(result):
    for row in result["rows"]:
        if not row["probe"].endswith("predictor_l2"):
            assert row["score"] == pytest.approx(row["controls"]["tables"]["score"], abs=1e-6)
            assert row["untrained"]["score"] == pytest.approx(row["controls"]["histogram"]["score"], abs=1e-6)


def test_a_trained_task_is_not_evaluated(tasks, tmp_path):
    def never(table):
        raise AssertionError("nothing may be embedded before the ids are compared")

    with pytest.raises(ValueError, match="were trained on"):
        probe.evaluate(never, never, trained_ids=["x", "b3"], cache_dir=str(tmp_path), tasks=tasks)


# (randnet, tables): scores on ARC that were measured before, with another tokeniser, other random edits and another
# random network, and the digit they were rounded to. Missing: randnet on arc2/hard, .239 then; here four networks and
# two draws of the questions score .14 to .19, so this part of that measurement is not reproduced.
MEASURED = {
    "rule/arc1/edit/delta_cosine": (0.309, 0.371, 0.001),
    "rule/arc1/edit/analogy_l2": (0.219, 0.304, 0.001),
    "rule/arc1/hard/delta_cosine": (0.277, 0.331, 0.001),
    "rule/arc2/hard/delta_cosine": (None, 0.230, 0.001),
    "retrieval/delta": (0.428, 0.375, 0.001),
    "retrieval/gain": (0.11, 0.10, 0.01),
    "facts/repeated-shape": (0.91, 0.87, 0.01),
    "facts/left-right": (0.82, 0.85, 0.01),
    "facts/180": (0.82, 0.83, 0.01),
    "facts/diagonal": (0.88, 0.88, 0.01),
}


@pytest.mark.slow
def test_controls_score_on_arc_what_they_scored_before(tmp_path):
    """Within half the width of a 95 % interval over tasks; randnet is the mean of four networks, as one is a draw."""
    questions = _probes.build(*probe.load_tasks(), seed=0)
    assert [len(questions.rule[f"{name}/edit"].inputs) for name in ("arc1", "arc2")] == [419, 161]
    table = _objects.tokenise_cached(questions.grids, questions.backgrounds, str(tmp_path))
    networks = [functools.partial(controls.randnet, seed=seed) for seed in range(4)]
    for column, encoders in enumerate((networks, [controls.raw_tables])):
        answered = [probe.answer(jax.jit(encoder), None, table, questions) for encoder in encoders]
        for name, (*measured, digit) in MEASURED.items():
            if measured[column] is not None:
                spread = interval(scored(answered[0][name], resamples(answered[0][name].groups)))
                tolerance = (spread["high"] - spread["low"]) / 2 + digit / 2
                found = np.mean([mean_of(outcomes[name]) for outcomes in answered])
                assert found == pytest.approx(measured[column], abs=tolerance), (name, column)

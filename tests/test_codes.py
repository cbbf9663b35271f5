"""The page of codes: its figures on tables made by hand, its JSON against the grids, and that it stands by itself."""

import itertools
import json
import math
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa import checkpoint, code_rules, code_tokens, codes, config_checks, encode, main, run_folder, train
from jepa.code_rules import Change, Unit
from jepa.code_tokens import Collection
from jepa.data import _collections, _objects
from jepa.data._collections import Task
from jepa.parts import build_objective
from jepa.tables import OVERFLOW

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


# What a code says of its tokens.


def test_purity_of_a_table_made_by_hand():
    of_code = np.array([0, 0, 0, 0, 1, 1, 1, 3])
    values = np.array([5, 5, 5, 2, 2, 7, -1, -1])  # the last two tokens have no such attribute
    found = code_tokens.purity(of_code, values, 4)
    assert found.total.tolist() == [4, 2, 0, 0]
    assert found.value.tolist() == [5, 2, -1, -1]  # of 2 and 7, once each, the smaller
    np.testing.assert_allclose(found.share, [3 / 4, 1 / 2, np.nan, np.nan])
    np.testing.assert_allclose(found.base, [3 / 6, 2 / 6, np.nan, np.nan])
    told = code_tokens.told(found, values)
    assert told.share == pytest.approx((3 + 1) / 6) and told.base == pytest.approx(3 / 6)
    assert code_tokens.told(code_tokens.purity(of_code, np.full(8, -1), 4), np.full(8, -1)) is None


def test_the_commonest_value_is_that_of_counting():
    rng = np.random.default_rng(0)
    of_code, values = rng.integers(0, 9, 500), rng.integers(0, 30, 500)
    value, most = code_tokens.commonest(of_code, values, 10)
    for code in range(9):
        counts = Counter(values[of_code == code].tolist())
        assert most[code] == max(counts.values())
        assert value[code] == min(v for v, count in counts.items() if count == most[code])
    assert (value[9], most[9]) == (-1, 0)


def test_chance_is_what_codes_without_meaning_reach():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 4, 6000)
    meaningless = code_tokens.told(code_tokens.purity(rng.integers(0, 500, 6000), values, 500), values)
    assert meaningless.share > meaningless.base + 0.1  # a code of a dozen tokens looks pure by itself
    assert meaningless.gain == pytest.approx(0, abs=0.02)
    assert code_tokens.told(code_tokens.purity(values + 3, values, 7), values).gain == pytest.approx(1)
    assert code_tokens.told(code_tokens.purity(np.zeros(6000, int), values, 1), values).gain == pytest.approx(0)
    single = code_tokens.purity(np.arange(3), np.array([0, 1, 1]), 3)
    assert single.share.tolist() == single.chance.tolist() == [1, 1, 1]  # one token is pure whatever it is


def test_usage_is_compared_with_that_of_even_draws():
    rng = np.random.default_rng(0)
    drawn = [len(set(rng.integers(0, 40, 60).tolist())) / 40 for _ in range(2000)]
    assert codes.even_usage(40, 60) == pytest.approx(np.mean(drawn), abs=0.01)
    assert codes.even_usage(1, 60) == 1


def test_nearest_codes_of_a_codebook_made_by_hand():
    index, distance = code_tokens.nearest_codes(np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0], [0.0, -1.0]]), 2)
    assert index.tolist() == [[2, 3], [2, 0], [0, 3], [0, 2]]  # of equals the first
    far = [5, 1, 1, math.hypot(3, 3), math.hypot(3, 5), 2]
    np.testing.assert_allclose(distance[0], np.array([1, 1]) / np.mean(far))
    np.testing.assert_allclose(distance[1], np.array([math.hypot(3, 3), 5]) / np.mean(far))
    index, distance = code_tokens.nearest_codes(np.ones((3, 2)), 5)
    assert index.tolist() == [[1, 2], [0, 2], [0, 1]] and not distance.any()
    assert code_tokens.nearest_codes(np.ones((1, 2)), 5)[0].shape == (1, 0)


# From inputs to outputs.


def unit(task, pair, inputs, outputs):
    return Unit(task, pair, {code: 100 + code for code in inputs}, {code: 200 + code for code in outputs})


TABLE = [
    unit(0, 0, {1, 2}, {3}),
    unit(0, 1, {1}, {3, 4}),
    unit(1, 2, {1}, {3}),
    unit(1, 3, {2}, {4}),
    unit(2, 4, {}, {}),
]


def test_rules_of_a_table_made_by_hand():
    found = {(rule.before, rule.after): rule for rule in code_rules.rules(TABLE)}
    assert found.keys() == {(1, 3), (1, 4), (2, 3), (2, 4)}
    rule = found[1, 3]
    assert (rule.together, rule.with_before, rule.with_after, rule.units) == (3, 3, 3, 5)
    assert (rule.pairs, rule.tasks) == (3, 2)
    assert rule.lift == pytest.approx((3 / 5) / (3 / 5 * 3 / 5))
    assert rule.pmi == pytest.approx(math.log2(5 / 3)) and rule.evidence == pytest.approx((2 - 1) * math.log2(5 / 3))
    assert rule.examples == ((101, 203), (101, 203))  # one of each task
    assert found[1, 4].lift == pytest.approx(1 * 5 / (3 * 2))
    (twice,) = code_rules.rules([unit(0, 0, {1}, {2})] * 2)  # two matched objects of one pair
    assert (twice.together, twice.pairs, twice.tasks, twice.evidence) == (2, 1, 1, 0)
    ranked = [rule.evidence for rule in code_rules.rules(TABLE)]
    assert ranked == sorted(ranked, reverse=True)


def test_a_rule_read_backwards_has_the_same_figures():
    backwards = code_rules.rules([u._replace(inputs=u.outputs, outputs=u.inputs) for u in TABLE])
    assert {(r.after, r.before, r.together, r.pairs, r.tasks, r.lift) for r in backwards} == {
        (r.before, r.after, r.together, r.pairs, r.tasks, r.lift) for r in code_rules.rules(TABLE)
    }


def test_codes_that_do_not_depend_on_each_other_have_lift_one():
    independent = [unit(i, i, {a}, {b}) for i, (a, b) in enumerate(itertools.product((1, 2, 3), (4, 5)))]
    assert [(rule.lift, rule.pmi) for rule in code_rules.rules(independent)] == [(1, 0)] * 6
    assert code_rules.rules([]) == []


def test_a_rule_of_one_task_is_not_listed_and_two_tasks_are_not_recurrent():
    same_task = [unit(0, pair, {1}, {2}) for pair in range(9)] + [unit(1, 9, {3}, {4})]
    assert code_rules.listed_rules(code_rules.rules(same_task)) == {"changed": [], "kept": []}
    two = [unit(pair % 2, pair, {1}, {1, 2}) for pair in range(4)] + [unit(2 + i, 4 + i, {3}, {4}) for i in range(6)]
    listed = code_rules.listed_rules(code_rules.rules(two))
    assert [(rule.before, rule.after) for rule in listed["changed"]] == [(3, 4), (1, 2)]
    assert [(rule.before, rule.after) for rule in listed["kept"]] == [(1, 1)]
    assert (
        code_rules.recurrent(code_rules.rules(two)) == 0
    )  # six tasks of ten have a lift of 10 / 6, two of them one of 5


def test_foreign_outputs_are_those_of_another_task_and_leave_chance_alone():
    rng = np.random.default_rng(0)
    units = [unit(task, 3 * task + i, {task % 10}, {10 + task % 10}) for task in range(60) for i in range(3)]
    foreign = code_rules.with_foreign_outputs(units, rng)
    assert [(u.task, u.pair, u.inputs) for u in foreign] == [(u.task, u.pair, u.inputs) for u in units]
    assert Counter(tuple(u.outputs) for u in foreign) == Counter(tuple(u.outputs) for u in units)
    assert code_rules.recurrent(code_rules.rules(units)) == 10
    assert code_rules.recurrent_by_chance(units) < 2
    own = [unit(task, task, {task}, {task}) for task in range(9)]
    assert all(set(u.inputs) != set(u.outputs) for u in code_rules.with_foreign_outputs(own, rng))


def test_codes_that_go_and_come():
    gone = {change.code: change for change in code_rules.vanishing(TABLE)}
    assert gone == {1: Change(1, 3, 3, 2, 2), 2: Change(2, 2, 2, 2, 2)}
    mixed = [unit(0, 0, {1, 2}, {1}), unit(0, 1, {1, 2}, {}), unit(1, 2, {2}, {3})]
    assert code_rules.vanishing(mixed) == [Change(1, 2, 1, 1, 0), Change(2, 3, 3, 2, 2)]
    assert code_rules.appearing(mixed) == [Change(1, 1, 0, 1, 0), Change(3, 1, 1, 1, 1)]
    assert code_rules.alone_on_average(code_rules.vanishing(mixed)) == pytest.approx(4 / 5)
    assert [change.code for change in code_rules.listed_changes(code_rules.vanishing(mixed))] == [2]
    assert code_rules.listed_changes([]) == [] and math.isnan(code_rules.alone_on_average([]))


BEFORE = np.array([[1, 0, 0, 2], [0, 0, 0, 2], [3, 0, 3, 0], [0, 0, 0, 0]])
AFTER = np.array([[4, 0, 0, 6], [0, 0, 0, 0], [3, 0, 0, 5], [0, 0, 0, 5]])


def described(tasks, code_of_row):
    """The tokens of tasks whose codes are a function of (grid, row of its table)."""
    collection = code_tokens.collect("by hand", tasks)
    table = _objects.tokenise(collection.grids, collection.backgrounds)
    owners = [
        code_tokens.token_of_cells(grid, background, {key: leaf[i] for key, leaf in table.items()})
        for i, (grid, background) in enumerate(zip(collection.grids, collection.backgrounds, strict=True))
    ]
    of_rows = np.where(table["mask"], code_of_row(*np.indices(table["mask"].shape)), -1)
    tokens, vocabulary = code_tokens.tokens_of(collection, owners, table, of_rows)
    return collection, table, owners, of_rows, tokens, vocabulary


def test_objects_are_matched_by_being_there_by_place_and_by_shape():
    task = Task("t", [(BEFORE.astype(np.uint8), AFTER.astype(np.uint8))], [])
    *_, tokens, vocabulary = described([task], lambda grid, row: 100 * grid + row)
    objects = {i: int(tokens.colour[i]) for i in np.flatnonzero(tokens.kind == code_tokens.OBJECT)}

    def by_colour(units):
        return sorted((objects[i], objects[j]) for u in units for i in u.inputs.values() for j in u.outputs.values())

    assert by_colour(code_rules.together(tokens)) == sorted(itertools.product([1, 2, 3, 3], [3, 4, 5, 6]))
    assert by_colour(code_rules.same_place(tokens)) == [(1, 4), (3, 3)]  # 2 and 6 share a corner and no more
    assert by_colour(code_rules.same_shape(tokens)) == [(2, 5)]  # the single cells occur more than once
    assert [shape.tolist() for shape in vocabulary.shapes] == [[[True]], [[True], [True]]]


def test_a_pair_without_objects_is_a_pair():
    empty = np.zeros((2, 2), np.uint8)
    *_, tokens, _ = described([Task("t", [(empty, empty)], [])], lambda grid, row: row)
    assert code_rules.together(tokens) == [Unit(0, 0, {}, {})] and code_rules.rules(code_rules.together(tokens)) == []


# The cells of a token.


def test_the_cells_of_every_token_are_those_its_table_describes():
    rng = np.random.default_rng(0)
    crowded = np.kron(rng.integers(1, 10, (15, 15)), [[1, 0], [0, 0]])  # single cells: more than fit
    touching = rng.integers(0, 10, (12, 12))  # more than 32 of one colour, few of any
    tasks = [Task("crowded", [(crowded.astype(np.uint8), touching.astype(np.uint8))], [])]
    tasks += [task for task in _collections.load("arc2-clean")[::40]]
    collection, table, owners, _, tokens, vocabulary = described(tasks, lambda grid, row: row)
    assert table["mask"][0, OVERFLOW] and (table["histogram"][1, 1:OVERFLOW] > 0).sum(-1).max() > 1
    for i, (grid, row) in enumerate(zip(tokens.grid, tokens.row, strict=True)):
        own = owners[grid] == row
        if row == 0:
            continue  # the whole grid, whatever belongs to objects
        histogram = np.bincount(collection.grids[grid][own], minlength=10)
        assert histogram.tolist() == table["histogram"][grid, row].tolist()
        if row != OVERFLOW:
            rows, columns = np.nonzero(own)
            top, left = rows.min(), columns.min()
            assert [top, left, np.ptp(rows) + 1, np.ptp(columns) + 1] == table["box"][grid, row].tolist()
            height, width = vocabulary.sizes[tokens.size[i]]
            assert np.array_equal(vocabulary.shapes[tokens.shape[i]], own[top : top + height, left : left + width])
            assert tokens.colour[i] == (np.argmax(histogram) if (histogram > 0).sum() == 1 else code_tokens.SEVERAL)
        else:
            assert tokens.colour[i] == tokens.size[i] == tokens.shape[i] == -1


# What is shown.


def test_examples_take_turns_between_tasks():
    of_code, tasks = np.array([0, 0, 0, 1, 0, 0]), np.array([0, 0, 0, 0, 1, 2])
    assert codes.examples(of_code, tasks, 3, 4) == [[0, 4, 5, 1], [3], []]


def test_the_page_holds_whole_pairs_up_to_its_room():
    grids = [np.zeros((1, size), np.uint8) for size in (3, 3, 9, 9, 2, 2)]
    collection = Collection("by hand", ["t"], grids, np.zeros(6, int), [0] * 6)
    assert codes.room(collection, [1, 0, 4, 2], limit=10) == {0: 0, 1: 1, 4: 2, 5: 3}
    assert codes.room(collection, [2], limit=17) == {}


# A run and its page.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "a <run> & co"
    config = main.load_config("configs/lejepa_codes.py:tiny")
    config.update(num_steps=5, steps_per_call=5)
    config.optimizer.warmup_steps = 1
    train.run(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def page(run):
    codes.main([str(run)])
    return run / "codes.html"


class Reader(HTMLParser):
    """Elements, attributes and text of a page; fails where elements do not close in order."""

    VOID = ("meta", "input", "link", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        key = self.open[-1] if self.open else ""
        if key == "script" and "type" in self.elements[-1][1]:
            key = "json"
        self.text[key] = self.text[key] + data if key in self.text else data


@pytest.fixture(scope="module")
def data(page):
    return json.loads(Reader(page.read_text(encoding="utf-8")).text["json"])


@pytest.mark.slow
def test_the_page_stands_by_itself(page):
    text = page.read_text(encoding="utf-8")
    reader = Reader(text)
    assert not re.search(r"(?:https?|ftp|file):|//[a-z0-9-]+\.|@import|url\(|fetch\(|XMLHttpRequest|import\(", text)
    assert {tag for tag, _ in reader.elements}.isdisjoint({"link", "img", "iframe", "object", "embed", "base"})
    links = [a[name] for _, a in reader.elements for name in ("src", "href", "srcset", "action") if name in a]
    assert links and all(link.startswith("#") for link in links)
    assert {link[1:] for link in links} <= {a["id"] for _, a in reader.elements if "id" in a}
    assert reader.text["h1"] == "Codes of a <run> & co"
    assert not re.search(r"\{\{\w+\}\}", text)  # a place of the template that nothing filled
    assert not re.search(r"NaN|Infinity", reader.text["json"])  # which are no JSON
    assert len(text.encode()) < 5e6


@pytest.mark.slow
def test_counts_sum_to_the_tokens_there_are(run, data):
    record = json.loads((run / "environment.json").read_text())["starts"][-1]
    tasks = [task for task in _collections.load("arc2-clean") if task.id in record["validation_ids"]]
    assert data["tasks"] == [task.id for task in tasks] and len(tasks) == len(record["validation_ids"])
    grids = code_tokens.collect("", tasks)
    mask = _objects.tokenise(grids.grids, grids.backgrounds)["mask"]
    assert data["numTokens"] == sum(code["count"] for code in data["codes"]) == mask.sum()
    assert data["numGrids"] == len(grids.grids) and data["numTasks"] == len(tasks)
    counts = [code["count"] for code in data["codes"]]
    assert counts == sorted(counts, reverse=True) and min(counts) > 0
    usage = data["usage"]
    assert usage["all"]["window"] == mask.sum() and usage["grid"]["window"] == len(grids.grids)
    assert sum(usage[kind]["window"] for kind in usage if kind != "all") == mask.sum()
    assert usage["all"]["used"] == len(counts) and usage["all"]["dead"] == math.prod(data["levels"]) - len(counts)
    share = np.array(counts) / mask.sum()
    assert usage["all"]["perplexity"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-5)
    assert usage["all"]["once"] == counts.count(1)


@pytest.mark.slow
def test_what_is_drawn_is_what_the_model_said_of_the_grids(run, data):
    model = encode.load(run)
    tasks = {task.id: task for task in _collections.load("arc2-clean")}
    for place, (task, pair, width, colours, rows, of_row) in enumerate(data["grids"][:120]):
        shown = tasks[data["tasks"][task]]
        pairs = shown.demos + shown.tests
        grid = pairs[pair - 1][place % 2]
        assert np.array([int(c) for c in colours]).reshape(-1, width).tolist() == grid.tolist()
        background = _objects.background([grid for both in pairs for grid in both])
        assert set(rows) <= set("0123456789abcdefghijklmnopqrstuvwx".upper()) and len(rows) == len(colours)
        assert {str(int(digit, 36)) for digit in rows} - {"0"} == of_row.keys() - {"0"}
        said = model.describe([grid], background)
        assert {int(row): code for row, code in of_row.items()} == {
            row: int(code) for row, code in enumerate(said.codes[0]) if code >= 0
        }

    def code_at(place, row):
        return data["grids"][place][5][str(row)]

    for code in data["codes"]:
        assert 0 < len(code["examples"]) <= min(code["count"], codes.EXAMPLES_OF_CODE)
        assert {code_at(*example) for example in code["examples"]} == {code["code"]}
    for match in data["matches"].values():
        for rule in match["changed"] + match["kept"]:
            assert rule["examples"] and rule["tasks"] >= code_rules.LISTED_TASKS and rule["lift"] > 1
            for before, after in rule["examples"]:
                assert before[0] % 2 == 0 and after[0] == before[0] + 1  # the output of the same pair
                assert (code_at(*before), code_at(*after)) == (rule["before"], rule["after"])
    assert all(rule["before"] == rule["after"] for match in data["matches"].values() for rule in match["kept"])


@pytest.mark.slow
def test_symbols_and_neighbours_are_those_of_the_quantizer(run, data):
    model, saved = encode.load(run), checkpoint.read(run)
    objective = build_objective(model.config)
    grids = [grid for pair in _collections.load("arc2-clean")[0].demos for grid in pair]
    table = _objects.tokenise(grids, [0] * len(grids))
    encoded = jax.jit(objective.encode)(model.params, saved.state["objective_state"], jax.tree.map(jnp.asarray, table))
    real = np.asarray(encoded.mask)
    of_tokens = np.asarray(encoded.codes)[real]
    values = codes.decode(model.config, model.params, saved.state["objective_state"], of_tokens)
    np.testing.assert_allclose(values, np.asarray(encoded.tokens)[real], atol=1e-5)

    used = [code["code"] for code in data["codes"]]
    values = codes.decode(model.config, model.params, saved.state["objective_state"], np.array(used))
    for code, value in zip(data["codes"], values, strict=True):
        first, *rest = data["levels"]
        assert code["symbols"][0] + first * (code["symbols"][1] + rest[0] * code["symbols"][2]) == code["code"]
        others = sorted((np.linalg.norm(value - v), other) for other, v in zip(used, values, strict=True))
        assert [other for other, _ in code["near"]][:1] == [others[1][1]]
        assert code["code"] not in [other for other, _ in code["near"]]


@pytest.mark.slow
def test_the_same_run_gives_the_same_bytes(run, page, tmp_path):
    codes.main([str(run), f"--output={tmp_path / 'again.html'}", "--checkpoint=5"])
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()


@pytest.mark.slow
def test_another_collection_says_what_was_trained_on(run, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    record = json.loads((run / "environment.json").read_text())["starts"][-1]
    pair = {"input": BEFORE.tolist(), "output": AFTER.tolist()}
    for name in (record["train_ids"][0], "<!-- <script>"):
        (folder / f"{name}.json").write_text(json.dumps({"train": [pair, pair]}))
    codes.main([str(run), f"--collection={folder}", f"--output={tmp_path / 'mine.html'}", "--checkpoint=best"])
    reader = Reader((tmp_path / "mine.html").read_text(encoding="utf-8"))
    found = json.loads(reader.text["json"])
    assert found["numTasks"] == 2 and found["numGrids"] == 8 and found["numTokens"] == 8 * 5
    assert "trained on 1 of these 2 tasks" in (tmp_path / "mine.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{tmp}/nowhere"], "is not the folder of a run"),
        (["{run}", "--checkpoint=7"], "there is no checkpoint at step 7"),
        (["{run}", "--checkpoint=newest"], "a checkpoint is 'latest', 'best' or a step"),
        (["{run}", "--collection=arc1-evil"], "did you mean 'arc1-eval'"),
        (["{run}", "--collection={tmp}"], "has no *.json file"),
        (["{run}", "--output={tmp}/missing/codes.html"], "there is no folder"),
    ],
)
def test_a_mistake_is_one_sentence(run, tmp_path, capsys, arguments, said):
    with pytest.raises(SystemExit) as stop:
        codes.main([argument.format(run=run, tmp=tmp_path) for argument in arguments])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == ""
    assert captured.err.startswith("jepa: ") and said in captured.err and captured.err.count("\n") == 1


@pytest.mark.slow
def test_a_run_without_codes_is_told_so(tmp_path, capsys):
    run_folder.write_config(tmp_path, config_checks.as_json(main.load_config("configs/lejepa.py:tiny")))
    with pytest.raises(SystemExit) as stop:
        codes.main([str(tmp_path)])
    assert stop.value.code == 2 and "has no codes: its quantizer is 'identity'" in capsys.readouterr().err
    assert not (tmp_path / "codes.html").exists()


# In a browser. What the script below finds is read from the title of the page.

CHECKS = """<script>
const place = D.codes[0].examples[0][0], row = D.codes[0].examples[0][1], g = grid(place);
const canvas = document.createElement("canvas");
paint(canvas, place, row, {top: 0, left: 0, height: g.height, width: g.width}, 30, 1);
const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
const hex = i => "#" + [0, 1, 2].map(k => pixels[4 * i + k].toString(16).padStart(2, "0")).join("");
const own = g.rows.map((r, i) => (row === 0 || r === row ? i : -1)).filter(i => i >= 0);
const outline = getComputedStyle(document.documentElement).getPropertyValue("--outline");
open(place, row);
const pair = document.querySelectorAll("#pair figure canvas").length;
document.getElementById("pair").close();
document.getElementById("match").children[1].click();
show(D.codes[D.codes.length - 1].code);
document.title = JSON.stringify({
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  cards: document.querySelectorAll(".code").length,
  found: document.querySelector(".found").id,
  pair,
  sharp: [canvas.width, canvas.height].join() === [g.width, g.height].join(),
  lit: own.every(i => pixels[4 * i + 3] === 255 && [INKS[+g.colours[i]], outline.trim()].includes(hex(i))),
  dimmed: g.rows.every((r, i) => own.includes(i) || pixels[4 * i + 3] < 255),
});
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (500, "light")])  # 500 is the least it opens
def test_a_browser_draws_the_page_without_a_complaint(page, data, tmp_path, width, scheme):
    copy = tmp_path / "page.html"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", CHECKS), encoding="utf-8")
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command += [f"--window-size={width},900", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    found = json.loads(re.search(r"<title>(.*?)</title>", done.stdout, re.S)[1])
    assert found == {
        "overflow": 0,
        "cards": len(data["codes"]),
        "found": f"code-{data['codes'][-1]['code']}",
        "pair": 2,
        "sharp": True,
        "lit": True,
        "dimmed": True,
    }

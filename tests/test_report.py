"""The report: what is drawn and what is left out, that the page stands by itself, and what it says of damage."""

import json
import math
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest

import jepa
from jepa import (
    config_checks,
    main,
    report,
    report_curves,
    report_figures,
    report_gallery,
    report_page,
    report_probes,
    report_run,
    run_folder,
    train,
)
from jepa.data import _objects, _probes
from jepa.data._collections import Task

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


# A curve.


def test_thinning_keeps_every_peak_and_gap():
    rng = np.random.default_rng(0)
    values = rng.normal(size=5000)
    values[[137, 2900]] = 50, -50
    values[4000:4100] = np.nan
    steps, kept = report_figures.thin(np.arange(5000) * 10, values, 200)
    assert len(kept) <= 300 and np.isnan(kept).any()
    assert {1370, 29000, 0, 49990} <= set(steps.tolist()) and (np.diff(steps) > 0).all()
    np.testing.assert_array_equal(values[steps // 10], kept)
    # A moving range of the thinned curve spans that of the whole one.
    for first in range(0, 4000, 500):
        inside = (steps >= 10 * first) & (steps < 10 * (first + 500))
        assert np.ptp(kept[inside]) == pytest.approx(np.ptp(values[first : first + 500]), rel=0.05)
    same = report_figures.thin(np.arange(5), values[:5], 200)
    np.testing.assert_array_equal(same[1], values[:5])


@pytest.mark.parametrize(
    ("ticks", "texts"),
    [
        ([0.0, 0.25, 0.5], ["0", "0.25", "0.5"]),
        ([0.998, 0.999, 1.0], ["0.998", "0.999", "1"]),
        ([0.0, 2e-5, 4e-5], ["0", "2e−5", "4e−5"]),
        ([0, 6000, 12000, 18000], ["0", "6000", "12k", "18k"]),
        ([0, 2.5e6], ["0", "2.5M"]),
        ([-1.5, 0, 1.5], ["−1.5", "0", "1.5"]),
        ([1225, 1250, 1275], ["1225", "1250", "1275"]),
    ],
)
def test_ticks_are_short_and_tell_themselves_apart(ticks, texts):
    assert report_figures.labels(np.array(ticks)) == texts


def drawn(values, **options):
    line = report_figures.Line(np.arange(len(values)) * 10, np.array(values, float), 2)
    return report_figures.draw([line], name="f0", **options)


def path_of_curve(svg):
    """The subpaths of the curve, a list of points each."""
    (path,) = [
        e
        for e in ElementTree.fromstring(svg).iter("path")
        if "var(--c2)" in e.get("style") and "fill: none" in e.get("style")
    ]
    return [re.findall(r"-?[\d.]+ -?[\d.]+", part) for part in path.get("d").split("M")[1:]]


def test_a_figure_is_text_in_the_colours_of_the_page():
    svg = drawn([1, 3, 2, 4], at=(2.0,), events=[20])
    root = ElementTree.fromstring(svg)
    assert root.tag == "svg" and root.get("viewBox") == f"0 0 {report_figures.WIDTH} {report_figures.HEIGHT}"
    texts = ["".join(e.itertext()) for e in root.iter("text")]
    assert {"0", "10", "20", "30"} <= set(texts)
    assert "var(--c2)" in svg and "currentColor" in svg and "font-family" not in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg)  # no colour of its own
    assert set(re.findall(r'(?:id="|url\(#|href="#)(..)', svg)) == {"f0"}  # ids of two figures never meet
    assert svg == drawn([1, 3, 2, 4], at=(2.0,), events=[20])
    assert len(drawn(np.sin(np.arange(600)))) < 20_000


def test_what_is_not_finite_leaves_a_gap_and_a_mark():
    whole, broken = drawn([1, 2, 3, 4, 5, 6]), drawn([1, 2, 3, math.nan, 5, math.inf])
    assert [len(part) for part in path_of_curve(whole)] == [6]
    assert "var(--warn)" not in whole and "var(--warn)" in broken
    assert [len(part) for part in path_of_curve(broken)] == [3, 1]  # the fifth stands alone, as a point
    assert len(re.findall(r"<use[^>]*var\(--c2\)", broken)) == 1 and "<use" in whole
    assert len(re.findall(r"<use[^>]*var\(--warn\)", broken)) == 2
    for values in ([math.nan] * 3, [2.0], [5.0, 5.0], [0.0, 0.0]):  # nothing, or nothing to scale by
        ElementTree.fromstring(drawn(values, log=True, zero=True))


def test_a_logarithmic_axis_is_even_in_decades():
    (points,) = path_of_curve(drawn([1, 10, 100, 1000], log=True))
    heights = [float(point.split()[1]) for point in points]
    np.testing.assert_allclose(np.diff(heights), np.diff(heights)[0], atol=0.2)
    (points,) = path_of_curve(drawn([-1, 10, 100, 1000], log=True))  # no logarithm: drawn as it is
    heights = [float(point.split()[1]) for point in points]
    assert np.diff(heights)[2] == pytest.approx(10 * np.diff(heights)[1], abs=0.5)


# Which curves there are.


def metrics_at(step, rng):
    """A row of a record with metrics of every kind, after the fashion of a run."""
    terms, roles = ("prediction", "sigreg", "quantizer"), ("context", "target", "predicted")
    modules = ("trunk/encoder", "heads/predictor")
    row = {name: 1 + rng.random() for term in terms for name in (f"loss/{term}", f"weighted/{term}", f"val/{term}")}
    row |= {f"{prefix}/{term}": rng.random() for term in terms for prefix in ("share", "grad", "grad_share")}
    row |= {f"grad/{term}/{module}": rng.random() for term in terms for module in modules}
    row |= {"grad_cosine/prediction/sigreg": -0.3, "update_ratio": 1e-3, "update_ratio/trunk/encoder": 2e-3}
    row |= {
        "loss/total": 3 * 0.99**step,
        "loss/total_max": 4,
        "val/infonce/in_batch": 2,
        "val/infonce/in_batch_chance": 3,
        "grad/norm": 9,
        "grad/norm_clipped": 1,
        "grad/norm_max": 12,
    }
    row |= {"grad/clipped_share": 1, "health/skipped": 0, "optimizer/learning_rate": 1e-3, "target_ema": 0.99}
    row |= {"val/prediction": 0.2, "val/prediction/copy_ratio": 0.4, "val/prediction/moved_ratio": 0.7}
    row |= {"diag/demo_gain": 0.6, "diag/demo_gain_low": 0.5, "diag/demo_gain_high": 0.7, "metric/odd/one": 5}
    names = ("effective_rank", "effective_rank_expected", "std", "std_min", "std_max", "norm", "alpha", "rankme")
    row |= {f"diag/{role}/{name}": 1 + rng.random() for role in roles for name in names}
    row |= {"codes/usage": 0.8, "codes/perplexity": 400, "codes/jump": 0.01, "codes/drift": 0.3}
    return {"step": step} | row


def make_run(workdir, *, steps=range(10, 210, 10), planned=200, probes=True, only="", **changes):
    """A folder with a record, of metrics that begin with `only`, and a config, but no checkpoint."""
    workdir.mkdir(parents=True)
    config = config_checks.as_json(main.load_config("configs/lejepa_codes.py:tiny"))
    run_folder.write_config(workdir, config | {"num_steps": planned} | changes)
    rng = np.random.default_rng(len(steps))
    rows = [metrics_at(step, rng) for step in steps]
    rows = [{name: value for name, value in row.items() if name == "step" or name.startswith(only)} for row in rows]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (workdir / "timing.jsonl").write_text(json.dumps({"step": 10, "time/step_seconds": 0.3}) + "\n")
    if probes:
        (workdir / "probes.json").write_text(
            json.dumps({"step": planned, "final_examples": 8, "validation": {}} | PROBES)
        )
    return workdir


def estimate(score):
    return {"score": score, "low": score - 0.05, "high": score + 0.05}


def probe_row(name, score, low, high):
    return {
        "probe": name, **estimate(score), "chance": 0.125, "n": 9, "num_tasks": 3, "no_information": 0.15,
        "controls": {"randnet": estimate(0.3), "tables": estimate(0.35)},
        "baselines": {"delta_cosine_foreign": estimate(0.07), "copy": estimate(0.01)},
        "over_best_control": {"control": "tables", "difference": score - 0.35, "low": low, "high": high},
        "untrained": estimate(0.21),
    }  # fmt: skip


PROBES = {
    "probes": {
        "pooled": {
            "num_tasks": {"arc1": 400},
            "rows": [probe_row("rule/<arc1>", 0.517, 0.1, 0.2), probe_row("facts/180", 0.111, -0.3, -0.2)],
        }
    }
}


def test_every_metric_is_drawn_and_none_that_is_not_there():
    names = [name for name in metrics_at(10, np.random.default_rng(0)) if name != "step"]
    for some in (names, names[::2], names[::7], ["val/prediction/copy"], ["loss/total"]):
        sections = report_curves.sections(some)
        curves = [curve for section in sections for panel in section.panels for curve in panel.curves]
        assert {name for curve in curves for name in curve.metrics()} == set(some)
        assert all(0 < len(panel.curves) <= report_curves.CURVES for section in sections for panel in section.panels)
        assert all(panel.title and panel.caption for section in sections for panel in section.panels)
    rest = report_curves.sections(names)[-1]
    assert rest.name == "other" and {c.metric for panel in rest.panels for c in panel.curves} == {"metric/odd/one"}
    assert report_curves.sections([]) == []


def test_a_reference_is_dashed_beside_its_curve_and_bounds_are_a_band():
    panels = {panel.title: panel for section in report_curves.sections(list(metrics_at(1, np.random.default_rng(0))))
              for panel in section.panels}  # fmt: skip
    rank = panels["Effective rank"].curves[1]
    assert (rank.label, rank.beside) == ("target", "diag/target/effective_rank_expected")
    band = panels["Standard deviation, target"].curves[0]
    assert (band.metric, band.low, band.high) == ("diag/target/std", "diag/target/std_min", "diag/target/std_max")
    alone = report_curves.apart(panels["Effective rank"])
    assert [panel.title for panel in alone] == [
        f"Effective rank: {role}" for role in ("context", "target", "predicted")
    ]


# The page.


class Reader(HTMLParser):
    """Elements and their attributes; fails where elements do not close in order."""

    VOID = ("meta", "input", "link", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def check_stands_by_itself(text):
    reader = Reader(text)
    assert not re.search(
        r"(?:https?|ftp|file):|//[a-z0-9-]+\.|@import|url\((?!#)|fetch\(|XMLHttpRequest|import\(", text
    )
    assert {tag for tag, _ in reader.elements}.isdisjoint({"link", "img", "iframe", "object", "embed", "base"})
    links = [a[name] for _, a in reader.elements for name in ("src", "href", "srcset", "action") if name in a]
    ids = [a["id"] for _, a in reader.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {link for link in links if not link.startswith("#")} == set() and {link[1:] for link in links} <= set(ids)
    assert not re.search(r"\{\{\w+\}\}", text)  # a place of the template that nothing filled
    svgs = re.findall(r"<svg.*?</svg>", text, re.S)
    for svg in svgs:
        ElementTree.fromstring(svg)
    assert len(svgs) == len(re.findall(r'<figure class="figure">', text)) and len(text.encode()) < 5e6
    return svgs


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    workdir = make_run(tmp_path_factory.mktemp("runs") / "a <run> & co", cache_dir="<none>")
    (workdir / "events").mkdir()
    event = {"step": 120, "kind": "spike", "reason": "loss/total <doubled>", "rows": [1], "ledger": {"loss/total": 7.5}}
    (workdir / "events" / "120-spike.json").write_text(json.dumps(event))
    report.main([str(workdir)])
    return workdir


def test_the_page_stands_by_itself(synthetic):
    text = (synthetic / "report.html").read_text(encoding="utf-8")
    assert check_stands_by_itself(text)
    assert "<h1>Report of a &lt;run&gt; &amp; co</h1>" in text
    for said in ("Share of the gradient", "Cosine between gradients", "Seconds per step", "loss/total &lt;doubled&gt;"):
        assert said in text
    assert "There is no gallery, since the run cannot be rebuilt: there is no checkpoint in checkpoints." in text
    assert str(synthetic.parent) not in text  # a page that is passed on says nothing of the machine
    assert "<td>loss/total 7.5</td>" in text  # of the event's ledger


def test_the_numbers_can_be_read_back(synthetic):
    data = data_of((synthetic / "report.html").read_text(encoding="utf-8"))
    (run,) = data["runs"]
    rows = [json.loads(line) for line in (synthetic / "metrics.jsonl").read_text().splitlines()]
    assert set(run["series"]) == {*rows[0], "time/step_seconds", "val/prediction/copy"} - {"step"}
    for name in set(rows[0]) - {"step"}:
        steps, values = run["series"][name]
        assert steps == [row["step"] for row in rows]
        np.testing.assert_allclose(values, [row[name] for row in rows], rtol=1e-4)
    assert run["series"]["val/prediction/copy"][1][0] == pytest.approx(0.2 / 0.4)
    assert (run["step"], run["numSteps"], run["config"]["cache_dir"]) == (200, 200, "<none>")


def test_probes_stand_beside_their_floors():
    page = report_probes.probe_tables(PROBES)
    assert "rule/&lt;arc1&gt;" in page and "<b>0.517</b>" in page and "[0.467, 0.567]" in page
    assert '<span class="good">+0.167 [+0.100, +0.200]</span> tables' in page
    assert '<span class="bad">-0.239 [-0.300, -0.200]</span> tables' in page
    Reader(page)
    assert "did not ask for probes" in report_probes.probe_tables({})
    assert 'left:46.7%;width:10.0%"' in page and "left:12.5%" in page and "left:35.0%" in page


def test_a_verdict_says_the_worst_first(synthetic):
    run = report_run.read(synthetic, "x")
    kinds = ("serious", "warning", "warning", "note")
    found = [report_page_finding(kind, i) for i, kind in enumerate(kinds)]
    assert report_page.summary(run._replace(findings=found, unjudged=0)) == "1 serious finding, 2 warnings, 1 note."
    assert report_page.summary(run._replace(findings=[], unjudged=3)).startswith("Nothing is found wrong. 3 of")
    page = report_page.verdict([run._replace(findings=found)])
    assert [page.index(f"name-{i}") for i in range(4)] == sorted(page.index(f"name-{i}") for i in range(4))


def report_page_finding(kind, i):
    from jepa.findings import Finding

    return Finding(f"name-{i}", kind, 10, "metric 1 at step 10", "A cause.", "a.key = 1")


def test_a_run_in_progress_says_so(tmp_path):
    workdir = make_run(tmp_path / "half", planned=1000, probes=False)
    with open(workdir / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 210, "loss/to')
    report.main([str(workdir), f"--output={tmp_path / 'page.html'}"])
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "step 200 of 1,000" in text and "in progress, of 1,000" in text and "There are no probes yet" in text
    assert '<ul class="notes">' not in text  # a half-written line is no damage
    assert not (workdir / "report.html").exists()


def test_a_damaged_record_is_read_as_far_as_it_goes(tmp_path, capsys):
    workdir = make_run(tmp_path / "damaged", steps=range(10, 60, 10))
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    lines[1] = lines[1][:40]
    lines[2] = "\x00\ufffd"
    lines[3] = '{"step": 40, "loss/total": "NaN", "grad/norm": "Infinity", "loss/sigreg": [], "odd": null}'
    (workdir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (workdir / "probes.json").write_text('{"probes": {"pooled": {"rows": ')
    (workdir / "events").mkdir()
    (workdir / "events" / "30-spike.json").write_text("no JSON")
    report.main([str(workdir)])
    text = (workdir / "report.html").read_text(encoding="utf-8")
    check_stands_by_itself(text)
    assert "2 lines of metrics.jsonl cannot be read" in text and "×: not finite." in text
    assert "probes.json cannot be read" in text and "30-spike.json cannot be read" in text
    (run,) = data_of(text)["runs"]
    assert run["series"]["loss/total"][0] == [10, 40, 50] and run["series"]["loss/total"][1][1] == "NaN"
    assert run["series"]["grad/norm"][1][1] == "Infinity" and run["series"]["loss/sigreg"][0] == [10, 50]


def test_several_runs_are_drawn_over_one_another(tmp_path):
    first = make_run(tmp_path / "a" / "seed0", steps=range(10, 7010, 10), planned=9000, only="loss")
    second = make_run(tmp_path / "b" / "seed0", planned=9000, only="loss", max_grad_norm=0.125)
    report.main([str(first), str(second)])
    text = (first / "report.html").read_text(encoding="utf-8")
    svgs = check_stands_by_itself(text)
    data = data_of(text)
    assert [run["name"] for run in data["runs"]] == ["a/seed0", "b/seed0"]
    total = svgs[0]
    assert "var(--c0)" in total and "var(--c1)" in total and "var(--c2)" not in total
    assert re.search(r'<th scope="row">max_grad_norm</th><td>[\d.]+</td><td>0.125</td>', text)
    assert not re.search(r'<th scope="row">(batch_size|num_steps)</th>', text)
    assert max(len(steps) for steps, _ in data["runs"][0]["series"].values()) <= report_figures.POINTS


def test_long_records_fit_the_page(tmp_path):
    steps = np.arange(1, 20_001)
    series = {f"metric/{i}": report_run.Series(steps, np.sin(steps * (i + 1))) for i in range(400)}
    run = report_run.read(make_run(tmp_path / "x", steps=range(10, 30, 10)), "x")
    run = run._replace(record=run.record._replace(series=series))
    points = report_page.points_of_curve([run])
    assert points >= 60 and points * 400 <= 1.01 * report_page.POINTS_OF_PAGE
    assert report_page.points_of_curve([run._replace(record=run.record._replace(series={}))]) == report_figures.POINTS


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "as in python -m jepa.report runs/x"),
        (["{tmp}/nowhere"], "is not the folder of a run"),
        (["{tmp}/empty"], "the run has not logged a step yet"),
        (["{tmp}/run", "{tmp}/run"], "the same run is named twice"),
        (["{tmp}/run", "--output={tmp}/no/page.html"], "a folder that exists"),
        (["{tmp}/run", "--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, capsys, arguments, said):
    make_run(tmp_path / "run", steps=range(10, 30, 10))
    make_run(tmp_path / "empty", steps=range(0))
    with pytest.raises(SystemExit) as stop:
        report.main([argument.format(tmp=tmp_path) for argument in arguments])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == ""
    assert captured.err.startswith("jepa: ") and said in captured.err and captured.err.count("\n") == 1


# The gallery.


def by_hand(num_tasks=5):
    """Latents of questions about made-up tasks, random but for the scores of two questions."""
    rng = np.random.default_rng(0)

    def pair():
        return rng.integers(0, 4, (5, 6)).astype(np.uint8), rng.integers(0, 4, (4, 4)).astype(np.uint8)

    tasks = [Task(f"t{i}", [pair() for _ in range(3)], [pair()]) for i in range(num_tasks)]
    questions = _probes.build(tasks, {})
    table = _objects.tokenise(questions.grids, questions.backgrounds)
    asked = questions.rule["training/hard"]
    z = rng.normal(size=(len(questions.grids), 8)).astype(np.float32)
    scores = -np.abs(rng.normal(size=asked.candidates.shape)).astype(np.float32) - 1
    scores[:2, 0] = -0.5
    return report_gallery.Latents("held-out", [t.id for t in tasks], questions, table, z, scores, "", 7)


def test_neighbours_are_the_nearest():
    latents = by_hand()
    facts = latents.questions.facts["training"]
    found = report_gallery.neighbours(latents, lambda row, task: row)
    assert len(found) == report_gallery.QUERIES
    z = latents.pooled
    others = sorted(set(facts.rows.tolist()))
    mean = np.mean([np.linalg.norm(z[i] - z[j]) for i in others for j in others if i != j])
    task_of = dict(zip(facts.rows.tolist(), facts.groups.tolist(), strict=True))
    for query in found:
        i = query["grid"]
        ranked = sorted((np.linalg.norm(z[i] - z[j]), j) for j in others if j != i)[: report_gallery.NEIGHBOURS]
        assert [place for place, *_ in query["near"]] == [j for _, j in ranked]
        for (place, distance, same), (expected, _) in zip(query["near"], ranked, strict=True):
            assert distance == pytest.approx(expected / mean, rel=0.01) and same == (task_of[i] == task_of[place])


def test_candidates_are_ranked_and_the_truth_is_marked():
    latents = by_hand()
    asked = latents.questions.rule["training/hard"]
    found = report_gallery.rules(latents, lambda row, task: row)
    shown = found["shown"]
    assert len(shown) == len(asked.groups) == found["num"] == 5
    for q, rule in enumerate(shown):
        kinds = [kind for _, kind, _ in rule["candidates"]]
        assert kinds.count("true output") == 1 and len(kinds) == asked.candidate_mask[q].sum()
        distances = [distance for *_, distance in rule["candidates"]]
        assert distances[0] == 1 and distances == sorted(distances)
        truth = rule["candidates"][kinds.index("true output")][0]
        assert truth == asked.candidates[q, 0] and rule["input"] == asked.inputs[q]
        best = np.argmax(np.where(asked.candidate_mask[q], latents.scores[q], -np.inf))
        assert rule["candidates"][0][0] == asked.candidates[q, best]
    wins = [rule["candidates"][0][1] == "true output" for rule in shown]
    assert found["top1"] == pytest.approx(np.mean(wins)) and wins[:2] == [True, True]


def test_what_is_shown_is_spread_evenly():
    assert report_gallery.spread(100, 4) == [0, 25, 50, 75]
    assert report_gallery.spread(3, 4) == [0, 1, 2] and report_gallery.spread(0, 4) == []


# A run and its page, and in a browser. What the script below finds is read from the title of the page.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "real"
    config = main.load_config("configs/lejepa_codes.py:tiny")
    config.update(num_steps=5, steps_per_call=5)
    config.optimizer.warmup_steps = 1
    train.run(config, workdir)
    report.main([str(workdir)])
    return workdir


@pytest.mark.slow
def test_the_gallery_is_what_the_model_says(run):
    text = (run / "report.html").read_text(encoding="utf-8")
    check_stands_by_itself(text)
    data = data_of(text)
    (gallery,) = data["gallery"]
    assert len(gallery["objects"]) == report_gallery.OBJECTS and len(gallery["rules"]["shown"]) == report_gallery.RULES

    latents = report_gallery.read(run, "latest")
    rows = latents.questions.facts["training"].rows[:40]
    grids = [latents.questions.grids[row] for row in rows]
    told = jepa.load(run).encode(grids, latents.questions.backgrounds[rows].tolist())
    np.testing.assert_allclose(latents.pooled[rows], told, rtol=1e-4, atol=1e-5)
    for task, _, width, colours, owners, _ in data["grids"]:
        assert len(colours) == len(owners) and len(colours) % width == 0 and task < len(data["tasks"])
    held_out = json.loads((run / "environment.json").read_text())["starts"][-1]["validation_ids"]
    assert set(data["tasks"]) <= set(held_out)


@pytest.mark.slow
def test_a_multi_view_run_has_no_rules_to_match(tmp_path):
    config = main.load_config("configs/lejepa.py:tiny,views")
    config.update(num_steps=5, steps_per_call=5)
    config.optimizer.warmup_steps = 1
    train.run(config, tmp_path / "views")
    report.main([str(tmp_path / "views")])
    (gallery,) = data_of((tmp_path / "views" / "report.html").read_text(encoding="utf-8"))["gallery"]
    assert "multi-view" in gallery["rules"]["missing"] and gallery["neighbours"]


CHECKS = """<script>
const pixels = c => c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
window.addEventListener("load", () => {
  for (const canvas of document.querySelectorAll("canvas")) painters.get(canvas)();
  const size = e => 12 * e.getBoundingClientRect().width / e.viewBox.baseVal.width;
  const svg = [...document.querySelectorAll("svg")].map(size);
  const inside = [...document.querySelectorAll(".figure text")].every(e => {
    const text = e.getBoundingClientRect(), card = e.closest(".figure").getBoundingClientRect();
    return text.left >= card.left && text.right <= card.right;
  });
  document.title = JSON.stringify({
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    legible: Math.min(...svg) >= 11,
    inside,
    drawn: [...document.querySelectorAll("canvas")].every(c => c.width > 1 && pixels(c).some(x => x)),
    truths: document.querySelectorAll(".truth").length,
  });
});
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (500, "light")])  # 500 is the least it opens
def test_a_browser_draws_the_page_without_a_complaint(run, tmp_path, width, scheme):
    copy = tmp_path / "page.html"
    text = (run / "report.html").read_text(encoding="utf-8")
    copy.write_text(text.replace("</body>", CHECKS), encoding="utf-8")
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command += [f"--window-size={width},900", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    found = json.loads(re.search(r"<title>(.*?)</title>", done.stdout, re.S)[1])
    assert found == {"overflow": 0, "legible": True, "inside": True, "drawn": True, "truths": report_gallery.RULES}

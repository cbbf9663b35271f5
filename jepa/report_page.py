"""The parts of the report's page as HTML: verdict, figures, probe tables, events, and how configs differ."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

from jepa import report_curves, report_figures, report_run
from jepa.report_panels import Curve, Panel
from jepa.report_run import Run

POINTS_OF_PAGE = 80_000  # of all curves together: what keeps a page of many runs below 5 MB


def escape(value: Any) -> str:
    return html.escape(str(value))


# The verdict.


def verdict(runs: Sequence[Run]) -> str:
    """Per run: what the doctor finds, the figures that matter most, and what could not be read."""
    return "".join(_verdict(run, many=len(runs) > 1, colour=i) for i, run in enumerate(runs))


def _verdict(run: Run, *, many: bool, colour: int) -> str:
    heading = f'<h3 class="run"><span class="key c{colour}"></span>{escape(run.name)}</h3>' if many else ""
    findings = "".join(
        f'<li class="{f.seriousness}"><h3>{escape(f.name)}<span class="rank">{f.seriousness}, since step {f.since:,}'
        f"</span></h3><p>{escape(f.evidence)}</p>"
        f'<p class="soft">{escape(f.cause)}</p><p><b>Remedy:</b> {escape(f.remedy)}</p></li>'
        for f in run.findings
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in run.notes)
    return (
        f'{heading}<p class="verdict">{escape(summary(run))}</p>'
        + (f'<ul class="findings">{findings}</ul>' if findings else "")
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
        + f'<dl class="tiles">{"".join(_tiles(run))}</dl>'
    )


def summary(run: Run) -> str:
    """The verdict in a sentence or two."""
    kinds = ("serious", "serious findings"), ("warning", "warnings"), ("note", "notes")
    counts = [(sum(f.seriousness == kind for f in run.findings), kind, plural) for kind, plural in kinds]
    said = [f"{n} {plural if n > 1 else plural.removesuffix('s')}" for n, _, plural in counts if n]
    verdict = f"{', '.join(said)}." if said else "Nothing is found wrong."
    blind = f" {run.unjudged} of the doctor's rules have no metrics here to judge by." if run.unjudged else ""
    return verdict[0].upper() + verdict[1:] + blind


def _tiles(run: Run) -> Iterable[str]:
    record, best = run.record, None
    metric = record.config["best_metric"] if "best_metric" in record.config else ""
    if metric in record.series:
        series = record.series[metric]
        known = [(v, s) for s, v in zip(series.steps.tolist(), series.values.tolist(), strict=True) if math.isfinite(v)]
        best = min(known, default=None)
    done = f"in progress, of {record.num_steps:,}" if record.step < record.num_steps else "the last one planned"
    tiles: list[tuple[str, str, str]] = [("step", f"{record.step:,}", done)]
    for name, path, digits, note in (
        ("error over copying", "val/prediction/copy_ratio", 3, "held out; 1 is no better than copying"),
        ("rank of the context", "diag/context/effective_rank", 3, "expected of N(0, I): {}"),
        ("rank of the views", "diag/views/effective_rank", 3, "expected of N(0, I): {}"),
        ("online accuracy", "val/online_accuracy", 3, "held out, of a linear probe"),
        ("smallest deviation", "diag/context/std_min", 2, "of any context dimension; N(0, I) has 1"),
        ("usage of codes", "codes/usage", 2, "share of the codes, over a window"),
        ("steps skipped", "health/skipped", 3, "not finite"),
    ):
        value = report_run.last(run, path)
        if value is not None:
            expected = report_run.last(run, f"{path}_expected")
            tiles.append((name, f"{value:.{digits}g}", note.format("" if expected is None else f"{expected:.3g}")))
    if best is not None:
        tiles.append(("best evaluation", f"{best[1]:,}", f"{metric} {best[0]:.4g}"))
    tiles = tiles[:6]
    for name, value, note in tiles:
        yield f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"


# The figures.


def figures(runs: Sequence[Run]) -> list[tuple[str, str, str]]:
    """(id, title, HTML) of every section of curves. Several runs: colours are runs, and a panel has one metric."""
    names = list(dict.fromkeys(name for run in runs for name in run.record.series))
    points = points_of_curve(runs)
    found = []
    for section in report_curves.sections(names):
        panels = section.panels
        if len(runs) > 1:
            panels = [single for panel in panels for single in report_curves.apart(panel)]
        drawn = [_figure(panel, runs, f"{section.name}{i}", points) for i, panel in enumerate(panels)]
        marks = "; dashed vertical lines are events" if len(runs) == 1 and runs[0].events else ""
        axis = "" if found else f'<p class="soft">All figures go over training steps{marks}.</p>'
        found.append((section.name, section.title, f'{axis}<div class="figures">{"".join(drawn)}</div>'))
    return found


def points_of_curve(runs: Sequence[Run]) -> int:
    """Of each curve, so that all of them fit the page."""
    most = report_figures.POINTS
    total = sum(min(len(series.steps), most) for run in runs for series in run.record.series.values())
    return most if total <= POINTS_OF_PAGE else max(most * POINTS_OF_PAGE // total, 60)


def _figure(panel: Panel, runs: Sequence[Run], name: str, points: int) -> str:
    lines, keys = [], []
    for i, run in enumerate(runs):
        for j, curve in enumerate(panel.curves):
            if curve.metric in run.record.series:
                colour = i if len(runs) > 1 else j
                lines += _lines(run, curve, colour % report_figures.COLOURS, points)
                keys.append((colour % report_figures.COLOURS, run.name if len(runs) > 1 else curve.label))
    if len(runs) == 1 and len(keys) == 1:
        keys = []  # the title says it
    legend = "".join(
        f'<li><span class="key c{colour}"></span><span class="name">{escape(key)}</span></li>' for colour, key in keys
    )
    gap = any(not math.isfinite(value) for line in lines for value in line.values.tolist())
    caption = panel.caption + (" ×: not finite." if gap else "")
    steps = [event["step"] for event in runs[0].events] if len(runs) == 1 else []
    svg = report_figures.draw(lines, name=name, log=panel.log, zero=panel.zero, at=panel.at, events=steps)
    key_list = f'<ul class="key-list">{legend}</ul>' if keys else ""
    return (
        f'<figure class="figure"><h3 id="{name}">{escape(panel.title)}</h3>{key_list}{svg}'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _lines(run: Run, curve: Curve, colour: int, points: int) -> list[report_figures.Line]:
    series = run.record.series
    band = None
    if curve.low in series and curve.high in series:
        low, high = series[curve.low], series[curve.high]
        if len(low.steps) == len(high.steps):
            every = max(1, len(low.steps) // points)
            band = (low.steps[::every], low.values[::every], high.values[::every])
    lines = [report_figures.Line(*report_figures.thin(*series[curve.metric], points), colour, False, band)]
    if curve.beside in series:
        lines.append(report_figures.Line(*report_figures.thin(*series[curve.beside], points), colour, True))
    return lines


# Tables.


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Cells are HTML."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>' for first, *rest in rows
    )
    return f'<div class="wide {kind}"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def config_differences(runs: Sequence[Run]) -> str:
    rows = report_run.config_table(runs)
    if not rows:
        return '<p class="soft">The configs of the runs are the same.</p>'
    return table(
        ["key", *(escape(run.name) for run in runs)],
        ([escape(key), *map(escape, values)] for key, values in rows),
        "config",
    )


def events(run: Run) -> str:
    """What the flight recorder kept; the doctor replays it from the files in the run's folder `events`."""
    aside = ("step", "rows", "trail", "ledger")  # in a place of its own, or for the doctor alone
    names = ["step", *dict.fromkeys(name for event in run.events for name in event if name not in aside)]
    names += ["ledger"] * any("ledger" in event for event in run.events)
    rows = [[_cell(event[name]) if name in event else "" for name in names] for event in run.events]
    return table([escape(name.replace("_", " ")) for name in names], rows, "left events")


def _cell(value: Any) -> str:
    """A value of an event; of the ledger its numbers by name."""
    if isinstance(value, dict):
        return ", ".join(f"{escape(name)} {_cell(number)}" for name, number in value.items())
    return escape(f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value)

"""The report of a suite: the question, the answer, what every claim came to, the variants, curves, how to repeat it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure

from jepa import metrics, run_folder, suite_statistics
from jepa.suite_summary import column, summarise
from jepa.suites import BASE, Run, Suite, changed, is_finished, names

WALL = "wall.json"  # of a run, what it took


def answer(summary: Mapping[str, Any]) -> str:
    """The answer in a sentence: what is confirmed, refuted and undecided."""
    said = []
    for verdict in ("confirmed", "refuted", "undecided"):
        texts = [each["claim"] for each in summary["claims"] if each["verdict"] == verdict]
        if texts:
            said.append(f"{verdict.capitalize()}: {'; '.join(texts)}.")
    return " ".join(said) or "Nothing was claimed; the table says what was measured."


def write(suite: Suite, runs: Sequence[Run], folder: Path, command: Sequence[str], failures: Mapping[str, str]) -> None:
    """report.md, report.json, environment.json and a picture per curve, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = summarise(suite, runs)
    pictures = [draw(suite, runs, name, folder) for name in suite.curves]
    run_folder.atomic_write_json(folder / "report.json", _json(summary))
    run_folder.atomic_write_json(folder / "environment.json", environment(runs))
    run_folder.atomic_write_text(folder / "report.md", page(suite, summary, pictures, command, failures))
    print(f"wrote {folder / 'report.md'}")


def page(
    suite: Suite,
    summary: Mapping[str, Any],
    pictures: Sequence[tuple[str, str]],
    command: Sequence[str],
    failures: Mapping[str, str],
) -> str:
    seeds = summary["seeds"]
    parts = [f"# {suite.question}\n", f"{answer(summary)}\n"]
    if suite.remarks:
        parts.append(f"{suite.remarks}\n")
    floor = (
        " What is in italics learned nothing, and answers the probes of every run alike." if summary["floors"] else ""
    )
    parts.append(
        f"Seeds {', '.join(map(str, seeds))}, the same for every variant; means with 95 % t intervals over seeds, of "
        "probes over tasks as well. `p` is adjusted after Holm, over the claims here and over the variants of a column "
        f"below. A verdict takes {suite_statistics.ENOUGH} paired seeds and p below {suite_statistics.LEVEL}.{floor}\n"
    )
    if summary["claims"]:
        parts += ["## What was claimed\n", _claims(summary)]
    parts += ["## Variants\n", _variants(suite, summary)]
    if summary["differences"]:
        parts += ["## Paired differences to the base\n", _differences(suite, summary)]
    parts += [f"![{name}]({file})\n" for name, file in pictures]
    parts += [
        "## What differs\n",
        table(
            ["variant", "from the base"],
            [
                [name, ", ".join(f"`{key}` {_value(value)}" for key, value in changed(suite, name).items()) or "-"]
                for name in names(suite)
            ],
        ),
    ]
    if failures or summary["missing"]:
        lines = [f"- {name}: {reason}" for name, reason in failures.items()]
        lines += [f"- {name}: {num} of {len(seeds)} runs are missing" for name, num in summary["missing"].items()]
        parts += ["## Failed\n", "\n".join(lines) + "\n"]
    common = ", ".join(f"`{key}` {_value(value)}" for key, value in suite.overrides.items())
    base = f"The base is `{suite.config}`" + (f" with {common}" if common else "")
    ran = "What it ran on, and the minutes it took, are in [environment.json](environment.json)."
    parts += ["## Reproduce\n", f"    {shlex.join(command)}\n", f"{base}. {ran}\n"]
    return "\n".join(parts)


def _claims(summary: Mapping[str, Any]) -> str:
    rows = []
    for each in summary["claims"]:
        if "figure" not in each:
            rows.append([each["claim"], "", "", "", "undecided: not trained"])
            continue
        figure = each["figure"]
        what = f"{figure['metric']} of {figure['variant']}"
        if figure["against"] is not None:
            what += f" {'over' if figure['ratio'] else 'less'} {figure['against']}"
        expected = figure["expects"]
        threshold = figure["threshold"] if figure["threshold"] is not None else 1 if figure["ratio"] else 0
        expected += (
            f" {'a factor ' if figure['ratio'] else ''}{figure['margin']:g} of" if expected == "within" else " than"
        )
        rows.append(
            [each["claim"], f"{what}, {expected} {threshold:g}", _interval(each), _p(each["p"]), each["verdict"]]
        )
    return table(["claim", "figure and expectation", "measured", "p", "verdict"], rows)


def _variants(suite: Suite, summary: Mapping[str, Any]) -> str:
    sides = {"lower": " (lower is better)", "higher": " (higher is better)", "neither": ""}
    header = ["variant", *(metric.title + sides[metric.better] for metric in suite.metrics)]
    rows = [
        [name, *(_interval(own[metric.title]) if metric.title in own else "" for metric in suite.metrics)]
        for name, own in summary["variants"].items()
    ]
    floors = summary["floors"]
    for name in dict.fromkeys(name for own in floors.values() for name in own):
        cells = [floors[metric.title] if metric.title in floors else {} for metric in suite.metrics]
        rows.append([f"*{name}*", *(f"{own[name]:.3g}" if name in own else "" for own in cells)])
    return table(header, rows)


def _differences(suite: Suite, summary: Mapping[str, Any]) -> str:
    found, n = summary["differences"], len(summary["seeds"])
    rows = []
    for name in summary["variants"]:
        if name == BASE:
            continue
        cells = []
        for metric in suite.metrics:
            if metric.title not in found or name not in found[metric.title]:
                cells.append("")
                continue
            each = found[metric.title][name]
            apart = each["p"] < suite_statistics.LEVEL
            cells.append(
                f"{_interval(each, signed=True)}, "
                + (f"p {_p(each['p'])}" if apart else f"indistinguishable at {n} seeds")
            )
        rows.append([name, *cells])
    return table(["variant", *(metric.title for metric in suite.metrics)], rows)


def draw(suite: Suite, runs: Sequence[Run], title: str, folder: Path) -> tuple[str, str]:
    """A picture of a column of the record over steps: the mean of every variant, and a band from the lowest to the
    highest seed. Returns the column and the name of the file."""
    file = f"{title.replace('/', '_')}.svg"
    with rc_context({"svg.hashsalt": "jepa", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        axes = figure.subplots()
        means = []
        for name, colour in zip(names(suite), _colours(len(names(suite))), strict=True):
            curves = [column(run, title) for run in runs if run.variant == name and is_finished(run)]
            if not curves or not len(curves[0][0]):
                continue
            values = np.array([values for _, values in curves])
            means.append(values.mean(0))
            axes.plot(curves[0][0], means[-1], color=colour, linewidth=2 if name == BASE else 1.2, label=name)
            axes.fill_between(curves[0][0], values.min(0), values.max(0), color=colour, alpha=0.12, linewidth=0)
        if means:
            drawn = np.concatenate(means)
            if np.nanmin(drawn) > 0 and np.nanmax(drawn) > 30 * np.nanmin(drawn):
                axes.set_yscale("log")
            figure.legend(loc="outside right upper", frameon=False, fontsize=8)
        axes.set_xlabel("step")
        axes.set_ylabel(title)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(folder / file, metadata={"Date": None})
    return title, file


def _colours(num: int) -> list:
    if num <= 10:
        return [colormaps["tab10"](i) for i in range(num)]
    return [colormaps["turbo"](x) for x in np.linspace(0.05, 0.95, num)]


def environment(runs: Sequence[Run]) -> dict[str, Any]:
    """What the runs ran on and how long they took: one entry for all that share it."""
    shared: dict[str, dict[str, Any]] = {}
    seconds = 0.0
    for run in runs:
        if not is_finished(run):
            continue
        start = json.loads((run.workdir / "environment.json").read_text())["starts"][-1]
        kept = {name: start[name] for name in ("python", "packages", "platform", "backend", "devices", "git")}
        key = json.dumps(kept, sort_keys=True)
        shared.setdefault(key, {**kept, "runs": []})["runs"].append(run.id)
        if (run.workdir / WALL).is_file():
            wall = json.loads((run.workdir / WALL).read_text())
            seconds += wall["seconds"] / wall["together"]
    return {"environments": list(shared.values()), "minutes": round(seconds / 60, 1)}


def _interval(value: Mapping[str, Any], *, signed: bool = False) -> str:
    form = "+.3g" if signed else ".3g"
    if value["low"] is None:
        return f"{value['mean']:{form}}"
    return f"{value['mean']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _value(value: Any) -> str:
    return "none" if value is None else str(value)


def _json(value: Any) -> Any:
    """`value` with numbers that JSON lacks as the strings of `jepa.metrics`."""
    if isinstance(value, Mapping):
        return {name: _json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_json(each) for each in value]
    return metrics.json_number(value) if isinstance(value, float) else value


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under a header, in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"

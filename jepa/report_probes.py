"""The probe table of a run, as HTML: scores with their intervals, beside floors, controls and chance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jepa import image_probe
from jepa.report_page import escape, table

CONTROLS = ("randnet", "tables", "histogram", "pixels")
BASELINES = ("copy", "prototype", "demo_free", "input_only")
HEAD = ("probe", "from 0 to 1", "trained", "95 %", "over the best control", "untrained", *CONTROLS, "foreign demos")
REST = (*(name.replace("_", " ") for name in BASELINES), "no information", "chance")


def probe_tables(result: Mapping[str, Any]) -> str:
    """The tables of `probes.json`; a sentence where the run asked for none.

    Raises KeyError, TypeError or ValueError for what has another form.
    """
    asked = dict(result["probes"]) if "probes" in result else {}
    ways = [planning_table(asked.pop("planning"))] if "planning" in asked else []
    images = [image_table(result["image_probes"])] if "image_probes" in result else []
    grids = [grid_tables(asked)] if asked else []
    return "".join([*grids, *ways, *images]) or '<p class="soft">The run did not ask for probes (config.probes).</p>'


def planning_table(scored: Mapping[str, Any]) -> str:
    """How often planners and floors find the way through two rooms (`jepa.planning_probe`)."""
    legend = (
        '<p class="soft">Share of tasks solved by planning in latent space, from pictures alone. In the bar: <span '
        'class="key c0"></span>share with its 95 % Wilson interval, <span class="key ink"></span>steps at random, '
        '<span class="key c1"></span>an oracle that knows the door. The paired difference to random steps is green '
        "where its interval lies above 0, red where below. Steps: the median of those that got there; nearest: the "
        "mean of the smallest distances to the goal, in pixels.</p>"
    )
    options, by_name = scored["options"], {row["probe"]: row for row in scored["rows"]}
    floors = by_name["random"]["score"], by_name["oracle"]["score"]
    planner = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in options["planner"].items())
    about = f"{options['num_tasks']} tasks from one room to the other, {options['num_steps']} steps each"
    head = ["policy", "from 0 to 1", "solved", "95 %", "over random steps", "steps", "nearest"]
    rows = [_planning_row(row, floors) for row in scored["rows"]]
    return f'{legend}<h3 class="run">{escape(about)}</h3>{table(head, rows)}<p class="soft">{escape(planner)}</p>'


def _planning_row(row: Mapping[str, Any], floors: tuple[float, float]) -> list[str]:
    over = row["over_random"] if "over_random" in row else None
    first = _trained(row | {"chance": floors[0]}, over or {"difference": 0, "low": 0, "high": 0}, floors[1], "")
    steps = "" if row["steps"] is None else f"{row['steps']:.0f}"
    return [*first[:4], first[4] if over else "", steps, f"{row['nearest']:.1f}"]


def image_table(scored: Mapping[str, Any]) -> str:
    """Accuracies of frozen features of images beside their floors (`jepa.image_probe`)."""
    legend = (
        '<p class="soft">Accuracy of frozen features. In the bar: <span class="key c0"></span>score with its 95 % '
        'interval over images, or over the draws of few shots, <span class="key ink"></span>chance, <span '
        'class="key c1"></span>the better floor. The paired difference to it is green where its interval lies above 0, '
        "red where below.</p>"
    )
    sizes = f"{scored['num_held_out']} held-out images, fitted on {scored['num_training']}"
    head = ["probe", "from 0 to 1", "trained", "95 %", "over the better floor", *image_probe.FLOORS, "chance"]
    rows = [_image_row(row) for row in scored["rows"]]
    return legend + f'<h3 class="run">{escape(sizes)}</h3>' + table(head, rows)


def _image_row(row: Mapping[str, Any]) -> list[str]:
    over = row["over_best_floor"]
    floors = [_score(row["floors"], name) for name in image_probe.FLOORS]
    return [*_trained(row, over, row["floors"][over["floor"]]["score"], over["floor"]), *floors, f"{row['chance']:.3f}"]


def _trained(row: Mapping[str, Any], over: Mapping[str, Any], best: float, name: str) -> list[str]:
    """The cells that every probe has: its name, the bar, the score with its interval, and the paired difference."""
    kind = "good" if over["low"] > 0 else "bad" if over["high"] < 0 else ""
    return [
        escape(row["probe"]),
        bar(row["score"], row["low"], row["high"], row["chance"], best),
        f"<b>{row['score']:.3f}</b>",
        f"[{row['low']:.3f}, {row['high']:.3f}]",
        f'<span class="{kind}">{over["difference"]:+.3f} [{over["low"]:+.3f}, {over["high"]:+.3f}]</span> '
        f"{escape(name)}",
    ]


def grid_tables(asked: Mapping[str, Any]) -> str:
    """Those of `jepa.probe`, for every embedding that it looked at."""
    legend = (
        '<p class="soft">Frozen features beside what learned nothing. In the bar: <span class="key c0"></span>score '
        'with its 95 % interval over tasks, <span class="key ink"></span>chance, <span class="key c1"></span>the best '
        "control. The paired difference to that control is green where its interval lies above 0, red where below.</p>"
    )
    parts = []
    for space, scored in asked.items():
        sizes = ", ".join(f"{number} tasks of {name}" for name, number in scored["num_tasks"].items())
        rows = [_row(row) for row in scored["rows"]]
        parts.append(f'<h3 class="run">{escape(space)} embedding, {escape(sizes)}</h3>')
        parts.append(table([*HEAD, *REST], rows))
    return legend + "".join(parts)


def _row(row: Mapping[str, Any]) -> list[str]:
    controls, baselines, over = row["controls"], row["baselines"], row["over_best_control"]
    foreign = [name for name in baselines if name.endswith("_foreign")]
    return [
        *_trained(row, over, controls[over["control"]]["score"], over["control"]),
        _score(row, "untrained"),
        *(_score(controls, name) for name in CONTROLS),
        _score(baselines, foreign[0]) if foreign else "",
        *(_score(baselines, name) for name in BASELINES),
        f"{row['no_information']:.3f}",
        f"{row['chance']:.3f}",
    ]


def bar(score: float, low: float, high: float, chance: float, control: float) -> str:
    """An interval with its score, chance and the best control, from 0 to 1."""
    at = [f"{100 * min(max(value, 0.0), 1.0):.1f}%" for value in (low, chance, control, score)]
    width = f"{100 * (min(max(high, 0.0), 1.0) - min(max(low, 0.0), 1.0)):.1f}%"
    return (
        f'<span class="track"><i style="left:{at[0]};width:{width}"></i><u style="left:{at[1]}"></u>'
        f'<s style="left:{at[2]}"></s><b style="left:{at[3]}"></b></span>'
    )


def _score(estimates: Mapping[str, Any], name: str) -> str:
    return f"{estimates[name]['score']:.3f}" if name in estimates else ""

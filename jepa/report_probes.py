"""The probe table of a run, as HTML: scores with their intervals, beside floors, controls and chance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jepa.report_page import escape, table

CONTROLS = ("randnet", "tables", "histogram", "pixels")
BASELINES = ("copy", "prototype", "demo_free", "input_only")
HEAD = ("probe", "from 0 to 1", "trained", "95 %", "over the best control", "untrained", *CONTROLS, "foreign demos")
REST = (*(name.replace("_", " ") for name in BASELINES), "no information", "chance")


def probe_tables(result: Mapping[str, Any]) -> str:
    """The tables of `probes.json`; a sentence where the run asked for none.

    Raises KeyError, TypeError or ValueError for what has another form.
    """
    if "probes" not in result:
        return '<p class="soft">The run did not ask for probes (config.probes).</p>'
    legend = (
        '<p class="soft">Frozen features beside what learned nothing. In the bar: <span class="key c0"></span>score '
        'with its 95 % interval over tasks, <span class="key ink"></span>chance, <span class="key c1"></span>the best '
        "control. The paired difference to that control is green where its interval lies above 0, red where below.</p>"
    )
    parts = []
    for space, scored in result["probes"].items():
        sizes = ", ".join(f"{number} tasks of {name}" for name, number in scored["num_tasks"].items())
        rows = [_row(row) for row in scored["rows"]]
        parts.append(f'<h3 class="run">{escape(space)} embedding, {escape(sizes)}</h3>')
        parts.append(table([*HEAD, *REST], rows))
    return legend + "".join(parts)


def _row(row: Mapping[str, Any]) -> list[str]:
    controls, baselines, over = row["controls"], row["baselines"], row["over_best_control"]
    foreign = [name for name in baselines if name.endswith("_foreign")]
    best = controls[over["control"]]["score"]
    kind = "good" if over["low"] > 0 else "bad" if over["high"] < 0 else ""
    return [
        escape(row["probe"]),
        bar(row["score"], row["low"], row["high"], row["chance"], best),
        f"<b>{row['score']:.3f}</b>",
        f"[{row['low']:.3f}, {row['high']:.3f}]",
        f'<span class="{kind}">{over["difference"]:+.3f} [{over["low"]:+.3f}, {over["high"]:+.3f}]</span> '
        f"{escape(over['control'])}",
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

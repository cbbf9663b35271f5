"""The report of a suite: the question, the answer, what every claim came to, the variants, curves, how to repeat it."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure

from jepa import metrics, run_folder, suite_statistics
from jepa.suite_statistics import Estimate, Evidence
from jepa.suites import BASE, Claim, Metric, Run, Suite, differences, is_finished, names

WALL = "wall.json"  # of a run, what it took


class Measured(NamedTuple):
    """A figure of every seed of a variant, and, of a probe, its scores under resamples of the tasks, [S, R]."""

    values: np.ndarray  # [S]
    resampled: np.ndarray | None


def measure(run: Run, metric: Metric) -> tuple[float, list[float] | None] | None:
    """A figure of a finished run, with a probe's resampled scores; None where the run has no such figure."""
    result = json.loads((run.workdir / "probes.json").read_text())
    if metric.source == "validation":
        return (result["validation"][metric.name], None) if metric.name in result["validation"] else None
    if metric.source == "probe":
        space, _, name = metric.name.partition(": ")
        asked = result["probes"][space] if "probes" in result and space in result["probes"] else {"rows": ()}
        scores = [row["score"] for row in asked["rows"] if row["probe"] == name]
        return (scores[0], asked["resampled"][name]) if scores else None
    steps, values = column(run, metric.name)
    if not len(values):
        return None
    if metric.source == "last":
        return float(values[-1]), None
    start = values[steps >= run.config.optimizer.warmup_steps][0] if metric.source == "growth" else 1.0
    return float(np.max(values) / start), None


def column(run: Run, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A column of the record and the steps of its values, without the lines that lack it."""
    lines = [line for line in metrics.read_record(run.workdir / "metrics.jsonl") if name in line]
    return np.array([line["step"] for line in lines]), np.array([line[name] for line in lines], float)


def measured_of(suite: Suite, complete: Mapping[str, Sequence[Run]]) -> dict[str, dict[str, Measured]]:
    """The figures that the variants have, by variant and metric. Raises ValueError for one that none has."""
    measured: dict[str, dict[str, Measured]] = {name: {} for name in complete}
    for metric in suite.metrics:
        for name, own in complete.items():
            found = [measure(run, metric) for run in own]
            if None not in found:
                values, resampled = zip(*found, strict=True)
                scores = None if resampled[0] is None else np.array(resampled)
                measured[name][metric.title] = Measured(np.array(values), scores)
        if complete and not any(metric.title in own for own in measured.values()):
            raise ValueError(f"metric {metric.title!r} names {metric.name!r} ({metric.source}), which no run has")
    return measured


def estimate(measured: Measured) -> Estimate:
    variance = 0.0 if measured.resampled is None else float(np.var(measured.resampled.mean(0), ddof=1))
    return suite_statistics.estimate(measured.values, variance)


def difference(a: Measured, b: Measured, *, logarithms: bool = False) -> Estimate:
    """Of a to b, seed by seed and under the same resamples of tasks; of their logarithms, if asked for."""
    of = np.log if logarithms else np.asarray
    resampled = None if a.resampled is None else of(a.resampled) - of(b.resampled)
    return estimate(Measured(of(a.values) - of(b.values), resampled))


def judge(claim: Claim, measured: Mapping[str, Mapping[str, Measured]]) -> Evidence:
    """What the runs say for and against a claim."""
    own = measured[claim.variant][claim.metric]
    threshold, margin = claim.threshold, claim.margin
    if claim.ratio:
        threshold, margin = (None if x is None else math.log(x) for x in (threshold, margin))
    if claim.against is None:
        of = np.log if claim.ratio else np.asarray
        found = estimate(Measured(of(own.values), None if own.resampled is None else of(own.resampled)))
    else:
        found = difference(own, measured[claim.against][claim.metric], logarithms=claim.ratio)
    return suite_statistics.evidence(shifted(found, -(threshold or 0.0)), claim.expects, margin)


def shifted(found: Estimate, by: float) -> Estimate:
    moved = found._replace(mean=found.mean + by)
    return moved if found.low is None else moved._replace(low=found.low + by, high=found.high + by)


def summarise(suite: Suite, runs: Sequence[Run]) -> dict[str, Any]:
    """Everything the report says, as JSON holds it; results only, so that the same runs give the same bytes."""
    finished = {name: [run for run in runs if run.variant == name and is_finished(run)] for name in names(suite)}
    complete = {name: own for name, own in finished.items() if len(own) == len(suite.seeds)}
    measured = measured_of(suite, complete)

    def can_be_judged(claim: Claim) -> bool:
        about = [claim.variant] if claim.against is None else [claim.variant, claim.against]
        return all(name in measured and claim.metric in measured[name] for name in about)

    judged = [claim for claim in suite.claims if can_be_judged(claim)]
    evidence = [judge(claim, measured) for claim in judged]
    claims = [
        {"claim": claim.text, "verdict": verdict, "p": p, "figure": claim._asdict(), **_shown(claim, each.found)}
        for claim, each, (verdict, p) in zip(judged, evidence, suite_statistics.verdicts(evidence), strict=True)
    ]
    claims += [
        {"claim": claim.text, "verdict": "undecided", "p": None} for claim in suite.claims if claim not in judged
    ]
    return {
        "question": suite.question,
        "seeds": list(suite.seeds),
        "claims": claims,
        "variants": {
            name: {title: {**estimate(m)._asdict(), "each": m.values.tolist()} for title, m in own.items()}
            for name, own in measured.items()
        },
        "differences": paired(suite, measured),
        "missing": {name: len(suite.seeds) - len(own) for name, own in finished.items() if name not in complete},
        "runs": {name: [run.id for run in own] for name, own in finished.items()},
    }


def _shown(claim: Claim, found: Estimate) -> dict[str, float | None]:
    """The figure of a claim as a person reads it: with its threshold, and a ratio as one."""
    by = 0.0 if claim.threshold is None else math.log(claim.threshold) if claim.ratio else claim.threshold
    back = shifted(found, by)
    of = math.exp if claim.ratio else float
    return {name: None if (x := getattr(back, name)) is None else of(x) for name in ("mean", "low", "high")}


def paired(suite: Suite, measured: Mapping[str, Mapping[str, Measured]]) -> dict[str, dict[str, Any]]:
    """By metric and variant, the paired difference to the base with its p, Holm-adjusted over the variants."""
    if BASE not in measured:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for metric in suite.metrics:
        others = [name for name in measured if name != BASE and metric.title in measured[name]]
        if metric.title not in measured[BASE]:
            continue
        each = [difference(measured[name][metric.title], measured[BASE][metric.title]) for name in others]
        adjusted = suite_statistics.holm([suite_statistics.p_different(estimate) for estimate in each])
        found[metric.title] = {
            name: {**estimate._asdict(), "p": p} for name, estimate, p in zip(others, each, adjusted, strict=True)
        }
    return found


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
    parts.append(
        f"Seeds {', '.join(map(str, seeds))}, the same for every variant; means with 95 % t intervals over seeds, of "
        "probes over tasks as well. `p` is adjusted after Holm, over the claims here and over the variants of a column "
        f"below. A verdict takes {suite_statistics.ENOUGH} paired seeds and p below {suite_statistics.LEVEL}.\n"
    )
    if summary["claims"]:
        parts += ["## What was claimed\n", _claims(summary)]
    parts += ["## Variants\n", _variants(suite, summary)]
    if summary["differences"]:
        parts += ["## Paired differences to the base\n", _differences(suite, summary)]
    parts += [f"![{name}]({file})\n" for name, file in pictures]
    parts += [
        "## What differs\n",
        _table(
            ["variant", "from the base"],
            [
                [name, ", ".join(f"`{key}` {_value(value)}" for key, value in differences(suite, name).items()) or "-"]
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
    parts += ["## Reproduce\n", f"    {shlex.join(command)}\n", f"{base}.\n"]
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
    return _table(["claim", "figure and expectation", "measured", "p", "verdict"], rows)


def _variants(suite: Suite, summary: Mapping[str, Any]) -> str:
    header = ["variant", *(f"{metric.title} ({metric.better} is better)" for metric in suite.metrics)]
    rows = [
        [name, *(_interval(own[metric.title]) if metric.title in own else "" for metric in suite.metrics)]
        for name, own in summary["variants"].items()
    ]
    return _table(header, rows)


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
    return _table(["variant", *(metric.title for metric in suite.metrics)], rows)


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
    return "none" if value is None else f"`{json.dumps(value)}`" if isinstance(value, dict) else str(value)


def _json(value: Any) -> Any:
    """`value` with numbers that JSON lacks as the strings of `jepa.metrics`."""
    if isinstance(value, Mapping):
        return {name: _json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_json(each) for each in value]
    return metrics.json_number(value) if isinstance(value, float) else value


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"

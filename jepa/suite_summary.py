"""What the runs of a suite measured: figures by variant, paired differences, and a verdict on every claim."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jepa import metrics, suite_statistics
from jepa.suite_statistics import Estimate, Evidence
from jepa.suites import BASE, Claim, Metric, Run, Suite, is_finished, names


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
        row = probe_row(result, metric)
        return None if row is None else (row["score"], result["probes"][space]["resampled"][name])
    steps, values = column(run, metric.name)
    if not len(values):
        return None
    if metric.source == "last":
        return float(values[-1]), None
    if metric.source == "growth":
        values = values[steps >= run.config.optimizer.warmup_steps]
        values = values / values[0]
    return float(np.max(values)), None


def probe_row(result: Mapping[str, Any], metric: Metric) -> dict[str, Any] | None:
    """A row of a finished run's probes; None where it was not asked."""
    space, _, name = metric.name.partition(": ")
    asked = result["probes"][space] if "probes" in result and space in result["probes"] else {"rows": ()}
    return next((row for row in asked["rows"] if row["probe"] == name), None)


def floors(suite: Suite, run: Run) -> dict[str, dict[str, float]]:
    """What stands beside the probes of every run and learned nothing, by metric: chance, an embedding without
    information, and each control (`jepa.controls`), which answers the same questions whatever the run."""
    result, found = json.loads((run.workdir / "probes.json").read_text()), {}
    for metric in suite.metrics:
        row = probe_row(result, metric) if metric.source == "probe" else None
        if row is not None and "controls" in row:
            controls = {name: each["score"] for name, each in row["controls"].items()}
            found[metric.title] = {"chance": row["chance"], "no information": row["no_information"], **controls}
    return found


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
        "floors": next((floors(suite, own[0]) for own in complete.values()), {}),
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

"""What the report reads of a run's folder; what cannot be read becomes a sentence beside the rest."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jepa import findings, metrics
from jepa.findings import Finding, Record, Series


class Run(NamedTuple):
    """A run as it is now. `notes` say in sentences what could not be read."""

    name: str
    workdir: Path
    record: Record
    findings: list[Finding]
    unjudged: int  # rules without their metrics
    probes: dict[str, Any] | None  # probes.json, None while a run is in progress
    events: list[dict[str, Any]]  # of the flight recorder, in the order of their steps
    notes: list[str]


def read(workdir: Path, name: str) -> Run:
    """Raises ValueError where the folder is not one of a run, or has not a line that can be read."""
    record = with_copying(findings.read(workdir))
    notes = []
    for file in ("metrics.jsonl", "timing.jsonl"):
        if (workdir / file).is_file() and (lost := damaged_lines(workdir / file)):
            notes.append(f"{lost} lines of {file} cannot be read and are left out.")
    probes = _json(workdir / "probes.json", notes) if (workdir / "probes.json").is_file() else None
    if probes is not None and not isinstance(probes, dict):
        notes.append("probes.json is not what a run writes and is left out.")
        probes = None
    events = [_json(path, notes) for path in sorted((workdir / "events").glob("*.json"))]
    events = [event for event in events if isinstance(event, dict) and isinstance(_or_none(event, "step"), int)]
    found = findings.examine(record)
    unjudged = len(findings.unjudged(record))
    return Run(name, workdir, record, found, unjudged, probes, sorted(events, key=lambda e: e["step"]), notes)


def names(workdirs: Sequence[Path]) -> list[str]:
    """The names of the folders, with as many of their parents as tell them apart."""
    parts = [workdir.resolve().parts for workdir in workdirs]
    for depth in range(1, max(map(len, parts)) + 1):
        found = ["/".join(some[-depth:]) for some in parts]
        if len(set(found)) == len(set(parts)):
            break
    return found


def with_copying(record: Record) -> Record:
    """The record with the error of copying the last context embedding, which it holds as a ratio alone."""
    error, ratio = "val/prediction", "val/prediction/copy_ratio"
    if error not in record.series or ratio not in record.series:
        return record
    steps, here, there = np.intersect1d(record.series[error].steps, record.series[ratio].steps, return_indices=True)
    with np.errstate(all="ignore"):
        copying = record.series[error].values[here] / record.series[ratio].values[there]
    return record._replace(series=dict(record.series) | {f"{error}/copy": Series(steps, copying)})


def last(run: Run, metric: str) -> float | None:
    """The newest value of a metric, None where it was never recorded."""
    return float(run.record.series[metric].values[-1]) if metric in run.record.series else None


def damaged_lines(path: Path) -> int:
    """Lines of a record that are none, but for a last one that may still be being written."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.split("\n")[:-1] if line.strip()]
    readable = metrics.read_record(path)
    return max(len(lines) - len(readable), 0)


def config_table(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The keys whose values are not the same in all runs, with the value in each; empty where the key is not there."""
    keys = sorted({key for run in runs for key in run.record.config})
    rows = [(key, [_value(run.record.config, key) for run in runs]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def finite(values: np.ndarray) -> list[float | str]:
    """Numbers to five digits, as JSON has them; those that are not finite as in the record."""
    texts: dict[bool, Callable[[float], float | str]] = {
        True: lambda x: float(f"{x:.5g}"),
        False: lambda x: "NaN" if np.isnan(x) else "Infinity" if x > 0 else "-Infinity",
    }
    return [texts[bool(np.isfinite(x))](x) for x in values.tolist()]


def _value(config: Any, key: str) -> str:
    return json.dumps(config[key]) if key in config else ""


def _or_none(event: dict[str, Any], key: str) -> Any:
    return event[key] if key in event else None


def _json(path: Path, notes: list[str]) -> Any:
    """What the file holds; None, and a note, where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        notes.append(f"{path.name} cannot be read and is left out.")
        return None

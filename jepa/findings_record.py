"""What the rules of `jepa.findings` read: a run's metrics as series, its config flat, and questions asked of both."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jepa import metrics, run_folder


class Series(NamedTuple):
    """One metric over a run: the steps at which it was recorded, ascending, and its values there."""

    steps: np.ndarray  # int [n]
    values: np.ndarray  # float [n]


class Record(NamedTuple):
    """All that a rule knows of a run."""

    series: Mapping[str, Series]  # by metric
    config: Mapping[str, Any]  # by dotted key, values as in JSON
    num_steps: int  # planned
    step: int  # of the last line


class Held(NamedTuple):
    """That a rule holds, since which step, and the metric, steps and numbers that show it, in one clause."""

    since: int
    evidence: str


def record_of(rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> Record:
    """The record of a run from the rows of `jepa.metrics.read_record`, in the order of their steps, and its config.

    Rows of several files may follow one another. Raises ValueError where the config plans no steps.
    """
    config = run_folder.flatten(config)
    if "num_steps" not in config:
        raise ValueError("the config of the run has no num_steps: it is not one that jepa.main wrote")
    columns: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                columns.setdefault(name, {})[row["step"]] = float(value)
    series = {
        name: Series(np.array(sorted(column), int), np.array([column[step] for step in sorted(column)]))
        for name, column in columns.items()
    }
    return Record(series, config, int(config["num_steps"]), max((row["step"] for row in rows), default=0))


def read(workdir: Path | str) -> Record:
    """The record of a finished run, or of one in progress. Raises ValueError where the folder is not one of a run."""
    workdir = Path(workdir)
    config = run_folder.read_config(workdir)
    if not isinstance(config, Mapping):
        raise ValueError(f"{workdir / 'config.json'} holds no config: it should be a JSON object")
    path = workdir / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{workdir} has no metrics.jsonl: the run has not logged a step yet")
    rows = metrics.read_record(path)
    if not rows:
        raise ValueError(f"{path} has no readable line: the run has not logged a step yet, or the file is damaged")
    timing = workdir / "timing.jsonl"
    return record_of(rows + (metrics.read_record(timing) if timing.is_file() else []), config)


# ------------------------------------------------------------------------------------ questions asked of a record


def has(record: Record, *names: str) -> bool:
    """Whether all of these are there: metrics by name or pattern; `config:KEY`, a key of the config that is not None;
    `metric:KEY`, the metric that such a key names."""

    def there(name: str) -> bool:
        kind, _, key = name.rpartition(":")
        if not kind:
            return bool(named(record, name))
        given = key in record.config and record.config[key] is not None
        return given and (kind == "config" or record.config[key] in record.series)

    return all(map(there, names))


def named(record: Record, pattern: str) -> list[str]:
    """The metrics of a pattern such as `diag/*/std`, whose star may stand for several parts of a path."""
    if pattern in record.series:
        return [pattern]
    return fnmatch.filter(record.series, pattern) if "*" in pattern else []


def settled(record: Record) -> int:
    """The step from which a run is judged: a tenth of it is done, and the learning rate has been raised."""
    warmup = record.config["optimizer.warmup_steps"] if "optimizer.warmup_steps" in record.config else 0
    return max(record.num_steps // 10, min(warmup, record.num_steps // 2))


def since(series: Series, step: float) -> Series:
    """The readings from a step on."""
    return Series(*(column[series.steps >= step] for column in series))


def judged(record: Record, name: str) -> Series:
    """The readings of a metric since the run has settled; none where it has no such metric."""
    series = record.series[name] if name in record.series else Series(np.zeros(0, int), np.zeros(0))
    return since(series, settled(record))


def late(record: Record, name: str, least: int = 3) -> Series | None:
    """Those of the second half of the run so far as well; None where they are fewer than `least`."""
    chosen = since(judged(record, name), record.step / 2)
    return chosen if len(chosen.steps) >= least else None


def lasting(series: Series, holds: np.ndarray, least: int = 3) -> int | None:
    """The step since which `holds` [n] has been true, up to the last reading and for `least` readings; else None."""
    if len(holds) < least or not holds[-least:].all():
        return None
    false = np.flatnonzero(~holds)
    return int(series.steps[false[-1] + 1 if len(false) else 0])


def median(series: Series) -> float:
    return float(np.median(series.values))


def rising(series: Series) -> float:
    """Kendall's tau against time: 1 where every reading exceeds all before it, about 0 without a trend.

    Of a long series, that of the medians of a hundred stretches.
    """
    values = series.values
    if len(values) < 2:
        return 0.0
    if len(values) > 100:
        values = np.array([np.median(stretch) for stretch in np.array_split(values, 100)])
    first, second = np.triu_indices(len(values), 1)
    return float(np.mean(np.sign(values[second] - values[first])))


def number(value: float) -> str:
    """To three digits."""
    return f"{value:.3g}" if math.isfinite(value) else "NaN" if math.isnan(value) else "infinity"


def spoken(name: str, series: Series) -> str:
    """`loss/total 0.5 in the median since step 100`, of the readings given."""
    return f"{name} {number(median(series))} in the median since step {series.steps[0]}"


def from_to(name: str, series: Series) -> str:
    """`codes/usage 0.24 at step 10 and 0.02 at step 90`, of the first and the last reading."""
    (first, last), (start, end) = series.steps[[0, -1]], series.values[[0, -1]]
    return f"{name} {number(start)} at step {first} and {number(end)} at step {last}"


def weight(record: Record, term: str) -> float:
    """Of a term in the loss; 0 where it is off or unknown."""
    key = f"weights.{term}"
    return float(record.config[key] or 0.0) if key in record.config else 0.0

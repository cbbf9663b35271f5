"""Where a run's numbers go: the JSONL record, TensorBoard and the console, behind one writer.

A `Writer` has the methods of `clu.metric_writers.MetricWriter` and their argument names. The record,
`metrics.jsonl`, is the truth that every report reads: one JSON object a line, `step` first. JSON knows no NaN:
a number that is not finite is written as one of the strings "NaN", "Infinity" and "-Infinity", as in the JSON
mapping of Protocol Buffers; `read_record` turns them back.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import rich.box
import rich.console
import rich.progress
import rich.table
import tensorboardX

from jepa.run_folder import atomic_write_text

NOT_FINITE = ("NaN", "Infinity", "-Infinity")


class Writer(NamedTuple):
    """write_scalars(step, scalars), write_hparams(hparams), flush(), close()."""

    write_scalars: Callable[[int, Mapping[str, Any]], None]
    write_hparams: Callable[[Mapping[str, Any]], None]
    flush: Callable[[], None]
    close: Callable[[], None]


def multi(*writers: Writer) -> Writer:
    """Writes to each of the writers, in order."""

    def each(method: str) -> Callable[..., None]:
        def call(*args: Any, **kwargs: Any) -> None:
            for writer in writers:
                getattr(writer, method)(*args, **kwargs)

        return call

    return Writer(*(each(method) for method in Writer._fields))


# ---------------------------------------------------------------------------------------------- the record


def open_record(path: Path | str, resume_step: int | None) -> IO[str]:
    """Opens the record to append to, as it was at `resume_step`: later and half-written lines are dropped.

    None starts it anew. Lines of step s must be written before the checkpoint of step s is saved; then a run
    that was killed and resumed has the lines of one that was not.
    """
    path = Path(path)
    if resume_step is None or not path.exists():
        atomic_write_text(path, "")
    else:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if (row := _parse(line)) is not None and row["step"] <= resume_step]
        atomic_write_text(path, "".join(f"{line}\n" for line in kept))
    return open(path, "a", encoding="utf-8", buffering=1)  # a line at a time: a killed process loses none


def read_record(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a record in order, also while it is being written; strings for non-finite numbers as floats."""
    rows = (_parse(line) for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines())
    return [{k: float(v) if v in NOT_FINITE else v for k, v in row.items()} for row in rows if row is not None]


def jsonl(path: Path | str, resume_step: int | None = None) -> Writer:
    """The record. `write_hparams` writes nothing: a run's config has its own file."""
    file = open_record(path, resume_step)

    def write_scalars(step: int, scalars: Mapping[str, Any]) -> None:
        assert "step" not in scalars, "'step' is the line's own key"
        row = {"step": int(step)} | {name: json_number(value) for name, value in scalars.items()}
        file.write(json.dumps(row, allow_nan=False) + "\n")

    return Writer(write_scalars, lambda hparams: None, file.flush, file.close)


def _parse(line: str) -> dict[str, Any] | None:
    """A row, or None for a line that a killed process left half-written."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def json_number(value: Any) -> int | float | str:
    """A scalar as the record writes it."""
    number = np.asarray(value).item()
    if isinstance(number, float) and not math.isfinite(number):
        return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    return number


# --------------------------------------------------------------------------------------------- TensorBoard


def tensorboard(folder: Path | str, resume_step: int | None = None) -> Writer:
    """Event files for TensorBoard. On resume it is told to forget what earlier files hold of later steps.

    Numbers that are not finite are left out, as TensorBoard cannot draw them; the record has them.
    """
    purge = None if resume_step is None else resume_step + 1
    events = tensorboardX.SummaryWriter(str(folder), purge_step=purge)

    def write_scalars(step: int, scalars: Mapping[str, Any]) -> None:
        for name, value in scalars.items():
            number = float(np.asarray(value).item())
            if math.isfinite(number):
                events.add_scalar(name, number, global_step=int(step))

    def write_hparams(hparams: Mapping[str, Any]) -> None:
        text = json.dumps(hparams, indent=2, default=str)
        events.add_text("hparams", "\n".join(f"    {line}" for line in text.splitlines()), global_step=0)

    return Writer(write_scalars, write_hparams, events.flush, events.close)


# --------------------------------------------------------------------------------------------- the console


def console(
    *,
    total_steps: int,
    examples_per_step: int,
    start_step: int = 0,
    every_seconds: float = 10.0,
    total: str = "loss/total",
    weighted: str = "weighted/",
    rank: str = "diag/context/effective_rank",
    rank_ratio: str = "diag/context/rank_ratio",
    stream: IO[str] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Writer:
    """Progress: step, samples/s, time left, the weighted terms of the loss, the effective rank.

    A bar at a terminal; elsewhere a plain line at most every `every_seconds`, and always one for the last step.
    Call `write_scalars` as often as there is news, also with no scalars; numbers not given keep their last value.
    total, weighted, rank, rank_ratio: where those numbers are among the scalars (`weighted` is a prefix).
    rank_ratio is the effective rank over its expectation for an isotropic Gaussian sample of that size.
    """
    stream = sys.stdout if stream is None else stream
    latest: dict[str, float] = {}
    began, shown = clock(), -math.inf
    bar = _bar(stream, total_steps, start_step) if stream.isatty() else None

    def write_scalars(step: int, scalars: Mapping[str, Any]) -> None:
        nonlocal shown
        latest.update({name: float(np.asarray(value).item()) for name, value in scalars.items()})
        speed = (step - start_step) / max(clock() - began, 1e-9)
        left = (total_steps - step) / speed if speed > 0 else math.inf
        text = describe(latest, total=total, weighted=weighted, rank=rank, rank_ratio=rank_ratio)
        pace = f"{speed * examples_per_step:,.0f} samples/s, {_duration(left)} left"
        if bar is not None:
            bar.update(bar.task_ids[0], completed=step, pace=pace, text=text)
        elif clock() - shown >= every_seconds or step >= total_steps:
            shown = clock()
            print(f"step {step}/{total_steps}  {pace}  {text}".rstrip(), file=stream, flush=True)

    def close() -> None:
        if bar is not None:
            bar.stop()

    return Writer(write_scalars, lambda hparams: None, stream.flush, close)


def describe(scalars: Mapping[str, float], *, total: str, weighted: str, rank: str, rank_ratio: str) -> str:
    """Such as `loss 1.31 = prediction 0.81 + sigreg 0.5 | rank 21.3 (0.94 of expected)`, of what is known."""
    parts = []
    terms = {name.removeprefix(weighted): value for name, value in scalars.items() if name.startswith(weighted)}
    if total in scalars:
        equation = " + ".join(f"{name} {value:.4g}" for name, value in terms.items())
        parts.append(f"loss {scalars[total]:.4g}" + (f" = {equation}" if equation else ""))
    if rank in scalars:
        ratio = f" ({scalars[rank_ratio]:.2f} of expected)" if rank_ratio in scalars else ""
        parts.append(f"rank {scalars[rank]:.1f}{ratio}")
    return " | ".join(parts)


def print_table(rows: Sequence[Mapping[str, Any]], *, title: str | None = None, stream: IO[str] | None = None) -> None:
    """Prints rows under the union of their keys, in order of appearance; numbers to four digits, gaps empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD, title_justify="left")
    numeric = {c for c in columns if any(isinstance(row[c], int | float) for row in rows if c in row)}
    for column in columns:
        table.add_column(column, justify="right" if column in numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row[column]) if column in row else "" for column in columns))
    output = rich.console.Console(file=stream, markup=False, highlight=False)
    if not output.is_terminal:  # a log file has no width
        output.width = max(output.width, rich.console.Console(width=10_000).measure(table).maximum)
    output.print(table)


def _bar(stream: IO[str], total_steps: int, start_step: int) -> rich.progress.Progress:
    """A bar with the numbers beside it, redrawn in place."""
    bar = rich.progress.Progress(
        rich.progress.BarColumn(bar_width=20),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[pace]}", markup=False),
        rich.progress.TextColumn("{task.fields[text]}", markup=False),
        console=rich.console.Console(file=stream),
    )
    bar.add_task("", total=total_steps, completed=start_step, pace="", text="")
    bar.start()
    return bar


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _duration(seconds: float) -> str:
    """1:02:03, or ? when it cannot be told."""
    if not math.isfinite(seconds):
        return "?"
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"

"""The bar of long work on files, where there is a terminal to draw it on."""

from __future__ import annotations

import sys

import rich.console
import rich.progress


def bar(what: str) -> rich.progress.Progress:
    """A bar that says what is done, which share of it, and the time that is left."""
    columns = (
        rich.progress.TextColumn(what, markup=False),
        rich.progress.BarColumn(bar_width=20),
        rich.progress.TaskProgressColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("so far,"),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("left"),
    )
    terminal = rich.console.Console(stderr=True)
    return rich.progress.Progress(*columns, console=terminal, transient=True, disable=not sys.stderr.isatty())

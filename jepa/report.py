"""One page about a run, or several side by side: `python -m jepa.report runs/x [runs/y ...]` writes runs/x/report.html.

The page needs no network and loads nothing; the numbers it draws are in it as JSON, too. `report_run` reads the folder,
`report_curves` and `report_panels` say which curves belong together, `report_figures` draws them, `report_page` and
`report_probes` put them into HTML, `report_gallery` asks the model, and `report_rollouts` a world model; `report.html`
is the frame and draws the grids.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jepa import (
    backend,
    checkpoint,
    report_figures,
    report_gallery,
    report_page,
    report_probes,
    report_rollouts,
    report_run,
    run_folder,
)
from jepa.code_tokens import token_of_cells
from jepa.report_run import Run


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise ValueError(f"{message}; as in python -m jepa.report runs/x [runs/y ...] [--output=FILE]")


def main(argv: Sequence[str] | None = None) -> None:
    """A mistake of the user is one sentence and exit code 2, never a traceback."""
    parser = _Parser("python -m jepa.report", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, finished or in progress")
    parser.add_argument("--output", type=Path, help="the page; report.html in the first folder if not given")
    parser.add_argument("--checkpoint", default="latest", help="of the gallery: latest, best, or a step")
    try:
        options = parser.parse_args(argv)
        workdirs = [workdir.expanduser() for workdir in options.runs]
        output = workdirs[0] / "report.html" if options.output is None else options.output.expanduser()
        step = checkpoint.step_of(options.checkpoint)
        backend.select_platform("cpu")  # a page needs no GPU, which a run may be using
        runs = write(workdirs, output, step)
    except (ValueError, OSError) as error:
        print(f"jepa: {error}", file=sys.stderr)
        sys.exit(2)
    for run in runs:
        print(
            f"{run.name}: {report_page.summary(run)}", *(f"  {f.seriousness}: {f.name}" for f in run.findings), sep="\n"
        )
    print(f"done: {output}")


def write(workdirs: Sequence[Path], output: Path, step: checkpoint.Step = "latest") -> list[Run]:
    """Writes the page of the runs; returns what was read of them. Raises ValueError for what is no folder of a run."""
    if len({workdir.resolve() for workdir in workdirs}) < len(workdirs):
        raise ValueError("the same run is named twice: name each folder once")
    runs = [report_run.read(*both) for both in zip(workdirs, report_run.names(workdirs), strict=True)]
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise ValueError(f"--output {output} must be the name of a file in a folder that exists")
    rollouts = [report_rollouts.collect(run.workdir, step) for run in runs]
    run_folder.atomic_write_text(output, render(runs, *collect_galleries(runs, step), rollouts))
    for run, shown in zip(runs, rollouts, strict=True):
        picture = None if shown is None else report_rollouts.animation(shown)
        if picture is not None:
            of = f"-{run.name.replace('/', '-')}" if len(runs) > 1 else ""
            output.with_name(f"{output.stem}{of}-rollouts.png").write_bytes(picture)
    return runs


def collect_galleries(runs: Sequence[Run], step: checkpoint.Step) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The gallery of every run, and the grids they show, each once: `grids` and `tasks` as `page.js` reads them."""
    grids: dict[tuple, int] = {}
    drawn: list[list[Any]] = []
    tasks: dict[str, int] = {}

    def place(grid: np.ndarray, background: int, task: str, table: Mapping[str, np.ndarray]) -> int:
        key = (grid.shape, grid.tobytes(), background, task)
        if key not in grids:
            owners = token_of_cells(grid, background, table)
            grids[key] = len(grids)
            colours = "".join(map(str, grid.ravel().tolist()))
            rows = "".join(np.base_repr(row, 36) for row in owners.ravel().tolist())
            drawn.append([tasks.setdefault(task, len(tasks)), 0, grid.shape[1], colours, rows, {}])
        return grids[key]

    galleries = [{"name": run.name} | report_gallery.collect(run.workdir, step, place) for run in runs]
    return galleries, {"grids": drawn, "tasks": list(tasks)}


def render(
    runs: Sequence[Run],
    galleries: Sequence[Mapping[str, Any]],
    shown: Mapping[str, Any],
    rollouts: Sequence[report_rollouts.Shown | None],
) -> str:
    """The page as text."""
    here = Path(__file__)
    sections = [*report_page.figures(runs), *tables(runs, rollouts)]
    data = {"runs": [run_data(run, report_page.points_of_curve(runs)) for run in runs], "gallery": galleries, **shown}
    steps = "; ".join(f"step {run.record.step:,} of {run.record.num_steps:,}" for run in runs)
    links = [*((name, title) for name, title, _ in sections), ("gallery", "Gallery")]
    names = ", ".join(run.name for run in runs)
    parts = {
        "title": html.escape(f"Report of {names}"),
        "heading": html.escape(f"Report of {names}" if len(runs) < 4 else f"Report of {len(runs)} runs"),
        "about": html.escape(steps),
        "style": here.with_name("page.css").read_text(encoding="utf-8"),
        "script": here.with_name("page.js").read_text(encoding="utf-8"),
        "colours": " ".join(
            f".c{i} {{ color: var(--c{i % report_figures.COLOURS}); }}" for i in range(max(8, len(runs)))
        ),
        "verdict": report_page.verdict(runs),
        "nav": "".join(f'<a href="#{name}">{html.escape(title)}</a>' for name, title in links),
        "sections": "\n".join(
            f'<section id="{name}"><h2>{html.escape(title)}</h2>{body}</section>' for name, title, body in sections
        ),
        # "<" could end the script element that it is in.
        "data": json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    template = here.with_suffix(".html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def tables(runs: Sequence[Run], rollouts: Sequence[report_rollouts.Shown | None]) -> list[tuple[str, str, str]]:
    """(id, title, HTML) of the sections that are no curves, those that there is something to say in."""
    found = []
    imagined = [(run, shown) for run, shown in zip(runs, rollouts, strict=True) if shown is not None]
    if imagined:
        parts = [_named(run, runs) + report_rollouts.section(shown) for run, shown in imagined]
        found.append(("rollouts", "Rollouts", "".join(parts)))
    if any(run.events for run in runs):
        parts = [_named(run, runs) + report_page.events(run) for run in runs if run.events]
        found.append(("events", "Events", "".join(parts)))
    found.append(("probes", "Probes", "".join(_named(run, runs) + _probes(run) for run in runs)))
    if len(runs) > 1:
        found.append(("config", "Config differences", report_page.config_differences(runs)))
    return found


def _named(run: Run, runs: Sequence[Run]) -> str:
    return f'<h3 class="run">{html.escape(run.name)}</h3>' if len(runs) > 1 else ""


def _probes(run: Run) -> str:
    if run.probes is None:
        return '<p class="soft">There are no probes yet: a run evaluates them when its last step is done.</p>'
    try:
        return report_probes.probe_tables(run.probes)
    except (KeyError, TypeError, ValueError):
        return '<p class="soft">The probes of this run are not in the form that this version writes.</p>'


def run_data(run: Run, points: int) -> dict[str, Any]:
    """A run's numbers, for those who would read them back: series as drawn, [steps, values] by metric."""
    thinned = {name: report_figures.thin(*series, points) for name, series in run.record.series.items()}
    return {
        "name": run.name,
        "step": run.record.step,
        "numSteps": run.record.num_steps,
        "config": dict(run.record.config),
        "findings": [finding._asdict() for finding in run.findings],
        "series": {name: [steps.tolist(), report_run.finite(values)] for name, (steps, values) in thinned.items()},
        "events": [{key: event[key] for key in ("step", "kind", "reason") if key in event} for event in run.events],
    }


if __name__ == "__main__":
    main()

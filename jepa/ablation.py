"""Trains what a suite of runs asks for, and reports what they say.

    python -m jepa.ablation --suite=experiments/sigreg.py --dry_run       # what it would train
    python -m jepa.ablation --suite=experiments/sigreg.py --vmap_seeds    # trains, then writes the report

Every run has the folder <root>/<hash of its config and its data>: what is finished is never trained again, and what was
interrupted goes on. Runs that fail are reported and do not stop the rest. The report is
experiments/reports/<suite>/report.md; with --launch=slurm, the same command without it writes the report in the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import rich.progress
from absl import logging

from jepa import (
    backend,
    config_checks,
    dry_run,
    early_stopping,
    launch,
    metrics,
    run_folder,
    seeds,
    suite_report,
    suites,
    train,
)
from jepa.launch import Task
from jepa.parts import build
from jepa.suites import MEMBERS, Job, Run, Suite

EVERY_SECONDS = 10.0  # between lines of progress where there is no terminal


def run_job(path: Path) -> None:
    """Trains the runs of a job file, together if there are several, and notes how long it took."""
    job = json.loads(path.read_text())
    suite = suites.load(job["suite"])
    configs = [suites.resolve(suite, job["variant"], seed) for seed in job["seeds"]]
    for config, saved in zip(configs, job["configs"], strict=True):
        if config_checks.as_json(config) != saved:
            raise ValueError(f"{job['suite']} has changed since {path} was written: start the suite again")
    backend.select_platform(configs[0].platform)
    backend.use_compile_cache(configs[0].cache_dir)
    workdirs = [Path(workdir) for workdir in job["workdirs"]]
    began = time.monotonic()
    try:
        if job["folder"] is None:
            train.run(configs[0], workdirs[0])
        else:
            seeds.run(configs, workdirs, Path(job["folder"]))
    finally:
        note_time(workdirs, time.monotonic() - began)


def note_time(workdirs: Sequence[Path], seconds: float) -> None:
    """Adds to `wall.json` of each run what this process spent on it and on those trained together with it."""
    for workdir in filter(Path.is_dir, workdirs):  # there is none where the config was refused
        path = workdir / suite_report.WALL
        before = json.loads(path.read_text())["seconds"] if path.is_file() else 0.0
        run_folder.atomic_write_json(path, {"seconds": round(before + seconds, 1), "together": len(workdirs)})


def end_with_parent() -> None:
    """Asks this process to stop, as SIGTERM does, once its standard input closes: the parent that held it is gone."""

    def wait() -> None:
        os.read(sys.stdin.fileno(), 1)  # nothing is ever written there: it returns when the pipe closes
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def write_job(job: Job, suite_path: str, root: Path) -> Path:
    """The file a process reads what to train from."""
    path = root / "jobs" / f"{job.id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if job.folder is not None:
        job.folder.mkdir(parents=True, exist_ok=True)
        run_folder.atomic_write_json(job.folder / MEMBERS, [run.id for run in job.runs])
    described = {
        "suite": suite_path,
        "variant": job.variant,
        "seeds": [run.seed for run in job.runs],
        "configs": [config_checks.as_json(run.config) for run in job.runs],
        "workdirs": [str(run.workdir) for run in job.runs],
        "folder": None if job.folder is None else str(job.folder),
    }
    run_folder.atomic_write_json(path, described)
    return path


def tasks(jobs: Sequence[Job], suite_path: str, root: Path, *, attached: bool) -> list[Task]:
    """The commands that train the jobs. attached: they end when this process does."""
    found = []
    for job in jobs:
        command = (sys.executable, "-m", "jepa.ablation", f"--job={write_job(job, suite_path, root)}")
        found.append(Task(job.id, (*command, "--attached") if attached else command, root / "jobs" / f"{job.id}.log"))
    return found


def last_line(log: Path) -> str:
    """What a process said last: of one that failed, why."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.is_file() else []
    return lines[-1].removeprefix("jepa: ") if lines else "it printed nothing"


def reached(job: Job) -> int:
    """The last step in the record of a job's first run."""
    record = job.runs[0].workdir / "metrics.jsonl"
    lines = metrics.read_record(record) if record.is_file() else []
    return lines[-1]["step"] if lines else 0


def describe(job: Job) -> str:
    together = f"seeds {', '.join(str(run.seed) for run in job.runs)}" if job.folder else f"seed {job.runs[0].seed}"
    return f"{job.variant}, {together}"


class Shown(NamedTuple):
    """Where progress goes: `watch` the jobs that run, every moment; `say` a line that stays; `close` in the end."""

    watch: Callable[[Sequence[Task]], None]
    say: Callable[[str], None]
    close: Callable[[], None]


def show(jobs: Sequence[Job]) -> Shown:
    """A bar for every job that runs, at a terminal; elsewhere a line every `EVERY_SECONDS`."""
    by_id = {job.id: job for job in jobs}
    if not sys.stdout.isatty():
        said_at = time.monotonic()

        def watch(running: Sequence[Task]) -> None:
            nonlocal said_at
            if time.monotonic() - said_at >= EVERY_SECONDS:
                said_at = time.monotonic()
                at = (f"{describe(by_id[t.id])} {reached(by_id[t.id])}/{last_step(by_id[t.id])}" for t in running)
                print("; ".join(at), flush=True)

        return Shown(watch, lambda text: print(text, flush=True), lambda: None)
    columns = (rich.progress.TextColumn("{task.description}", markup=False), rich.progress.BarColumn(bar_width=20))
    bars = rich.progress.Progress(
        *columns, rich.progress.MofNCompleteColumn(), rich.progress.TimeElapsedColumn(), refresh_per_second=2
    )
    known: dict[str, rich.progress.TaskID] = {}
    bars.start()

    def watch_bars(running: Sequence[Task]) -> None:
        ids = {task.id for task in running}
        for gone in set(known) - ids:
            bars.remove_task(known.pop(gone))
        for name in ids:
            job = by_id[name]
            if name not in known:
                known[name] = bars.add_task(describe(job), total=last_step(job))
            bars.update(known[name], completed=reached(job))

    return Shown(watch_bars, lambda text: bars.console.print(text, markup=False, highlight=False), bars.stop)


def last_step(job: Job) -> int:
    return job.runs[0].config.num_steps


def train_all(jobs: Sequence[Job], finished: Iterable[tuple[Task, int]], say: Callable[[str], None]) -> dict[str, str]:
    """Goes through the tasks as they end; by job, the reason of each that failed."""
    by_id, failures = {job.id: job for job in jobs}, {}
    for number, (task, status) in enumerate(finished, 1):
        name, said = describe(by_id[task.id]), "finished"
        if status and not all(suites.is_finished(run) for run in by_id[task.id].runs):
            failures[name] = last_line(task.log)
            said = f"failed: {failures[name]} ({task.log})"
        say(f"[{number}/{len(jobs)}] {name} {said}")
    return failures


def plan(suite: Suite, planned: Sequence[Run], jobs: Sequence[Job]) -> None:
    """Prints what would be trained: every variant, what it changes, its steps, and the time that is left to spend."""
    seconds = step_seconds(suite, planned)
    rows, left = [], 0.0
    for name in suites.names(suite):
        own = [run for run in planned if run.variant == name]
        todo = [run for job in jobs if job.variant == name for run in job.runs]
        steps = own[0].config.num_steps
        spent = seconds * steps * own[0].config.batch_size / planned[0].config.batch_size * len(todo)
        left += spent
        changed = ", ".join(f"{key}={value}" for key, value in suites.changed(suite, name).items())
        rows.append(
            {
                "variant": name,
                "from the base": changed or "-",
                "runs": len(own),
                "to train": len(todo),
                "steps": steps,
                "minutes": round(spent / 60, 1),
            }
        )
    metrics.print_table(rows, title=suite.question)
    print(
        f"{sum(len(job.runs) for job in jobs)} of {len(planned)} runs to train, about {left / 60:.0f} minutes of steps "
        f"at the pace of the base, {seconds * 1e3:.0f} ms each; compiling, evaluation and probes come on top"
    )


def step_seconds(suite: Suite, planned: Sequence[Run]) -> float:
    """Seconds per step of the base by itself, measured."""
    config = planned[0].config
    backend.select_platform(config.platform)
    backend.use_compile_cache(config.cache_dir)
    parts = build(config)
    try:
        return dry_run.step_seconds(config, parts)
    finally:
        parts.source.close()


def run_suite(suite: Suite, options: argparse.Namespace) -> int:
    """Trains and reports; the exit status, 1 where a run failed."""
    root = options.root.expanduser()
    planned = suites.runs(suite, root)
    jobs = suites.jobs(planned, root, together=options.vmap_seeds)
    if options.dry_run:
        plan(suite, planned, jobs)
        return 0
    failures: dict[str, str] = {}
    if jobs and options.launch == "slurm":
        ids = launch.slurm(tasks(jobs, options.suite, root, attached=False), root / "slurm", options=options.slurm)
        print(f"submitted {len(ids)} tasks, {ids[0]} to {ids[-1]}: once they end, the same command writes the report")
        return 0
    if jobs:
        shown = show(jobs)
        try:
            if options.launch == "ray":
                todo = tasks(jobs, options.suite, root, attached=False)
                finished = launch.ray(
                    todo, address=options.ray_address, num_cpus=options.ray_cpus, num_gpus=options.ray_gpus
                )
            else:
                todo = tasks(jobs, options.suite, root, attached=True)
                finished = launch.local(todo, num=options.jobs, watch=shown.watch)
            failures = train_all(jobs, finished, shown.say)
        finally:
            shown.close()
    folder = options.reports / Path(options.suite).stem
    suite_report.write(suite, planned, folder, command(options), failures)
    return 1 if failures else 0


def command(options: argparse.Namespace) -> list[str]:
    """The command that repeats the report."""
    words = ["python", "-m", "jepa.ablation", f"--suite={options.suite}"]
    if options.seeds:
        words.append(f"--seeds={','.join(map(str, options.seeds))}")
    return [*words, "--vmap_seeds"] if options.vmap_seeds else words


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jepa.ablation", description=__doc__.splitlines()[0])
    parser.add_argument("--suite", help="the file of the suite, such as experiments/sigreg.py")
    parser.add_argument("--root", type=Path, default=Path("runs/ablation"), help="where the runs are")
    parser.add_argument("--reports", type=Path, default=Path("experiments/reports"), help="where the reports are")
    parser.add_argument("--dry_run", action="store_true", help="print what would be trained, and for how long")
    parser.add_argument("--vmap_seeds", action="store_true", help="train all seeds of a variant as one program")
    parser.add_argument("--seeds", type=integers, help="other seeds than the suite's, comma-separated")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--launch", choices=("local", "slurm", "ray"), default="local")
    parser.add_argument(
        "--slurm",
        type=assignment,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a parameter of submitit's SlurmExecutor, such as partition=gpu or time=60; may be repeated",
    )
    parser.add_argument("--ray_address", help="of the cluster; one on this machine if not given")
    parser.add_argument("--ray_cpus", type=float, default=1, help="CPUs that a process asks of the cluster")
    parser.add_argument("--ray_gpus", type=float, default=0, help="GPUs that a process asks of the cluster")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)  # what a process of a suite is given
    parser.add_argument("--attached", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if not options.job and not options.suite:
        parser.error("there is no --suite, such as --suite=experiments/sigreg.py")
    if options.jobs < 1:
        parser.error(f"--jobs is {options.jobs}; it must be at least 1")
    options.slurm = dict(options.slurm)
    return options


def integers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def assignment(text: str) -> tuple[str, Any]:
    """`time=60` as ("time", 60)."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, int(value) if value.isdigit() else value


def run(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    if options.job:
        if options.attached:
            end_with_parent()
        run_job(options.job)
        return 0
    suite = suites.load(options.suite)
    if options.seeds:
        suite = dataclasses.replace(suite, seeds=options.seeds)
        suites.check(suite)
    return run_suite(suite, options)


def main() -> None:
    """The entry point: a mistake of the user is one sentence and exit code 2, never a traceback."""
    signal.signal(signal.SIGTERM, _interrupt)
    logging.set_verbosity(logging.WARNING)  # Orbax reports every step of every save otherwise
    try:
        status = run()
    except KeyboardInterrupt:
        print("jepa: interrupted; what was trained is saved, and the same command goes on", file=sys.stderr)
        status = 128 + signal.SIGINT
    except train.Interrupted as stop:
        print(f"jepa: {stop}")
        status = 128 + stop.signal
    except (ValueError, FloatingPointError, OSError, early_stopping.Aborted) as error:
        print(f"jepa: {error}", file=sys.stderr)
        status = 2
    sys.exit(status)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
